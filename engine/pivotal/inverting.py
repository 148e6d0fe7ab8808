"""From pictures to inversions: looked up, run together, and told in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from .cache import InversionCache
from .driver import Job, Listener
from .errors import Cancelled, NonFiniteError, PivotalError
from .images import ImageSource
from .inversion.base import Inverted
from .inversion_file import Inversion
from .inversion_task import Settings, Task, read_task
from .quality import noise_std_ratio
from .query import Progress
from .running import Clock, Runner, as_one_call, require_finite
from .watching import Watch


@as_one_call
def invert_many(
    runner: Runner,
    cache: InversionCache | None,
    images: Sequence[ImageSource],
    prompts: Sequence[str],
    settings: Settings,
    watch: Watch,
    max_rows: int | None = None,
) -> list[Inversion | Exception]:
    """An inversion or an error for each image. Equal images with equal prompts are inverted once.

    Raises Cancelled, after what had been finished is in the cache.
    """
    outcomes: dict[int, Inversion | Exception] = {}
    places: dict[tuple[str, str], list[int]] = {}  # of each distinct task
    tasks: dict[tuple[str, str], Task] = {}
    for place, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        try:
            task = read_task(image, prompt, settings)
        except (ValueError, PivotalError) as error:
            outcomes[place] = error
            continue
        same = (task.image_digest, task.prompt)
        tasks.setdefault(same, task)
        places.setdefault(same, []).append(place)
    found = _invert_distinct(runner, cache, list(tasks.values()), settings, watch, max_rows)
    for same, outcome in zip(tasks, found, strict=True):
        outcomes.update(dict.fromkeys(places[same], outcome))
    return [outcomes[place] for place in range(len(images))]


def _invert_distinct(
    runner: Runner,
    cache: InversionCache | None,
    tasks: Sequence[Task],
    settings: Settings,
    watch: Watch,
    max_rows: int | None,
) -> list[Inversion | Exception]:
    outcomes: list[Inversion | Exception | None] = [None] * len(tasks)
    runs: dict[int, _Run] = {}
    for place, task in enumerate(tasks):
        watch.check("inverting")
        kept = None if cache is None else _from_cache(runner, cache, task, settings)
        if kept is not None:
            outcomes[place] = kept
            continue
        if not runs:
            max_rows = _rows_that_fit(runner, settings, tasks, max_rows)
        try:
            runs[place] = _Run.planned(runner, task, settings)
        except (ValueError, PivotalError) as error:
            outcomes[place] = error
    jobs = [run.job for run in runs.values()]
    if watch.on_progress is not None:
        _tell_the_slowest(jobs, watch.on_progress)
    clock = Clock()
    try:
        runner.run(jobs, watch.cancellation, max_rows=max_rows)
    finally:  # what had ended before an interruption is kept
        clock.lap("invert")
        for place, run in runs.items():
            outcomes[place] = run.outcome(runner, settings, clock.laps["invert"], len(jobs))
            if cache is not None and isinstance(outcomes[place], Inversion):
                cache.put(outcomes[place])  # type: ignore[arg-type]
    for outcome in outcomes:
        if isinstance(outcome, Cancelled):
            raise outcome
    return outcomes  # type: ignore[return-value]


def _rows_that_fit(
    runner: Runner, settings: Settings, tasks: Sequence[Task], max_rows: int | None
) -> int | None:
    largest = max((task.picture.size for task in tasks), key=math.prod)
    return runner.rows_that_fit(
        lambda planner: planner.inversion(
            settings.method, settings.options, settings.schedule, largest, images=len(tasks)
        ),
        max_rows,
    )


@dataclass(frozen=True)
class _Run:
    """A task on its way: its latents [1, C, h, w] and its job."""

    task: Task
    latents: torch.Tensor
    job: Job[Inverted]
    seconds: float  # of reading and encoding
    overflows: dict[str, int]  # before it ran

    @staticmethod
    def planned(runner: Runner, task: Task, settings: Settings) -> _Run:
        clock = Clock()
        method = settings.method
        conditioning = runner.encode([task.prompt], task.picture)
        null = runner.encode([settings.negative_prompt], task.picture, negative=True)
        latents = runner.encode_picture(task.picture.pixels)
        algorithm = method.invert(settings.schedule, latents, conditioning, null, settings.options)
        clock.lap("encode")
        job = Job(algorithm, f"the inversion of {task.prompt!r}", method.name)
        return _Run(task, latents, job, task.seconds + clock.laps["encode"], runner.overflows)

    def outcome(
        self, runner: Runner, settings: Settings, seconds: float, company: int
    ) -> Inversion | Exception:
        """seconds: wall clock of the whole run. company: images that ran together."""
        job, method = self.job, settings.method
        if job.error is not None or not job.done:  # a KeyboardInterrupt goes its own way
            interrupted = Cancelled(f"{job.name} was interrupted")
            return job.error if isinstance(job.error, Exception) else interrupted
        inverted = job.result()
        try:
            for tensor in (inverted.noise, *inverted.stored.values()):
                require_finite(tensor, f"{method.name} inversion")
        except NonFiniteError as error:
            return error
        model = runner.model
        grid = method.grid(settings.schedule, settings.options)
        return Inversion(
            picture=self.task.picture,
            prompt=self.task.prompt,
            method=method.name,
            options=asdict(settings.options),
            guidance_scale=settings.guidance_scale,
            num_inference_steps=settings.schedule.steps,
            latents=self.latents,
            inverted=inverted,
            model=model.name,
            family=model.family.name,
            fingerprint=model.fingerprint,
            image_digest=self.task.image_digest,
            schedule=grid.record(),
            negative_prompt=settings.negative_prompt,
            report={
                "cached": False,
                "seconds": {
                    "load": runner.load_seconds,
                    "encode": self.seconds,
                    "invert": seconds,
                },
                "images_at_once": company,
                "unet_rows": job.rows_asked,
                "noise_std_ratio": noise_std_ratio(inverted.noise, grid.levels[-1]),
                "device": str(model.device),
                "dtype": runner.dtype_name,
                "additions": model.additions,
                "precision": runner.numerics,
                **runner.ran_on(self.overflows),
            },
        )


def _from_cache(
    runner: Runner, cache: InversionCache, task: Task, settings: Settings
) -> Inversion | None:
    """What the cache has for a task; its report tells this call's seconds, and the first one's.

    The model goes by the name that it has now: equal weights may have moved. So do replays by the
    guidance scale that is asked for now.
    """
    clock = Clock()
    kept = cache.get(
        cache.key(
            image_digest=task.image_digest,
            size=task.picture.size,
            policy=task.picture.policy,
            fingerprint=runner.model.fingerprint,
            prompt=task.prompt,
            negative_prompt=settings.negative_prompt,
            schedule=settings.method.grid(settings.schedule, settings.options).record(),
            method=settings.method.name,
            options=asdict(settings.options),
            dtype=runner.dtype_name,
            precision=runner.numerics,
        )
    )
    if kept is None:
        return None
    clock.lap("lookup")
    first = {name: kept.report.get(name) for name in ("seconds", "unet_rows", "device")}
    seconds = {
        "load": runner.load_seconds,
        "encode": task.seconds + clock.laps["lookup"],
        "invert": 0.0,
    }
    now = replace(kept, model=runner.model.name, guidance_scale=settings.guidance_scale)
    return now.with_report({"cached": True, "first": first, "seconds": seconds, "unet_rows": 0})


def _tell_the_slowest(jobs: Sequence[Job[Inverted]], listener: Listener) -> None:
    """Of jobs that run together, pass on a notice when the last of them has come as far."""
    heard = dict.fromkeys(range(len(jobs)), 0)
    told = 0

    def listen_to(place: int) -> Listener:
        def listen(notice: Progress) -> None:
            nonlocal told
            heard[place] += 1
            if min(heard[each] for each, job in enumerate(jobs) if not job.done) > told:
                told += 1
                listener(notice)

        return listen

    for place, job in enumerate(jobs):
        job.listener = listen_to(place)
