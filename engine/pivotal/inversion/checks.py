"""What methods' options refuse, each in one sentence."""

from __future__ import annotations

import math

from pivotal.schedule import Schedule

LARGEST_SEED = 2**63 - 1  # of torch's generators


def require_one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raise ValueError naming the accepted words."""
    if value not in accepted:
        raise ValueError(f"{name}={value!r} is unknown; accepted are {', '.join(accepted)}")


def require_within(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        accepted = f"{low} or more is" if high == math.inf else f"{low} to {high} is"
        raise ValueError(f"{name}={value}; {accepted} possible")


def require_above(name: str, value: float, low: float) -> None:
    """Raise ValueError unless low < value."""
    if not value > low:
        raise ValueError(f"{name}={value}; it must be above {low}")


def require_finite_sigma(schedule: Schedule, method: str) -> None:
    """Raise ValueError at zero terminal SNR, where a method in sigma space can't start."""
    if schedule.levels[-1].alpha_bar == 0:
        raise ValueError(
            f"{method} needs a finite sigma_max and this schedule ends at zero terminal SNR; "
            "choose ddim or direct"
        )
