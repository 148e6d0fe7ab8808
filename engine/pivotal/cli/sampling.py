"""How noise becomes a picture: options that `generate` and `style` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .values import parse_loss

if TYPE_CHECKING:
    from pivotal.images import Fitted, Picture, Pixels

SAMPLERS = ("ddim", "ddpm", "euler", "euler-ancestral", "lms", "dpm++")
_PANEL = "Sampling"


def _complete_samplers(incomplete: str) -> list[str]:
    return [name for name in SAMPLERS if name.startswith(incomplete)]


PromptPath = Annotated[
    str | None,
    typer.Option(help="`linear` or `spherical`, between two prompts. Default: linear."),
]


@dataclass(frozen=True)
class SamplingOptions:
    """A sampler, and a loss that it lowers on the way."""

    sampler: Annotated[
        str,
        typer.Option(
            help="`ddim`, `ddpm`, `euler`, `euler-ancestral`, `lms`, `dpm++`.",
            autocompletion=_complete_samplers,
            rich_help_panel=_PANEL,
        ),
    ] = "ddim"
    eta: Annotated[
        float | None,
        typer.Option(
            help="Fresh noise each step, 0 to 1, of `ddim` (default 0) and `euler-ancestral` (1).",
            rich_help_panel=_PANEL,
        ),
    ] = None
    order: Annotated[
        int | None, typer.Option(help="Of `lms`. Default: 4.", rich_help_panel=_PANEL)
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="LOSS",
            help="What to lower on the way: `blue:0.9` (`red`, `green`) draws the channel to that "
            "level, `image:FILE` the picture to another (`style`: `image` alone, to the source).",
            rich_help_panel=_PANEL,
        ),
    ] = None
    loss_mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With `image:FILE`: only what is dark in this picture is drawn to it.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    loss_scale: Annotated[
        float | None, typer.Option(help="The loss's factor. Default: 75.", rich_help_panel=_PANEL)
    ] = None
    loss_every: Annotated[
        int | None,
        typer.Option(help="It acts at every so many steps. Default: 5.", rich_help_panel=_PANEL),
    ] = None
    loss_through_unet: Annotated[
        bool,
        typer.Option(
            "--loss-through-unet",
            help="Its gradient passes through the UNet as well.",
            rich_help_panel=_PANEL,
        ),
    ] = False

    def planned(self, source: Fitted | None = None) -> PlannedSampling:
        """Checked, and with its pictures read, before a model is loaded. source: the inverted
        picture, which `image` without a file means.
        """
        from pivotal.images import read_image
        from pivotal.sampling.samplers import sampler_named

        given = {"eta": self.eta, "order": self.order}
        sampler_named(self.sampler).options_from({k: v for k, v in given.items() if v is not None})
        settings = {
            "--loss-mask": self.loss_mask,
            "--loss-scale": self.loss_scale,
            "--loss-every": self.loss_every,
            "--loss-through-unet": self.loss_through_unet or None,
        }
        if self.loss_every is not None and self.loss_every < 1:
            raise ValueError(f"--loss-every {self.loss_every}; 1 or more is possible")
        if self.loss is None:
            for name, value in settings.items():
                if value is not None:
                    raise ValueError(f"{name} is for a loss; give --loss, such as blue:0.9")
            return PlannedSampling(self, "", None, None, None)
        kind, value = parse_loss(self.loss)
        if kind != "image" and self.loss_mask is not None:
            raise ValueError(f"--loss-mask is for --loss image:FILE, not for {self.loss!r}")
        if kind == "image" and not value and source is None:
            raise ValueError("--loss image: name the picture, as image:FILE")
        picture = read_image(Path(value)) if kind == "image" and value else None
        mask = None if self.loss_mask is None else read_image(self.loss_mask)
        return PlannedSampling(self, kind, picture, mask, source)


@dataclass(frozen=True)
class PlannedSampling:
    """Options that were checked. kind: of the loss; none if empty."""

    options: SamplingOptions
    kind: str
    picture: Picture | None
    mask: Picture | None
    source: Fitted | None

    def keywords(self, size: tuple[int, int]) -> dict[str, Any]:
        """What the engine's calls take, for pictures of `size`."""
        options = self.options
        return {
            "sampler": options.sampler,
            "eta": options.eta,
            "order": options.order,
            "loss": self._guidance(size) if self.kind else None,
        }

    def record(self) -> dict[str, Any]:
        """How the loss was asked for, without folders: they tell of this machine."""
        if not self.kind:
            return {}
        loss, mask = self.options.loss or "", self.options.loss_mask
        if self.picture is not None:
            loss = f"image:{Path(loss.partition(':')[2]).name}"
        return {"loss_asked": loss, "loss_mask": None if mask is None else mask.name}

    def _guidance(self, size: tuple[int, int]) -> Any:
        from pivotal.sampling.loss_guidance import LossGuidance

        given = {"scale": self.options.loss_scale, "periodicity": self.options.loss_every}
        return LossGuidance(
            self._loss(size),
            through_unet=self.options.loss_through_unet,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )

    def _loss(self, size: tuple[int, int]) -> Any:
        import torch

        from pivotal.images import to_tensor
        from pivotal.sampling.losses import channel_level, preservation, similarity

        if self.kind != "image":
            return channel_level(self.kind, parse_loss(self.options.loss or "")[1])
        if self.picture is not None:
            pixels = self._fitted(self.picture, size)
        else:
            assert self.source is not None
            pixels = self.source.pixels
        wanted = to_tensor(pixels)[0] / 2 + 0.5
        if self.mask is None:
            return similarity(wanted)
        shown = torch.from_numpy(self._fitted(self.mask, size).astype("int64"))
        kept = shown.float().mean(dim=2) < 128
        if not bool(kept.any()):
            raise ValueError(
                f"--loss-mask {str(self.options.loss_mask)!r} is light all over, so nothing would "
                "be kept"
            )
        return preservation(wanted, kept)

    def _fitted(self, picture: Picture, size: tuple[int, int]) -> Pixels:
        from pivotal.images import fit

        policy = "crop" if self.source is None else self.source.policy
        return fit(picture, size, "crop" if policy == "fit" else policy).pixels
