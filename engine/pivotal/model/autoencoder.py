"""Images to latents and back."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pivotal.errors import NonFiniteError
from pivotal.model.offloading import Visiting
from pivotal.model.tiling import TILE, tiled


class Autoencoder:
    """A Stable Diffusion VAE in its own dtype, whatever the UNet's: SDXL's overflows in float16.

    Latents are scaled as the config says: `(mean - shift) * scale`. tiled: whether pictures larger
    than a tile (`tiling.TILE` latents) go through in tiles; then they come out a little different.
    """

    tiled: bool = False
    visiting: Visiting | None = None

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae.eval().requires_grad_(False)
        parameter = next(vae.parameters())
        self.device: torch.device = parameter.device
        self.dtype: torch.dtype = parameter.dtype
        config: Any = vae.config
        self.channels = int(config.latent_channels)
        self.scale = 2 ** (len(config.block_out_channels) - 1)  # pixels per latent, along a side
        self._alone = threading.Lock()  # tiles change how normalisations run, for all who run them
        self._gain = float(config.scaling_factor) / self._channel_values("latents_std", 1.0)
        self._shift = self._channel_values("latents_mean", float(config.shift_factor or 0.0))

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] to latents [B, C, h, w], by the mean, not a sample.

        float32, on the autoencoder's device. Raises ValueError for another shape or sides that are
        no multiple of `scale`, NonFiniteError if the result is.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {list(images.shape)}; [B, 3, H, W] is expected")
        height, width = images.shape[-2:]
        if height < 1 or width < 1 or height % self.scale or width % self.scale:
            raise ValueError(
                f"an image of {height} x {width} pixels can't be encoded; height and width must "
                f"be multiples of {self.scale}: fit the image first"
            )
        images = images.to(self.device, self.dtype)

        def mean_of(part: Tensor) -> Tensor:
            mean: Tensor = self.vae.encode(part).latent_dist.mode()
            return mean.float()

        with self._alone, self._present():
            if self.tiled and max(height, width) > TILE * self.scale:
                mean = tiled(self.vae.encoder, mean_of, images, self.scale, 1)
            else:
                mean = mean_of(images)
        return self._finite(self.scaled(mean), "encoded latents")

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images [B, 3, H, W], float32, on the autoencoder's device.

        Images lie in [-1, 1] but for the network's overshoot, which is not clamped so that
        gradients pass. Raises ValueError for another shape, NonFiniteError if the result is.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(
                f"latents have shape {list(latents.shape)}; [B, {self.channels}, h, w] is expected"
            )
        unscaled = self.unscaled(latents.to(self.device, torch.float32))

        def images_of(part: Tensor) -> Tensor:
            images: Tensor = self.vae.decode(part.to(self.dtype)).sample
            return images.float()

        with self._alone, self._present():
            if self.tiled and max(latents.shape[-2:]) > TILE:
                images = tiled(self.vae.decoder, images_of, unscaled, 1, self.scale)
            else:
                images = images_of(unscaled)
        return self._finite(images, "decoded image")

    def _present(self) -> AbstractContextManager[None]:
        return nullcontext() if self.visiting is None else self.visiting.present()

    def scaled(self, mean: Tensor) -> Tensor:
        """The encoder's mean [B, C, h, w] float32 as latents."""
        return (mean - self._shift) * self._gain

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] float32 as the decoder takes them."""
        return latents / self._gain + self._shift

    def _channel_values(self, name: str, default: float) -> Tensor:
        """A config's value for each latent channel, [1, C, 1, 1] float32."""
        values = self.vae.config.get(name) or [default] * self.channels
        return torch.tensor(values, dtype=torch.float32, device=self.device)[None, :, None, None]

    def _finite(self, values: Tensor, what: str) -> Tensor:
        if not torch.isfinite(values).all():
            raise NonFiniteError(
                f"the {what} of the autoencoder, which runs in {str(self.dtype)[6:]}, hold NaN or "
                "infinity: check the input, and run the autoencoder in float32"
            )
        return values
