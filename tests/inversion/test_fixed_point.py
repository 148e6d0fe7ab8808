import pytest
import torch

from pivotal.inversion import ddim, fixed_point
from pivotal.inversion.fixed_point import FixedPointOptions, anderson
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS = 4


def coefficients(low, high):
    a = (high.alpha_bar / low.alpha_bar) ** 0.5
    return a, (1 - high.alpha_bar) ** 0.5 - a * (1 - low.alpha_bar) ** 0.5


def residuals(denoiser, schedule, case, there, **options):
    inverted = there(fixed_point, denoiser, schedule, case, FixedPointOptions(**options))
    return inverted.diagnostics["residuals"]


def test_one_iteration_is_ddim_inversion(torch_denoiser, gentle, case, there):
    two, schedule = case(2), gentle(STEPS)
    ours = there(fixed_point, torch_denoiser(), schedule, two, FixedPointOptions(iterations=1))
    theirs = there(ddim, torch_denoiser(), schedule, two, ddim.DDIMOptions())
    torch.testing.assert_close(ours.noise, theirs.noise, rtol=1e-12, atol=1e-12)


def test_plain_iterations_are_the_papers(torch_denoiser, plain_unet, gentle, case, there, text):
    one, schedule = case(), gentle(STEPS)
    options = FixedPointOptions(iterations=3, tolerance=0.0)
    ours = there(fixed_point, torch_denoiser(), schedule, one, options).noise
    eps, z = text(plain_unet(), one[1]), one[0]
    for low, high in schedule.ascending():
        a, b = coefficients(low, high)
        start = z
        for _ in range(3):  # z^{n+1} = f(z^n), Eq. 7 of arXiv:2309.04907
            z = a * start + b * eps(z, high.timestep)
    torch.testing.assert_close(ours, z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("acceleration", ["none", "anderson"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_root_solves_each_steps_equation_and_comes_back(
    calm, gentle, case, there, back, acceleration, scale
):
    one, schedule = case(), gentle(STEPS)
    options = FixedPointOptions(
        iterations=40, acceleration=acceleration, tolerance=1e-10, guidance_scale=scale
    )
    inverted = there(fixed_point, calm(), schedule, one, options)
    found = inverted.diagnostics["residuals"]
    last = torch.where(found.isnan(), torch.inf, found).amin(dim=-1)
    assert (last <= 1e-10).all()
    again = back(fixed_point, calm(), schedule, inverted, one, scale, options)
    torch.testing.assert_close(again, one[0], rtol=1e-8, atol=1e-8)


def test_residuals_fall_wherever_the_map_contracts(calm, calm_unet, gentle, case, there, text):
    one, schedule = case(), gentle(STEPS)
    found = residuals(calm(), schedule, one, there, iterations=5, tolerance=0.0)[0]
    eps, z, contracted = text(calm_unet(), one[1]), one[0], 0
    for step, (low, high) in enumerate(schedule.ascending()):
        a, b = coefficients(low, high)
        start, iterates = z, [z]
        for _ in range(5):
            iterates.append(a * start + b * eps(iterates[-1], high.timestep))
        for k in range(4):
            moved = (iterates[k + 2] - iterates[k + 1]).norm()
            lipschitz = moved / (iterates[k + 1] - iterates[k]).norm()
            if lipschitz < 1:
                assert found[step, k + 1] < found[step, k]
                contracted += 1
        z = iterates[-1]
    assert contracted >= 4 * STEPS - 2


def test_anderson_needs_fewer_evaluations(calm, gentle, case, there):
    one, schedule, counts = case(), gentle(STEPS), {}
    for acceleration in ("none", "anderson"):
        denoiser = calm()
        residuals(
            denoiser, schedule, one, there,
            iterations=40, tolerance=1e-8, acceleration=acceleration,
        )  # fmt: skip
        counts[acceleration] = denoiser.rows_forward
    assert counts["anderson"] < 0.9 * counts["none"]


def test_anderson_iterations_are_the_papers(torch_denoiser, plain_unet, gentle, case, there, text):
    """AIDI's accelerated iteration, Walker & Ni's constrained form, by plain least squares."""
    one, schedule, memory, count = case(), gentle(2), 2, 5
    options = FixedPointOptions(
        iterations=count, acceleration="anderson", memory=memory, tolerance=0.0
    )
    ours = there(fixed_point, torch_denoiser(), schedule, one, options).noise
    eps, z = text(plain_unet(), one[1]), one[0]
    for low, high in schedule.ascending():
        a, b = coefficients(low, high)
        start, tried, mapped = z, [], []
        for iteration in range(count):
            tried.append(z)
            mapped.append(a * start + b * eps(z, high.timestep))
            kept = min(memory, len(tried) - 1) + 1  # m previous ones and the newest
            off = torch.stack(
                [(f - z).flatten() for z, f in zip(tried, mapped, strict=True)][-kept:]
            )
            # argmin |sum alpha_i off_i|, sum alpha_i = 1: the last one is 1 less the others.
            others = (off[:-1] - off[-1]).T
            alpha = torch.linalg.lstsq(others, -off[-1][:, None]).solution[:, 0] if kept > 1 else []
            z = mapped[-1]
            if kept > 1 and iteration + 1 < count:
                z = (1 - alpha.sum()) * mapped[-1]
                z = z + sum(w * f for w, f in zip(alpha, mapped[-kept:-1], strict=True))
    torch.testing.assert_close(ours, z, rtol=1e-5, atol=1e-6)


def test_anderson_solves_a_linear_map_in_as_many_steps_as_it_has_dimensions():
    generator = torch.Generator().manual_seed(0)
    matrix = 0.9 * torch.randn(1, 3, 3, generator=generator, dtype=torch.float64)
    offset = torch.randn(1, 3, 1, generator=generator, dtype=torch.float64)
    root = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - matrix, offset)
    z, past = torch.zeros(1, 3, 1, dtype=torch.float64), []
    for _ in range(5):
        past.append((z, matrix @ z + offset))
        z = anderson(past[-4:], ridge=0.0)
    torch.testing.assert_close(z, root, rtol=1e-6, atol=1e-6)


def test_on_a_gaussian_the_root_is_the_closed_one(gaussian, data, there):
    levels = NoiseLevels(ScheduleConfig(beta_end=0.003))
    schedule, denoiser = levels.schedule(5), gaussian(levels)
    latents, nothing = data
    options = FixedPointOptions(iterations=100, tolerance=1e-13)
    found = there(fixed_point, denoiser, schedule, (latents, nothing, nothing), options).noise
    z = latents
    for low, high in schedule.ascending():  # eps is k (z - m): one linear equation an element
        a, b = coefficients(low, high)
        mean = high.alpha_bar**0.5 * denoiser.mean
        variance = high.alpha_bar * denoiser.std**2 + 1 - high.alpha_bar
        k = (1 - high.alpha_bar) ** 0.5 / variance
        z = (a * z - b * k * mean) / (1 - b * k)
    torch.testing.assert_close(found, z, rtol=1e-9, atol=1e-9)


def test_one_more_evaluation_a_step_beats_ddim_on_a_gaussian(gaussian, data, there, back, rms):
    levels = NoiseLevels(ScheduleConfig())
    schedule, denoiser = levels.schedule(50), gaussian(levels)
    case = (data[0], data[1], data[1])
    errors = []
    for iterations in (1, 2, 3):
        options = FixedPointOptions(iterations=iterations)
        inverted = there(fixed_point, denoiser, schedule, case, options)
        again = back(fixed_point, denoiser, schedule, inverted, case, 1.0, options)
        errors.append(rms(again - data[0]))
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.3 * errors[1]


def test_rows_stop_each_for_itself(calm, recording, gentle, case, there):
    denoiser, two = recording(calm()), case(2)
    full = residuals(calm(), gentle(STEPS), two, there, iterations=8, tolerance=0.0)
    between = full[:, :, 4].mean().item()
    found = residuals(denoiser, gentle(STEPS), two, there, iterations=8, tolerance=between)
    counts = found.isfinite().sum(dim=-1)
    assert (counts[0] != counts[1]).any()
    assert sum(denoiser.sizes) == counts.sum()


def test_zero_terminal_snr_is_refused(torch_denoiser, case, there):
    config = ScheduleConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    schedule = NoiseLevels(config).schedule(3)
    with pytest.raises(ValueError, match="needs a finite sigma_max"):
        there(fixed_point, torch_denoiser("v_prediction"), schedule, case(), FixedPointOptions())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"iterations": 0}, "iterations=0; 1 or more"),
        ({"acceleration": "nesterov"}, "'nesterov' is unknown; accepted are none, anderson"),
        ({"memory": 0}, "memory=0; 1 or more"),
        ({"tolerance": -1.0}, "tolerance=-1.0; 0 or more"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        FixedPointOptions(**options)
