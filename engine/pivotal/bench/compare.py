"""Two or more results side by side: ratios of medians with intervals, and what got slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pivotal.bench.errors import ResultsError
from pivotal.bench.intervals import FEWEST, Interval, ratio_interval
from pivotal.bench.rounds import PRODUCT
from pivotal.bench.rows import Row, latest

Verdict = Literal[
    "slower", "faster", "no difference shown", "too noisy", "not timed", "as the machine"
]
TOLERANCE = 0.05
"""A change below it is not called one, however sure it is."""


@dataclass(frozen=True)
class Comparison:
    """One case in two results. ratio: seconds of the second over the first's; over 1 is slower."""

    suite: str
    case: str
    settings: Mapping[str, Any]
    before: float | None
    after: float | None
    ratio: Interval | None
    verdict: Verdict
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        ratio = self.ratio and {
            "p50": self.ratio.middle, "low": self.ratio.low, "high": self.ratio.high
        }  # fmt: skip
        return {
            "suite": self.suite, "case": self.case, "settings": dict(self.settings),
            "before": self.before, "after": self.after, "ratio": ratio,
            "verdict": self.verdict, "reason": self.reason,
        }  # fmt: skip


def compare(before: Sequence[Row], after: Sequence[Row]) -> list[Comparison]:
    """Every case that both results hold, in the first one's order. Raises ResultsError for none."""
    first, second = latest(before), latest(after)
    common = [key for key in first if key in second]
    if not common:
        raise ResultsError(
            f"the two results have none of {len(first)} and {len(second)} cases in common; "
            "measure the same suites with the same settings"
        )
    return [_one(first[key], second[key]) for key in common]


def machine_ratio(before: Sequence[Row], after: Sequence[Row]) -> Interval | None:
    """How much slower the machine itself was: seconds of the large matrix product, both runs'."""
    first, second = _products(before), _products(after)
    return ratio_interval(first, second) if first and second else None


def _products(rows: Sequence[Row]) -> list[float]:
    return [
        seconds
        for row in rows
        if row["status"] == "timed"
        for seconds in row["ceilings"]["samples"][PRODUCT]
    ]


def _one(before: Row, after: Row) -> Comparison:
    named = (before["suite"], before["case"], before["settings"])
    for row in (before, after):
        if row["status"] != "timed":
            reason = row.get("error") or row.get("reason")
            lost = row is after and row["status"] == "failed" and before["status"] == "timed"
            # What ran before and fails now is worse than slow.
            return Comparison(*named, None, None, None, "slower" if lost else "not timed", reason)
    middles = before["seconds"]["p50"], after["seconds"]["p50"]
    ratio = ratio_interval(before["samples"], after["samples"])
    noisy = before["noisy"] or after["noisy"]
    too_few = min(len(before["samples"]), len(after["samples"])) < FEWEST
    verdict, reason = _verdict(ratio, noisy, too_few), noisy
    if verdict in ("slower", "faster") and _same_machine(before, after):
        told = _machines_doing(before, after, ratio)
        verdict, reason = (verdict, reason) if told is None else ("as the machine", told)
    return Comparison(*named, *middles, ratio, verdict, reason)


def _same_machine(before: Row, after: Row) -> bool:
    """By what rows tell of it. A faster machine is no excuse to compare it with another one by."""
    names = ("cpu", "threads")
    return bool(before["device"] == after["device"]) and all(
        before["environment"].get(name) == after["environment"].get(name) for name in names
    )


def _machines_doing(before: Row, after: Row, ratio: Interval) -> str | None:
    """Why a case only took the longer or the shorter that the machine itself did, or None.

    The large matrix product beside each case says so, where its own change is beyond doubt and
    leaves none of the case's above TOLERANCE.
    """
    machine = ratio_interval(_products([before]), _products([after]))
    changed = machine.low > 1 + TOLERANCE or machine.high < 1 - TOLERANCE
    left = ratio.middle / machine.middle
    if not changed or abs(left - 1) > TOLERANCE:
        return None
    return f"the matrix product beside it took {machine.middle:.2f} times the seconds, too"


def _verdict(ratio: Interval, noisy: str | None, too_few: bool) -> Verdict:
    """A change counts where even the near end of the interval is one, noise or not; but of too few
    samples there is no interval: all of three are above all of three by chance in one of twenty.
    """
    if too_few:
        return "too noisy"
    if ratio.low > 1 and ratio.middle > 1 + TOLERANCE:
        return "slower"
    if ratio.high < 1 and ratio.middle < 1 - TOLERANCE:
        return "faster"
    return "too noisy" if noisy else "no difference shown"
