"""Write the trained parts as a Stable Diffusion folder: `python -m shapes.export`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer
from transformers.utils import logging as transformers_logging

from shapes.networks import build_autoencoder, build_scheduler, build_text_encoder, build_unet
from shapes.train_autoencoder import freeze_encoder
from shapes.training import load_averaged

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


def build_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The pipeline of a training folder's averaged weights, in float32."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    scale = json.loads((folder / "latents.json").read_text())["scaling_factor"]
    vae, unet, text_encoder = (
        build_autoencoder(scale), build_unet(), build_text_encoder(tokenizer),
    )  # fmt: skip
    load_averaged(folder / "autoencoder", {"vae": vae})
    if (folder / "decoder" / "checkpoint.pt").exists():
        freeze_encoder(vae)
        load_averaged(folder / "decoder", {"vae": vae})
    if (folder / "denoiser" / "checkpoint.pt").exists():
        load_averaged(folder / "denoiser", {"unet": unet, "text_encoder": text_encoder})
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(folder: Path, target: Path) -> None:
    """Write float16 safetensors beside the target, then swap the folders."""
    unfinished = target.with_name(target.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline = build_pipeline(folder).to(torch.float16)
    pipeline.save_pretrained(unfinished, safe_serialization=True)
    shutil.rmtree(unfinished / "tokenizer")
    (unfinished / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(folder / "tokenizer" / name, unfinished / "tokenizer" / name)
    for weights in unfinished.rglob("*.safetensors"):
        weights.chmod(0o644)
    previous = target.with_name(target.name + ".old")
    shutil.rmtree(previous, ignore_errors=True)
    if target.exists():
        target.rename(previous)
    unfinished.rename(target)
    shutil.rmtree(previous, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".runs"))
    parser.add_argument("--target", type=Path, default=Path("engine/pivotal/bundled/shapes"))
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    export(options.folder, options.target)


if __name__ == "__main__":
    main()
