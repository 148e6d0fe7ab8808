import re

import pytest

from pivotal.bench.report import html, markdown

COUNTED = {
    "peak_bytes": 10**7, "flops": 10**9, "moved_bytes": 10**8, "least_bytes": 10**7,
    "flops_per_second": 1e10, "moved_bytes_per_second": 1e9, "percent_of_roofline": 12.0,
}  # fmt: skip


@pytest.fixture
def results(row):
    unet = {"model": "shapes", "dtype": "float32", "work": "forward", "scale": 1,
            "backend": "torch"}  # fmt: skip
    return [
        *(
            row([0.1 * n] * 8, f"{n} rows", suite="unet", settings={**unet, "rows": n}, **COUNTED)
            for n in (1, 4)
        ),
        row([2.0] * 8, "ddim", suite="methods", check={"psnr": 28.5, "vae_psnr": 31.2}),
        row([3.0] * 8, "plain", suite="ladder", noisy="half-width 9 %"),
        {**row([1.0] * 8, "TensorRT <b>|", suite="ladder"), "status": "not measured",
         "reason": "a GPU is needed"},
    ]  # fmt: skip


def test_the_page_is_whole_has_every_plot_and_fetches_nothing(results):
    page = html(results)
    for title in ("Ladder", "Latency by rows", "Quality against seconds", "Roofline", "Peak mem"):
        assert f"<h3>{title}" in page
    assert page.count("<svg") == 5
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "<b>" not in page
    assert page == html(results)


def test_the_ladders_bars_say_how_many_times_faster_than_their_kinds_first_each_is(row):
    def rung(name, seconds, kind, **more):
        return row([seconds] * 8, name, suite="ladder", settings={"kind": kind}, **more)

    page = html([
        rung("plain", 4.0, "cumulative"),
        rung("+ fused", 2.0, "cumulative", check={"psnr": 28.54, "vae_psnr": 31.2}),
        rung("alone: plain", 5.0, "one at a time"),
        rung("alone: fused", 4.0, "one at a time", noisy="half-width 9 %"),
    ])  # fmt: skip
    told = re.findall(r">(x [^<]*)<", page)
    assert told == ["x 1.00", "x 2.00, 28.5 dB", "x 1.00", "x 1.25, noisy"]


def test_every_suite_and_every_dtypes_ceilings_are_in_the_roofline(row):
    rows = [
        row([0.1] * 8, suite=f"suite {n}", settings={"dtype": dtype}, **COUNTED)
        for n, dtype in enumerate(["float32", "bfloat16"] * 5)
    ]
    page = html(rows)
    assert {f"suite {n}" for n in range(10)} <= set(re.findall(r">(suite \d+)</text>", page))
    assert "ceilings, float32" in page
    assert "ceilings, bfloat16" in page


def test_the_markdown_has_a_row_for_every_case_with_noise_and_reasons_said(results):
    text = markdown(results)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(results)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "28.5 dB (autoencoder 31.2)" in text
    assert "too noisy" in text
    assert "not measured: a GPU is needed" in text
    assert "means something on a GPU only" in text or "mean something on a GPU only" in text


def test_a_newer_row_takes_an_older_ones_place_on_its_device_alone(row):
    old, new = row([5.0] * 8), {**row([1.0] * 8), "time": "2026-11-23T00:00:00Z"}
    other = {**row([3.0] * 8), "device": "nvidia-h100"}
    text = markdown([old, new, other])
    assert "5 s" not in text
    assert "1 s" in text
    assert "## nvidia-h100" in text
