"""The eager denoiser: answers every query with the torch UNet as it stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pivotal.attention_routes import AttentionRoutes
from pivotal.query import (
    Answer,
    Conditioning,
    Denoise,
    ImageLoss,
    LossGradient,
    Noise,
    NoiseGradient,
    NoiseLoss,
    Query,
)
from pivotal.runtime.loss_scaling import LossScaling
from pivotal.sampling.steps import eps_and_x0
from pivotal.schedule import PredictionType
from pivotal_kernels.guided_step import noise_residual

Decoder = Callable[[Tensor], Tensor]
"""Latents [B, C, h, w] float32 to images [B, 3, H, W] float32 in [0, 1], differentiable."""


class TorchDenoiser:
    """Runs the UNet in its own dtype; everything before and after is float32 (or the latents'
    float64).

    unet: called as `RoutedUNet`. decode: needed for `LossGradient` alone. loss_scaling: dynamic
    if None. dtype: of the network's inputs, its weights' if None. `rows_forward` and
    `rows_backward` count UNet rows since construction; a row of `NoiseGradient` is one of each.
    """

    name = "torch"

    def __init__(
        self,
        unet: nn.Module,
        prediction_type: PredictionType,
        *,
        decode: Decoder | None = None,
        loss_scaling: LossScaling | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.prediction_type = prediction_type
        self.decode = decode
        self.loss_scaling = loss_scaling or LossScaling()
        parameter = next(unet.parameters())
        self.device, self.dtype = parameter.device, dtype or parameter.dtype
        self.rows_forward = 0
        self.rows_backward = 0

    @property
    def answers(self) -> frozenset[type]:
        always = {Denoise, NoiseGradient}
        return frozenset(always if self.decode is None else always | {LossGradient})

    def answer(self, query: Query) -> Answer:
        """Raises TypeError for a query type it does not know."""
        if isinstance(query, Denoise):
            return self._noise(query)
        if isinstance(query, NoiseGradient):
            return self._noise_gradient(query)
        if isinstance(query, LossGradient):
            return self._loss_gradient(query)
        raise TypeError(f"{type(query).__name__} is not a query")

    def _noise(self, query: Denoise) -> Noise:
        routes = None if query.routes is None else query.routes.to(self.device)
        prediction, word_maps = self._predict(
            query.latents, query.timesteps, query.conditioning, routes
        )
        eps, x0 = eps_and_x0(prediction, query.latents, query.alpha_bars, self.prediction_type)
        if word_maps is not None:
            word_maps = word_maps.to(query.latents.device)
        return Noise(eps, x0, word_maps)

    def _noise_gradient(self, query: NoiseGradient) -> NoiseLoss:
        conditioning, latents = query.conditioning, query.latents
        inputs = {
            "hidden_states": conditioning.hidden_states,
            "pooled": conditioning.pooled,
            "latents": latents,
        }
        with torch.enable_grad():
            variable = inputs[query.wrt].detach().clone().requires_grad_()  # type: ignore[union-attr]
            inputs[query.wrt] = variable
            conditioning = Conditioning(
                inputs["hidden_states"],  # type: ignore[arg-type]
                inputs["pooled"],
                conditioning.time_ids,
            )
            latents = inputs["latents"]  # type: ignore[assignment]
            prediction, _ = self._predict(latents, query.timesteps, conditioning, None)
        found = noise_residual(
            prediction.detach(),
            query.latents,
            query.alpha_bars,
            query.scale,
            query.offset,
            self.prediction_type,
        )
        factors = self.loss_scaling.factors(found.prediction_gradient)
        start = (factors[:, None, None, None] * found.prediction_gradient).to(prediction.dtype)
        # Rows are independent: one backward for all.
        (gradient,) = torch.autograd.grad(prediction, variable, start)
        gradient = gradient / factors.view(-1, *[1] * (gradient.ndim - 1))
        if query.wrt == "latents":
            gradient = gradient + found.latents_gradient
        self.rows_backward += query.rows
        return NoiseLoss(found.eps, found.loss, gradient)

    def _loss_gradient(self, query: LossGradient) -> ImageLoss:
        if self.decode is None:
            raise TypeError("LossGradient needs a denoiser with a decoder")
        if not query.through_unet and bool((query.alpha_bars == 0).any()):
            raise ValueError("at zero SNR x0 has no gradient but through_unet=True")
        with torch.enable_grad():
            latents = query.latents.detach().clone().requires_grad_()
            with torch.set_grad_enabled(query.through_unet):
                prediction, _ = self._predict(latents, query.timesteps, query.conditioning, None)
            eps, x0 = eps_and_x0(prediction, latents, query.alpha_bars, self.prediction_type)
            if not query.through_unet:  # eps is what stays, whatever the network predicts
                signal = query.alpha_bars.sqrt().to(latents)[:, None, None, None]
                spread = (1 - query.alpha_bars).sqrt().to(latents)[:, None, None, None]
                x0 = (latents - spread * eps.detach()) / signal
            shown = x0 if query.offset is None else x0 + query.offset
            loss = query.loss(self.decode(shown))
            if loss.shape != (query.rows,):
                raise ValueError(
                    f"a loss returns one value per row, shape [{query.rows}]; "
                    f"got {list(loss.shape)}"
                )
            (gradient,) = torch.autograd.grad(loss.sum(), latents)
        if query.through_unet:
            self.rows_backward += query.rows
        return ImageLoss(eps.detach(), x0.detach(), loss.detach(), gradient)

    def _predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        routes: AttentionRoutes | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The network's own prediction, in its dtype, on the latents' device."""
        self.rows_forward += latents.shape[0]
        pooled, time_ids = conditioning.pooled, conditioning.time_ids
        prediction, word_maps = self.unet(
            latents.to(self.device, self.dtype),
            timesteps.to(self.device),
            conditioning.hidden_states.to(self.device, self.dtype),
            None if pooled is None else pooled.to(self.device, self.dtype),
            None if time_ids is None else time_ids.to(self.device, self.dtype),
            routes,
        )
        return prediction.to(latents.device), word_maps
