"""Prompt-to-Prompt edits of an inversion, the source sampled back beside its targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from .driver import Job
from .editing.edit import Edit, bounds
from .editing.masks import WordMaps, allowed_pixels, pixel_weights, put_back
from .editing.prompt_to_prompt import PromptToPrompt
from .editing.routes import WORD_COLUMNS
from .images import psnr
from .inversion.registry import method_named
from .inversion_file import Inversion
from .negative_prompts import under_negative
from .query import Conditioning
from .replaying import reconstruction, replay, require_fitting
from .results import Edited, Reconstruction
from .running import Clock, Runner, as_one_call
from .watching import Watch

TARGETS_AT_ONCE = WORD_COLUMNS // 2


@as_one_call
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
    require_masks_of_size(edits, inversion.picture.size)
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


def require_masks_of_size(edits: Sequence[Edit], size: tuple[int, int]) -> None:
    for edit in edits:
        if edit.mask is not None and tuple(edit.mask.shape) != size:
            raise ValueError(
                f"the mask of the edit to {edit.target!r} is {list(edit.mask.shape)}; the "
                f"inverted picture is {list(size)} (fitted to the model: inversion.picture)"
            )


def _targets_at_once(runner: Runner, size: tuple[int, int], targets: int) -> int:
    """As many as word columns and memory allow; the source is beside them in one batch."""
    what = f"editing a picture of {size[0]} x {size[1]}"
    most = min(targets, TARGETS_AT_ONCE)
    rows = runner.rows_that_fit(
        lambda planner: planner.sampling(what, size, rows=1 + most, least=2, guided=False),
        tied=2,
    )
    return most if rows is None else rows - 1


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
