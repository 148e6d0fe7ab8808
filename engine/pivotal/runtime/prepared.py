"""A model's denoiser, in the precision that was asked for."""

from __future__ import annotations

import torch

from pivotal.driver import Denoiser
from pivotal.model.load import Model
from pivotal.runtime.compiled_denoiser import CompiledDenoiser
from pivotal.runtime.compiled_unet import CompileOptions
from pivotal.runtime.float32_arithmetic import Float32Arithmetic
from pivotal.runtime.fp8 import ForwardOnly, quantize
from pivotal.runtime.nonfinite import HigherPrecisionRetry, Upcast
from pivotal.runtime.quality_gate import Answers, Gate, answers_of
from pivotal.runtime.torch_denoiser import Decoder, TorchDenoiser


def torch_denoiser(
    model: Model,
    decode: Decoder,
    compiled: CompileOptions | None = None,
    *,
    gate: Gate | None = None,
) -> Denoiser:
    """The denoiser of a model on torch, in its precision: eager, or compiled where options say how.

    TF32 and fp8 must pass the gate against the eager network as it stands; fp8 changes the model's
    UNet in place. Raises BackendError where what was asked for can't be had, and PrecisionError.
    """
    eager = TorchDenoiser(
        model.unet,
        model.levels.config.prediction_type,
        decode=decode,
        loss_scaling=model.precision.loss_scaling,
    )
    precision = model.precision
    gated = precision.arithmetic != "plain"
    plain = _answers(Float32Arithmetic(eager, tf32=False), model) if gated else None
    if precision.arithmetic == "fp8":
        quantize(model.unet)  # before a graph is made of it
    chosen = eager if compiled is None else CompiledDenoiser(eager, compiled)
    denoiser = _in_precision(chosen, model, decode)
    if plain is not None:
        (gate or Gate()).check(precision.name, plain.measured(_answers(denoiser, model)))
    return denoiser


def _in_precision(denoiser: Denoiser, model: Model, decode: Decoder) -> Denoiser:
    """Networks in half precision get a second opinion in float32 where they overflow, but not in
    fp8, whose weights can't be widened.
    """
    precision = model.precision
    if precision.arithmetic == "fp8":
        return ForwardOnly(denoiser)
    if precision.halved and precision.retry:
        higher = TorchDenoiser(
            Upcast(model.unet),
            model.levels.config.prediction_type,
            decode=decode,
            dtype=torch.float32,
        )
        return HigherPrecisionRetry(denoiser, Float32Arithmetic(higher, tf32=False))
    if model.device.type == "cuda":
        return Float32Arithmetic(denoiser, tf32=precision.arithmetic == "tf32")
    return denoiser


def _answers(denoiser: Denoiser, model: Model) -> Answers:
    height, width = model.default_size
    scale = model.autoencoder.scale
    return answers_of(
        denoiser,
        model.levels,
        model.text.encode(["a photograph of a cat"], model.default_size).to(model.device),
        (model.autoencoder.channels, height // scale, width // scale),
    )
