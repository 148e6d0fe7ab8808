"""How much memory a job needs, said before it runs: of networks, by row and size, and in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pivotal.errors import MemoryLimitError
from pivotal.model.families import Family
from pivotal.model.networks import empty_autoencoder, empty_text_encoder, empty_unet
from pivotal.model.tiling import TILE
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning, Denoise, NoiseGradient, Wrt
from pivotal.runtime.memory_count import Peak, faking, filled, peak_bytes, weight_bytes
from pivotal.runtime.precision import Precision
from pivotal.runtime.torch_denoiser import TorchDenoiser

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
Shape = tuple[int, int, int]  # latents' C, h, w


class NetworkMemory:
    """Bytes of a checkpoint's networks, from its config files alone; no weights are read.

    configs: `unet`, `vae`, `text_encoder` and, for SDXL, `text_encoder_2`. Figures are those of
    torch's eager mode, counted once each and kept.
    """

    def __init__(
        self,
        configs: Mapping[str, Mapping[str, Any]],
        family: Family,
        precision: Precision,
        *,
        gradient_checkpointing: bool = False,
        tiled_autoencoder: bool = False,
        offloaded: bool = False,
        chunks: int = 1,
    ) -> None:
        self.configs = configs
        self.family = family
        self.precision = precision
        self.gradient_checkpointing = gradient_checkpointing
        self.tiled_autoencoder = tiled_autoencoder
        self.offloaded = offloaded  # all but the UNet
        self.chunks = chunks  # that a prompt is spread over
        self._kept: dict[tuple[Any, ...], Peak] = {}
        self._each: tuple[int, int, int] | None = None

    @property
    def channels(self) -> int:
        """Of latents."""
        return int(self.configs["vae"]["latent_channels"])

    @property
    def scale(self) -> int:
        """Pixels per latent, along a side."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    @property
    def embedding(self) -> tuple[int, int]:
        """Length and width of a prompt's hidden states."""
        length = self.configs["text_encoder"]["max_position_embeddings"]
        return self.chunks * int(length), int(self.configs["unet"]["cross_attention_dim"])

    def weights(self) -> int:
        """Of the networks that stay on the device."""
        unet, *others = self._once_each()
        return unet + (0 if self.offloaded else sum(others))

    def visiting(self) -> tuple[int, int]:
        """Weights of the autoencoder and of the text encoders, where they are offloaded."""
        _, autoencoder, text = self._once_each()
        return (autoencoder, text) if self.offloaded else (0, 0)

    def denoise(self, latents: Shape) -> Peak:
        """Of rows of a forward pass."""
        return self._once((Denoise, latents), lambda: self._row(latents, None))

    def gradient(self, latents: Shape, wrt: Wrt) -> Peak:
        """Of rows of a forward and a backward pass."""
        return self._once((NoiseGradient, latents, wrt), lambda: self._row(latents, wrt))

    def autoencode(self, size: tuple[int, int]) -> int:
        """Of encoding or decoding one picture of (height, width), whichever is more."""
        if not self.tiled_autoencoder:
            return self._once(("autoencode", size), lambda: self._autoencode(size))(1)
        height, width = (min(side, TILE * self.scale) for side in size)
        tile = self._once(
            ("autoencode", (height, width)), lambda: self._autoencode((height, width))
        )
        whole = 3 * size[0] * size[1] * 4  # float32: the picture, the sum of tiles, and their mean
        return tile(1) + (0 if (height, width) == tuple(size) else 3 * whole)

    def _once(self, key: tuple[Any, ...], count: Callable[[], Peak]) -> Peak:
        if key not in self._kept:
            self._kept[key] = count()
        return self._kept[key]

    def _once_each(self) -> tuple[int, int, int]:
        if self._each is None:
            self._each = self._weights()
        return self._each

    def _weights(self) -> tuple[int, int, int]:
        """Of the UNet, the autoencoder and the text encoders."""
        networks, vae = self.precision.networks, self.precision.autoencoder
        unet = weight_bytes(empty_unet(self.configs["unet"]), networks)
        autoencoder = weight_bytes(empty_autoencoder(self.configs["vae"]), vae)
        text = 0
        for index, name in enumerate(TEXT_ENCODERS):
            if name in self.configs:
                encoder = empty_text_encoder(self.configs[name], projected=index == 1)
                text += weight_bytes(encoder, networks)
        return unet, autoencoder, text

    def _row(self, latents: Shape, wrt: Wrt | None) -> Peak:
        unet = empty_unet(self.configs["unet"])
        routed = RoutedUNet(unet, word_map_downscale=self.family.word_map_downscale)
        routed.checkpoint_gradients(self.gradient_checkpointing)
        with faking(), torch.no_grad():
            filled(routed, self.precision.networks)
            denoiser = TorchDenoiser(routed, "epsilon")
            asked = Denoise(
                torch.zeros(1, *latents),
                torch.zeros(1),
                torch.zeros(1, dtype=torch.float64),
                self._conditioning(),
            )
            if wrt is None:
                return peak_bytes(lambda: denoiser.answer(asked))
            gradient = NoiseGradient(
                asked.latents,
                asked.timesteps,
                asked.alpha_bars,
                asked.conditioning,
                scale=torch.zeros(1),
                offset=torch.zeros_like(asked.latents),
                wrt=wrt,
            )
            return peak_bytes(lambda: denoiser.answer(gradient))

    def _conditioning(self) -> Conditioning:
        hidden = torch.zeros(1, *self.embedding)
        if not self.family.time_ids:
            return Conditioning(hidden)
        width = self.configs["text_encoder_2"]["projection_dim"]
        return Conditioning(hidden, torch.zeros(1, width), torch.zeros(1, 6))

    def _autoencode(self, size: tuple[int, int]) -> Peak:
        vae = empty_autoencoder(self.configs["vae"])
        with faking(), torch.no_grad():
            filled(vae, self.precision.autoencoder)
            dtype = self.precision.autoencoder
            picture = torch.zeros(1, 3, *size, dtype=dtype)
            sides = (side // self.scale for side in size)
            latents = torch.zeros(1, self.channels, *sides, dtype=dtype)

            encoding = peak_bytes(lambda: vae.encode(picture).latent_dist.mode().float())
            return encoding | peak_bytes(lambda: vae.decode(latents).sample.float())


@dataclass(frozen=True)
class MemoryPlan:
    """What a job needs, in bytes, and how much of it fits.

    batch: rows of the network in the job's most demanding question. rows: as many as it would ask
    at once; least: as few as it can. state: what is kept between the steps. autoencoder: one
    picture, encoded or decoded; where networks are offloaded with its weights, or the text
    encoders' if those are more. limit: what the job may use, weights included; None for no limit.
    """

    job: str
    weights: int
    batch: Peak
    rows: int
    least: int
    state: int
    autoencoder: int
    limit: int | None

    @property
    def row(self) -> int:
        """What each of many rows takes."""
        return self.batch.row

    @property
    def rows_at_once(self) -> int:
        """As many rows as fit, at most `rows`; 0 where a single one does not."""
        if self.limit is None:
            return self.rows
        return min(self.rows, self.batch.within(self.limit - self.weights - self.state))

    @property
    def fits(self) -> bool:
        """Whether it can run within the limit, split if need be."""
        return self.limit is None or (
            self.rows_at_once >= self.least and self.peak(self.least) <= self.limit
        )

    def peak(self, rows: int | None = None) -> int:
        """The most bytes at once with so many rows in a batch: those that fit if None."""
        rows = max(self.rows_at_once, self.least) if rows is None else rows
        return self.weights + self.state + max(self.batch(rows), self.autoencoder)

    def require(self) -> int:
        """The rows to ask at once. Raises MemoryLimitError where not even the least fit."""
        if not self.fits:
            assert self.limit is not None
            tiles = "a tiled autoencoder, " if self.autoencoder > self.batch(self.least) else ""
            raise MemoryLimitError(
                f"{self.job} needs {said(self.peak(self.least))} of memory ({said(self.weights)} "
                f"of them the weights) and may use {said(self.limit)}: use a smaller size, "
                f"{tiles}dtype float16, gradient checkpointing, or a higher memory limit"
            )
        return self.rows_at_once


def said(count: int) -> str:
    """Bytes for people: 1.5 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def device_limit(device: torch.device) -> int | None:
    """What a CUDA device has free, with what torch holds there, less a tenth for the work space
    and gaps that a count does not see. None on a CPU: its memory is shared with everyone.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(0.9 * (free + torch.cuda.memory_reserved(device)))
