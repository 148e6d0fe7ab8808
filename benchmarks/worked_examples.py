"""The README's pictures of losses, blends and styles: `python benchmarks/worked_examples.py`.

Writes loss.png, blend.png and style.png. What each shows is what the README's commands do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import pivotal
from pivotal.figures import Panel, Row, contact_sheet
from pivotal.images import save_image, to_tensor
from pivotal.results import Generated
from pivotal.sampling.losses import channel_level, preservation, similarity

CIRCLE = "a red circle on a gray background"
SQUARE = "a blue square on a white background"
SIDE = 192


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs"), help="a folder")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=2)
    given = parser.parse_args(arguments)
    engine = pivotal.Engine.load("shapes")
    pages = {"loss.png": losses, "blend.png": blends, "style.png": styles}
    for name, page in pages.items():
        rows = page(engine, given.steps, given.seed)
        footer = f"shapes · {given.steps} steps · seed {given.seed}"
        save_image(contact_sheet(rows, footer=footer, side=SIDE), given.output / name)


def losses(engine: pivotal.Engine, steps: int, seed: int) -> list[Row]:
    """One prompt and one noise, towards several losses."""

    def generated(seed: int, loss: pivotal.LossGuidance | None = None) -> Generated:
        return engine.generate(CIRCLE, num_inference_steps=steps, seed=seed, loss=loss)

    plain, other = generated(seed), generated(seed + 3)
    wanted = _values(other)
    kept = torch.zeros(wanted.shape[2:], dtype=torch.bool)
    kept[: kept.shape[0] // 2] = True
    wishes = [
        ("blue:0.9", channel_level("blue"), 75.0, 5, False),
        ("blue:0.9, scale 150", channel_level("blue"), 150.0, 5, False),
        ("scale 600 through the UNet", channel_level("blue"), 600.0, 5, True),
        ("image, scale 200, every 2", similarity(wanted), 200.0, 2, False),
        ("image, its upper half", preservation(wanted[0], kept), 200.0, 2, False),
    ]
    panels = [_panel("no loss", plain)]
    for title, loss, scale, every, through in wishes:
        made = generated(seed, pivotal.LossGuidance(loss, scale, every, through))
        before, after = (float(loss(_values(each))) for each in (plain, made))
        panels.append(_panel(title, made, f"loss {before:.3f} to {after:.3f}"))
    panels.insert(4, _panel("another picture", other))
    return [Row(f"“{CIRCLE}”, towards a loss", panels)]


def blends(engine: pivotal.Engine, steps: int, seed: int) -> list[Row]:
    """From one prompt's embedding to another's, and arithmetic on single tokens."""

    def generated(prompt: pivotal.Conditioning) -> Generated:
        return engine.generate(prompt, num_inference_steps=steps, seed=seed)

    amounts = (0.0, 0.3, 0.45, 0.55, 0.7, 1.0)
    first, second = engine.encode(CIRCLE), engine.encode(SQUARE)
    between = [pivotal.interpolate(first, second, amount) for amount in amounts]
    row = [
        _panel(f"{amount:g}", generated(each))
        for amount, each in zip(amounts, between, strict=True)
    ]
    blue = engine.encode("a blue circle on a gray background")
    (red,) = engine.tokens(CIRCLE).find("red")
    later = {place: place for place in range(red + 1, blue.hidden_states.shape[1])}
    words = [
        ("as it is", first),
        ("“red” from “a blue circle ..”", pivotal.swap_tokens(first, blue, {red: red})),
        ("all after “red” from there", pivotal.swap_tokens(first, blue, later)),
        ("“red” x 0", pivotal.scale_token(first, red, 0.0)),
        ("“red” x -1", pivotal.scale_token(first, red, -1.0)),
        ("“red” x 2", pivotal.scale_token(first, red, 2.0)),
    ]
    told = [_panel(title, generated(each)) for title, each in words]
    return [Row(f"from “{CIRCLE}” to “{SQUARE}”", row), Row("token by token", told)]


def styles(engine: pivotal.Engine, steps: int, seed: int) -> list[Row]:
    """A picture's inverted noise under another prompt, more and more of it."""
    source = engine.generate(CIRCLE, num_inference_steps=steps, seed=seed).pictures[0]
    found = engine.invert(source, CIRCLE, method="k-euler", num_inference_steps=steps)
    amounts = (0.0, 0.25, 0.5, 0.75, 1.0)
    panels = [Panel("source", source)]
    for amount in amounts:
        made = engine.style(found, SQUARE, amount=amount, guidance_scale=3.0)
        panels.append(_panel(f"amount {amount:g}", made))
    return [Row(f"“{CIRCLE}”, styled as “{SQUARE}”", panels)]


def _values(made: Generated) -> torch.Tensor:
    """The pictures as losses see them: [B, 3, H, W] in [0, 1]."""
    return torch.cat([to_tensor(each) for each in made.pictures]) / 2 + 0.5


def _panel(title: str, made: Generated, *caption: str) -> Panel:
    return Panel(title, made.pictures[0], caption)


if __name__ == "__main__":
    main()
