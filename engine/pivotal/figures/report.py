"""A report in one HTML file: before and after under a slider, the settings, where words look.

The file asks for nothing: pictures are data URIs, style and script stand in it, and its content
security policy forbids everything else.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from PIL import Image

from pivotal.figures.lettering import visible
from pivotal.figures.sheet import Panel
from pivotal.images import Pixels, check_pixels, write_atomically

_LARGEST_SMOOTHED = 128  # pixels; up to here a picture is enlarged without smoothing


@dataclass(frozen=True)
class Comparison:
    """Two pictures of one size under a slider, what is known of them, and panels below."""

    title: str
    before: Panel
    after: Panel
    facts: Mapping[str, str] = field(default_factory=dict)
    panels: Sequence[Panel] = ()

    def __post_init__(self) -> None:
        for panel in (self.before, self.after, *self.panels):
            check_pixels(panel.pixels)
        before, after = self.before.pixels.shape[:2], self.after.pixels.shape[:2]
        if before != after:
            raise ValueError(
                f"a slider compares pictures of one size: before is {before[0]} x {before[1]}, "
                f"after is {after[0]} x {after[1]}"
            )


def save_report(
    comparisons: Sequence[Comparison],
    path: str | Path,
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    panels: Sequence[Panel] = (),
    footer: str = "",
) -> None:
    """Write `html_report` to an .html file, whole or not at all.

    Raises ValueError for another extension and what `html_report` refuses, OutputError for a path
    that can't be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"a report is an .html file, and {str(path)!r} is none")
    page = html_report(comparisons, title=title, facts=facts, panels=panels, footer=footer)
    write_atomically(path, page.encode("utf-8"))


def html_report(
    comparisons: Sequence[Comparison],
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    panels: Sequence[Panel] = (),
    footer: str = "",
) -> str:
    """One self-contained page: each comparison with its slider, facts and panels.

    `facts` (label to text) and `panels` are of the whole report. All text is escaped. The same
    arguments give the same page. Raises ValueError for a report without a comparison.
    """
    if not comparisons:
        raise ValueError("a report without a comparison has nothing to show: give at least one")
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    body = [f"<header><h1>{_text(title)}</h1>{_facts(facts or {})}</header>"]
    body += [_section(comparison) for comparison in comparisons]
    if panels:
        body.append(f"<section><h2>How it came about</h2>{_panels(panels)}</section>")
    if footer:
        body.append(f"<footer>{_text(footer)}</footer>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _section(comparison: Comparison) -> str:
    before, after = comparison.before, comparison.after
    labels = (before.title or "before", after.title or "after")
    height, width = before.pixels.shape[:2]
    slider = (
        f'<div class="slider"><div class="stage">'
        f"{_image(before.pixels, labels[0], 'before')}{_image(after.pixels, labels[1], 'after')}"
        f'<span class="line" aria-hidden="true"></span>'
        f'<span class="tag left" aria-hidden="true">{_text(labels[0])}</span>'
        f'<span class="tag right" aria-hidden="true">{_text(labels[1])}</span>'
        f'<input type="range" min="0" max="100" step="1" value="50" '
        f'aria-label="{_text(f"How much of {labels[0]} shows; the rest is {labels[1]}")}">'
        f'</div><p class="under"><span>{_lines(before.caption)}</span>'
        f"<span>{_lines(after.caption)}</span></p></div>"
    )
    shape = "wide" if width > height else "tall"
    return (
        f'<section class="{shape}"><h2>{_text(comparison.title)}</h2>'
        f'<div class="pair">{slider}{_facts(comparison.facts)}</div>'
        f"{_panels(comparison.panels)}</section>"
    )


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()
    )
    return f"<dl>{rows}</dl>" if rows else ""


def _panels(panels: Sequence[Panel]) -> str:
    figures = "".join(
        f"<figure{' class=accent' if panel.accent else ''}>{_image(panel.pixels, panel.title)}"
        f"<figcaption><b>{_text(panel.title)}</b>{_lines(panel.caption)}</figcaption></figure>"
        for panel in panels
    )
    return f'<div class="panels">{figures}</div>' if figures else ""


def _image(pixels: Pixels, name: str, role: str = "panel") -> str:
    check_pixels(pixels)
    height, width = pixels.shape[:2]
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    kind = f"{role} small" if max(height, width) <= _LARGEST_SMOOTHED else role
    return (
        f'<img class="{kind}" alt="{_text(name)}" width="{width}" height="{height}" '
        f'draggable="false" src="data:image/png;base64,{data}">'
    )


def _lines(texts: Sequence[str]) -> str:
    return "<br>".join(_text(text) for text in texts)


def _text(text: str) -> str:
    return escape(visible(text))


def _asset(name: str) -> str:
    return (files("pivotal") / "figures" / name).read_text("utf-8").strip()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
