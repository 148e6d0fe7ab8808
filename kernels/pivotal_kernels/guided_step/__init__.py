"""A guided DDIM step between noise levels, and the residual that `NoiseGradient` asks for."""

from .api import GuidedStep, Impl, NoiseResidual, guided_step, noise_residual
from .reference import PredictionType

__all__ = [
    "guided_step",
    "noise_residual",
    "GuidedStep",
    "NoiseResidual",
    "Impl",
    "PredictionType",
]
