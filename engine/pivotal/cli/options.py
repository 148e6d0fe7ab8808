"""The options that commands share, as frozen dataclasses: a command takes them whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .checkpoint import CheckpointOptions
from .completion import (
    complete_backends,
    complete_dtypes,
    complete_methods,
    complete_policies,
)
from .config import read_config
from .values import parse_bytes

if TYPE_CHECKING:
    from pivotal.cache import InversionCache
    from pivotal.engine import Engine
    from pivotal_kernels.routed_attention import Impl

_MODEL = "Model"  # panels of a command's help
EVERY = "In general"

Dtype = Annotated[
    str,
    typer.Option(
        help="The UNet's: `float32`, `bfloat16`, `float16`, `float64`; `tf32`, `fp8` on GPUs.",
        autocompletion=complete_dtypes,
        rich_help_panel=_MODEL,
    ),
]
Method = Annotated[
    str,
    typer.Option(help="See `pivotal methods`.", autocompletion=complete_methods),
]
Steps = Annotated[int, typer.Option(help="Steps of the schedule.")]
GuidanceScale = Annotated[
    float | None, typer.Option(help="Default: 7.5 for most models; the inversion's in edits.")
]
Option = Annotated[
    list[str] | None, typer.Option(help="The method's own, `name=value`; may repeat.")
]
Policy = Annotated[
    str,
    typer.Option(
        help="How a picture gets that size: `fit` keeps all of it and its aspect, at as many "
        "pixels; `crop`, `pad` and `stretch` give it exactly. All but what `crop` cuts off comes "
        "back.",
        autocompletion=complete_policies,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Height and width in pixels, as `512x768`."),
]
PictureSize = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        help="Height and width in pixels, as `512x768`, or `source`, the picture's own. Default: "
        "the model's.",
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|BOX|WORD",
        help="Where change may happen: where a picture is white, in `box:x0,y0,x1,y1` (pixels of "
        "the source, from the top left), or where a word of its prompt looks, `word:cat`.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Embed no settings in the pictures.")
]
Animation = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also the way there, as an animated `.gif` or `.webp`."),
]
MaxSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="As `500MB` or `2GB`. Default: 2GB.")
]


@dataclass(frozen=True)
class ModelOptions(CheckpointOptions):
    """Which model, and how it runs."""

    device: Annotated[
        str, typer.Option(help="`cpu`, `cuda`, `cuda:1`.", rich_help_panel=_MODEL)
    ] = "cpu"
    dtype: Dtype = "float32"
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What weights and a job may take, as `8GB`. Default: what a GPU has free.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Less memory for null-text, a third more time, the same result.",
            rich_help_panel=_MODEL,
        ),
    ] = False
    backend: Annotated[
        str,
        typer.Option(
            help="What runs the UNet: `torch`, `onnx`, `tensorrt`; `onnx+torch` and "
            "`tensorrt+torch` leave gradients to torch.",
            autocompletion=complete_backends,
            rich_help_panel=_MODEL,
        ),
    ] = "torch"
    exported: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="What `pivotal export` made, for a backend.", rich_help_panel=_MODEL
        ),
    ] = None
    allow_foreign_engine: Annotated[
        bool,
        typer.Option(
            "--allow-foreign-engine",
            help="Load a TensorRT engine that `pivotal export` did not make. It is code: only from "
            "a source you trust.",
            rich_help_panel=_MODEL,
        ),
    ] = False

    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Run torch's UNet compiled. The first run of each kind takes minutes; what was "
            "compiled is kept.",
            rich_help_panel=_MODEL,
        ),
    ] = False
    attention_impl: Annotated[
        str,
        typer.Option(
            help="What runs an edit's cross-attention: `sdpa`, `xformers`, `triton`, `reference`.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto"

    tiled_vae: Annotated[
        bool,
        typer.Option(
            "--tiled-vae",
            help="Encode and decode large pictures in tiles: less memory, three times as slow.",
            rich_help_panel=_MODEL,
        ),
    ] = False
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant",
            help="Results that are bit for bit the same in any company; slower.",
            rich_help_panel=_MODEL,
        ),
    ] = False
    long_prompts: Annotated[
        int,
        typer.Option(
            metavar="CHUNKS",
            help="Spread prompts over so many chunks of 77 tokens; the same to invert and to edit.",
            rich_help_panel=_MODEL,
        ),
    ] = 1
    weighted_prompts: Annotated[
        bool,
        typer.Option(
            "--weighted-prompts",
            help="`(word:1.3)` in a prompt weighs; the same to invert and to edit.",
            rich_help_panel=_MODEL,
        ),
    ] = False

    offload: Annotated[
        bool,
        typer.Option(
            "--offload",
            help="Text encoders and the VAE are on the GPU only while they are used.",
            rich_help_panel=_MODEL,
        ),
    ] = False

    def bytes_allowed(self) -> int | None:
        if self.memory_limit is None:
            return None
        found = parse_bytes(self.memory_limit, "--memory-limit")
        if not found:
            raise ValueError("--memory-limit 0: more than nothing is needed")
        return found

    def load(self, default: str = "shapes", cache: InversionCache | None = None) -> Engine:
        """The engine. default: the model where none was named."""
        from pivotal.engine import Engine

        return Engine.load(
            self.model or default,
            cache=cache,
            device=self.device,
            dtype=self.dtype,
            variant=self.variant,
            revision=self.revision,
            local_files_only=self.local_files_only,
            backend=self.backend,
            exported=self.exported,
            memory_limit=self.bytes_allowed() or "auto",
            gradient_checkpointing=self.gradient_checkpointing,
            allow_foreign=self.allow_foreign_engine,
            compile=self.compile,
            tiled_vae=self.tiled_vae,
            batch_invariant=self.batch_invariant,
            long_prompts=self.long_prompts,
            weighted_prompts=self.weighted_prompts,
            offload=self.offload,
            **self.parts(),
            attention=cast("Impl", self.attention_impl),  # checked where it is used
        )


@dataclass(frozen=True)
class CacheOptions:
    """Whether inversions are looked up and kept."""

    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", help="Neither look up nor keep the inversion.", rich_help_panel=EVERY
        ),
    ] = False

    def open(self) -> InversionCache | None:
        from pivotal.cache import InversionCache, default_cache_folder

        return None if self.no_cache else InversionCache(default_cache_folder())


@dataclass(frozen=True)
class ConfigOptions:
    """Where defaults come from."""

    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Defaults for options, in TOML; a section a command.",
            is_eager=True,
            rich_help_panel=EVERY,
            callback=read_config,
        ),
    ] = None
