"""The noise-level table: one table for the way up (inversion) and the way down (sampling)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PredictionType = Literal["epsilon", "v_prediction", "sample"]
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")

# What diffusers' scheduler classes assume where their config file is silent. Those not named end at
# sigma 0 and space their timesteps linearly.
_SILENT: dict[str, Any] = {
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "set_alpha_to_one": True,
    "timestep_spacing": "linspace",
}
_SD_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"timestep_spacing": "leading"},
    "DDPMScheduler": {"timestep_spacing": "leading"},
    "PNDMScheduler": {"timestep_spacing": "leading", "set_alpha_to_one": False},
    "HeunDiscreteScheduler": _SD_BETAS,
    "LCMScheduler": _SD_BETAS | {"timestep_spacing": "leading", "beta_schedule": "scaled_linear"},
}


@dataclass(frozen=True)
class ScheduleConfig:
    """The fields of a scheduler's config file that decide noise levels. Defaults are SD 1.x's.

    prediction_type: what the network predicts: eps, v (Salimans & Ho 2022, arXiv:2202.00512) or x0.
    """

    num_train_timesteps: int = 1000
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = False
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        _one_of("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        _one_of("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _one_of("timestep_spacing", self.timestep_spacing, SPACINGS)
        _at_least("num_train_timesteps", self.num_train_timesteps, 1)
        _at_least("steps_offset", self.steps_offset, 0)
        for name in ("set_alpha_to_one", "rescale_betas_zero_snr"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} is not true or false")
        betas = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        for index, beta in enumerate(self.trained_betas or ()):
            betas[f"trained_betas[{index}]"] = beta
        for name, beta in betas.items():
            if not _is_number(beta) or not 0 < beta < 1:
                raise ValueError(f"{name}={beta!r}; a number between 0 and 1 is expected")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"{len(self.trained_betas)} trained_betas for num_train_timesteps="
                f"{self.num_train_timesteps}; one for each is expected"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr with prediction_type 'epsilon' leaves x0 undefined at the "
                "noisiest level; such a model predicts 'v_prediction' or 'sample'"
            )

    @staticmethod
    def from_diffusers(config: Mapping[str, Any]) -> ScheduleConfig:
        """Read a `scheduler_config.json`, whatever class it names."""
        name = str(config.get("_class_name", "DDIMScheduler"))
        known = _SILENT | _CLASS_DEFAULTS.get(name, {})
        known.update({k: v for k, v in config.items() if v is not None})
        for name in ("clip_sample", "thresholding"):
            if config.get(name):
                logger.warning(
                    "%s in the scheduler's config is ignored: it can't be inverted", name
                )
        if known.get("trained_betas") is not None:
            known["trained_betas"] = tuple(known["trained_betas"])
        fields = ScheduleConfig.__dataclass_fields__
        return ScheduleConfig(**{name: value for name, value in known.items() if name in fields})


@dataclass(frozen=True)
class NoiseLevel:
    """A point of the grid: how noisy, and the timestep at which the network knows it."""

    alpha_bar: float  # 1 is clean, 0 is pure noise
    timestep: float  # the model's training index

    @property
    def sigma(self) -> float:
        """Noise over signal, sqrt((1 - alpha_bar) / alpha_bar); infinite at zero terminal SNR."""
        if self.alpha_bar == 0:
            return math.inf
        return math.sqrt((1 - self.alpha_bar) / self.alpha_bar)


@dataclass(frozen=True)
class NoiseLevels:
    """alpha_bar at every training timestep, float64, and between them (log-sigma linear; next to
    zero terminal SNR linear in sqrt(alpha_bar))."""

    config: ScheduleConfig
    alpha_bars: Tensor = field(init=False, repr=False, compare=False)  # [T] float64

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha_bars", _alpha_bars(self.config))

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """alpha_bar at timesteps [B], also fractional; clamped to the trained range.

        float64 [B].
        """
        table = self.alpha_bars.to(timesteps.device)
        clamped = timesteps.double().clamp(0, len(table) - 1)
        below = clamped.floor().long()
        above = clamped.ceil().long()
        part = clamped - below
        log_sigma = torch.lerp(_log_sigma(table[below]), _log_sigma(table[above]), part)
        between = torch.sigmoid(-2 * log_sigma)  # 1 / (1 + sigma^2)
        # Log sigma is infinite at zero terminal SNR; there the signal's share falls linearly.
        to_zero = table[below] * (1 - part).square()
        between = torch.where(table[above] == 0, to_zero, between)
        return torch.where(below == above, table[below], between)

    def schedule(self, num_inference_steps: int) -> Schedule:
        """The grid for so many steps. Raises ValueError outside 1..num_train_timesteps."""
        config = self.config
        total = config.num_train_timesteps
        given: Any = num_inference_steps
        if not isinstance(given, Integral) or not 1 <= int(given) <= total:
            raise ValueError(f"steps={num_inference_steps!r}; 1 to {total} are possible")
        timesteps = _timesteps(config, num_inference_steps)
        final = 1.0 if config.set_alpha_to_one else float(self.alpha_bars[0])
        levels = [NoiseLevel(final, 0.0)]
        for timestep in timesteps:
            levels.append(NoiseLevel(float(self.alpha_bars[timestep]), float(timestep)))
        return Schedule(tuple(levels), config)


@dataclass(frozen=True)
class Schedule:
    """Noise levels from clean to noisy: `levels[0]` is where sampling ends, `levels[-1]` where it
    starts.
    """

    levels: tuple[NoiseLevel, ...]
    config: ScheduleConfig

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    def ascending(self) -> Iterator[tuple[NoiseLevel, NoiseLevel]]:
        """(low, high) from clean to noisy, for inversion."""
        yield from zip(self.levels, self.levels[1:], strict=False)

    def descending(self) -> Iterator[tuple[int, NoiseLevel, NoiseLevel]]:
        """(step, high, low) from noisy to clean, for sampling; step 0 is the noisiest."""
        pairs = list(self.ascending())
        for step, (low, high) in enumerate(reversed(pairs)):
            yield step, high, low

    def record(self) -> dict[str, Any]:
        """What a run record prints: the config's fields and the timesteps asked, noisy to clean."""
        timesteps = [level.timestep for level in reversed(self.levels[1:])]
        return {**asdict(self.config), "steps": self.steps, "timesteps": timesteps}


def _alpha_bars(config: ScheduleConfig) -> Tensor:
    total = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = torch.tensor(config.trained_betas, dtype=torch.float64)
    elif config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, total, dtype=torch.float64)
    elif config.beta_schedule == "scaled_linear":
        start, end = config.beta_start**0.5, config.beta_end**0.5
        betas = torch.linspace(start, end, total, dtype=torch.float64) ** 2
    else:  # squaredcos_cap_v2, Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17
        edges = torch.arange(total + 1, dtype=torch.float64) / total
        signal = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    alpha_bars = torch.cumprod(1 - betas, dim=0)
    return _zero_terminal_snr(alpha_bars) if config.rescale_betas_zero_snr else alpha_bars


def _zero_terminal_snr(alpha_bars: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) to end at 0: Algorithm 1 of Lin et al.

    2023 (arXiv:2305.08891).
    """
    root = alpha_bars.sqrt()
    shifted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return shifted.square()


def _timesteps(config: ScheduleConfig, steps: int) -> list[int]:
    """Ascending training timesteps, as diffusers' DDIMScheduler spaces them (Table 2 of
    arXiv:2305.08891).
    """
    total = config.num_train_timesteps
    if config.timestep_spacing == "leading":
        ratio = total // steps
        timesteps = [index * ratio + config.steps_offset for index in range(steps)]
    elif config.timestep_spacing == "linspace":
        stride = (total - 1) / max(steps - 1, 1)
        timesteps = [round(index * stride) for index in range(steps)]
    else:  # trailing
        stride = total - (total - total / steps)  # as numpy.arange rounds it; ties depend on it
        timesteps = [round(total - index * stride) - 1 for index in reversed(range(steps))]
    if timesteps[-1] > total - 1:
        raise ValueError(
            f"steps={steps} with steps_offset={config.steps_offset} asks for timestep "
            f"{timesteps[-1]}, beyond the trained {total - 1}; use fewer steps"
        )
    return timesteps


def _log_sigma(alpha_bar: Tensor) -> Tensor:
    return 0.5 * (torch.log1p(-alpha_bar) - torch.log(alpha_bar))


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value!r} is unknown; accepted are {', '.join(accepted)}")


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}; a whole number of at least {least} is expected")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
