"""In which number formats a model runs: the policy, and its named settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch

from pivotal.runtime.loss_scaling import LossScaling

Arithmetic = Literal["plain", "tf32", "fp8"]

NETWORKS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
AUTOENCODERS = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Precision:
    """What runs in which format. Latents, schedule, loss, optimiser and null embeddings are none
    of its business: they are float32, or the float64 that an exact method asks for.

    networks: of the UNet and the text encoders. arithmetic: how the UNet multiplies matrices;
    "tf32" rounds float32 factors to 10 bits and "fp8" those of its linear layers to 8-bit floats
    (and has no gradients), each on a GPU that has it, once it has passed the gate of
    `quality_gate`. autoencoder: a format that it can't overflow; Stable Diffusion's overflows in
    float16. loss_scaling: of gradients. retry: answers that hold NaN or infinity are asked for
    again in float32.
    """

    networks: torch.dtype = torch.float32
    arithmetic: Arithmetic = "plain"
    autoencoder: torch.dtype = torch.float32
    loss_scaling: LossScaling = field(default_factory=LossScaling)
    retry: bool = True

    def __post_init__(self) -> None:
        _require("networks", self.networks, NETWORKS)
        if self.autoencoder == torch.float16:
            raise ValueError(
                "autoencoder=float16 overflows in Stable Diffusion's autoencoders; accepted are "
                f"{_names(AUTOENCODERS)}"
            )
        _require("autoencoder", self.autoencoder, AUTOENCODERS)
        if self.arithmetic not in get_args(Arithmetic):
            raise ValueError(
                f"arithmetic={self.arithmetic!r} is unknown; accepted are "
                f"{', '.join(get_args(Arithmetic))}"
            )
        if self.arithmetic == "tf32" and self.networks != torch.float32:
            raise ValueError(
                f"arithmetic='tf32' is for networks in float32, not {_name(self.networks)}"
            )
        if self.arithmetic == "fp8" and self.networks != torch.bfloat16:
            raise ValueError(
                f"arithmetic='fp8' is for networks in bfloat16, not {_name(self.networks)}"
            )

    @property
    def halved(self) -> bool:
        """The networks run in fewer bits than float32."""
        return self.networks.itemsize < 4

    @property
    def tf32_beside(self) -> bool:
        """Whether what runs in float32 beside the UNet, the autoencoder first of all, multiplies in
        TF32: where the UNet's own factors have no more than its 10 bits.
        """
        return self.halved or self.arithmetic != "plain"

    @property
    def name(self) -> str:
        """`float16`, `tf32`, ..: as users name it."""
        return _name(self.networks) if self.arithmetic == "plain" else self.arithmetic

    def record(self) -> dict[str, Any]:
        """For run records, as JSON has it."""
        return {
            "networks": _name(self.networks),
            "arithmetic": self.arithmetic,
            "autoencoder": _name(self.autoencoder),
            "loss_scaling": f"{self.loss_scaling.kind} 2^{self.loss_scaling.exponent}",
        }

    def require_device(self, device: torch.device) -> None:
        """Raise ValueError for a device that has no such arithmetic."""
        needed = {"plain": (0, 0), "tf32": (8, 0), "fp8": (8, 9)}[self.arithmetic]
        if needed == (0, 0):
            return
        has = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if has is None or has < needed:
            found = "" if has is None else f", whose compute capability is {has[0]}.{has[1]}"
            raise ValueError(
                f"{self.arithmetic} needs a CUDA device of compute capability "
                f"{needed[0]}.{needed[1]}, not {device}{found}; choose another dtype"
            )


NAMED = ("float32", "bfloat16", "float16", "float64", "tf32", "fp8")


def precision_of(given: str | torch.dtype | Precision) -> Precision:
    """A policy by its name, or by the networks' dtype. Raises ValueError naming the accepted ones.

    In float64 the autoencoder is float32 all the same: it is not what one measures there.
    """
    if isinstance(given, Precision):
        return given
    name = str(given).removeprefix("torch.")
    if name not in NAMED:
        raise ValueError(f"dtype={str(given)!r} is unknown; accepted are {', '.join(NAMED)}")
    if name == "tf32":
        return Precision(arithmetic="tf32")
    if name == "fp8":
        return Precision(torch.bfloat16, "fp8")
    return replace(Precision(), networks=getattr(torch, name))


def _require(what: str, dtype: torch.dtype, accepted: tuple[torch.dtype, ...]) -> None:
    if dtype not in accepted:
        raise ValueError(f"{what}={dtype} is not possible; accepted are {_names(accepted)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(_name, dtypes))
