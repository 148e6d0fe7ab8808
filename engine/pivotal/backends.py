"""What each backend can answer, as data: known before one is installed or loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .query import Denoise, LossGradient, NoiseGradient

BACKENDS: Mapping[str, frozenset[type]] = {
    "torch": frozenset({Denoise, NoiseGradient, LossGradient}),
    "onnx": frozenset({Denoise}),
    "tensorrt": frozenset({Denoise}),
}
"""By name, the query types that it answers alone. An exported network has no gradients; a torch one
beside it answers what needs them."""


def backends_for(needed: Iterable[type]) -> list[str]:
    """Those that can answer all of these query types alone."""
    return [name for name, answers in BACKENDS.items() if set(needed) <= answers]
