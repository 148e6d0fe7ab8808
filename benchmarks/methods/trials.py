"""What is compared: each method as one ought to use it, and the studies of their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pivotal.inversion.registry import METHODS


@dataclass(frozen=True)
class Trial:
    """A method, its options, and the guidance at which it is sampled back.

    scale: of the replay; a method that is fitted for guidance is fitted for this one. scenes: the
    most it is measured on.
    """

    label: str
    method: str
    scale: float
    options: Mapping[str, Any] = field(default_factory=dict)
    scenes: int = 64


GUIDANCE = 7.5
OFFSETS = (0.0, 0.25, 0.5)  # of the unconditional pass, in steps
SCALES = (1.0, 3.0, 5.0, GUIDANCE)
UP = (20, 50, 100, 250, 1000)  # steps of k-Euler's way up
DERIVATIVES: Mapping[str, Mapping[str, Any]] = {
    "source": {"derivative_at": "source", "heun": False},
    "destination": {"derivative_at": "destination", "heun": False},
    "mean": {"derivative_at": "mean", "heun": False},
    "Heun": {"derivative_at": "source", "heun": True},
}


_TITLES = {
    "ddim": "DDIM",
    "null-text-line-search": "null-text, line search",
    "direct": "direct",
    "negative-prompt": "negative-prompt",
    "edit-friendly": "edit-friendly",
    "null-text": "null-text",
    "null-text-parallel": "null-text, all timesteps at once",
    "edict": "EDICT",
    "bdia": "BDIA",
    "belm": "BELM",
    "fixed-point": "fixed point",
    "finite-difference": "finite difference",
    "k-euler": "k-Euler",
    "renoise": "ReNoise",
    "newton-raphson": "Newton-Raphson",
}  # the most important first
_IMPLICIT = ("fixed-point", "renoise", "newton-raphson")  # may be solved under guidance
_FITTED = ("null-text", "null-text-line-search", "null-text-parallel")


def table() -> list[Trial]:
    """Every method at guidance 7.5, then at 1, 3 and 5 where that is its range.

    Methods that aren't fitted for guidance invert at 1; the implicit ones, in their range, at the
    replay's.
    """
    found = [Trial("DDIM, 1 in, 1 out", "ddim", 1.0)]
    for name, title in _TITLES.items():
        inverted_at_1 = name in ("ddim", "k-euler", *_IMPLICIT)
        label = f"{title}, 1 in, 7.5 out" if inverted_at_1 else title
        found.append(Trial(label, name, GUIDANCE))
    proximal = {"proximal": "soft"}
    found.append(Trial("negative-prompt, proximal", "negative-prompt", GUIDANCE, proximal))
    three = {"iterations": 3}
    found.append(Trial("null-text, line search, 3", "null-text-line-search", GUIDANCE, three))
    one = {"embeddings": "one"}
    found.append(Trial("null-text, one embedding", "null-text-ablation", GUIDANCE, one, 16))
    more = {"iterations": 2}
    found.append(Trial("fixed point, one more evaluation, at 1", "fixed-point", 1.0, more))
    faster = {"acceleration": "anderson"}
    found.append(Trial("fixed point, Anderson, at 1", "fixed-point", 1.0, faster, 16))
    for scale in (1.0, 3.0, 5.0):
        for name, title in _TITLES.items():
            low, high = METHODS[name].guidance
            # At 1 there is nothing to fit, and no null prompt to stand in for: that is DDIM.
            is_ddim = scale == 1 and name in ("ddim", "negative-prompt", *_FITTED)
            if low <= scale <= high and not is_ddim:
                given = {"guidance_scale": scale} if name in _IMPLICIT else {}
                found.append(Trial(f"{title}, at {scale:g}", name, scale, given, 16))
        if scale > 1:
            found.append(
                Trial(f"DDIM, {scale:g} in and out", "ddim", scale, {"guidance_scale": scale}, 16)
            )
    return found


def ddim() -> list[Trial]:
    """Guidance in and out, and the timestep asked: 1/1, above/above and 1/above."""
    found = []
    for asked in ("destination", "source"):
        for down in SCALES:
            for up in dict.fromkeys((1.0, down)):
                given: dict[str, Any] = {"guidance_scale": up, "asked_at": asked}
                label = f"{up:g} in, {down:g} out, asked at {asked}"
                found.append(Trial(label, "ddim", down, given, 2))
    return found


def k_euler() -> list[Trial]:
    """Steps up, where the derivative is taken, Heun's correction, the grid; the empty prompt."""
    found = []
    for count in UP:
        for grid in ("linear", "karras"):
            for name, derivative in DERIVATIVES.items():
                given = {**derivative, "grid": grid, "invert_steps": count}
                found.append(Trial(f"{count} up, {name}, {grid}", "k-euler", 1.0, given, 1))
    for count in (50, 1000):
        empty = {**DERIVATIVES["source"], "guidance_scale": 0.0, "invert_steps": count}
        empty["grid"] = "schedule"  # the author's
        found.append(Trial(f"{count} up, source, empty prompt", "k-euler", 0.0, empty, 1))
    return found


def k_euler_grid() -> list[Trial]:
    """Which grid the default ought to have, with as many steps up as down."""
    return [
        Trial(f"{name}, {grid}", "k-euler", 1.0, {**DERIVATIVES[name], "grid": grid}, 16)
        for name in ("Heun", "source")
        for grid in ("schedule", "linear", "karras")
    ]


def fixed_point() -> list[Trial]:
    """Evaluations a step, and what Newton-Raphson and ReNoise make of as many."""
    found = [Trial("DDIM", "ddim", 1.0, {}, 8)]
    for count in (2, 3, 5):
        for kind in ("none", "anderson"):
            given: dict[str, Any] = {"iterations": count, "acceleration": kind, "tolerance": 0.0}
            found.append(Trial(f"{count} iterations, {kind}", "fixed-point", 1.0, given, 8))
    for count in (1, 4):
        for regularised in (0, 4):
            given = {"renoise_steps": count, "regularisation_steps": regularised}
            label = f"ReNoise, {count} renoisings, {regularised} regularisations"
            found.append(Trial(label, "renoise", 1.0, given, 8))
    for through in (False, True):
        for weight in (0.0, 0.1):
            given = {"through_network": through, "prior_weight": weight}
            label = f"Newton-Raphson, {'through' if through else 'without'} the network, "
            found.append(Trial(f"{label}prior {weight:g}", "newton-raphson", 1.0, given, 8))
    return found


def finite_difference() -> list[Trial]:
    """How much earlier the unconditional pass is asked against guidance, beside both passes asked
    where the step down asks, without and with the gradient through the network, no corrections, and
    DDIM at the same guidance in and out.
    """
    found = []
    for scale in SCALES:
        for asked in ("destination", "source"):
            given: dict[str, Any] = {"guidance_scale": scale, "asked_at": asked}
            found.append(Trial(f"DDIM, asked at {asked}, at {scale:g}", "ddim", scale, given, 8))
        choices: dict[str, dict[str, Any]] = {
            "none": {"refine_iterations": 0},
            **{f"offset {offset:g}": {"earlier": offset} for offset in OFFSETS},
            "offset 0.25, from 0.3 on": {"refine_skip": 0.3},
            "offset 0.25, every step": {"refine_skip": 0.0},
            "frozen": {"gradient": "frozen"},
            "frozen, from 0.3 on": {"gradient": "frozen", "refine_skip": 0.3},
            "frozen, every step": {"gradient": "frozen", "refine_skip": 0.0},
            "exact": {"gradient": "exact"},
            "exact, from 0.3 on": {
                "gradient": "exact",
                "refine_skip": 0.3,
                "refine_strength": 0.5,
            },  # fmt: skip,
        }
        for label, given in choices.items():
            found.append(Trial(f"{label}, at {scale:g}", "finite-difference", scale, given, 8))
    return found


def null_text() -> list[Trial]:
    """Line search, time-parallel, the ablations, and Adam as published."""
    found = []
    for count in (1, 2):
        given: dict[str, Any] = {"iterations": count}
        found.append(Trial(f"line search, {count}", "null-text-line-search", GUIDANCE, given, 8))
        found.append(Trial(f"all at once, {count}", "null-text-parallel", GUIDANCE, given, 8))
    for fitted, embeddings, pivots in (
        ("null", "one", "ddim"),
        ("null", "each", "random"),
        ("prompt", "each", "ddim"),
    ):
        given = {
            "fitted": fitted,
            "embeddings": embeddings,
            "pivots": pivots,
            "iterations": 10,
        }
        label = f"ablation: {fitted} embedding, {embeddings}, {pivots} pivots"
        found.append(Trial(label, "null-text-ablation", GUIDANCE, given, 8))
    found.append(Trial("Adam, at most 10", "null-text", GUIDANCE, {}, 8))
    return found


STUDIES = {
    "table": table,
    "ddim": ddim,
    "k-euler": k_euler,
    "k-euler-grid": k_euler_grid,
    "fixed-point": fixed_point,
    "finite-difference": finite_difference,
    "null-text": null_text,
}
