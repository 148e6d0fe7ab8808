"""What is compared: each method as one ought to use it, and the studies of their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Trial:
    """A method, its options, and the guidance at which it is sampled back."""

    label: str
    method: str
    scale: float  # of the replay; a method that is fitted for guidance is fitted for this one
    options: Mapping[str, Any] = field(default_factory=dict)


GUIDANCE = 7.5


def table() -> list[Trial]:
    """Every method once, at the guidance it is meant for."""
    return [
        Trial("DDIM, 1 in, 1 out", "ddim", 1.0),
        Trial("DDIM, 1 in, 7.5 out", "ddim", GUIDANCE),
        Trial("k-Euler, 1 in, 1 out", "k-euler", 1.0),
        Trial("fixed point, one more evaluation", "fixed-point", 1.0, {"iterations": 2}),
        Trial("fixed point", "fixed-point", 1.0),
        Trial("fixed point, Anderson", "fixed-point", 1.0, {"acceleration": "anderson"}),
        Trial("ReNoise", "renoise", 1.0),
        Trial("Newton-Raphson", "newton-raphson", 1.0),
        Trial("EDICT at 3", "edict", 3.0),
        Trial("BDIA", "bdia", 1.0),
        Trial("BELM", "belm", 1.0),
        Trial("BELM at 3", "belm", 3.0),
        Trial("finite difference at 3", "finite-difference", 3.0),
        Trial("negative-prompt", "negative-prompt", GUIDANCE),
        Trial("direct", "direct", GUIDANCE),
        Trial("edit-friendly", "edit-friendly", GUIDANCE),
        Trial("null-text, line search", "null-text-line-search", GUIDANCE),
        Trial("null-text, all timesteps at once", "null-text-parallel", GUIDANCE),
        Trial("null-text", "null-text", GUIDANCE),
    ]


def ddim() -> list[Trial]:
    """Guidance in and out, and the timestep asked: the table of section 1."""
    found = []
    for asked in ("destination", "source"):
        for up, down in ((1.0, 1.0), (1.0, GUIDANCE), (3.0, 3.0), (GUIDANCE, GUIDANCE)):
            given: dict[str, Any] = {"guidance_scale": up, "asked_at": asked}
            found.append(Trial(f"{up:g} in, {down:g} out, asked at {asked}", "ddim", down, given))
    return found


def k_euler() -> list[Trial]:
    """Where the derivative is taken, Heun's correction, the grid, more steps up than down."""
    found = []
    for where in ("source", "destination", "mean"):
        for heun in (False, True):
            given: dict[str, Any] = {"derivative_at": where, "heun": heun}
            label = f"derivative at {where}{', Heun' if heun else ''}"
            found.append(Trial(label, "k-euler", 1.0, given))
    for heun in (False, True):
        for grid in ("linear", "karras"):
            given = {"derivative_at": "source", "heun": heun, "grid": grid}
            label = f"derivative at source{', Heun' if heun else ''}, {grid}"
            found.append(Trial(label, "k-euler", 1.0, given))
    for count in (100, 200, 1000):
        given = {"invert_steps": count, "heun": False}
        found.append(Trial(f"{count} steps up", "k-euler", 1.0, given))
    empty: dict[str, Any] = {"guidance_scale": 0.0, "heun": False}
    found.append(Trial("empty prompt", "k-euler", 0.0, empty))
    found.append(
        Trial("empty prompt, 1000 steps up", "k-euler", 0.0, {**empty, "invert_steps": 1000})
    )
    return found


def fixed_point() -> list[Trial]:
    """Evaluations a step, and what Newton-Raphson and ReNoise make of as many."""
    found = [Trial("DDIM", "ddim", 1.0)]
    for count in (2, 3, 5):
        for kind in ("none", "anderson"):
            given: dict[str, Any] = {"iterations": count, "acceleration": kind, "tolerance": 0.0}
            found.append(Trial(f"{count} iterations, {kind}", "fixed-point", 1.0, given))
    for count in (1, 4):
        for regularised in (0, 4):
            given = {"renoise_steps": count, "regularisation_steps": regularised}
            label = f"ReNoise, {count} renoisings, {regularised} regularisations"
            found.append(Trial(label, "renoise", 1.0, given))
    for through in (False, True):
        for weight in (0.0, 0.1):
            given = {"through_network": through, "prior_weight": weight}
            label = f"Newton-Raphson, {'through' if through else 'without'} the network, "
            found.append(Trial(f"{label}prior {weight:g}", "newton-raphson", 1.0, given))
    return found


def finite_difference() -> list[Trial]:
    """Against DDIM at the same guidance, in and out; what the odd timestep buys."""
    found = []
    for scale in (3.0, 5.0):
        up: dict[str, Any] = {"guidance_scale": scale}
        found.append(Trial(f"DDIM at {scale:g}", "ddim", scale, up))
        source: dict[str, Any] = {**up, "asked_at": "source"}
        found.append(Trial(f"DDIM at {scale:g}, asked at source", "ddim", scale, source))
        for label, given in (
            ("no corrections", {"refine_iterations": 0}),
            ("finite", {}),
            ("finite, published damping", {"damping": "published"}),
            ("finite, not earlier", {"earlier": 0.0}),
            ("finite, asked as the way down asks", {"earlier": -1.0}),
            ("exact", {"gradient": "exact"}),
        ):
            found.append(Trial(f"{label} at {scale:g}", "finite-difference", scale, given))
    return found


def null_text() -> list[Trial]:
    """Line search, time-parallel, the ablations, and Adam as published."""
    found = []
    for count in (1, 2):
        given: dict[str, Any] = {"iterations": count}
        found.append(Trial(f"line search, {count}", "null-text-line-search", GUIDANCE, given))
        found.append(Trial(f"all at once, {count}", "null-text-parallel", GUIDANCE, given))
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
        found.append(Trial(label, "null-text-ablation", GUIDANCE, given))
    found.append(Trial("Adam, at most 10", "null-text", GUIDANCE))
    return found


def exact() -> list[Trial]:
    """The exact inverses at several guidances: how far does their noise stay Gaussian?"""
    return [
        Trial(f"{name} at {scale:g}", name, scale, given)
        for scale in (1.0, 3.0, GUIDANCE)
        for name, given in (
            ("edict", {}),
            ("bdia", {}),
            ("bdia", {"gamma": 0.9}),
            ("belm", {}),
            ("edit-friendly", {}),
        )
    ]


STUDIES = {
    "table": table,
    "ddim": ddim,
    "k-euler": k_euler,
    "fixed-point": fixed_point,
    "finite-difference": finite_difference,
    "null-text": null_text,
    "exact": exact,
}
