import inspect
import itertools
import json
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from pivotal.schedule import NoiseLevel, NoiseLevels, ScheduleConfig

# As published beside the weights: SD 1.5, SD 2.1, SDXL and a distilled one, without the fields that
# decide nothing.
PUBLISHED = {
    "sd15": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "sd21": {
        "_class_name": "DDIMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    },
    "turbo": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "trailing",
        "trained_betas": None,
    },
}
ZERO_SNR = ScheduleConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)


def timesteps(schedule):
    return [int(level.timestep) for level in reversed(schedule.levels[1:])]


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": tuple(0.0001 * 1.004**t for t in range(1000))},
        {"beta_schedule": "linear", "num_train_timesteps": 400},
    ],
    ids=["linear", "scaled", "cosine", "trained", "short"],
)
def test_the_table_is_diffusers_to_float32(betas, rescale):
    betas = betas | {"rescale_betas_zero_snr": rescale, "prediction_type": "v_prediction"}
    ours = NoiseLevels(ScheduleConfig(**betas)).alpha_bars
    theirs = DDIMScheduler(**({"beta_start": 0.00085, "beta_end": 0.012} | betas))
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs.alphas_cumprod.double(), rtol=3e-4, atol=1e-6)


def test_the_table_is_the_literal_product_in_float64():
    def scaled(t):
        share = t / 999
        return (0.00085**0.5 + share * (0.012**0.5 - 0.00085**0.5)) ** 2

    def cosine(t):
        signal = [math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (t, t + 1)]
        return min(1 - signal[1] / signal[0], 0.999)

    trained = [0.0001 * 1.004**t for t in range(1000)]
    cases = [
        (ScheduleConfig(), scaled),
        (ScheduleConfig(beta_schedule="linear"), lambda t: 0.00085 + t / 999 * (0.012 - 0.00085)),
        (ScheduleConfig(beta_schedule="squaredcos_cap_v2"), cosine),
        (ScheduleConfig(trained_betas=tuple(trained)), trained.__getitem__),
    ]
    for config, beta in cases:
        expected = np.cumprod([1 - beta(t) for t in range(1000)])
        table = NoiseLevels(config).alpha_bars
        torch.testing.assert_close(table, torch.from_numpy(expected), rtol=1e-11, atol=0)


def test_zero_terminal_snr_shifts_and_scales_the_signal():
    plain, rescaled = (
        NoiseLevels(ScheduleConfig(prediction_type="v_prediction", rescale_betas_zero_snr=zero))
        for zero in (False, True)
    )
    root, moved = plain.alpha_bars.sqrt(), rescaled.alpha_bars.sqrt()
    assert moved[-1] == 0
    torch.testing.assert_close(moved[0], root[0], rtol=1e-14, atol=0)
    ratio = (moved[:-1] - moved[1:]) / (root[:-1] - root[1:])
    torch.testing.assert_close(ratio, ratio[:1].expand(999), rtol=1e-9, atol=0)
    assert NoiseLevel(0.0, 999).sigma == math.inf
    assert NoiseLevel(0.2, 999).sigma == pytest.approx(2.0)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_timesteps_are_diffusers_for_every_number_of_steps(spacing):
    levels = NoiseLevels(ScheduleConfig(timestep_spacing=spacing))
    theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=0)
    for steps in [*range(1, 130), 333, 499, 500, 501, 999, 1000]:
        theirs.set_timesteps(steps)
        # where a stride is rounded up, diffusers' trailing grid has a step too many, at timestep -1
        assert timesteps(levels.schedule(steps)) == theirs.timesteps.tolist()[:steps], steps


def test_the_offset_moves_leading_timesteps_alone():
    def asked(spacing, offset):
        config = ScheduleConfig(timestep_spacing=spacing, steps_offset=offset)
        return timesteps(NoiseLevels(config).schedule(50))

    assert asked("leading", 1) == [t + 1 for t in asked("leading", 0)]
    for spacing in ("linspace", "trailing"):
        assert asked(spacing, 1) == asked(spacing, 0)


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
def test_steps_join_the_levels_that_diffusers_steps_between(steps, to_one, offset):
    config = {"set_alpha_to_one": to_one, "steps_offset": offset}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    schedule = NoiseLevels(ScheduleConfig(**config)).schedule(steps)
    theirs = DDIMScheduler(**config, **betas)
    for _, high, low in schedule.descending():
        before = int(high.timestep) - 1000 // steps
        expected = theirs.alphas_cumprod[before] if before >= 0 else theirs.final_alpha_cumprod
        assert low.alpha_bar == pytest.approx(expected.item(), rel=1e-4)
        expected = theirs.alphas_cumprod[int(high.timestep)].item()
        assert high.alpha_bar == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_up_and_down_are_the_same_pairs_reversed(spacing):
    schedule = NoiseLevels(ScheduleConfig(timestep_spacing=spacing)).schedule(37)
    up = list(schedule.ascending())
    down = [(low, high) for _, high, low in schedule.descending()]
    assert up == down[::-1]
    assert [step for step, *_ in schedule.descending()] == list(range(37))
    assert schedule.steps == len(up) == 37
    assert all(first[1] is second[0] for first, second in itertools.pairwise(up))
    alpha_bars = [level.alpha_bar for level in schedule.levels]
    assert alpha_bars == sorted(alpha_bars, reverse=True)


def test_published_configs_are_read_right():
    read = {name: ScheduleConfig.from_diffusers(config) for name, config in PUBLISHED.items()}
    assert read["sd15"] == ScheduleConfig(steps_offset=1, set_alpha_to_one=False)
    assert read["sd21"] == ScheduleConfig(steps_offset=1, prediction_type="v_prediction")
    assert read["sdxl"] == ScheduleConfig(steps_offset=1)
    assert read["turbo"] == ScheduleConfig(
        steps_offset=1, timestep_spacing="trailing", set_alpha_to_one=True
    )
    for name, config in PUBLISHED.items():
        ours = NoiseLevels(read[name])
        theirs = DDIMScheduler.from_config(config)
        theirs.set_timesteps(50)
        assert timesteps(ours.schedule(50)) == theirs.timesteps.tolist()
        final = ours.schedule(50).levels[0].alpha_bar
        assert final == pytest.approx(theirs.final_alpha_cumprod.item(), rel=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
    ],
)
def test_a_silent_config_means_its_classes_defaults(name):
    read = ScheduleConfig.from_diffusers({"_class_name": name})
    signature = inspect.signature(getattr(diffusers, name)).parameters
    for field in ScheduleConfig.__dataclass_fields__:
        if field in signature:
            assert getattr(read, field) == signature[field].default, field
        elif field == "set_alpha_to_one":
            assert read.set_alpha_to_one  # such a class ends at sigma 0


def test_every_field_of_a_full_config_is_read_back():
    trained = [0.001 * (t + 1) for t in range(20)]
    scheduler = DDIMScheduler(
        num_train_timesteps=20,
        trained_betas=trained,
        prediction_type="sample",
        timestep_spacing="trailing",
        steps_offset=3,
        set_alpha_to_one=True,
        rescale_betas_zero_snr=True,
    )
    read = ScheduleConfig.from_diffusers(json.loads(scheduler.to_json_string()))
    assert read == ScheduleConfig(
        num_train_timesteps=20,
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        trained_betas=tuple(trained),
        prediction_type="sample",
        timestep_spacing="trailing",
        steps_offset=3,
        set_alpha_to_one=True,
        rescale_betas_zero_snr=True,
    )


def test_the_record_says_what_was_asked(sd_config):
    record = NoiseLevels(sd_config).schedule(4).record()
    assert record["timesteps"] == [751, 501, 251, 1]
    assert record["steps"] == 4
    assert record["prediction_type"] == "epsilon"
    json.dumps(record)


def test_alpha_bar_at_integers_is_the_table(levels):
    asked = torch.arange(1000, dtype=torch.float32)
    assert torch.equal(levels.alpha_bar(asked), levels.alpha_bars)


def test_alpha_bar_between_integers_is_log_sigma_linear(levels):
    def log_sigma(alpha_bar):
        return 0.5 * ((1 - alpha_bar) / alpha_bar).log()

    below = torch.tensor([0, 1, 499, 998])
    for part in (0.25, 0.5, 0.875):
        between = log_sigma(levels.alpha_bar(below + part))
        ends = [log_sigma(levels.alpha_bars[below + step]) for step in (0, 1)]
        expected = (1 - part) * ends[0] + part * ends[1]
        torch.testing.assert_close(between, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("config", [ScheduleConfig(), ZERO_SNR], ids=["plain", "zero snr"])
def test_alpha_bar_is_finite_and_falls_everywhere(config):
    levels = NoiseLevels(config)
    fine = levels.alpha_bar(torch.arange(0, 999.01, 0.125, dtype=torch.float64))
    assert fine.isfinite().all()
    assert (fine.diff() < 0).all()


@pytest.mark.parametrize("config", [ScheduleConfig(), ZERO_SNR], ids=["plain", "zero snr"])
def test_alpha_bar_is_clamped_to_the_trained_range(config):
    levels = NoiseLevels(config)
    outside = levels.alpha_bar(torch.tensor([-3.0, -0.25, 999.5, 2000.0]))
    assert torch.equal(outside, levels.alpha_bars[[0, 0, -1, -1]])


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("beta_schedule", "sigmoid", "scaled_linear"),
        ("prediction_type", "flow", "v_prediction"),
        ("timestep_spacing", "karras", "trailing"),
    ],
)
def test_unknown_values_are_refused_naming_the_accepted(field, value, accepted):
    with pytest.raises(
        ValueError, match=rf"{field}='{value}' is unknown; accepted are.*{accepted}"
    ):
        ScheduleConfig(**{field: value})
    with pytest.raises(ValueError, match=value):
        ScheduleConfig.from_diffusers({field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 1000.5),
        ("num_train_timesteps", "1000"),
        ("steps_offset", -1),
        ("steps_offset", True),
        ("beta_start", "0.1"),
        ("beta_start", 0.0),
        ("beta_end", 1.0),
        ("beta_end", math.nan),
        ("set_alpha_to_one", "false"),
        ("rescale_betas_zero_snr", 1),
    ],
)
def test_impossible_values_of_a_config_file_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}={value!r}"):
        ScheduleConfig.from_diffusers({"_class_name": "DDIMScheduler", field: value})


def test_an_impossible_trained_beta_is_refused_by_its_place():
    with pytest.raises(ValueError, match=r"^trained_betas\[1\]='x'"):
        ScheduleConfig.from_diffusers({"num_train_timesteps": 2, "trained_betas": [0.1, "x"]})


def test_zero_terminal_snr_with_eps_is_refused():
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        ScheduleConfig(rescale_betas_zero_snr=True)


def test_trained_betas_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 trained_betas for num_train_timesteps=1000"):
        ScheduleConfig(trained_betas=(0.1, 0.2))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(levels, steps):
    with pytest.raises(ValueError, match=f"steps={steps}; 1 to 1000"):
        levels.schedule(steps)


def test_steps_that_the_offset_pushes_beyond_the_range_are_refused(levels):
    with pytest.raises(ValueError, match="steps=1000 with steps_offset=1 asks for timestep 1000"):
        levels.schedule(1000)
