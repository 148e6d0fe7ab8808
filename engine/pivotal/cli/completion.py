"""What the shell offers at a TAB. It must answer at once, so nothing heavy is imported."""

from __future__ import annotations

METHODS = ("ddim", "null-text")
"""Names of `inversion.registry.METHODS`, which a test compares: importing that takes seconds."""

MODELS = ("shapes", "random:sd1", "random:sd2", "random:sdxl")
DTYPES = ("float32", "bfloat16", "float16", "float64")
POLICIES = ("crop", "pad", "stretch")
KINDS = ("auto", "swap", "refine", "reweight")


def complete_methods(incomplete: str) -> list[str]:
    return _starting(METHODS, incomplete)


def complete_models(incomplete: str) -> list[str]:
    return _starting(MODELS, incomplete)


def complete_dtypes(incomplete: str) -> list[str]:
    return _starting(DTYPES, incomplete)


def complete_policies(incomplete: str) -> list[str]:
    return _starting(POLICIES, incomplete)


def complete_kinds(incomplete: str) -> list[str]:
    return _starting(KINDS, incomplete)


def _starting(names: tuple[str, ...], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
