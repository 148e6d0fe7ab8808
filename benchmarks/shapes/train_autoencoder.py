"""Train the autoencoder: `python -m shapes.train_autoencoder --minutes 15`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image as Pictures

from pivotal.bench.shapes.palette import held_out_triples
from pivotal.bench.shapes.scenes import draw, sample_held_out, sample_scene
from shapes.composites import composite, edited_pair
from shapes.images import psnr, to_images, to_tensor
from shapes.networks import build_autoencoder
from shapes.photographs import held_out_photograph, load_pyramids, sample_crop
from shapes.training import Budget, Draws, load_averaged, train

PHOTOGRAPHS = 0.25
EDITED = 0.4  # of the decoder's own training


def held_out_images(count: int, seed: int = 7) -> np.ndarray:
    """Drawings of held-out triples, uint8 [count, 64, 64, 3]."""
    rng = np.random.default_rng(seed)
    triples = held_out_triples()
    scenes = [sample_held_out(rng, triples[i % len(triples)]) for i in range(count)]
    return np.stack([draw(scene)[0] for scene in scenes])


class AutoencoderTask:
    """Reconstruct scenes and photographs; a faint KL keeps the latents bounded.

    encoded_by: a folder with a trained autoencoder, whose encoder stays as it is: the decoder is
    trained on, from its means, and latents keep their meaning.
    """

    def __init__(self, encoded_by: Path | None = None) -> None:
        self.vae = build_autoencoder()
        self.decoder_only = encoded_by is not None
        if encoded_by is not None:
            load_averaged(encoded_by, {"vae": self.vae})
            freeze_encoder(self.vae)
        self.modules: dict[str, torch.nn.Module] = {"vae": self.vae}
        self.pyramids = load_pyramids()

    def loss(self, draws: Draws, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
        """MSE + 0.1 L1 + 1e-7 KL (summed over latents) on a fresh batch of scenes and crops."""
        if self.decoder_only:
            return self._decoder_loss(draws, batch)
        pixels = self._images(draws, batch)
        posterior = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(posterior.sample(draws.torch)).sample
        divergence = posterior.kl().mean()
        figures = {"db": decibels_of(decoded, pixels), "kl": float(divergence.detach())}
        return distance(decoded, pixels) + 1e-7 * divergence, figures

    def _decoder_loss(self, draws: Draws, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Round trips from the encoder's means, and a share of composites as edits make them."""
        edited = max(1, round(EDITED * batch))
        pixels = self._images(draws, batch - edited)
        pairs = [edited_pair(draws.numpy) for _ in range(edited)]
        before, after, places = (np.stack(column) for column in zip(*pairs, strict=True))
        wanted = to_tensor(after)
        with torch.no_grad():
            sources = torch.cat([pixels, to_tensor(before), wanted])
            plain, old, new = (
                self.vae.encode(sources).latent_dist.mode().split([batch - edited, edited, edited])
            )
            mixed = composite(old, new, torch.from_numpy(places)[:, None], draws.numpy, draws.torch)
        decoded = self.vae.decode(torch.cat([plain, mixed])).sample
        figures = {
            "db": decibels_of(decoded[: len(plain)], pixels),
            "edited": decibels_of(decoded[len(plain) :], wanted),
        }
        return distance(decoded, torch.cat([pixels, wanted])), figures

    def _images(self, draws: Draws, count: int) -> torch.Tensor:
        images = []
        for _ in range(count):
            if draws.numpy.random() < PHOTOGRAPHS:
                images.append(sample_crop(draws.numpy, self.pyramids))
            else:
                images.append(draw(sample_scene(draws.numpy))[0])
        return to_tensor(np.stack(images))

    def show(self, averaged: dict[str, torch.nn.Module], folder: Path, step: int) -> None:
        """A sheet of originals above their round trips, with the mean decibels in its name."""
        images = held_out_images(63)
        images = np.concatenate([held_out_photograph()[None], images])
        decoded = to_images(round_trip(self.vae, to_tensor(images)))
        decibels = psnr(images, decoded)
        sheet = np.concatenate(
            [np.concatenate(list(rows[:16]), axis=1) for rows in (images, decoded)], axis=0
        )
        name = f"step{step:06d}_scenes{decibels[1:].mean():.2f}_photo{decibels[0]:.2f}.png"
        Pictures.fromarray(sheet).resize((2048, 256), Pictures.Resampling.NEAREST).save(
            folder / name
        )


def distance(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """MSE + 0.1 L1, of pixels in [-1, 1]."""
    error = decoded - pixels
    return error.square().mean() + 0.1 * error.abs().mean()


def decibels_of(decoded: torch.Tensor, pixels: torch.Tensor) -> float:
    """Over a whole batch."""
    return float(10 * torch.log10(4 / (decoded - pixels).detach().square().mean()))


def freeze_encoder(vae: AutoencoderKL) -> None:
    """Leave only the decoder's parameters to train."""
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)


def round_trip(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Encode by the mean and decode, float32 [B, 3, 64, 64]."""
    with torch.no_grad():
        decoded: torch.Tensor = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    return decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".runs"))
    parser.add_argument("--decoder", action="store_true", help="train the decoder on, alone")
    parser.add_argument("--minutes", type=float, default=16.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4, help="images a worker a step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    budget = Budget(
        minutes=options.minutes, workers=options.workers, batch=options.batch,
        learning_rate=options.learning_rate, seed=options.seed, ema_decay=0.998,
    )  # fmt: skip
    trained = options.folder / "autoencoder"
    if options.decoder:
        task = partial(AutoencoderTask, trained)
        train(task, budget, options.folder / "decoder", show_every=500)
    else:
        train(AutoencoderTask, budget, trained, show_every=1000)


if __name__ == "__main__":
    main()
