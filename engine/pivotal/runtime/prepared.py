"""A model's denoiser, in the precision that was asked for."""

from __future__ import annotations

import torch

from pivotal.driver import Denoiser
from pivotal.model.load import Model
from pivotal.runtime.compiled_denoiser import CompiledDenoiser
from pivotal.runtime.compiled_unet import CompileOptions
from pivotal.runtime.float32_arithmetic import Float32Arithmetic
from pivotal.runtime.fp8 import quantize
from pivotal.runtime.nonfinite import HigherPrecisionRetry, Upcast
from pivotal.runtime.quality_gate import Gate, answers_of
from pivotal.runtime.torch_denoiser import Decoder, TorchDenoiser


def torch_denoiser(
    model: Model, decode: Decoder, compiled: CompileOptions | None = None
) -> Denoiser:
    """The denoiser of a model on torch, in its precision: eager, or compiled where options say how.

    Raises BackendError where what was asked for can't be had.
    """
    eager = TorchDenoiser(
        model.unet,
        model.levels.config.prediction_type,
        decode=decode,
        loss_scaling=model.precision.loss_scaling,
    )
    chosen = eager if compiled is None else CompiledDenoiser(eager, compiled)
    return in_precision(chosen, model, decode)


def in_precision(
    denoiser: Denoiser, model: Model, decode: Decoder, *, gate: Gate | None = None
) -> Denoiser:
    """A model's denoiser, of any backend, run as `model.precision` says.

    TF32 and fp8 must pass the gate; fp8 changes the model's UNet in place, before a backend has
    made anything of it. Networks in half precision get a second opinion in float32 where they
    overflow. Raises PrecisionError, and BackendError where fp8 can't be had.
    """
    precision = model.precision
    if precision.arithmetic != "plain":
        return _gated(denoiser, model, gate or Gate())
    if precision.halved and precision.retry:
        higher = TorchDenoiser(
            Upcast(model.unet),
            model.levels.config.prediction_type,
            decode=decode,
            dtype=torch.float32,
        )
        return HigherPrecisionRetry(denoiser, higher)
    if model.device.type == "cuda":
        return Float32Arithmetic(denoiser, tf32=False)
    return denoiser


def _gated(denoiser: Denoiser, model: Model, gate: Gate) -> Denoiser:
    height, width = model.default_size
    scale = model.autoencoder.scale
    asked = (
        model.levels,
        model.text.encode(["a photograph of a cat"], model.default_size).to(model.device),
        (model.autoencoder.channels, height // scale, width // scale),
    )
    if model.precision.arithmetic == "tf32":
        plain = answers_of(Float32Arithmetic(denoiser, tf32=False), *asked)
        denoiser = Float32Arithmetic(denoiser, tf32=True)
    else:
        plain = answers_of(denoiser, *asked)
        quantize(model.unet)
    gate.check(model.precision.name, plain.measured(answers_of(denoiser, *asked)))
    return denoiser
