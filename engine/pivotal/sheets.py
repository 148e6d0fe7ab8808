"""What the commands show: a result laid out as rows of a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .figures import Comparison, Panel, Row, heat_map, latents_as_picture, save_report
from .inversion_file import Inversion
from .records import decibels, model_name
from .results import Edited, Reconstruction


def inversion_panels(inversion: Inversion, found: Reconstruction) -> list[Panel]:
    """Source, VAE round trip, latents, inverted noise, reconstruction."""
    return [
        Panel("source", inversion.picture.pixels, [f"“{inversion.prompt}”"]),
        Panel("VAE round trip", found.round_trip, [decibels(found.vae_psnr)]),
        Panel("latents", latents_as_picture(inversion.latents[0]), ["first 3 channels"]),
        Panel(
            "inverted noise",
            latents_as_picture(inversion.inverted.noise[0]),
            [f"std / sigma_max {inversion.report['noise_std_ratio']:.3f}"],
        ),
        reconstruction_panel(inversion, found),
    ]


def reconstruction_panel(inversion: Inversion, found: Reconstruction) -> Panel:
    guidance = f"guidance {found.guidance_scale:g}"
    return Panel(
        f"{inversion.method}, {guidance}",
        found.picture,
        [decibels(found.psnr), *([f"mostly {term}"] if (term := found.dominant_error) else [])],
    )


def edit_panels(edited: Edited, index: int = 0) -> list[Panel]:
    """The edit, then a heat-map of each edited word over it."""
    picture = edited.pictures[index]
    outside = edited.outside_mask_psnr[index]
    caption = [f"“{edited.edits[index].target}”", edited.kinds[index]]
    if outside is not None:
        caption.append(f"outside the mask {decibels(outside)}")
    panels = [Panel("edit", picture, caption, accent=True)]
    for word, word_map in edited.heat_maps[index].items():
        panels.append(Panel(f"“{word}”", heat_map(word_map, picture), ["where the word looks"]))
    return panels


def edit_row(inversion: Inversion, edited: Edited, label: str) -> Row:
    """Everything about one image: how it was inverted, and what the edit made of it."""
    panels = inversion_panels(inversion, edited.source)
    for index in range(len(edited.pictures)):
        panels += edit_panels(edited, index)
    return Row(label, panels)


def footer(inversion: Inversion) -> str:
    """A sheet's last line: model, method, steps, precision. Nothing of this machine."""
    return (
        f"{model_name(inversion.model)} · {inversion.method} · "
        f"{inversion.num_inference_steps} steps · {inversion.report['dtype']}"
    )


def write_edit_report(
    path: Path, inversion: Inversion, edited: Edited, records: Sequence[Mapping[str, Any]]
) -> None:
    """One HTML page: each edit beside its source under a slider, with settings and figures."""
    comparisons = []
    for index, record in enumerate(records):
        after, *heat_maps = edit_panels(edited, index)
        comparisons.append(
            Comparison(
                edited.edits[index].target,
                Panel("source", inversion.picture.pixels),
                replace(after, caption=()),  # its facts stand beside it
                _edit_facts(record),
                heat_maps,
            )
        )
    source, *others = inversion_panels(inversion, edited.source)
    save_report(
        comparisons,
        path,
        title=f"“{inversion.prompt}”, edited",
        facts=_inversion_facts(inversion, edited.source),
        panels=[source, *others],
        footer=footer(inversion),
    )


def _inversion_facts(inversion: Inversion, found: Reconstruction) -> dict[str, str]:
    return {
        "prompt": inversion.prompt,
        "method": inversion.method,
        "steps": str(inversion.num_inference_steps),
        "guidance": f"{found.guidance_scale:g}",
        "VAE round trip": decibels(found.vae_psnr),
        "reconstruction": decibels(found.psnr),
    }


def _edit_facts(record: Mapping[str, Any]) -> dict[str, str]:
    edit = record["edit"]
    weights = ", ".join(f"{word} × {factor:g}" for word, factor in edit["weights"].items())
    blend = edit["blend"]
    where = "the words that differ look" if blend == "auto" else f"{', '.join(blend)} look"
    outside = record["outside_mask_psnr"]
    facts = {
        "edit": edit["kind"],
        "cross-attention of the source": f"until {edit['cross_replace_steps']} of the steps",
        "self-attention of the source": f"until {edit['self_replace_steps']} of the steps",
        "weights": weights,
        "only where": where if blend else "",
        "outside the mask": "" if outside is None else decibels(outside),
        "seconds": f"{record['seconds']['total']:.1f}",
    }
    return {name: text for name, text in facts.items() if text}
