"""Methods beside each other on one image."""

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

import pivotal
from pivotal.cli.compare import shown_table
from pivotal.comparison_sheet import comparison_sheet, figures_table
from pivotal.engine import Engine
from pivotal.inversion.registry import METHODS
from pivotal.noise_figures import figures_of_fresh_noise, noise_figures, normal_distance
from pivotal.query import Denoise, Noise
from pivotal.schedule import NoiseLevel

PROMPT, TARGET = "a red circle on a gray background", "a blue circle on a gray background"


# One of each kind: plain, exact for the source, a pair, a grid of its own, skipped steps.
FEW = ["ddim", "direct", "edict", "k-euler", "edit-friendly"]


@pytest.fixture(scope="module", params=[FEW, pytest.param(None, marks=pytest.mark.slow)], ids=str)
def asked(request):
    """Methods to compare; None is all."""
    return request.param


@pytest.fixture(scope="module")
def compared(trained, picture, asked):
    return trained.compare(
        picture, PROMPT, target=TARGET, methods=asked, num_inference_steps=2, guidance_scale=3.0,
        size=(32, 32),
    )  # fmt: skip


def test_methods_are_compared_in_one_go_and_each_gives_figures(compared, asked):
    assert [each.method for each in compared.methods] == (asked or list(METHODS))
    for each in compared.methods:
        assert each.error is None
        assert each.seconds > 0
        assert each.unet_rows >= 1
        assert each.edited.pictures[0].shape == (32, 32, 3)
        assert all(math.isfinite(value) for value in vars(each.noise).values())
    assert json.loads(json.dumps(compared.record(), allow_nan=False))["target"] == TARGET


def test_figures_are_those_of_the_calls_one_by_one(trained, picture, compared):
    (direct,) = (each for each in compared.methods if each.method == "direct")
    alone = trained.invert(
        picture, PROMPT, method="direct", num_inference_steps=2, guidance_scale=3.0, size=(32, 32)
    )
    found = trained.reconstruct(alone)
    edited = trained.edit(alone, TARGET, blend="auto")
    assert direct.reconstruction.psnr == pytest.approx(found.psnr, abs=0.1)
    assert direct.reconstruction.vae_psnr == found.vae_psnr
    assert direct.latents_psnr > 80  # exact but for rounding, which the picture can't tell
    assert direct.unet_rows == alone.report["unet_rows"]
    assert direct.outside_psnr == pytest.approx(edited.outside_mask_psnr[0], abs=0.2)
    assert direct.noise.std_ratio == pytest.approx(alone.report["noise_std_ratio"], rel=1e-4)


def test_a_sheet_shows_all_and_its_lines_fit_a_terminal(compared):
    sheet = comparison_sheet(compared)
    assert sheet.dtype == np.uint8
    table = figures_table(compared)
    assert len(table.rows) == len(compared.methods) + 1
    console = Console(width=80, file=io.StringIO())
    console.print(shown_table(table, compared))
    shown = console.file.getvalue()
    assert "…" not in shown
    assert all(f"{each.method} " in shown for each in compared.methods)
    figures = [line for line in shown.splitlines() if line.startswith(tuple(METHODS))]
    assert len({len(line.rstrip()) for line in figures}) == 1  # set flush right


class Broken:
    """A backend without gradients that answers NaN."""

    name, answers = "broken", frozenset({Denoise})

    def answer(self, query):
        nothing = torch.full_like(query.latents, torch.nan)
        return Noise(nothing, nothing)


def test_what_a_method_cant_is_its_reason_and_not_the_ends_of_the_others(engine, picture):
    exported = Engine(engine.model, Broken())
    found = exported.compare(
        picture, PROMPT, methods=["ddim", "null-text"], num_inference_steps=2, size=(32, 32)
    )
    first, second = found.methods
    assert "NaN or infinity" in first.error
    assert "can't answer NoiseGradient" in second.error
    assert found.done == []
    with pytest.raises(ValueError, match=r"no method could invert this image: ddim: .*null-text: "):
        comparison_sheet(found)


def test_a_negative_prompt_is_every_methods_that_has_a_place_for_one(engine, picture):
    asked = {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": "a square"}
    found = engine.compare(
        picture, PROMPT, methods=["ddim", "negative-prompt"], size=(32, 32), **asked
    )
    ddim, other = found.methods
    alone = engine.invert(picture, PROMPT, method="ddim", size=(32, 32), **asked)
    assert ddim.reconstruction.psnr == pytest.approx(engine.reconstruct(alone).psnr, abs=0.1)
    assert ddim.inversion.negative_prompt == found.record()["negative_prompt"] == "a square"
    assert "means nothing to negative-prompt" in other.error


def test_a_mask_judges_and_confines_nothing(engine, picture):
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, :16] = True
    found = engine.compare(
        picture, PROMPT, target=TARGET, methods=["ddim"], num_inference_steps=2, size=(32, 32),
        mask=mask,
    ).methods[0]  # fmt: skip
    edited = found.edited.pictures[0].astype(float)
    source = found.inversion.picture.pixels.astype(float)
    error = np.square(edited - source)[:, 16:].mean() / 255**2
    assert found.outside_psnr == pytest.approx(-10 * math.log10(error), abs=1e-6)
    assert found.edited.masks == [None]


def test_cancelling_ends_it_at_once(engine, picture):
    stop, heard = pivotal.Cancellation(), []

    def hear(notice):
        heard.append(notice.phase)
        stop.cancel()

    with pytest.raises(pivotal.Cancelled):
        engine.compare(picture, PROMPT, num_inference_steps=2, on_progress=hear, cancellation=stop)
    assert heard == ["ddim: invert"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["ddim", "ddmi"]}, "method='ddmi' is unknown"),
        ({"methods": "ddim"}, "methods='ddim'; a list of names"),
        ({"methods": []}, r"methods=\[\]; at least one"),
        ({"methods": ["ddim", "ddim"]}, "each once"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan"),
        ({"num_inference_steps": 0}, "steps=0"),
        ({"blend": "auto"}, "blend: these are for an edit; give a target too"),
        ({"mask": torch.ones(2, 2)}, "mask: these are for an edit"),
        ({"target": TARGET, "mask": torch.ones(2, 2)}, r"mask: bool \[64, 64\] is expected"),
        ({"target": TARGET, "mask": torch.zeros(64, 64)}, r"mask: bool \[64, 64\] is expected"),
        ({"target": pivotal.Edit(TARGET, mask=torch.ones(8, 8) > 0)}, r"is \[8, 8\]; the inverted"),
        ({"target": TARGET, "blend": ("star",)}, "'star' is in neither prompt"),
        ({"target": TARGET, "sharpen": 1}, "no option 'sharpen'"),
    ],
)
def test_what_is_wrong_for_all_is_raised_before_anything_runs(engine, picture, arguments, message):
    with pytest.raises((ValueError, pivotal.PivotalError), match=message):
        engine.compare(picture, PROMPT, **arguments)


def test_noise_that_is_drawn_looks_like_noise_and_other_things_dont():
    level = NoiseLevel(0.005, 999.0)
    drawn = figures_of_fresh_noise((1, 4, 64, 64), level)
    assert abs(drawn.mean) < 0.03
    assert drawn.std_ratio == pytest.approx(1, abs=0.02)
    assert drawn.normality < 0.01
    assert drawn.autocorrelation < 0.03
    generator = torch.Generator().manual_seed(1)
    even = torch.rand(1, 4, 32, 32, generator=generator, dtype=torch.float64)
    assert noise_figures(even, level).normality > 0.04
    smooth = torch.nn.functional.avg_pool2d(torch.randn(1, 4, 35, 35, generator=generator), 4, 1)
    assert noise_figures(smooth, level).autocorrelation > 0.6
    assert normal_distance(torch.zeros(5, dtype=torch.float64)) == 1.0


def test_the_distance_from_the_normal_distribution_is_the_largest_gap():
    values = torch.tensor([-1.3, -0.2, 0.1, 0.4, 2.5], dtype=torch.float64)
    scaled = (values - values.mean()) / values.std()
    normal = torch.distributions.Normal(0.0, 1.0).cdf(scaled)
    gaps = [abs(float(c) - share) for i, c in enumerate(normal) for share in (i / 5, (i + 1) / 5)]
    assert normal_distance(values) == pytest.approx(max(gaps))


def test_the_autocorrelation_is_the_neighbours_correlation_coefficient():
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    flat = noise[0, 0]
    squares = [
        np.corrcoef(flat.flatten(), flat.roll(1, dimension).flatten())[0, 1] ** 2
        for dimension in (0, 1)
    ]
    found = noise_figures(noise, NoiseLevel(0.5, 1.0)).autocorrelation
    assert found == pytest.approx(math.sqrt(sum(squares) / 2), rel=1e-6)
