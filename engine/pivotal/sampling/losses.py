"""Losses to guide sampling by: pictures [B, 3, H, W] in [0, 1] to one value a row [B]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

PictureLoss = Callable[[Tensor], Tensor]
CHANNELS = ("red", "green", "blue")


def channel_level(channel: str, value: float = 0.9) -> PictureLoss:
    """`mean(|image[:, c] - value|)`: the "blue loss" of the deep-learning course that showed it.

    Raises ValueError for an unknown channel.
    """
    if channel not in CHANNELS:
        raise ValueError(f"channel={channel!r} is unknown; accepted are {', '.join(CHANNELS)}")
    index = CHANNELS.index(channel)
    return lambda pictures: (pictures[:, index] - value).abs().mean(dim=(1, 2))


def similarity(wanted: Tensor) -> PictureLoss:
    """Mean squared difference from a picture [3, H, W] or one for each row [B, 3, H, W].

    The loss raises ValueError for pictures of another size.
    """

    def loss(pictures: Tensor) -> Tensor:
        _require_same_size(wanted, pictures)
        return (pictures - wanted.to(pictures)).square().mean(dim=(1, 2, 3))

    return loss


def preservation(wanted: Tensor, kept: Tensor) -> PictureLoss:
    """Mean squared difference from `wanted` [3, H, W] where `kept` [H, W] bool is True.

    Raises ValueError for a mask that keeps nothing.
    """
    if not bool(kept.any()):
        raise ValueError("the mask keeps no pixel; there is nothing to preserve")

    def loss(pictures: Tensor) -> Tensor:
        _require_same_size(wanted, pictures)
        _require_same_size(kept, pictures)
        mask = kept.to(pictures)
        squares = (pictures - wanted.to(pictures)).square().mean(dim=1)
        return (squares * mask).sum(dim=(1, 2)) / mask.sum()

    return loss


def _require_same_size(wanted: Tensor, pictures: Tensor) -> None:
    if wanted.shape[-2:] != pictures.shape[-2:]:
        given, made = (list(each.shape[-2:]) for each in (wanted, pictures))
        raise ValueError(
            f"the loss was given a picture or mask of {given} (height, width); {made} are made"
        )
