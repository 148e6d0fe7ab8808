"""A guided DDIM step between noise levels, the eps and x0 that it starts from, and the residual
that `NoiseGradient` asks for.
"""

from .api import GuidedStep, Impl, NoiseResidual, eps_and_x0, guide, guided_step, noise_residual
from .reference import PredictionType

__all__ = [
    "eps_and_x0",
    "guide",
    "guided_step",
    "noise_residual",
    "GuidedStep",
    "NoiseResidual",
    "Impl",
    "PredictionType",
]
