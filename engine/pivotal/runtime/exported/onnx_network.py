"""One ONNX file in ONNX Runtime, on torch's own memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pivotal.errors import BackendError
from pivotal.runtime.exported.onnx_placement import RECORDED, computed_on_the_host

logger = logging.getLogger(__name__)

_TORCH = {  # by the element types of ONNX's TensorProto
    "tensor(float)": (1, torch.float32),
    "tensor(int64)": (7, torch.int64),
    "tensor(float16)": (10, torch.float16),
    "tensor(double)": (11, torch.float64),
    "tensor(bfloat16)": (16, torch.bfloat16),
}


class OnnxNetwork:
    """Runs a file on the CPU or a CUDA device; tensors are bound by address and never pass through
    the host.

    threads: inside an operator; as many as torch uses if None. lean: run the graph as it
    is, with weights mapped from their file, and give scratch memory back at once: slower.
    Optimised, half precision on a CPU takes three times its weights, as they are widened to
    float32.

    Raises BackendError where the device's provider is not installed, and for a file that it can't
    run: no other takes its place. Where ONNX Runtime leaves single nodes to the CPU all the same, a
    warning says which; shapes it computes there on purpose.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        *,
        threads: int | None = None,
        lean: bool = False,
    ) -> None:
        if find_spec("onnxruntime") is None:
            raise BackendError(
                "the onnx backend needs onnxruntime; install it with `pip install 'pivotal[onnx]'`"
            )
        import onnxruntime

        self.path, self.device = path, device
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # its errors are raised
        settings.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        if lean:
            levels = onnxruntime.GraphOptimizationLevel
            settings.graph_optimization_level = levels.ORT_DISABLE_ALL
            settings.add_session_config_entry("session.disable_prepacking", "1")
            settings.enable_cpu_mem_arena = settings.enable_mem_pattern = False
        self._index = 0 if device.index is None else device.index
        provider: Any = "CPUExecutionProvider"
        if device.type == "cuda":
            own = {"device_id": str(self._index), "use_tf32": "0"}  # float32 means float32
            provider = ("CUDAExecutionProvider", own)
            settings.add_session_config_entry(RECORDED, "1")
            available = onnxruntime.get_available_providers()
            if provider[0] not in available:
                raise BackendError(
                    f"ONNX Runtime has no {provider[0]} here, only {', '.join(available)}; "
                    "install `pivotal[onnx-gpu]` in place of `pivotal[onnx]`, or use the CPU"
                )
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=[provider])
        except Exception as error:  # its errors share no base
            reason = str(error).strip().split("\n")[0]
            raise BackendError(f"ONNX Runtime can't run {path.name}: {reason}") from error
        using = self._session.get_providers()[0]
        if not using.upper().startswith(device.type.upper()):
            raise BackendError(f"ONNX Runtime would run {path.name} by {using}, not on {device}")
        if device.type == "cuda":
            self._say_what_the_host_computes()
        self._inputs = {each.name: _TORCH[each.type] for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]

    def _say_what_the_host_computes(self) -> None:
        found = computed_on_the_host(self._session.get_provider_graph_assignment_info(), self.path)
        if found:
            operators = ", ".join(f"{name} ({count})" for name, count in found.most_common())
            logger.warning(
                "%d nodes of %s run on the CPU, as ONNX Runtime has no kernels for them on %s, "
                "and wait for copies there and back: %s",
                found.total(),
                self.path.name,
                self.device,
                operators,
            )

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Raises ValueError for inputs that are not the file's, BackendError for a failed run."""
        if set(inputs) != set(self._inputs):
            raise ValueError(
                f"{self.path.name} takes {', '.join(self._inputs)}; got {', '.join(inputs)}"
            )
        binding = self._session.io_binding()
        kept = []  # what is bound must live until the run has ended
        for name, (element, dtype) in self._inputs.items():
            tensor = inputs[name].detach().to(self.device, dtype).contiguous()
            kept.append(tensor)
            binding.bind_input(
                name, self.device.type, self._index, element, list(tensor.shape), tensor.data_ptr()
            )
        for name in self._outputs:
            binding.bind_output(name, self.device.type, self._index)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # ONNX Runtime has its own
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise BackendError(f"{self.path.name} failed in ONNX Runtime: {reason}") from error
        found = tuple(from_dlpack(value) for value in binding.get_outputs())
        if self.device.type == "cuda":  # whose memory another thread's run may be given next
            found = tuple(value.clone() for value in found)
            torch.cuda.current_stream(self.device).synchronize()
        return found
