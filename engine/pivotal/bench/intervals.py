"""How sure a median is, and a ratio of two: without assuming a distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
WIDEST = 0.05  # half an interval's width over its middle, above which a figure is too noisy
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""By how many batches, each less one a degree of freedom: its two-sided 95 % quantile."""
FEWEST = 6  # samples; of fewer not even the whole range covers the median with 95 %


@dataclass(frozen=True)
class Interval:
    """A figure and where it lies with 95 % confidence."""

    middle: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Relative to the middle."""
        return (self.high - self.low) / 2 / self.middle

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def median_interval(samples: Sequence[float]) -> Interval:
    """The median between two order statistics.

    As many samples lie below the median as coins show heads, so the k-th smallest and the k-th
    largest hold it with probability 1 - 2 P(Binomial(n, 1/2) < k). Of too few samples: their range.
    """
    ordered, count = sorted(samples), len(samples)
    k, below = 0, 0.0
    while k < count // 2:
        below += math.comb(count, k) / 2**count
        if 1 - 2 * below < CONFIDENCE:
            break
        k += 1
    k = max(k - 1, 0)
    return Interval(statistics.median(ordered), ordered[k], ordered[-1 - k])


def run_interval(samples: Sequence[float]) -> Interval:
    """The median of a run's samples, given in the order in which they were taken.

    Samples that a drifting machine makes resemble their neighbours, and tell less than as many
    independent ones. So where it is wider, the interval is Student's of the medians of a few runs
    of neighbours (the method of batch means: Law and Kelton, Simulation Modeling and Analysis).
    """
    of_all = median_interval(samples)
    batches = min(len(samples) // 3, max(STUDENT))
    if batches not in STUDENT:
        return of_all
    medians = [statistics.median(each) for each in np.array_split(samples, batches)]
    reach = STUDENT[batches] * statistics.stdev(medians) / math.sqrt(batches)
    middle = of_all.middle
    return Interval(middle, min(of_all.low, middle - reach), max(of_all.high, middle + reach))


def noise_of(samples: Sequence[float]) -> str | None:
    """Why these samples are too noisy to compare, or None.

    Beside the interval's width it minds drift: a machine that was slower in one half of the run
    makes an interval that the next run misses.
    """
    if len(samples) < FEWEST:
        return f"{len(samples)} samples; {FEWEST} are needed for an interval"
    interval = run_interval(samples)
    if interval.half_width > WIDEST:
        return f"half-width {interval.half_width:.1%} of the median; {WIDEST:.0%} is allowed"
    half = len(samples) // 2
    first, second = statistics.median(samples[:half]), statistics.median(samples[-half:])
    drift = abs(second / first - 1)
    return f"drifted by {drift:.1%} within the run" if drift > WIDEST else None


def ratio_interval(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Interval:
    """median(after) / median(before) of two runs; percentiles of 2000 bootstrap resamplings."""
    rng = np.random.default_rng(seed)
    medians = [
        np.median(rng.choice(np.asarray(samples), (2000, len(samples))), axis=1)
        for samples in (before, after)
    ]
    low, high = np.quantile(medians[1] / medians[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(statistics.median(after) / statistics.median(before), float(low), float(high))


def paired_ratio_interval(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The median of after / before, of samples taken in the same rounds of one run."""
    return median_interval([b / a for a, b in zip(before, after, strict=True)])


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """A mean; percentiles of 2000 bootstrap resamplings. Of one value: that value."""
    rng = np.random.default_rng(seed)
    means = rng.choice(np.asarray(values, dtype=np.float64), (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(statistics.fmean(values), float(low), float(high))


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {f"p{share}": ordered[round(last * share / 100)] for share in (20, 50, 80)}
