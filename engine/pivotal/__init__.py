"""pivotal: invert real images into Stable Diffusion's noise space and edit them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import InversionCache, default_cache_folder
    from .cancellation import Cancellation
    from .comparison import Comparison
    from .editing.edit import Edit
    from .editing.explanation import Explanation
    from .editing.masactrl import MutualSelfAttention
    from .engine import Engine
    from .errors import (
        BatchError,
        Cancelled,
        DeadlineExceeded,
        EngineClosedError,
        PivotalError,
        QueueFullError,
        WorkerError,
    )
    from .inversion_file import Inversion, read_inversion, write_inversion
    from .query import Conditioning
    from .results import Edited, Generated, Reconstruction
    from .sampling.loss_guidance import LossGuidance
    from .sampling.prompt_arithmetic import interpolate, scale_token, swap_tokens
    from .serving import Serving, Submitted

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "Edit",
    "Edited",
    "MutualSelfAttention",
    "Explanation",
    "Comparison",
    "Generated",
    "Inversion",
    "Reconstruction",
    "Conditioning",
    "interpolate",
    "swap_tokens",
    "scale_token",
    "LossGuidance",
    "read_inversion",
    "write_inversion",
    "InversionCache",
    "default_cache_folder",
    "Cancellation",
    "PivotalError",
    "BatchError",
    "Cancelled",
    "Serving",
    "Submitted",
    "DeadlineExceeded",
    "QueueFullError",
    "EngineClosedError",
    "WorkerError",
]

_HOMES = {
    "Engine": "engine",
    "Edit": "editing.edit",
    "Edited": "results",
    "Explanation": "editing.explanation",
    "Comparison": "comparison",
    "MutualSelfAttention": "editing.masactrl",
    "Generated": "results",
    "Inversion": "inversion_file",
    "Reconstruction": "results",
    "Conditioning": "query",
    "interpolate": "sampling.prompt_arithmetic",
    "swap_tokens": "sampling.prompt_arithmetic",
    "scale_token": "sampling.prompt_arithmetic",
    "LossGuidance": "sampling.loss_guidance",
    "read_inversion": "inversion_file",
    "write_inversion": "inversion_file",
    "InversionCache": "cache",
    "default_cache_folder": "cache",
    "Cancellation": "cancellation",
    "PivotalError": "errors",
    "BatchError": "errors",
    "Cancelled": "errors",
    "Serving": "serving",
    "Submitted": "serving",
    "DeadlineExceeded": "errors",
    "QueueFullError": "errors",
    "EngineClosedError": "errors",
    "WorkerError": "errors",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: `import pivotal` alone stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pivotal' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
