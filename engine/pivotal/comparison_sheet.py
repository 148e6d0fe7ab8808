"""A comparison as one contact sheet: what came back, what was edited, the noise, the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from .comparison import ComparedMethod, Comparison
from .figures import Panel, Row, Table, contact_sheet, latents_as_picture
from .images import Pixels
from .noise_figures import NoiseFigures
from .records import decibels, model_name

_COLUMNS = 8
_SIDE = 208  # a method's name fits above it


def comparison_sheet(comparison: Comparison) -> Pixels:
    """uint8 [H, W, 3]. Raises ValueError where no method could."""
    done = comparison.done
    if not done:
        reasons = "; ".join(f"{each.method}: {each.error}" for each in comparison.methods)
        raise ValueError(f"no method could invert this image: {reasons}")
    first = done[0].reconstruction
    assert first is not None
    source = [
        Panel("source", comparison.picture.pixels),
        Panel("VAE round trip", first.round_trip, [decibels(first.vae_psnr)]),
    ]
    rows = [Row(f"“{comparison.prompt}”", source)]
    guidance = f"sampled back at guidance {comparison.guidance_scale:g}"
    rows.append(Row(guidance, [_panel(each, _back) for each in done]))
    if comparison.target is not None:
        rows.append(Row(f"edited to “{comparison.target}”", [_panel(e, _edit) for e in done]))
    rows.append(Row("the inverted noise", [_panel(each, _noise) for each in done]))
    return contact_sheet(
        rows,
        title="pivotal compare",
        footer=f"{model_name(comparison.model)} · {comparison.num_inference_steps} steps · "
        f"{comparison.dtype}",
        columns=_COLUMNS,
        table=figures_table(comparison),
        side=_SIDE,
    )


def figures_table(comparison: Comparison) -> Table:
    """A line for each method, and one for noise that was drawn; back, lat and kept are decibels, ∞
    where nothing differs.
    """
    edited = comparison.target is not None
    header = ("method", "s", "rows", "back", "lat", "mean", "std", "KS", "corr")
    lines = [_line(each, edited) for each in comparison.methods]
    fresh = ("drawn noise", "", "", "", "", *_of_noise(comparison.fresh_noise))
    lines.append((*fresh, "") if edited else fresh)
    return Table((*header, "kept") if edited else header, lines)


def _line(each: ComparedMethod, edited: bool) -> tuple[str, ...]:
    found, noise = each.reconstruction, each.noise
    if found is None or noise is None:
        return (each.method, "can't", *[""] * (8 if edited else 7))
    line = (
        each.method,
        f"{each.seconds:.1f}",
        str(each.unet_rows),
        _plain(found.psnr),
        _plain(each.latents_psnr),
        *_of_noise(noise),
    )
    return (*line, _plain(each.outside_psnr)) if edited else line


def _of_noise(noise: NoiseFigures) -> tuple[str, ...]:
    return (
        f"{noise.mean:.2f}",
        f"{noise.std_ratio:.2f}",
        f"{noise.normality:.3f}",
        f"{noise.autocorrelation:.2f}",
    )


def _plain(value: float | None) -> str:
    if value is None:
        return ""
    return "∞" if math.isinf(value) else decibels(value).removesuffix(" dB")


def _panel(each: ComparedMethod, show: Callable[[ComparedMethod], Panel]) -> Panel:
    return replace(show(each), title=each.method)


def _back(each: ComparedMethod) -> Panel:
    found = each.reconstruction
    assert found is not None
    return Panel("", found.picture, [decibels(found.psnr)])


def _edit(each: ComparedMethod) -> Panel:
    assert each.edited is not None
    outside = each.outside_psnr
    caption: Sequence[str] = [] if outside is None else [f"outside {decibels(outside)}"]
    return Panel("", each.edited.pictures[0], caption)


def _noise(each: ComparedMethod) -> Panel:
    assert each.inversion is not None
    assert each.noise is not None
    picture = latents_as_picture(each.inversion.inverted.noise[0].float())
    return Panel("", picture, [f"std / sigma_max {each.noise.std_ratio:.2f}"])
