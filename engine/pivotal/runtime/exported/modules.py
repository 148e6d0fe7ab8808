"""The networks of a model as modules of tensors alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pivotal.attention_routes import AttentionRoutes
from pivotal.model.load import Model
from pivotal.model.unet import RoutedUNet


class Plain(nn.Module):
    """The UNet without routes."""

    def __init__(self, unet: RoutedUNet) -> None:
        super().__init__()
        self.network = unet

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        hidden_states: Tensor,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        return (self.network(latents, timesteps, hidden_states, pooled, time_ids)[0],)


class Routed(nn.Module):
    """The UNet with routes, each an argument: torch.export gives no shapes to `**routes`."""

    def __init__(self, unet: RoutedUNet) -> None:
        super().__init__()
        self.network = unet

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        hidden_states: Tensor,
        self_queries: Tensor,
        self_keys: Tensor,
        self_values: Tensor,
        donors: Tensor,
        cross_gate: Tensor,
        mix: Tensor,
        keep: Tensor,
        words: Tensor,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        routes = AttentionRoutes(
            self_queries, self_keys, self_values, donors, cross_gate, mix, keep, words
        )
        out: tuple[Tensor, ...] = self.network(
            latents, timesteps, hidden_states, pooled, time_ids, routes
        )
        return out


class Encoder(nn.Module):
    """Images [B, 3, H, W] float32 in [-1, 1] to latents, scaled: as `Autoencoder.encode`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.autoencoder.vae
        self.scaled = model.autoencoder.scaled

    def forward(self, images: Tensor) -> Tensor:
        mean = self.network.encode(images.to(self.network.dtype)).latent_dist.mode()
        return self.scaled(mean.float())


class Decoder(nn.Module):
    """Latents [B, C, h, w] float32, scaled, to images: as `Autoencoder.decode`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.autoencoder.vae
        self.unscaled = model.autoencoder.unscaled

    def forward(self, latents: Tensor) -> Tensor:
        unscaled = self.unscaled(latents).to(self.network.dtype)
        images: Tensor = self.network.decode(unscaled).sample
        return images.float()


class Text(nn.Module):
    """Token ids [B, L] int64 to hidden states, and the pooled vector where it is used."""

    def __init__(self, encoder: nn.Module, *, penultimate: bool, pooled: bool) -> None:
        super().__init__()
        self.network = encoder
        self.penultimate = penultimate
        self.pooled = pooled

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        out: Any = self.network(ids, output_hidden_states=self.penultimate)
        hidden = out.hidden_states[-2] if self.penultimate else out.last_hidden_state
        return (hidden, out.text_embeds) if self.pooled else (hidden,)
