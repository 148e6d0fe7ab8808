"""What only a run can find out.

A wrong argument is a `ValueError`; these are for everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .inversion_file import Inversion


class PivotalError(Exception):
    """Base of all errors that pivotal raises for a reason other than a wrong argument."""


class NonFiniteError(PivotalError):
    """A network or a step produced NaN or infinity."""


class EditWithoutEffectError(PivotalError):
    """An edit was asked for and touched no layer or no step: a silent no-op is a defect."""


class ModelError(PivotalError):
    """A model folder is missing, incomplete, of an unknown family, or not in safetensors."""


class InversionFileError(PivotalError):
    """An inversion file is damaged, from another model, or from a newer schema."""


class MissingInversionError(InversionFileError):
    """There is no inversion file of that name."""


class UnreadableInversionError(InversionFileError):
    """An inversion file could not be read just now; what is in it may be sound."""


class OutputError(PivotalError):
    """A result could not be written; nothing half-written is left behind."""


class BackendError(PivotalError):
    """A denoiser can't answer what the algorithm will ask; found when planning."""


class Cancelled(PivotalError):
    """The job was cancelled; its generator was closed."""


class DeadlineExceeded(Cancelled):
    """The job was closed because its deadline had passed."""


class QueueFullError(PivotalError):
    """An engine has as many submitted calls in progress as it takes; try again later."""


class EngineClosedError(PivotalError):
    """A call was submitted to an engine that was closed, or that belongs to another process."""


class WorkerError(PivotalError):
    """The thread that ran the submitted calls ended unexpectedly; its cause is attached."""


class PrecisionError(PivotalError):
    """A reduced arithmetic (TF32, fp8) is too coarse for this model."""


class MemoryLimitError(PivotalError):
    """A job needs more memory than it may use; found when planning."""


class OutOfMemoryError(PivotalError):
    """The device ran out of memory on a job that can't be made smaller."""


class BatchError(PivotalError):
    """Some of several images could not be inverted. What the others gave is not lost.

    results: one for each image, None where it failed. errors: by the image's place, from 0.
    """

    def __init__(
        self, results: Sequence[Inversion | None], errors: Mapping[int, Exception]
    ) -> None:
        self.results = list(results)
        self.errors = dict(errors)
        reasons = "; ".join(f"image {index + 1}: {error}" for index, error in errors.items())
        super().__init__(f"{len(errors)} of {len(results)} images were not inverted: {reasons}")
