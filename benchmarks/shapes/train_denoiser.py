"""Train the UNet and the text encoder: `python -m shapes.train_denoiser --minutes 75`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pictures
from transformers import CLIPTokenizer

from pivotal.bench.shapes.captions import caption
from pivotal.bench.shapes.palette import BACKGROUNDS, COLOURS, RADII, SHAPES
from pivotal.bench.shapes.scenes import Scene, Thing
from shapes.grounding import grounding_loss, regions_of, watch
from shapes.latents import encode_scenes, scene_number
from shapes.networks import build_autoencoder, build_scheduler, build_text_encoder, build_unet
from shapes.sampling import embed, sample_images
from shapes.tokenizer import write_tokenizer
from shapes.training import Budget, Draws, load_averaged, train


@dataclass(frozen=True)
class Recipe:
    """What the loss does.

    Weighting the eps loss by `min((1 + SNR) / SNR, weight_limit)` makes it the v-prediction loss,
    cut off: words are bound at high noise, where the plain eps loss is tiny. A share `clear` of the
    rows shows one object, not small, on an even background: there the loss has the most to gain
    from the word for its shape, which is otherwise learnt long after the colours. `grounding`
    weighs the loss that ties words to places (`grounding.py`).

    A share `misnamed` of the captions in the less noisy part gives objects another shape or colour
    than the picture shows, as captions of real data do. Without it the network goes on drawing what
    the word says where the picture has settled it, and guidance away from the source prompt, which
    is what a fitted null embedding comes to, exaggerates (squares with horns, orange turned red).
    """

    weight_limit: float = 30.0
    dropout: float = 0.1
    high_noise: float = 0.3
    scenes: int = 24_000
    clear: float = 0.5
    grounding: float = 0.5
    misnamed: float = 0.4


class DenoiserTask:
    """Predict eps from noisy latents and a caption."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        numbers = range(len(self.latents))
        self.clear = np.array([i for i in numbers if is_clear(scene_number(i))])
        self.scale = json.loads((folder / "latents.json").read_text())["scaling_factor"]
        self.unet = build_unet()
        self.text_encoder = build_text_encoder(self.tokenizer)
        self.modules: dict[str, torch.nn.Module] = {
            "unet": self.unet,
            "text_encoder": self.text_encoder,
        }
        self.watched = watch(self.unet)
        self.alpha_bars = build_scheduler().alphas_cumprod
        self.autoencoder_folder = folder

    def loss(self, draws: Draws, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The weighted eps loss of a batch of cached latents, each with a fresh caption."""
        rows = draws.numpy.integers(len(self.latents), size=batch)
        clear = self.clear[draws.numpy.integers(len(self.clear), size=batch)]
        rows = np.where(draws.numpy.random(batch) < self.recipe.clear, clear, rows)
        scenes = [scene_number(int(row)) for row in rows]
        timesteps = torch.from_numpy(self._timesteps(draws.numpy, batch))
        lies = (draws.numpy.random(batch) < self.recipe.misnamed) & (timesteps.numpy() < 600)
        told = [
            misnamed(scene, draws.numpy) if lie else scene
            for scene, lie in zip(scenes, lies, strict=True)
        ]
        prompts = [self._prompt(scene, draws.numpy) for scene in told]
        clean = torch.from_numpy(self.latents[rows]) * self.scale
        eps = torch.randn(clean.shape, generator=draws.torch)
        alpha_bar = self.alpha_bars[timesteps].view(-1, 1, 1, 1)
        noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * eps
        hidden = embed(self.tokenizer, self.text_encoder, prompts)
        predicted = self.unet(noisy, timesteps, hidden).sample
        error = (predicted - eps).square().mean(dim=(1, 2, 3))
        snr = self.alpha_bars[timesteps] / (1 - self.alpha_bars[timesteps])
        weight = ((1 + snr) / snr).clamp(max=self.recipe.weight_limit)
        tokens, places = regions_of(self.tokenizer, told, prompts, hidden.shape[1])
        # Where an object is can't be seen in almost pure noise.
        astray = self.alpha_bars[timesteps] ** 0.25 * grounding_loss(self.watched, tokens, places)
        figures = {"eps": float(error.detach().mean()), "astray": float(astray.detach().mean())}
        return (weight * error + self.recipe.grounding * astray).mean(), figures

    def _prompt(self, scene: Scene, rng: np.random.Generator) -> str:
        return "" if rng.random() < self.recipe.dropout else caption(scene, rng)

    def _timesteps(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Stratified uniform timesteps, a share of them from the noisier half only, int64 [B]."""
        place = (rng.permutation(batch) + rng.random(batch)) / batch
        noisier = rng.random(batch) < self.recipe.high_noise
        return np.where(noisier, 500 + 500 * place, 1000 * place).astype(np.int64)

    def show(self, averaged: dict[str, torch.nn.Module], folder: Path, step: int) -> None:
        """A sheet of 64 samples at guidance 7.5; their prompts in a file beside it."""
        vae = build_autoencoder(self.scale)
        load_averaged(self.autoencoder_folder / "autoencoder", {"vae": vae})
        prompts = show_prompts(64)
        torch.set_num_threads(4)
        images = sample_images(
            self.unet, vae, self.tokenizer, self.text_encoder, prompts, steps=25, seed=1
        )
        torch.set_num_threads(1)
        sheet = np.concatenate(
            [np.concatenate(list(images[row : row + 8]), axis=1) for row in range(0, 64, 8)]
        )
        Pictures.fromarray(sheet).resize((1024, 1024), Pictures.Resampling.NEAREST).save(
            folder / f"step{step:06d}.png"
        )
        np.save(folder / "samples.npy", images)
        (folder / "samples.json").write_text(json.dumps(prompts, indent=0))


def is_clear(scene: Scene) -> bool:
    """One object, not small, on a plain or graded background."""
    alone = len(scene.objects) == 1 and scene.objects[0].size != "small"
    return alone and scene.background.texture in ("plain", "gradient")


def misnamed(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with another shape or another colour word for each object."""
    return replace(scene, objects=tuple(_misnamed(thing, rng) for thing in scene.objects))


def _misnamed(thing: Thing, rng: np.random.Generator) -> Thing:
    if rng.random() < 0.5:
        return replace(thing, shape=_other(SHAPES, thing.shape, rng))
    return replace(thing, colour=_other(tuple(COLOURS), thing.colour, rng))


def _other(names: Sequence[str], than: str, rng: np.random.Generator) -> str:
    return str(rng.choice([name for name in names if name != than]))


def show_prompts(count: int, seed: int = 3) -> list[str]:
    """Canonical prompts over trained and held-out triples alike."""
    rng = np.random.default_rng(seed)
    prompts = []
    for number in range(count):
        shape = SHAPES[number % len(SHAPES)]
        colour = list(COLOURS)[number % len(COLOURS)]
        ground = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        size = list(RADII)[int(rng.integers(3))] + " " if number % 2 else ""
        article = "an" if not size and colour == "orange" else "a"
        prompts.append(f"{article} {size}{colour} {shape} on a {ground} background")
    return prompts


def prepare(folder: Path, recipe: Recipe) -> None:
    """Write the tokenizer and the cached latents, unless they are there."""
    if not (folder / "tokenizer" / "vocab.json").exists():
        write_tokenizer(folder / "tokenizer")
    if not (folder / "latents.json").exists():
        vae = build_autoencoder()
        load_averaged(folder / "autoencoder", {"vae": vae})
        encode_scenes(vae, folder, recipe.scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".runs"))
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8, help="latents a worker a step")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--decay-from", type=float, default=0.85, help="share of the budget")
    parser.add_argument("--clear", type=float, default=0.5, help="share of clear rows")
    parser.add_argument("--misnamed", type=float, default=0.4, help="share of lying captions")
    parser.add_argument("--show-every", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = Recipe(clear=options.clear, misnamed=options.misnamed)
    prepare(options.folder, recipe)
    budget = Budget(
        minutes=options.minutes, workers=options.workers, batch=options.batch,
        learning_rate=options.learning_rate, seed=options.seed, decay_from=options.decay_from,
        ema_decay=0.996,
        warmup_steps=400, log_every=100,
    )  # fmt: skip
    task = partial(DenoiserTask, options.folder, recipe)
    train(task, budget, options.folder / "denoiser", options.show_every)


if __name__ == "__main__":
    main()
