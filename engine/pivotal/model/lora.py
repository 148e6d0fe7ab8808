"""LoRAs on a model's weights: merged in place, exchanged, and taken off again to the bit.

A weight keeps its memory, so that compiled networks and captured graphs see the change and nothing
is compiled again. The originals of changed weights are kept beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pivotal.errors import BackendError, ModelError
from pivotal.model.ldm_names import unet_name
from pivotal.model.lora_file import Lora, LoraFile, LowRank, read_lora

logger = logging.getLogger(__name__)


class LoraStack:
    """The LoRAs that a model's networks wear.

    unet: a UNet2DConditionModel. encoders: the text towers, one or two.
    """

    def __init__(self, unet: Any, encoders: Sequence[nn.Module]) -> None:
        self._unet = unet
        self._encoders = tuple(encoders)
        self._originals: dict[int, tuple[Tensor, Tensor]] = {}  # by the parameter's id
        self._worn: tuple[tuple[Lora, str], ...] = ()

    @property
    def worn(self) -> tuple[Lora, ...]:
        return tuple(lora for lora, _ in self._worn)

    @property
    def bytes(self) -> int:
        """Of the originals that are kept."""
        return sum(original.nbytes for _, original in self._originals.values())

    @property
    def parts(self) -> tuple[str, ...]:
        """What tells these weights from others: each LoRA's contents and scale, in any order."""
        return tuple(sorted(f"lora {digest} {lora.scale!r}" for lora, digest in self._worn))

    def wear(self, loras: Sequence[Lora]) -> None:
        """From now on these and no others; none restores every weight to the bit.

        A change is computed in float32, from the originals, and rounded once, a weight at a time:
        all of SDXL's together are 9 GB. Raises ModelError for a file that can't be read or that was
        made for another model; nothing is changed then. Whatever ends it midway, as Ctrl-C may,
        leaves the model without any LoRA, to the bit.
        """
        targets = self._targets() if loras else {}
        files = [read_lora(lora.path) for lora in loras]
        changes: dict[int, tuple[Tensor, list[tuple[float, LowRank]]]] = {}
        for lora, file in zip(loras, files, strict=True):
            for name, parameter in _placed(file, targets).items():
                layer = file.layers[name]
                layer.require(f"{file.path}: {name}", tuple(parameter.shape))
                changes.setdefault(id(parameter), (parameter, []))[1].append((lora.scale, layer))
        with torch.no_grad():
            originals = {  # all memory is had before the first weight changes
                key: self._originals.get(key) or (parameter, parameter.clone())
                for key, (parameter, _) in changes.items()
            }
            try:
                self._originals = {**self._originals, **originals}
                for key, (parameter, original) in self._originals.items():
                    if key not in changes:
                        parameter.copy_(original)
                for key, (parameter, layers) in changes.items():
                    change = torch.zeros(parameter.shape)
                    for scale, layer in layers:
                        change += scale * layer.change(tuple(parameter.shape))
                    original = originals[key][1]
                    parameter.copy_(original.float() + change.to(original.device))
                self._originals = originals
                self._worn = tuple((lora, f.digest) for lora, f in zip(loras, files, strict=True))
            except BaseException:
                for parameter, original in self._originals.values():
                    parameter.copy_(original)
                self._originals, self._worn = {}, ()
                raise
        if loras:
            logger.info("%d weights wear %s", len(changes), ", ".join(map(str, loras)))

    def _targets(self) -> dict[str, Tensor]:
        """The weights that a LoRA may change, by every name that files have for their modules."""
        found: dict[str, Tensor] = {}
        for path, weight in _weights(self._unet):
            found[path] = found[f"unet.{path}"] = weight
            for name in (path, unet_name(path, self._unet.config)):
                found[f"lora_unet_{name.replace('.', '_')}"] = weight
        for number, encoder in enumerate(self._encoders):
            dotted = "text_encoder" if number == 0 else "text_encoder_2"
            flat = [f"lora_te{number + 1}_", *(["lora_te_"] if number == 0 else [])]
            for path, weight in _weights(encoder):
                bare = path.removeprefix("text_model.")
                for name in (bare, f"text_model.{bare}"):
                    found[f"{dotted}.{name}"] = weight
                    found |= {each + name.replace(".", "_"): weight for each in flat}
                if len(self._encoders) == 1:
                    found[f"text_model.{bare}"] = weight  # peft's, of the tower by itself
        return found


def require_own_weights(arithmetic: str, backend: str) -> None:
    """Raise BackendError where the network that answers does not read the model's weights."""
    if backend.startswith(("onnx", "tensorrt")):
        raise BackendError(
            f"backend {backend!r} has weights of its own, which LoRAs do not reach; run torch, or "
            "export the model with its LoRAs"
        )
    if arithmetic == "fp8":
        raise BackendError("fp8 weights can't change once they are made; load the model with lora=")


def _weights(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (path, module.weight)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]


def _placed(file: LoraFile, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weight of each layer. Raises ModelError where one has no place: the LoRA would be less
    than it is.
    """
    lost = [name for name in file.layers if name not in targets]
    if lost:
        raise ModelError(
            f"{file.path} was made for another model: {len(lost)} of its {len(file.layers)} layers "
            f"have no place in this one, first {lost[0][:80]}"
        )
    return {name: targets[name] for name in file.layers}
