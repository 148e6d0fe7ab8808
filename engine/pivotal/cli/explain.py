"""`pivotal explain`: what an edit would do, without running it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .editing import EditOptions
from .options import ModelOptions, Steps
from .terminal import Terminal
from .values import prompt_text

if TYPE_CHECKING:
    from pivotal.editing.explanation import Explanation, When


def explain(
    source: Annotated[str, typer.Argument(help="The prompt of the inversion.")],
    target: Annotated[str, typer.Argument(help="The prompt to edit to.")],
    options: EditOptions,
    model: ModelOptions,
    terminal: Terminal,
    steps: Steps = 50,
) -> None:
    """Show which words and tokens meet, which edit fits them, and when and where it acts.

    Example: `pivotal explain "a cat on a sofa" "a dog on a sofa"`
    """
    prompt_text(source, "SOURCE")
    (wish,) = options.edits([target])
    found = model.load().explain(source, wish, num_inference_steps=steps)
    terminal.answer(found.record(), *_tables(found))


def _tables(found: Explanation) -> list[Any]:
    from rich.table import Table

    words = Table("source", "target", "", title="words", title_justify="left")
    for pair in found.words:
        words.add_row(pair.source or "", pair.target or "", pair.relation)
    tokens = Table("target token", "takes attention of", title="tokens", title_justify="left")
    for token in found.tokens:
        taken = ", ".join(
            f"{text or 'start, end or padding'} ({place})"
            + ("" if share == 1 else f" × {share:.2f}")
            for text, place, share in token.sources
        )
        tokens.add_row(f"{token.target} ({token.target_index})", taken or "its own")
    when = Table("control", "acts", "layers", title="when and where", title_justify="left")
    for name, window in found.cross.items():
        word = "" if name == "default" else f" of {name!r}"
        when.add_row(f"source's cross-attention{word}", _span(window), str(_layers(found, "cross")))
    when.add_row(
        "source's self-attention", _span(found.self_attention), str(_layers(found, "self"))
    )
    if found.null_text.fractions != (0, 1):
        when.add_row("null-text's fitted embedding", _span(found.null_text), "")
    if found.blend_steps is not None:
        chosen = sorted({word for words in found.blend.values() for word in words})
        when.add_row(f"only where {', '.join(chosen)} look", _span(found.blend_steps), "")
    for word, factor in found.weights.items():
        when.add_row(f"weight of {word}", f"× {factor:g}", "")
    return [words, tokens, when, f"edit: {found.kind}, as {found.reason}."]


def _layers(found: Explanation, kind: str) -> int:
    touched = found.touched.get(kind)
    return 0 if touched is None else touched.layers


def _span(window: When) -> str:
    if window.timesteps is None:
        return "never"
    first, last = window.steps[0], window.steps[1] - 1
    return (
        f"steps {first} to {last}, timesteps {window.timesteps[0]:g} to {window.timesteps[1]:g} "
        f"({window.fractions[0]:g} to {window.fractions[1]:g} of the way)"
    )
