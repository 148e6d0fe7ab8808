"""The face for embedding: load a model once, then invert, reconstruct, edit and generate."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .control import Control, NoEdit
from .driver import Denoiser, Driver, Job, Listener, require
from .editing.edit import Edit
from .editing.prompt_to_prompt import PromptToPrompt
from .editing.routes import Layers
from .errors import ModelError, NonFiniteError
from .images import FitPolicy, ImageSource, Pixels, fit, from_tensor, psnr, read_image, to_tensor
from .inversion.registry import method_named
from .inversion_file import Inversion
from .model.load import Model, load
from .quality import dominant_error, noise_std_ratio
from .query import Algorithm, Conditioning, Result
from .results import Edited, Reconstruction
from .runtime.probe import probe_routes
from .runtime.torch_denoiser import Decoder, TorchDenoiser
from .sampling.ddim import sample


class Engine:
    """A model on a device, ready to answer. Calls from several threads take turns."""

    def __init__(self, model: Model, denoiser: Denoiser | None = None) -> None:
        self.model = model
        self.denoiser = denoiser or TorchDenoiser(
            model.unet, model.levels.config.prediction_type, decode=_decoder(model)
        )
        self.layers = Layers(
            tuple(layer.downscale for layer in model.unet.self_layers),
            tuple(layer.downscale for layer in model.unet.cross_layers),
        )
        self.load_seconds = 0.0
        self._lock = threading.Lock()
        self._probed = False

    @classmethod
    def load(cls, model: str | Path = "shapes", **options: Any) -> Engine:
        """`model`: "shapes" (bundled), a diffusers folder, a hub id, or "random:<family>".

        options: device, dtype, variant, revision, local_files_only, family, as `model.load.load`.
        """
        start = time.perf_counter()
        engine = cls(load(model, **options))
        engine.load_seconds = time.perf_counter() - start
        return engine

    def invert(
        self,
        image: ImageSource,
        prompt: str,
        *,
        method: str = "null-text",
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        options: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
        policy: FitPolicy = "crop",
        on_progress: Listener | None = None,
    ) -> Inversion:
        """Find the noise that `image` comes from under `prompt`.

        guidance_scale: of the replay and the edits (the family's default if None). options: the
        method's own. size: (height, width) in pixels, the family's default if None.
        Raises ValueError for wrong input, PivotalError for what the run finds out.
        """
        clock = _Clock()
        chosen = method_named(method)
        require(self.denoiser, chosen.needs, chosen.name)
        scale = self.model.family.guidance_scale if guidance_scale is None else guidance_scale
        _require_finite_scale(scale)
        given = dict(options or {})
        if chosen.fits_guidance:
            if "guidance_scale" in given:
                raise ValueError(f"{chosen.name} is fitted for guidance_scale; give it once, there")
            given["guidance_scale"] = scale
        typed = chosen.options_from(given)
        schedule = self.model.levels.schedule(num_inference_steps)
        source = read_image(image)
        picture = fit(source, size or self.model.default_size, policy)
        conditioning = self._encode([prompt], picture.size)
        null = self._encode([""], picture.size)
        with torch.no_grad():
            latents = self.model.autoencoder.encode(to_tensor(picture.pixels))
        latents = latents.to(self.model.device)
        clock.lap("encode")
        job = self._run(
            chosen.invert(schedule, latents, conditioning, null, typed),
            chosen.name,
            on_progress,
        )
        inverted = job.result()
        for tensor in (inverted.noise, *inverted.stored.values()):
            _require_finite(tensor, f"{chosen.name} inversion")
        clock.lap("invert")
        return Inversion(
            picture=picture,
            prompt=prompt,
            method=chosen.name,
            options=asdict(typed),
            guidance_scale=scale,
            num_inference_steps=num_inference_steps,
            latents=latents,
            inverted=inverted,
            model=self.model.name,
            family=self.model.family.name,
            fingerprint=self.model.fingerprint,
            image_digest=source.digest,
            schedule=schedule.record(),
            report={
                "seconds": {"load": self.load_seconds, **clock.laps},
                "unet_rows": job.rows_asked,
                "noise_std_ratio": noise_std_ratio(inverted.noise, schedule.levels[-1]),
                "device": str(self.model.device),
                "dtype": str(self.model.dtype).removeprefix("torch."),
            },
        )

    def reconstruct(
        self,
        inversion: Inversion,
        *,
        guidance_scale: float | None = None,
        on_progress: Listener | None = None,
    ) -> Reconstruction:
        """Sample an inversion back without an edit, and say what was lost and to what.

        guidance_scale: the inversion's own if None. Where guidance or inversion loses more than the
        autoencoder, it is sampled back at guidance 1 as well, to tell the two apart.
        """
        clock = _Clock()
        scale = inversion.guidance_scale if guidance_scale is None else guidance_scale
        job = self._replay(inversion, [inversion.prompt], scale, NoEdit(), on_progress)
        clock.lap("sample")
        round_trip, picture = self._decode(
            torch.cat([inversion.latents.to(self.model.device), job.result()])
        )
        clock.lap("decode")
        source = inversion.picture.pixels
        term = dominant_error(source, round_trip, picture, picture if scale == 1 else None)
        if term is None:
            unguided = self._replay(inversion, [inversion.prompt], 1.0, NoEdit(), on_progress)
            term = dominant_error(source, round_trip, picture, self._decode(unguided.result())[0])
            clock.lap("attribute")
        return Reconstruction(
            picture=picture,
            round_trip=round_trip,
            guidance_scale=scale,
            psnr=psnr(source, picture),
            vae_psnr=psnr(source, round_trip),
            dominant_error=term,
            seconds=clock.laps,
            unet_rows=job.rows_asked,
        )

    def edit(
        self,
        inversion: Inversion,
        target: str | Edit | Sequence[str | Edit],
        *,
        guidance_scale: float | None = None,
        on_progress: Listener | None = None,
        **options: Any,
    ) -> Edited:
        """Edit by Prompt-to-Prompt: one or several targets at once, from one inversion.

        target: a prompt, an `Edit`, or several. options: `Edit`'s fields for targets given as text
        (`cross_replace_steps`, `self_replace_steps`, `weights`, `blend`, ..).
        Raises ValueError for wrong input, EditWithoutEffectError for an edit that would do nothing.
        """
        clock = _Clock()
        self._require_same_model(inversion)
        wishes = [target] if isinstance(target, str | Edit) else list(target)
        if not wishes:
            raise ValueError("give at least one target to edit to")
        if options and any(isinstance(wish, Edit) for wish in wishes):
            raise ValueError(
                f"options {', '.join(options)} are for targets given as text; an Edit has its own"
            )
        edits = [w if isinstance(w, Edit) else Edit(target=w, **options) for w in wishes]
        size = inversion.picture.size
        for edit in edits:
            if edit.mask is not None and tuple(edit.mask.shape) != size:
                raise ValueError(
                    f"the mask of the edit to {edit.target!r} is {list(edit.mask.shape)}; the "
                    f"inverted picture is {list(size)} (fitted to the model: inversion.picture)"
                )
        scale = inversion.guidance_scale if guidance_scale is None else guidance_scale
        prompts = [inversion.prompt, *(edit.target for edit in edits)]
        tokens = [self.model.text.tokens(prompt) for prompt in prompts]
        control = PromptToPrompt(
            tokens[0], tokens[1:], edits, inversion.num_inference_steps, self.layers
        )
        self._probe_once()
        clock.lap("plan")
        job = self._replay(inversion, prompts, scale, control, on_progress)
        latents = job.result()
        clock.lap("edit")
        round_trip, picture, *pictures = self._decode(
            torch.cat([inversion.latents.to(self.model.device), latents])
        )
        clock.lap("decode")
        source = inversion.picture.pixels
        masks = [_pixel_mask(control, index, size) for index in range(len(edits))]
        return Edited(
            pictures=pictures,
            source=Reconstruction(
                picture=picture,
                round_trip=round_trip,
                guidance_scale=scale,
                psnr=psnr(source, picture),
                vae_psnr=psnr(source, round_trip),
                dominant_error=dominant_error(source, round_trip, picture),
                seconds=clock.laps,
                unet_rows=job.rows_asked,
            ),
            edits=edits,
            kinds=[plan.alignment.kind for plan in control.plans],
            heat_maps=[control.heat_maps(index) for index in range(len(edits))],
            masks=masks,
            outside_mask_psnr=[
                None if mask is None or bool(mask.all()) else psnr(source, edited, ~mask.numpy())
                for mask, edited in zip(masks, pictures, strict=True)
            ],
            touched=[control.touched(index) for index in range(len(edits))],
            latents=latents,
            seconds=clock.laps,
            unet_rows=job.rows_asked,
        )

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        on_progress: Listener | None = None,
    ) -> list[Pixels]:
        """Text to image by DDIM. Prompt i starts from noise of `seed + i`, alone or in company."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        scale = self.model.family.guidance_scale if guidance_scale is None else guidance_scale
        _require_finite_scale(scale)
        if not prompts:
            raise ValueError("give at least one prompt to generate from")
        height, width = size or self.model.default_size
        autoencoder = self.model.autoencoder
        if height % autoencoder.scale or width % autoencoder.scale:
            raise ValueError(f"size={height, width}; multiples of {autoencoder.scale} are possible")
        shape = (autoencoder.channels, height // autoencoder.scale, width // autoencoder.scale)
        noise = torch.stack(
            [
                torch.randn(shape, generator=torch.Generator().manual_seed(seed + index))
                for index in range(len(prompts))
            ]
        ).to(self.model.device)
        null = self._encode([""] * len(prompts), (height, width))
        algorithm = sample(
            self.model.levels.schedule(num_inference_steps),
            noise,
            self._encode(prompts, (height, width)),
            lambda step: null,
            scale,
            NoEdit(),
        )
        return self._decode(self._run(algorithm, "generate", on_progress).result())

    def _replay(
        self,
        inversion: Inversion,
        prompts: Sequence[str],
        guidance_scale: float,
        control: Control,
        on_progress: Listener | None,
    ) -> Job[Tensor]:
        """Sample one row for each prompt back from an inversion, the source's first."""
        self._require_same_model(inversion)
        _require_finite_scale(guidance_scale)
        method = method_named(inversion.method)
        conditioning = self._encode(prompts, inversion.picture.size)
        inverted = inversion.inverted.to(self.model.device).expand(len(prompts))
        method.check(inverted, inversion.num_inference_steps, conditioning)
        algorithm = method.replay(
            self.model.levels.schedule(inversion.num_inference_steps),
            inverted,
            conditioning,
            self._encode([""] * len(prompts), inversion.picture.size),
            guidance_scale,
            control,
        )
        job = self._run(algorithm, f"{method.name} replay", on_progress)
        _require_finite(job.result(), f"{method.name} replay")
        return job

    def _run(
        self, algorithm: Algorithm[Result], name: str, on_progress: Listener | None
    ) -> Job[Result]:
        with self._lock:
            driver = Driver(self.denoiser)
            job = driver.add(Job(algorithm, name, name, on_progress))
            driver.run()
        if job.error is not None:
            raise job.error
        return job

    def _encode(self, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        with torch.no_grad():
            return self.model.text.encode(prompts, size).to(self.model.device)

    def _decode(self, latents: Tensor) -> list[Pixels]:
        with torch.no_grad():
            return from_tensor(self.model.autoencoder.decode(latents))

    def _require_same_model(self, inversion: Inversion) -> None:
        if inversion.fingerprint != self.model.fingerprint:
            raise ModelError(
                f"the inversion was made with model {inversion.model!r} "
                f"({inversion.fingerprint[:12]}), this engine runs {self.model.name!r} "
                f"({self.model.fingerprint[:12]}); load that model or invert again"
            )

    def _probe_once(self) -> None:
        """Before the first edit: every attention layer must follow its route."""
        if self._probed:
            return
        side = 2 * max(self.layers.self_downscales + self.layers.cross_downscales)
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.model.autoencoder.channels, side, side)
        latents = torch.randn(shape, generator=generator).to(self.model.device)
        conditioning = self._encode(["a cat", "blue sky"], self.model.default_size)
        with self._lock:
            probe_routes(self.denoiser, self.model.unet.layers, conditioning, latents)
        self._probed = True


class _Clock:
    """Wall-clock seconds of named laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def _decoder(model: Model) -> Decoder:
    """Latents to images in [0, 1], for losses on pictures."""
    return lambda latents: ((model.autoencoder.decode(latents) + 1) / 2).clamp(0, 1)


def _require_finite_scale(guidance_scale: float) -> None:
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale={guidance_scale}; a finite number is expected")


def _require_finite(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            f"{what} ended in NaN or infinity; use dtype float32, more steps or a lower guidance"
        )


def _pixel_mask(control: PromptToPrompt, target: int, size: tuple[int, int]) -> Tensor | None:
    """Where a target was allowed to change at the last step, at the picture's size: bool [H, W]."""
    if control.masks is None:
        return None
    mask = control.masks[target][None, None].float().cpu()
    return interpolate(mask, size=size, mode="nearest")[0, 0] > 0
