"""What only a run can find out.

A wrong argument is a `ValueError`; these are for everything else.
"""


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


class OutputError(PivotalError):
    """A result could not be written; nothing half-written is left behind."""


class BackendError(PivotalError):
    """A denoiser can't answer what the algorithm will ask; found when planning."""


class Cancelled(PivotalError):
    """The job was cancelled; its generator was closed."""
