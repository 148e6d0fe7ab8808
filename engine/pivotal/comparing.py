"""Every method on one image: inverted, sampled back, edited, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import applying, inverting, replaying
from .comparison import ComparedMethod, Comparison
from .control import NoEdit
from .driver import Listener
from .editing.edit import Edit
from .editing.explanation import explain
from .errors import Cancelled, PivotalError
from .images import FitPolicy, Fitted, ImageSource, Size, psnr
from .inversion.registry import METHODS, method_named
from .inversion_file import Inversion
from .inversion_task import Settings, checked_settings, read_task
from .noise_figures import figures_of_fresh_noise, noise_figures
from .quality import latents_psnr
from .query import Progress
from .results import Edited
from .running import Clock, Runner, as_one_call
from .watching import Watch


@as_one_call
def compare(
    runner: Runner,
    image: ImageSource,
    prompt: str,
    *,
    target: str | Edit | None,
    methods: Sequence[str] | None,
    num_inference_steps: int,
    guidance_scale: float | None,
    negative_prompt: str,
    mask: Tensor | None,
    size: Size | None,
    policy: FitPolicy,
    watch: Watch,
    options: Mapping[str, Any],
) -> Comparison:
    """What is wrong for every method is raised; what one method can't becomes its row's reason."""
    if isinstance(methods, str):
        raise ValueError(f"methods={methods!r}; a list of names is expected")
    chosen = list(METHODS) if methods is None else [method_named(name).name for name in methods]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"methods={chosen}; at least one is expected, and each once")

    def settings(method: str) -> Settings:
        return checked_settings(
            runner,
            method=method,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            options=None,
            size=size,
            policy=policy,
            negative_prompt=negative_prompt,
        )

    common = settings("ddim")
    picture = read_task(image, prompt, common).picture
    edit = _checked_edit(runner, prompt, target, mask, picture, num_inference_steps, options)
    found = []
    for name in chosen:
        watch.check("comparing")
        told = _named(watch, name)
        try:
            (outcome,) = inverting.invert_many(
                runner, None, [image], [prompt], settings(name), told
            )
            if isinstance(outcome, Exception):
                raise outcome
            found.append(_compared(runner, outcome, edit, mask, told))
        except Cancelled:
            raise
        except (ValueError, PivotalError) as error:
            found.append(ComparedMethod(name, " ".join(str(error).split())))
    autoencoder = runner.model.autoencoder
    height, width = (side // autoencoder.scale for side in picture.size)
    return Comparison(
        prompt=prompt,
        target=None if edit is None else edit.target,
        picture=picture,
        guidance_scale=common.guidance_scale,
        negative_prompt=negative_prompt,
        num_inference_steps=num_inference_steps,
        fresh_noise=figures_of_fresh_noise(
            (1, autoencoder.channels, height, width), common.schedule.levels[-1]
        ),
        mask=mask,
        methods=tuple(found),
        model=runner.model.name,
        device=str(runner.model.device),
        dtype=runner.dtype_name,
        schedule=common.schedule.record(),
    )


def _checked_edit(
    runner: Runner,
    prompt: str,
    target: str | Edit | None,
    mask: Tensor | None,
    picture: Fitted,
    steps: int,
    options: Mapping[str, Any],
) -> Edit | None:
    """The edit, confined to where its words look unless something else says where it may act.

    Raises what editing would.
    """
    if target is None:
        if options or mask is not None:
            given = ", ".join([*options, *([] if mask is None else ["mask"])])
            raise ValueError(f"{given}: these are for an edit; give a target too")
        return None
    if mask is not None and not _judges(mask, picture.size):
        raise ValueError(
            f"mask: bool {list(picture.size)} is expected, false where nothing is to change"
        )
    if isinstance(target, str) and mask is None:
        options = {"blend": "auto", **options}
    (edit,) = applying.as_edits([target], options)
    applying.require_masks_of_size([edit], picture.size)
    tokens = runner.model.text.tokens
    schedule = runner.model.levels.schedule(steps)
    explain(tokens(prompt), tokens(edit.target), edit, schedule, runner.layers)
    return edit


def _judges(mask: Any, size: tuple[int, int]) -> bool:
    """Whether it is a mask that leaves an outside to measure."""
    fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) == size
    return fits and not bool(mask.all())


def _compared(
    runner: Runner, inversion: Inversion, edit: Edit | None, mask: Tensor | None, watch: Watch
) -> ComparedMethod:
    method = method_named(inversion.method)
    grid = method.grid(
        runner.model.levels.schedule(inversion.num_inference_steps),
        method.options_from(inversion.options),
    )
    scale, clock, overflows = inversion.guidance_scale, Clock(), runner.overflows
    job = replaying.replay(runner, inversion, [inversion.prompt], scale, NoEdit(), watch)
    clock.lap("sample")
    back = replaying.reconstruction(runner, inversion, job, scale, clock, overflows)
    edited = None
    if edit is not None:
        edited = applying.edit_many(runner, inversion, [edit], None, watch, {})
    return ComparedMethod(
        method=method.name,
        inversion=inversion,
        reconstruction=back,
        latents_psnr=latents_psnr(inversion.latents, job.result()[:1]),
        noise=noise_figures(inversion.inverted.noise, grid.levels[-1]),
        edited=edited,
        outside_psnr=None if edited is None else _outside(inversion, edited, mask),
        seconds=inversion.report["seconds"]["invert"],
        unet_rows=inversion.report["unet_rows"],
    )


def _outside(inversion: Inversion, edited: Edited, mask: Tensor | None) -> float | None:
    """Decibels against the source where nothing was to change."""
    if mask is None:
        return edited.outside_mask_psnr[0]
    return psnr(inversion.picture.pixels, edited.pictures[0], ~mask.cpu().numpy())


def _named(watch: Watch, method: str) -> Watch:
    """The same watch, told of each phase with the method's name."""
    listener = watch.on_progress
    if listener is None:
        return watch

    def tell(notice: Progress, listener: Listener = listener) -> None:
        listener(Progress(f"{method}: {notice.phase}", notice.step, notice.steps))

    return Watch(tell, None, watch.cancellation)
