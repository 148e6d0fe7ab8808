"""The face for embedding: load a model once, then invert, reconstruct, edit, generate, explain."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from torch import Tensor

from pivotal_kernels.routed_attention import Impl

from . import applying, comparing, generating, inverting, replaying, styling
from .cache import InversionCache
from .cancellation import Cancellation
from .comparison import Comparison
from .driver import Denoiser, Listener
from .editing.edit import Edit
from .editing.explanation import Explanation, explain
from .errors import BatchError
from .generating import Generators, initial_noise
from .images import FitPolicy, ImageSource, Size
from .inversion_file import Inversion
from .inversion_task import checked_settings
from .model.load import Model, load
from .model.lora import require_own_weights
from .model.lora_file import Lora
from .model.offloading import offload as move_out
from .planning import Planner
from .query import Conditioning
from .results import Edited, Generated, Images, OutputType, Reconstruction, as_output
from .running import Runner
from .runtime.compiled_unet import CompileOptions, compile_options
from .runtime.exported.backend import denoiser_of
from .runtime.memory_plan import MemoryPlan
from .runtime.prepared import torch_denoiser
from .runtime.torch_denoiser import Decoder
from .sampling.loss_guidance import LossGuidance
from .sampling.losses import PictureLoss
from .sampling.prompt_arithmetic import Path as PromptPath
from .sampling_task import (
    Prompt,
    checked_prompts,
    checked_sampling,
    checked_schedule,
    checked_seeds,
    encoded,
)
from .serving import Serving, Submitted
from .tokens import Tokens
from .watching import Watch

T = TypeVar("T")
CallbackOnStepEnd = Callable[["Engine", int, float, dict[str, Tensor]], Mapping[str, Tensor]]
"""As diffusers': (engine, step, timestep, {"latents": latents}) to a dict, which may hold changed
latents of the same shape [R, C, h, w]."""

_ROWS_AT_ONCE = 8  # in one UNet batch, which is what takes memory


class Engine:
    """A model on a device, ready to answer. Calls from several threads take turns, step by step.

    Every long call takes `on_progress`, told as each step begins, and a `Cancellation`, which ends
    it within one query to the network by raising Cancelled. Calls that sample take
    `callback_on_step_end` too; what it raises ends the call. Raised throughout: ValueError for
    wrong input, PivotalError for what the run finds out.
    """

    def __init__(
        self,
        model: Model,
        denoiser: Denoiser | None = None,
        *,
        cache: InversionCache | None = None,
        serving: Serving | None = None,
        memory_limit: int | Literal["auto"] | None = "auto",
        gradient_checkpointing: bool = False,
        batch_invariant: bool = False,
    ) -> None:
        self.model = model
        model.unet.checkpoint_gradients(gradient_checkpointing)
        self.denoiser = denoiser or torch_denoiser(model, _decoder(model))
        self.cache = cache
        planner = Planner.of(model, memory_limit, gradient_checkpointing=gradient_checkpointing)
        self._runner = Runner(
            model, self.denoiser, serving, planner, batch_invariant=batch_invariant
        )
        weakref.finalize(self, self._runner.service.close, wait=False).atexit = False

    @classmethod
    def load(
        cls,
        model: str | Path = "shapes",
        *,
        cache: InversionCache | None = None,
        serving: Serving | None = None,
        memory_limit: int | Literal["auto"] | None = "auto",
        gradient_checkpointing: bool = False,
        backend: str = "torch",
        exported: str | Path | None = None,
        allow_foreign: bool = False,
        compile: bool | CompileOptions = False,
        attention: Impl = "auto",
        tiled_vae: bool = False,
        batch_invariant: bool = False,
        long_prompts: int = 1,
        weighted_prompts: bool = False,
        offload: bool = False,
        **options: Any,
    ) -> Engine:
        """`model`: "shapes" (bundled), a diffusers folder, a hub id, or "random:<family>".

        cache: where inversions are looked up and kept; none if None. serving: of submitted calls.
        memory_limit: the bytes that weights and a job may take; a job asks for fewer rows at once,
        or is refused. "auto" is what a CUDA device has free; no limit on a CPU.
        gradient_checkpointing: less memory for null-text, a third more time, the same result.
        backend: what runs the UNet: "torch", or from the folder `exported` "onnx" and "tensorrt",
        which "+torch" leaves gradients to. allow_foreign: see `runtime.exported.backend`.
        compile: run torch's UNet compiled; what is first asked then takes minutes (`warm_up`).
        attention: what runs routed cross-attention, see `pivotal_kernels.routed_attention`.
        tiled_vae: encode and decode pictures of over 64 latents a side in tiles, in little
        memory, three times as slowly and a little differently (see `model.tiling`).
        batch_invariant: a result is bit for bit the same whatever shares its call or batch, at the
        cost of batches: rows go through the networks one by one, an edit's with its source's.
        long_prompts: chunks of 77 tokens that every prompt is spread over, torch's backend alone.
        A prompt that does not fit is refused (see `model.text.TextEncoder.take_long_prompts`).
        weighted_prompts: `(word:1.3)` in a prompt weighs, torch's backend alone; otherwise it is
        text (see `model.weighting`). Words are found in the text without the syntax.
        offload: text encoders and the autoencoder are on the device only while they are used;
        they are loaded there once. On a CPU it is refused (see `model.offloading`).
        options: device, dtype, variant, revision, local_files_only, family, prediction_type,
        tokenizer, vae, lora, embedding, as `model.load.load`.
        """
        start = time.perf_counter()
        if long_prompts != 1 and backend != "torch":
            raise ValueError(
                f"long_prompts={long_prompts} with backend {backend!r}: exported networks take one "
                "chunk; use backend 'torch'"
            )
        if weighted_prompts and backend != "torch":
            raise ValueError(
                f"weighted_prompts with backend {backend!r}: exported networks belong to a model "
                "without; use backend 'torch'"
            )
        loaded = load(model, **options)
        loaded.text.weighted = weighted_prompts
        loaded.text.take_long_prompts(long_prompts)
        loaded.unet.use_attention(attention)
        loaded.autoencoder.tiled = tiled_vae
        in_torch = partial(
            torch_denoiser, loaded, _decoder(loaded), compile_options(compile, attention, backend)
        )
        if offload:
            move_out(loaded)
        engine = cls(
            loaded,
            denoiser_of(backend, loaded, exported, in_torch, allow_foreign=allow_foreign),
            cache=cache,
            serving=serving,
            memory_limit=memory_limit,
            gradient_checkpointing=gradient_checkpointing,
            batch_invariant=batch_invariant,
        )
        engine._runner.load_seconds = time.perf_counter() - start
        return engine

    @property
    def load_seconds(self) -> float:
        """What `load` took; 0 for a model that was there already."""
        return self._runner.load_seconds

    def warm_up(
        self,
        *,
        size: tuple[int, int] | None = None,
        rows: Sequence[int] = (1, 2, 4),
        gradients: bool = True,
    ) -> dict[str, float]:
        """Ask the network once for each kind of batch, so that a compiled one is compiled before
        it is needed, and prove that every attention layer of it follows its route.

        size: (height, width) in pixels, the model's default if None. rows: UNet batches to come;
        an edit of one target has 4. gradients: null-text's too. Returns the seconds of each.
        Raises BackendError for what can't be compiled, EditWithoutEffectError for a deaf layer.
        """
        if not rows or min(rows) < 1:
            raise ValueError(f"rows={list(rows)}; numbers of rows from 1 are expected")
        checked = self._runner.checked_size(size)
        return self._runner.warm_up(checked, rows, gradients=gradients)

    def plan(
        self,
        method: str | None = "null-text",
        *,
        images: int = 1,
        targets: int = 0,
        num_inference_steps: int = 50,
        options: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
    ) -> MemoryPlan:
        """How much memory a job would need; nothing is run, and weights are not touched.

        Of inverting so many images at once by `method`; with `method` None, of generating them, or
        with targets, of editing one to so many. Takes seconds for each new size.
        """
        settings = checked_settings(
            self._runner,
            method=method or "ddim",
            num_inference_steps=num_inference_steps,
            guidance_scale=None,
            options=options,
            size=size,
            policy="crop",
        )
        return self._runner.planner.job(
            None if method is None else settings.method,
            settings.options,
            settings.schedule,
            self._runner.checked_size(size),
            images=images,
            targets=targets,
        )

    def invert(
        self,
        image: ImageSource,
        prompt: str,
        *,
        method: str = "null-text",
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        options: Mapping[str, Any] | None = None,
        size: Size | None = None,
        policy: FitPolicy = "fit",
        on_progress: Listener | None = None,
        cancellation: Cancellation | None = None,
    ) -> Inversion:
        """Find the noise that `image` comes from under `prompt`.

        image: a path, encoded bytes, a PIL image, an array or a tensor. guidance_scale: of the
        replay and the edits (the family's default if None). options: the method's own.
        negative_prompt: what guidance leads away from, in the empty prompt's place; null-text's
        fit then starts from it. It is stored, and edits use it.
        size: (height, width) in pixels, the model's default if None, or "source", the image's own.
        policy: how the image gets that size, as `images.model_size` says; "fit" keeps all of it and
        its aspect, at as many pixels; "crop", "pad" and "stretch" give exactly that size.
        `report["cached"]` of what is returned says whether the cache had it.
        """
        settings = checked_settings(
            self._runner,
            method,
            num_inference_steps,
            guidance_scale,
            options,
            size,
            policy,
            negative_prompt,
        )
        watch = Watch(on_progress, None, cancellation)
        (outcome,) = inverting.invert_many(
            self._runner, self.cache, [image], [prompt], settings, watch, _ROWS_AT_ONCE
        )
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def invert_many(
        self,
        images: Sequence[ImageSource],
        prompts: str | Sequence[str],
        *,
        method: str = "null-text",
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        options: Mapping[str, Any] | None = None,
        size: Size | None = None,
        policy: FitPolicy = "fit",
        max_rows: int | None = _ROWS_AT_ONCE,
        on_progress: Listener | None = None,
        cancellation: Cancellation | None = None,
    ) -> list[Inversion]:
        """Invert several images at once in shared batches; each as `invert` would alone, but for
        rounding: in float32 to a thousandth of the noise's deviation, in the batch-invariant mode
        exactly. Their sizes may differ. Frames of a sequence share noise: a method that draws it
        draws the same for every image, from its option `seed`.

        prompts: one for each image, or one text for all. max_rows: the most rows in one UNet
        batch, which is what takes memory; None for no limit. on_progress is told of the image
        that is furthest behind. If some images fail, the others are finished, and BatchError
        holds them and the errors.
        """
        settings = checked_settings(
            self._runner,
            method,
            num_inference_steps,
            guidance_scale,
            options,
            size,
            policy,
            negative_prompt,
        )
        if isinstance(images, str | bytes) or not isinstance(images, Sequence):
            raise ValueError(
                f"images is of type {type(images).__name__}; a list is expected (Engine.invert "
                "takes one)"
            )
        texts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if not images or len(texts) != len(images):
            raise ValueError(
                f"{len(texts)} prompts for {len(images)} images; give at least one image, and one "
                "prompt for all or one for each"
            )
        watch = Watch(on_progress, None, cancellation)
        outcomes = inverting.invert_many(
            self._runner, self.cache, images, texts, settings, watch, max_rows
        )
        errors = {i: each for i, each in enumerate(outcomes) if isinstance(each, Exception)}
        done = [None if isinstance(each, Exception) else each for each in outcomes]
        if errors:
            raise BatchError(done, errors)
        return [each for each in done if each is not None]

    def reconstruct(
        self,
        inversion: Inversion,
        *,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        callback_on_step_end: CallbackOnStepEnd | None = None,
        on_progress: Listener | None = None,
        cancellation: Cancellation | None = None,
    ) -> Reconstruction:
        """Sample an inversion back without an edit, and say what was lost and to what.

        guidance_scale, negative_prompt: the inversion's own if None. Where guidance or inversion
        loses more than the autoencoder, it is sampled back at guidance 1 as well, to tell the two
        apart.
        """
        watch = self._watch(on_progress, callback_on_step_end, cancellation)
        return replaying.reconstruct(
            self._runner, inversion, guidance_scale, watch, negative_prompt
        )

    def edit(
        self,
        inversion: Inversion,
        target: str | Edit | Sequence[str | Edit],
        *,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        callback_on_step_end: CallbackOnStepEnd | None = None,
        on_progress: Listener | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Edited:
        """Edit by Prompt-to-Prompt. As `edit_many`, for one target or several."""
        return self.edit_many(
            inversion,
            [target] if isinstance(target, str | Edit | Conditioning) else target,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            callback_on_step_end=callback_on_step_end,
            on_progress=on_progress,
            cancellation=cancellation,
            **options,
        )

    def edit_many(
        self,
        inversion: Inversion,
        targets: Sequence[str | Edit],
        *,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        callback_on_step_end: CallbackOnStepEnd | None = None,
        on_progress: Listener | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Edited:
        """Edit by Prompt-to-Prompt: one inversion, many targets, each as it would be alone.

        targets: prompts or `Edit`s. options: `Edit`'s fields for targets given as text
        (`cross_replace_steps`, `self_replace_steps`, `weights`, `blend`, ..). Up to 8 targets share
        a batch with the source; more are run in several, and the callback hears each.
        negative_prompt: the inversion's own if None; a method that was fitted takes no other.
        Raises EditWithoutEffectError for an edit that would do nothing.
        """
        watch = self._watch(on_progress, callback_on_step_end, cancellation)
        return applying.edit_many(
            self._runner, inversion, targets, guidance_scale, watch, options, negative_prompt
        )

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        negative_prompt: Prompt = "",
        num_inference_steps: int | None = None,
        step_size: int | None = None,
        guidance_scale: float | None = None,
        sampler: str = "ddim",
        eta: float | None = None,
        order: int | None = None,
        loss: PictureLoss | LossGuidance | None = None,
        generator: Generators | None = None,
        seed: int | None = None,
        size: tuple[int, int] | None = None,
        output_type: OutputType = "pil",
        max_rows: int | None = _ROWS_AT_ONCE,
        callback_on_step_end: CallbackOnStepEnd | None = None,
        on_progress: Listener | None = None,
        cancellation: Cancellation | None = None,
    ) -> Generated:
        """Text to image; `images` of the result is what diffusers calls so.

        prompt: texts, or embeddings of one row each (`encode`, `interpolate`, ..).
        num_inference_steps: 50 if neither it nor step_size, their distance, is given. sampler: a
        name of `sampling.samplers`, with `eta` and `order` where it has them. loss: a function of
        pictures [B, 3, H, W] float32 in [0, 1] to one value each, [B], that sampling lowers.
        seed: prompt i starts from noise of `seed + i`, alone or in company; 0 if neither a seed nor
        a generator is given; up to 2**63 - 1. generator: one for all prompts or a list of one for
        each, as in diffusers. size: (height, width) in pixels. max_rows: as `invert_many`'s; a
        prompt is two rows.
        """
        prompts = checked_prompts(prompt, "prompt")
        if generator is not None and seed is not None:
            raise ValueError(f"seed={seed} beside a generator; give one of them")
        seeds = checked_seeds(seed or 0, len(prompts))
        chosen = checked_sampling(self._runner, sampler, eta, order, loss)
        fitted = self._runner.checked_size(size)
        noise, draw = initial_noise(self._runner, len(prompts), fitted, generator, seeds)
        return generating.generate(
            self._runner,
            prompts,
            negative_prompt=negative_prompt,
            schedule=checked_schedule(self.model.levels, num_inference_steps, step_size),
            guidance_scale=guidance_scale,
            noise=noise,
            draw=draw,
            seeds=seeds if generator is None else None,
            sampling=chosen,
            output_type=output_type,
            max_rows=max_rows,
            watch=self._watch(on_progress, callback_on_step_end, cancellation),
        )

    def style(
        self,
        inversion: Inversion,
        target: Prompt | Sequence[Prompt],
        *,
        amount: float = 1.0,
        path: PromptPath = "linear",
        negative_prompt: Prompt | None = None,
        guidance_scale: float | None = None,
        sampler: str = "ddim",
        eta: float | None = None,
        order: int | None = None,
        loss: PictureLoss | LossGuidance | None = None,
        seed: int = 0,
        output_type: OutputType = "pil",
        callback_on_step_end: CallbackOnStepEnd | None = None,
        on_progress: Listener | None = None,
        cancellation: Cancellation | None = None,
    ) -> Generated:
        """Style transfer: the inverted noise, sampled afresh under another prompt or a blend.

        The layout that the noise holds stays; what words looked at is not kept, as `edit` does.
        amount: of the way from the source's prompt (0) to the target's (1), along `path`, "linear"
        or "spherical"; also beyond. guidance_scale, negative_prompt: the inversion's own if None.
        seed: of samplers that draw fresh noise. Others as `generate`.
        """
        targets = checked_prompts(target, "target")
        return styling.style(
            self._runner,
            inversion,
            targets,
            amount=amount,
            path=path,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            sampling=checked_sampling(self._runner, sampler, eta, order, loss),
            seeds=checked_seeds(seed, len(targets)),
            output_type=output_type,
            watch=self._watch(on_progress, callback_on_step_end, cancellation),
        )

    def encode(
        self, prompt: Prompt | Sequence[Prompt], *, size: tuple[int, int] | None = None
    ) -> Conditioning:
        """Embeddings [B, L, D] float32 of B prompts, for arithmetic: `interpolate`, `swap_tokens`,
        `scale_token`.

        size: of the pictures to come, (height, width) in pixels, which SDXL is told.
        """
        chosen = self._runner.checked_size(size)
        return encoded(self._runner, checked_prompts(prompt, "prompt"), chosen)

    def tokens(self, prompt: str) -> Tokens:
        """A prompt's tokens; `find` gives the places of a word's among the embeddings."""
        return self.model.text.tokens(prompt)

    def compare(
        self,
        image: ImageSource,
        prompt: str,
        *,
        target: str | Edit | None = None,
        methods: Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        mask: Tensor | None = None,
        size: Size | None = None,
        policy: FitPolicy = "fit",
        on_progress: Listener | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Comparison:
        """Inversion methods beside each other on one image, one after another, each by itself.

        target: also edit to it; options are `Edit`'s fields, `blend="auto"` if nothing says where.
        methods: names; all if None. mask: bool [H, W] of the fitted picture, True where the edit is
        wanted: how much is kept is measured elsewhere, and the edit is not confined to it. A method
        that can't invert this image, or has no place for a negative prompt, gives its reason in
        place of figures. The first seconds hold what a device takes to warm up.
        """
        return comparing.compare(
            self._runner,
            image,
            prompt,
            target=target,
            methods=methods,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            mask=mask,
            size=size,
            policy=policy,
            watch=Watch(on_progress, None, cancellation),
            options=options,
        )

    def explain(
        self, source: str, target: str | Edit, *, num_inference_steps: int = 50, **options: Any
    ) -> Explanation:
        """What an edit from one prompt to another would do; the network is not run.

        options: `Edit`'s fields for a target given as text. Raises what `edit` would.
        """
        (edit,) = applying.as_edits([target], options)
        return explain(
            self.model.text.tokens(source),
            self.model.text.tokens(edit.target),
            edit,
            self.model.levels.schedule(num_inference_steps),
            self._runner.layers,
        )

    def decode(self, latents: Tensor, *, output_type: OutputType = "pil") -> Images:
        """Latents [B, C, h, w] float32, as callbacks see them, to pictures."""
        return as_output(self._runner.decode(latents), output_type)

    def submit(
        self,
        call: Callable[..., T],
        /,
        *arguments: Any,
        priority: int = 0,
        deadline: float | None = None,
        **options: Any,
    ) -> Submitted[T]:
        """Start a call and don't wait for it: `engine.submit(engine.edit, inversion, "a dog")`.

        call: a method of this engine, or a function of your own that calls several; what follows
        are its arguments. All submitted calls share UNet batches, which one worker thread runs;
        there listeners and callbacks are told, and hold up all, so let them be quick. A result is
        what the direct call gives, but for rounding. priority: the higher goes first where a batch
        has no room for all; see `Driver`. deadline: seconds from now.

        Raises at once TypeError for arguments that the call does not take, ValueError for a wrong
        priority or deadline, QueueFullError and EngineClosedError; the future raises the rest.
        """
        return self._runner.service.submit(call, arguments, options, priority, deadline)

    def lora(self, *loras: str | Path | Lora) -> None:
        """From now on wear these LoRAs, `FILE` or `FILE:0.8` each, and no others; none takes all
        off, to the bit.

        Nothing is compiled or captured again. Inversions belong to the LoRAs that they were made
        with. Raises ModelError for a file that does not fit and while a call runs, BackendError
        where a backend or fp8 keeps weights of its own; nothing is changed then.
        """
        require_own_weights(self.model.precision.arithmetic, self.denoiser.name)
        wanted = [Lora.of(each) for each in loras]
        with self._runner.alone("changing LoRAs"):
            self.model.loras.wear(wanted)

    def close(self) -> None:
        """Cancel what was submitted, wait until it has ended, and end the worker. An engine that
        submits nothing needs no closing.
        """
        self._runner.service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _watch(
        self,
        on_progress: Listener | None,
        callback: CallbackOnStepEnd | None,
        cancellation: Cancellation | None,
    ) -> Watch:
        told = None if callback is None else partial(callback, self)
        return Watch(on_progress, told, cancellation)


def _decoder(model: Model) -> Decoder:
    """Latents to images in [0, 1], for losses on pictures."""
    return lambda latents: ((model.autoencoder.decode(latents) + 1) / 2).clamp(0, 1)
