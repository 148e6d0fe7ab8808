"""A row of results as words: for the terminal, markdown and the page alike."""

from __future__ import annotations

from pivotal.bench.rows import Row

HEADINGS = ("suite", "case", "seconds", "95 %", "first call", "peak", "GFLOP/s", "GB/s",
            "roofline", "quality")  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """One for each of HEADINGS. What was not timed says why."""
    if row["status"] != "timed":
        reason = row.get("error") or row.get("reason")
        return (row["suite"], row["case"], f"{row['status']}: {reason}", *[""] * 7)
    seconds = row["seconds"]
    half = (seconds["high"] - seconds["low"]) / 2 / seconds["p50"]
    counted = "flops" in row
    return (
        row["suite"],
        row["case"],
        span(seconds["p50"]),
        f"± {half:.0%}" + (", too noisy" if row["noisy"] else ""),
        span(row["first_seconds"]),
        f"{row['peak_bytes'] / 1e6:.0f} MB" if "peak_bytes" in row else "-",
        f"{row['flops_per_second'] / 1e9:.1f}" if counted else "-",
        f"{row['moved_bytes_per_second'] / 1e9:.1f}" if "moved_bytes" in row else "-",
        f"{row['percent_of_roofline']:.0f} %" if counted else "-",
        quality(row),
    )


def quality(row: Row) -> str:
    """Decibels beside the autoencoder's, where the check found them; how calls were served; or
    guided iterations a second, of the whole call with its text and its decoding.
    """
    if "served" in row:
        served = row["served"]
        return (
            f"{served['images_per_second']:.3g} images/s; latency p50 "
            f"{span(served['latency_p50'])}, p95 {span(served['latency_p95'])}"
        )
    check = row.get("check", {})
    if "guided_iterations" in check:
        return f"{check['guided_iterations'] / row['seconds']['p50']:.3g} guided it/s"
    if "psnr" not in check:
        return "-"
    return f"{check['psnr']:.1f} dB (autoencoder {check['vae_psnr']:.1f})"


def span(seconds: float) -> str:
    """Seconds as people say them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
