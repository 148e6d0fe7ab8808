"""From an inversion back to pictures: reconstructions, and Prompt-to-Prompt edits beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from .control import Control, NoEdit
from .driver import Job
from .editing.edit import Edit, bounds
from .editing.masks import WordMaps, allowed_pixels, pixel_weights, put_back
from .editing.prompt_to_prompt import PromptToPrompt
from .editing.routes import WORD_COLUMNS
from .errors import InversionFileError, ModelError
from .images import psnr
from .inversion.registry import method_named
from .inversion_file import Inversion
from .model.fingerprint import DISPLAYED
from .negative_prompts import under_negative
from .quality import dominant_error
from .query import Conditioning
from .results import Edited, Reconstruction
from .running import Clock, Runner, Watch, require_finite

TARGETS_AT_ONCE = WORD_COLUMNS // 2


def replay(
    runner: Runner,
    inversion: Inversion,
    prompts: Sequence[str],
    guidance_scale: float,
    control: Control,
    watch: Watch,
) -> Job[Tensor]:
    """Sample one row for each prompt back from an inversion, the source's first.

    The job's result is latents [R, C, h, w]. Raises what ended it.
    """
    model, size = runner.model, inversion.picture.size
    method = method_named(inversion.method)
    schedule = model.levels.schedule(inversion.num_inference_steps)
    conditioning = runner.encode(prompts, inversion.picture)
    inverted = inversion.inverted.to(model.device).expand(len(prompts))
    method.check(inverted, inversion.num_inference_steps, conditioning)
    options = method.options_from(inversion.options)
    algorithm = method.replay(
        schedule,
        inverted,
        conditioning,
        runner.encode([inversion.negative_prompt] * len(prompts), inversion.picture),
        guidance_scale,
        watch.over(control, method.grid(schedule, options)),
        options,
    )
    name = f"{method.name} replay"
    job = Job(algorithm, name, name, watch.on_progress)
    rows = len(prompts)
    what = f"sampling {rows} row{'s' * (rows != 1)} of {size[0]} x {size[1]}"
    max_rows = runner.rows_that_fit(
        lambda planner: planner.sampling(
            what, size, rows=rows, least=rows, guided=guidance_scale != 1
        ),
        tied=rows,
    )
    runner.run([job], watch.cancellation, max_rows=max_rows)
    require_finite(job.result(), name)
    watch.check(name)
    return job


def reconstruct(
    runner: Runner,
    inversion: Inversion,
    guidance_scale: float | None,
    watch: Watch,
    negative_prompt: str | None = None,
) -> Reconstruction:
    """The inversion without an edit, and what was lost to what."""
    clock = Clock()
    require_fitting(runner, inversion)
    scale = inversion.guidance_scale if guidance_scale is None else guidance_scale
    scale = runner.checked_scale(scale)
    inversion = under_negative(inversion, negative_prompt, scale)
    overflows = runner.overflows
    job = replay(runner, inversion, [inversion.prompt], scale, NoEdit(), watch)
    clock.lap("sample")
    found = reconstruction(runner, inversion, job, scale, clock, overflows)
    if found.dominant_error is not None:
        return found
    quiet = Watch(watch.on_progress, None, watch.cancellation)
    unguided = replay(runner, inversion, [inversion.prompt], 1.0, NoEdit(), quiet)
    alone = runner.pictures(unguided.result())[0]
    clock.lap("attribute")
    source = inversion.picture.pixels
    return found.attributed(dominant_error(source, found.round_trip, found.picture, alone))


def reconstruction(
    runner: Runner,
    inversion: Inversion,
    job: Job[Tensor],
    scale: float,
    clock: Clock,
    overflows: Mapping[str, int],
) -> Reconstruction:
    """What an ended replay's first row, the source's, says of its inversion. overflows: the
    runner's, before it began.
    """
    round_trip, picture = runner.pictures(
        torch.cat([inversion.latents.to(runner.model.device), job.result()[:1]])
    )
    clock.lap("decode")
    source = inversion.picture.pixels
    return Reconstruction(
        picture=picture,
        round_trip=round_trip,
        guidance_scale=scale,
        negative_prompt=inversion.negative_prompt,
        psnr=psnr(source, picture),
        vae_psnr=psnr(source, round_trip),
        dominant_error=dominant_error(source, round_trip, picture, picture if scale == 1 else None),
        seconds=clock.laps,
        unet_rows=job.rows_asked,
        ran_on=runner.ran_on(overflows),
    )


def edit_many(
    runner: Runner,
    inversion: Inversion,
    targets: Iterable[str | Edit],
    guidance_scale: float | None,
    watch: Watch,
    options: Mapping[str, Any],
    negative_prompt: str | None = None,
) -> Edited:
    """All targets of one inversion, at most `TARGETS_AT_ONCE` beside the source in one batch."""
    clock = Clock()
    require_fitting(runner, inversion)
    scale = inversion.guidance_scale if guidance_scale is None else guidance_scale
    scale = runner.checked_scale(scale)
    inversion = under_negative(inversion, negative_prompt, scale)
    overflows = runner.overflows
    edits = as_edits(targets, options)
    _require_masks_of_size(edits, inversion.picture.size)
    edits, rows_before = _with_word_masks(runner, inversion, edits, scale, watch)
    at_once = _targets_at_once(runner, inversion.picture.size, len(edits))
    groups = [edits[start : start + at_once] for start in range(0, len(edits), at_once)]
    controls = [_control(runner, inversion, group) for group in groups]
    rows = 2 * (1 + len(groups[0]))  # guided
    runner.probe_once(watch.cancellation, size=inversion.picture.size, rows=rows)
    clock.lap("plan")
    parts = []
    for group, control in zip(groups, controls, strict=True):
        prompts = [inversion.prompt, *(edit.target for edit in group)]
        job = replay(runner, inversion, prompts, scale, control, watch)
        clock.lap("edit")
        source = reconstruction(runner, inversion, job, scale, clock, overflows)
        parts.append(_edited(runner, inversion, group, control, job, source, clock))
    edited = Edited.joined(parts)
    return replace(edited, unet_rows=rows_before + edited.unet_rows)


def _targets_at_once(runner: Runner, size: tuple[int, int], targets: int) -> int:
    """As many as word columns and memory allow; the source is beside them in one batch."""
    what = f"editing a picture of {size[0]} x {size[1]}"
    most = min(targets, TARGETS_AT_ONCE)
    rows = runner.rows_that_fit(
        lambda planner: planner.sampling(what, size, rows=1 + most, least=2, guided=False),
        tied=2,
    )
    return most if rows is None else rows - 1


def require_fitting(runner: Runner, inversion: Inversion) -> None:
    """Raise ModelError for another model's inversion, InversionFileError for another schedule's."""
    model = runner.model
    if inversion.fingerprint != model.fingerprint:
        raise ModelError(
            f"the inversion was made with model {inversion.model!r}"
            f"{_added(inversion.report.get('additions'))} ({inversion.fingerprint[:DISPLAYED]}), "
            f"this engine runs {model.name!r}{_added(model.additions)} "
            f"({model.fingerprint[:DISPLAYED]}); load that model or invert again"
        )
    method = method_named(inversion.method)
    effective = method.grid(
        model.levels.schedule(inversion.num_inference_steps),
        method.options_from(inversion.options),
    ).record()
    for name in effective.keys() & inversion.schedule.keys():
        made_with, now = inversion.schedule[name], effective[name]
        if _plain(made_with) != _plain(now):
            raise InversionFileError(
                f"the inversion was made on a schedule whose {name} differ from what "
                f"{inversion.num_inference_steps} steps give now; invert the image again"
            )


def _added(additions: Any) -> str:
    """LoRAs and the like, as a sentence has them."""
    return (
        f" with {', '.join(map(str, additions))}"
        if isinstance(additions, list) and additions
        else ""
    )


def _plain(value: Any) -> Any:
    """As JSON has it: a file's tuples are lists."""
    return list(value) if isinstance(value, tuple) else value


def as_edits(targets: Iterable[str | Edit], options: Mapping[str, Any]) -> list[Edit]:
    """Raises ValueError for options beside an Edit: they would be dropped; and for a single text,
    whose characters would be targets.
    """
    if isinstance(targets, str | Edit) or not isinstance(targets, Iterable):
        raise ValueError(
            f"targets={targets!r}; a list is expected, of prompts or Edits (Engine.edit takes one)"
        )
    targets = list(targets)
    if not targets:
        raise ValueError("give at least one target to edit to")
    if options and any(isinstance(target, Edit) for target in targets):
        raise ValueError(
            f"options {', '.join(options)} are for targets given as text; an Edit has its own"
        )
    for target in targets:
        if isinstance(target, Conditioning):
            raise ValueError(
                "embeddings have no words to align with the source's; edit to a prompt, or sample "
                "the inversion under them with Engine.style"
            )
        if not isinstance(target, str | Edit):
            raise ValueError(f"target={target!r}; a prompt or an Edit is expected")
    known = [each.name for each in fields(Edit) if each.name != "target"]
    for name in options:
        if name not in known:
            raise ValueError(f"an edit has no option {name!r}; accepted are {', '.join(known)}")
    return [each if isinstance(each, Edit) else Edit(each, **options) for each in targets]


def _require_masks_of_size(edits: Sequence[Edit], size: tuple[int, int]) -> None:
    for edit in edits:
        if edit.mask is not None and tuple(edit.mask.shape) != size:
            raise ValueError(
                f"the mask of the edit to {edit.target!r} is {list(edit.mask.shape)}; the "
                f"inverted picture is {list(size)} (fitted to the model: inversion.picture)"
            )


def _with_word_masks(
    runner: Runner, inversion: Inversion, edits: Sequence[Edit], scale: float, watch: Watch
) -> tuple[list[Edit], int]:
    """The edits with their masks; those of words are seen in one reconstruction more, of so many
    rows.
    """
    groups = list(dict.fromkeys(edit.mask_words for edit in edits if edit.mask_words))
    if not groups:
        return list(edits), 0
    for edit in edits:
        _control(runner, inversion, [edit])  # what is wrong is said before anything runs
    seen = WordMaps(runner.model.text.tokens(inversion.prompt), groups, runner.layers)
    quiet = Watch(watch.on_progress, None, watch.cancellation)
    job = replay(runner, inversion, [inversion.prompt], scale, seen, quiet)
    latents = job.result()
    height, width = inversion.picture.size
    side = runner.model.autoencoder.scale

    def masked(edit: Edit) -> Edit:
        if not edit.mask_words:
            return edit
        place, size = groups.index(edit.mask_words), (latents.shape[-2], latents.shape[-1])
        found = seen.mask(place, size, edit.blend_threshold)
        found = found.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
        return replace(edit, mask=found if edit.mask is None else found & edit.mask.cpu())

    return [masked(edit) for edit in edits], job.rows_asked


def _control(runner: Runner, inversion: Inversion, edits: Sequence[Edit]) -> PromptToPrompt:
    source, *targets = (
        runner.model.text.tokens(prompt)
        for prompt in (inversion.prompt, *(edit.target for edit in edits))
    )
    method, steps = method_named(inversion.method), inversion.num_inference_steps
    for edit in edits:
        if bounds(edit.null_text_steps) != (0, 1) and "null_embeddings" not in method.stored:
            raise ValueError(
                f"null_text_steps={edit.null_text_steps} means nothing after {method.name}, which "
                "fits no null embedding; leave it out"
            )
    first_step = method.first_step(method.options_from(inversion.options), steps)
    scale = runner.model.autoencoder.scale
    return PromptToPrompt(source, targets, edits, steps, runner.layers, first_step, scale)


def _edited(
    runner: Runner,
    inversion: Inversion,
    edits: list[Edit],
    control: PromptToPrompt,
    job: Job[Tensor],
    source: Reconstruction,
    clock: Clock,
) -> Edited:
    latents = job.result()
    pictures = runner.pictures(latents[1:])
    clock.lap("decode")
    size, original = inversion.picture.size, inversion.picture.pixels
    masks: list[Tensor | None] = [None] * len(edits)
    if control.masks is not None:
        regions = control.masks.cpu()
        for index, (edit, region) in enumerate(zip(edits, regions, strict=True)):
            masks[index] = allowed_pixels(region, edit, size)
            if edit.preserve == "pixel":
                weights = pixel_weights(region, edit, size)
                pictures[index] = put_back(original, pictures[index], weights)
    return Edited(
        pictures=pictures,
        source=source,
        edits=edits,
        kinds=[plan.alignment.kind for plan in control.plans],
        heat_maps=[control.heat_maps(index) for index in range(len(edits))],
        masks=masks,
        outside_mask_psnr=[
            None if mask is None or bool(mask.all()) else psnr(original, edited, ~mask.numpy())
            for mask, edited in zip(masks, pictures, strict=True)
        ],
        touched=[control.touched(index) for index in range(len(edits))],
        latents=latents,
        seconds=clock.laps,
        unet_rows=job.rows_asked,
        ran_on=source.ran_on,
    )
