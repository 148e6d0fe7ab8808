"""What an edit would do, said before the network is run: which words meet, which edit fits them and
why, when it acts and where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pivotal.schedule import Schedule
from pivotal.tokens import Tokens, Word

from .alignment import choose
from .edit import DEFAULT, Edit, Window, bounds, step_range
from .prompt_to_prompt import PromptToPrompt, Touched
from .routes import Layers, TargetPlan, injected


@dataclass(frozen=True)
class TokenPair:
    """A target token and the source tokens whose attention it takes, with their shares.

    Texts as they stand in the prompts; indices are the text encoder's, 0 the start token.
    """

    target: str
    target_index: int
    sources: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True)
class WordPair:
    """Words that meet: kept, swapped, or without a counterpart (new, gone)."""

    relation: str
    source: str | None
    target: str | None


@dataclass(frozen=True)
class When:
    """When something acts: fractions of the steps, steps (first, and the one after the last; 0 is
    the noisiest) and the timesteps of the first and last; None where no step is inside.
    """

    fractions: tuple[float, float]
    steps: tuple[int, int]
    timesteps: tuple[float, float] | None


@dataclass(frozen=True)
class Explanation:
    """An edit resolved against both prompts. `record()` is the same for JSON.

    kind: swap, refine or reweight; reason: why. cross: for each word of the target with a window of
    its own, and for "default", when it takes the source's cross-attention. self_attention: when the
    source's self-attention is injected. null_text: when a null-text inversion's fitted embedding
    acts on the target. mutual: when MasaCtrl shares the source's. touched: layers
    and steps of each control. layers: of each kind, the downscale of every layer touched, in
    running order. blend, subtract: words that bound the change, by prompt.
    """

    source: str
    target: str
    kind: str
    reason: str
    num_inference_steps: int
    words: tuple[WordPair, ...]
    tokens: tuple[TokenPair, ...]
    cross: Mapping[str, When]
    self_attention: When
    null_text: When
    mutual: When | None
    touched: Mapping[str, Touched]
    layers: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, float]
    blend: Mapping[str, tuple[str, ...]]
    blend_steps: When | None
    subtract: Mapping[str, tuple[str, ...]]

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def explain(
    source: Tokens, target: Tokens, edit: Edit, schedule: Schedule, layers: Layers
) -> Explanation:
    """Plan the edit as `PromptToPrompt` would. Raises what planning raises."""
    control = PromptToPrompt(source, [target], [edit], schedule.steps, layers)
    (plan,) = control.plans
    blended, subtracted = (
        {
            "source": _words_at(source, plan.blend_columns[use, 0].tolist()),
            "target": _words_at(target, plan.blend_columns[use, 1].tolist()),
        }
        for use in range(2)
    )
    blends = any(blended.values())
    touched = control.touched(0)
    return Explanation(
        source=source.prompt,
        target=target.prompt,
        kind=plan.alignment.kind,
        reason=_reason(source, target, edit, plan.alignment.kind),
        num_inference_steps=schedule.steps,
        words=_word_pairs(source, target, plan),
        tokens=_token_pairs(source, target, plan),
        cross={
            name: _when(window, schedule)
            for name, window in _named_windows(edit.cross_replace_steps).items()
        },
        self_attention=_when(edit.self_replace_steps, schedule),
        null_text=_when(edit.null_text_steps, schedule),
        mutual=_mutual(edit, schedule),
        touched=touched,
        layers=_reached(edit, layers, touched),
        weights=dict(edit.weights),
        blend=blended,
        blend_steps=_when((edit.blend_start, 1.0), schedule) if blends else None,
        subtract=subtracted,
    )


def _reason(source: Tokens, target: Tokens, edit: Edit, kind: str) -> str:
    if edit.kind != "auto":
        return f"kind {kind!r} was asked for; {choose(source, target)!r} would have been chosen"
    ours, theirs = (len(tokens.words()) for tokens in (source, target))
    if kind == "reweight":
        return "both prompts have the same tokens: only weights can change the picture"
    if kind == "swap":
        return (
            f"both prompts have as many words ({ours}), and at least half of them stay in their "
            "places: words are swapped one for one"
        )
    if ours != theirs:
        return (
            f"the source has {ours} words and the target {theirs}: tokens that both have keep the "
            "source's attention, new ones have their own"
        )
    return (
        f"both prompts have {ours} words, but fewer than half stay in their places: tokens that "
        "both have keep the source's attention, new ones have their own"
    )


def _word_pairs(source: Tokens, target: Tokens, plan: TargetPlan) -> tuple[WordPair, ...]:
    """In the target's order; words that are gone come where they stood."""
    ours = source.words()
    taken: set[int] = set()
    pairs: list[tuple[float, WordPair]] = []
    for word in target.words():
        place = _counterpart(word, ours, plan)
        if place is None:
            pairs.append((pairs[-1][0] if pairs else -1, WordPair("new", None, word.text)))
            continue
        taken.add(place)
        alike = ours[place].text.lower() == word.text.lower()
        relation = "kept" if alike else "swapped"
        pairs.append((place, WordPair(relation, ours[place].text, word.text)))
    pairs += [
        (place - 0.5, WordPair("gone", word.text, None))
        for place, word in enumerate(ours)
        if place not in taken
    ]
    return tuple(pair for _, pair in sorted(pairs, key=lambda entry: entry[0]))


def _counterpart(word: Word, ours: Sequence[Word], plan: TargetPlan) -> int | None:
    """The source word whose attention a target word takes in all its tokens."""
    alignment = plan.alignment
    if not word.tokens or not bool(alignment.shared[list(word.tokens)].all()):
        return None
    rows = alignment.mapper[:, list(word.tokens)].sum(dim=1)
    for place, candidate in enumerate(ours):
        if candidate.tokens and bool(rows[list(candidate.tokens)].any()):
            return place
    return None


def _token_pairs(source: Tokens, target: Tokens, plan: TargetPlan) -> tuple[TokenPair, ...]:
    """Every token of the target's text; start, end and padding follow their likes."""
    pairs = []
    for index in range(target.length):
        if target.spans[index] is None:
            continue
        column = plan.alignment.mapper[:, index]
        rows = [int(row) for row in column.nonzero().flatten()]
        sources = tuple((_text(source, row), row, float(column[row])) for row in rows)
        pairs.append(TokenPair(_text(target, index), index, sources))
    return tuple(pairs)


def _text(tokens: Tokens, index: int) -> str:
    span = tokens.spans[index]
    return "" if span is None else tokens.prompt[slice(*span)]


def _words_at(tokens: Tokens, columns: Sequence[float]) -> tuple[str, ...]:
    return tuple(word.text for word in tokens.words() if any(columns[i] for i in word.tokens))


def _named_windows(windows: Window | Mapping[str, Window]) -> dict[str, Window]:
    if isinstance(windows, Mapping):
        return {DEFAULT: 0.8, **windows}
    return {DEFAULT: windows}


def _reached(
    edit: Edit, layers: Layers, touched: Mapping[str, Touched]
) -> dict[str, tuple[int, ...]]:
    """The downscale of every layer that each control touches."""
    places: dict[str, tuple[Sequence[int], tuple[int, ...]]] = {
        "cross": (range(len(layers.cross_downscales)), layers.cross_downscales),
        "self": (injected(layers), layers.self_downscales),
    }
    if edit.mutual is not None:
        shared = edit.mutual.layers(len(layers.self_downscales))
        places["mutual"] = (shared, layers.self_downscales)
    return {
        name: tuple(downscales[place] for place in reached) if touched[name].layers else ()
        for name, (reached, downscales) in places.items()
    }


def _mutual(edit: Edit, schedule: Schedule) -> When | None:
    if edit.mutual is None:
        return None
    inside = edit.mutual.steps(schedule.steps)
    return _during((inside.start / schedule.steps, 1.0), inside, schedule)


def _when(window: Window, schedule: Schedule) -> When:
    return _during(bounds(window), step_range(window, schedule.steps), schedule)


def _during(fractions: tuple[float, float], inside: range, schedule: Schedule) -> When:
    levels = schedule.levels[::-1]  # noisiest first
    timesteps = (
        (levels[inside[0]].timestep, levels[inside[-1]].timestep) if len(inside) > 0 else None
    )
    return When(fractions, (inside.start, inside.stop), timesteps)
