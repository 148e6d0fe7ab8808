"""Which checkpoint a command runs, and what is added to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .completion import complete_models

MODEL = "Model"  # a panel of a command's help


@dataclass(frozen=True)
class CheckpointOptions:
    """The model's files: what `Engine.load` reads."""

    model: Annotated[
        str | None,
        typer.Option(
            help="A name of `pivotal models`, a folder, a single safetensors file or a hub id. "
            "Default: the inversion's, or `shapes`.",
            autocompletion=complete_models,
            rich_help_panel=MODEL,
        ),
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            help="A LoRA, `style.safetensors:0.8` for so much of it; may repeat.",
            rich_help_panel=MODEL,
        ),
    ] = None
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:WORD]",
            help="A textual inversion, and the word for it in prompts; may repeat.",
            rich_help_panel=MODEL,
        ),
    ] = None
    vae: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Another autoencoder than the model's own.",
            rich_help_panel=MODEL,
        ),
    ] = None
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="CLIP's vocabulary for a single file. Default: open_clip_torch's.",
            rich_help_panel=MODEL,
        ),
    ] = None
    prediction_type: Annotated[
        str | None,
        typer.Option(
            help="What the network predicts, where its files do not say or say it wrong: "
            "`epsilon`, `v_prediction`, `sample`.",
            rich_help_panel=MODEL,
        ),
    ] = None
    family: Annotated[
        str | None,
        typer.Option(
            help="For a model of unusual widths: `sd1`, `sd2`, `sdxl`.", rich_help_panel=MODEL
        ),
    ] = None
    variant: Annotated[
        str | None,
        typer.Option(help="The weights' variant, such as `fp16`.", rich_help_panel=MODEL),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(help="A hub model's branch, tag or commit.", rich_help_panel=MODEL),
    ] = None
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help="Never ask the hub.", rich_help_panel=MODEL)
    ] = False

    def parts(self) -> dict[str, Any]:
        """Keywords of `Engine.load`, but the model."""
        return {
            "lora": self.lora or (),
            "embedding": self.embedding or (),
            "vae": self.vae,
            "tokenizer": self.tokenizer,
            "prediction_type": self.prediction_type,
            "family": self.family,
        }
