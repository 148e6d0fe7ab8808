"""Line search, all timesteps at once, and the ablations of null-text inversion."""

from dataclasses import replace

import pytest
import torch

from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.inversion import null_text_ablations, null_text_line_search, null_text_parallel
from pivotal.inversion.null_text_ablations import AblationOptions
from pivotal.inversion.null_text_fit import Residual
from pivotal.inversion.null_text_line_search import LineSearchOptions, search_rows
from pivotal.inversion.null_text_parallel import ParallelOptions
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning, Denoise, Noise, NoiseLoss, every_row
from pivotal.runtime.torch_denoiser import TorchDenoiser

STEPS, SCALE = 3, 2.5
SHORT = {"longest": 0.02, "probe": 1e-3}  # eps_u is nearly linear so near: no safeguard acts


def eps_of(unet, latents, timestep, hidden):
    return unet(latents, timestep, encoder_hidden_states=hidden).sample


def coefficients(high, low):
    a = (low.alpha_bar / high.alpha_bar) ** 0.5
    return a, (1 - low.alpha_bar) ** 0.5 - a * (1 - high.alpha_bar) ** 0.5


def searched(unet, latents, pivot, high, low, cond, hidden, options):
    """One embedding's line searches as the page says them, by autograd: the embedding found."""
    a, b = coefficients(high, low)
    w = options.guidance_scale
    with torch.no_grad():
        eps_c = eps_of(unet, latents, high.timestep, cond)

    def end(embedding):
        eps_u = eps_of(unet, latents, high.timestep, embedding)
        return a * latents + b * (eps_u + w * (eps_c - eps_u)), eps_u

    lowest, found = float("inf"), hidden
    for _ in range(options.iterations):
        hidden = hidden.detach().requires_grad_()
        reached, eps_u = end(hidden)
        loss = (pivot - reached).square().mean()
        if loss.item() >= lowest:  # half the step that did not lower it
            hidden = (hidden + found) / 2
            continue
        lowest, found = loss.item(), hidden.detach()
        (g,) = torch.autograd.grad(loss, hidden)
        d = g / g.square().mean().sqrt()
        with torch.no_grad():
            h = options.probe
            eps_probe = eps_of(unet, latents, high.timestep, hidden - h * d)
            moves = b * (1 - w) * (eps_probe - eps_u) / h
            residual = reached - pivot
            alpha = -(residual * moves).sum() / moves.square().sum()
            hidden = hidden - alpha.clamp(0, options.longest) * d
    with torch.no_grad():
        last = (pivot - end(hidden)[0]).square().mean().item()
    return hidden.detach() if last <= lowest else found


def test_the_line_search_is_the_pages(calm, calm_unet, gentle, case, there):
    one, schedule = case(), gentle(STEPS)
    options = LineSearchOptions(guidance_scale=SCALE, iterations=2, direction="gradient", **SHORT)
    ours = there(null_text_line_search, calm(), schedule, one, options)
    unet, z, pivots = calm_unet(), one[0], [one[0]]
    cond, hidden = one[1].hidden_states, one[2].hidden_states
    with torch.no_grad():
        for low, high in schedule.ascending():
            a, b = coefficients(low, high)
            z = a * z + b * eps_of(unet, z, high.timestep, cond)
            pivots.append(z)
    for step, high, low in schedule.descending():
        hidden = searched(unet, z, pivots[-2 - step], high, low, cond, hidden, options)
        found = ours.stored["null_embeddings"][:, step]
        torch.testing.assert_close(found, hidden, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            a, b = coefficients(high, low)
            eps_u = eps_of(unet, z, high.timestep, hidden)
            eps_c = eps_of(unet, z, high.timestep, cond)
            z = a * z + b * (eps_u + SCALE * (eps_c - eps_u))


def test_the_step_is_the_best_along_the_gradient(calm, calm_unet, gentle, case):
    """No shorter or longer step along the same direction lowers the loss further."""
    one, denoiser = case(), calm()
    level, slopes = gentle(STEPS).levels[-1], torch.full((1,), 0.5, dtype=torch.float64)
    times = every_row(one[0], level)
    options = LineSearchOptions(iterations=1, probe=1e-5, longest=100.0)
    near = one[2].hidden_states + 1e-3 * one[1].hidden_states.roll(1, dims=1)
    with torch.no_grad():  # a residual that a short step can remove a part of
        short = -0.5 * eps_of(calm_unet(), one[0], level.timestep, near)

    residual = Residual(one[0], *times, slopes, short)

    def loss(conditioning):
        return residual.loss(drive(iter(residual.noise(conditioning)), denoiser).eps).item()

    fitted = drive(search_rows(residual, one[2], options), denoiser)
    start, moved = one[2].hidden_states, fitted.null.hidden_states - one[2].hidden_states
    best = loss(fitted.null)
    assert best < fitted.losses.item()
    assert best == pytest.approx(residual.loss(fitted.uncond.eps).item())
    for factor in (0.5, 1.5):
        other = replace(one[2], hidden_states=start + factor * moved)
        assert best < loss(other)


def cubic(query):
    """A network of one number whose noise is `e + c e^3` of the embedding, c in its latents."""
    e, c = query.conditioning.hidden_states, query.latents
    eps = e[..., None] + c * e[..., None] ** 3
    if isinstance(query, Denoise):
        return Noise(eps, torch.zeros_like(eps))
    left = query.scale[:, None, None, None] * eps + query.offset
    slope = (1 + 3 * c * e[..., None] ** 2) * query.scale[:, None, None, None]
    return NoiseLoss(eps, left.square().flatten(), 2 * (left * slope)[..., 0])


def test_an_only_step_that_is_too_long_is_halved_until_it_lowers_the_loss_or_undone():
    """Every row goes from 0 to where the noise ought to be 1; the probe is too near to see c e^3,
    which makes the whole step too long, its half, its quarter, or its eighth.
    """
    curved = torch.tensor([0.0, 4.0, 50.0, 500.0, 5000.0])
    latents, ones = curved[:, None, None, None], torch.ones(5)
    residual = Residual(latents, ones, ones.double(), ones, -torch.ones_like(latents))
    start, options = Conditioning(torch.zeros(5, 1, 1)), LineSearchOptions(iterations=1, probe=1e-3)
    search, asked, fitted = search_rows(residual, start, options), [], None
    query = next(search)
    while fitted is None:
        asked.append(query.latents.shape[0])
        try:
            query = search.send(cubic(query))
        except StopIteration as end:
            fitted = end.value
    found = fitted.null.hidden_states.flatten()
    wanted = torch.tensor([1, 1 / 2, 1 / 4, 1 / 8, 0]) / (1 + 1e-6 * curved)
    torch.testing.assert_close(found, wanted)
    assert asked == [5, 5, 5, 4, 3, 2]  # gradient, probe, the end, and three shorter steps
    torch.testing.assert_close(fitted.uncond.eps.flatten(), found + curved * found**3)
    losses = residual.loss(fitted.uncond.eps)
    assert (losses[:4] < fitted.losses[:4, 0]).all()
    assert losses[4] == fitted.losses[4, 0] == 1


@pytest.mark.parametrize(
    ("module", "options"),
    [(null_text_line_search, LineSearchOptions), (null_text_parallel, ParallelOptions)],
)
def test_losses_fall(calm, gentle, case, there, module, options):
    made = options(guidance_scale=SCALE, iterations=3, **SHORT)
    inverted = there(module, calm(), gentle(STEPS), case(2), made)
    losses = inverted.diagnostics["losses"].sum(dim=1)
    assert (losses[:, 2] < losses[:, 1]).all()
    assert (losses[:, 1] < losses[:, 0]).all()


def test_line_searches_reconstruct_better_than_the_plain_null(calm, gentle, case, there, back):
    one, schedule, errors = case(), gentle(STEPS), []
    for iterations in (0, 6):
        options = LineSearchOptions(
            guidance_scale=SCALE, iterations=iterations, longest=0.05, probe=1e-3
        )
        inverted = there(null_text_line_search, calm(), schedule, one, options)
        again = back(null_text_line_search, calm(), schedule, inverted, one, SCALE, options)
        errors.append((again - one[0]).square().mean().item())
    assert errors[1] < 0.8 * errors[0]


def test_the_cost_is_what_the_docstring_says(calm, gentle, case, there):
    denoiser = calm()
    options = LineSearchOptions(guidance_scale=SCALE, iterations=2, **SHORT)
    there(null_text_line_search, denoiser, gentle(STEPS), case(2), options)
    assert denoiser.rows_forward == 2 * STEPS * (1 + 1 + 4 + 1)
    assert denoiser.rows_backward == 2 * STEPS * 2


@pytest.mark.parametrize(
    ("module", "kind"),
    [(null_text_line_search, LineSearchOptions), (null_text_parallel, ParallelOptions)],
)
def test_timesteps_are_searched_once_until_they_are_searched_again(
    calm, gentle, case, there, module, kind
):
    def inverted(**more):
        options = kind(guidance_scale=SCALE, **{"iterations": 2, **SHORT, **more})
        found = there(module, calm(), gentle(STEPS), case(2), options)
        return found.diagnostics["losses"], found.stored["null_embeddings"]

    late, one, two = inverted(again_from=0.5), inverted(iterations=1), inverted()
    searched = (~late[0].isnan()).sum(dim=2)  # [image, step], of 3 steps
    assert searched.tolist() == [[1, 1, 2]] * 2
    torch.testing.assert_close(late[1][:, :2], one[1][:, :2])
    if kind is ParallelOptions:  # each timestep on its own
        torch.testing.assert_close(late[1][:, 2], two[1][:, 2])
    assert (late[1][:, 2] - one[1][:, 2]).abs().max() > 1e-6
    once = inverted(again_from=1.0)
    torch.testing.assert_close(once[1], one[1])


def test_all_timesteps_are_fitted_in_as_many_batches_as_one(
    calm, recording, gentle, case, there, back
):
    denoiser, two = recording(calm()), case(2)
    options = ParallelOptions(guidance_scale=SCALE, iterations=2, **SHORT)
    inverted = there(null_text_parallel, denoiser, gentle(STEPS), two, options)
    assert denoiser.sizes == [2] * STEPS + [2 * STEPS] * 6
    again = back(null_text_parallel, calm(), gentle(STEPS), inverted, two, SCALE, options)
    assert torch.equal(again, two[0])


def test_each_timesteps_parallel_fit_is_a_line_search_from_its_pivot(
    calm, calm_unet, gentle, case, there
):
    one, schedule = case(), gentle(STEPS)
    options = ParallelOptions(guidance_scale=SCALE, iterations=1, **SHORT)
    ours = there(null_text_parallel, calm(), schedule, one, options)
    unet, pivots = calm_unet(), ours.stored["pivots"]
    for step, high, low in schedule.descending():
        hidden = searched(
            unet, pivots[:, step], pivots[:, step + 1], high, low,
            one[1].hidden_states, one[2].hidden_states, options,
        )  # fmt: skip
        found = ours.stored["null_embeddings"][:, step]
        torch.testing.assert_close(found, hidden, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fitted", ["null", "prompt"])
def test_embeddings_of_each_step_are_plain_adams(calm, calm_unet, gentle, case, there, fitted):
    """By autograd and torch's own Adam, at every step and for several iterations."""
    one, schedule = case(), gentle(STEPS)
    options = AblationOptions(guidance_scale=SCALE, fitted=fitted, embeddings="each", iterations=3)
    ours = there(null_text_ablations, calm(), schedule, one, options)
    unet, z, pivots = calm_unet(), one[0], [one[0]]
    cond, null = one[1].hidden_states, one[2].hidden_states
    with torch.no_grad():
        for low, high in schedule.ascending():
            a, b = coefficients(low, high)
            z = a * z + b * eps_of(unet, z, high.timestep, cond)
            pivots.append(z)
    hidden = (null if fitted == "null" else cond).clone().requires_grad_()
    for step, high, low in schedule.descending():
        a, b = coefficients(high, low)

        def end(at=z, a=a, b=b, timestep=high.timestep):
            eps_u = eps_of(unet, at, timestep, hidden if fitted == "null" else null)
            eps_c = eps_of(unet, at, timestep, cond if fitted == "null" else hidden)
            return a * at + b * (eps_u + SCALE * (eps_c - eps_u))

        adam = torch.optim.Adam([hidden], lr=options.learning_rate)
        for _ in range(options.iterations):
            adam.zero_grad()
            (pivots[-2 - step] - end()).square().mean().backward()
            adam.step()
        found = ours.stored["embeddings"][:, step]
        torch.testing.assert_close(found, hidden.detach(), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            z = end()


@pytest.mark.parametrize("pivots", ["ddim", "random"])
@pytest.mark.parametrize("fitted", ["null", "prompt"])
def test_one_embedding_is_plain_adams_on_the_mean_over_steps(
    calm, calm_unet, gentle, case, there, fitted, pivots
):
    """All steps from their pivots in one sum; random pivots are the image under fresh noise, drawn
    from the seed at each iteration, after a first draw that gives the noise to sample from.
    """
    one, schedule = case(), gentle(STEPS)
    options = AblationOptions(
        guidance_scale=SCALE, fitted=fitted, pivots=pivots, iterations=3, seed=5
    )
    ours = there(null_text_ablations, calm(), schedule, one, options)
    unet, generator = calm_unet(), torch.Generator().manual_seed(5)
    cond, null = one[1].hidden_states, one[2].hidden_states

    def trajectory():
        if pivots == "random":
            eps = torch.randn(one[0].shape[1:], generator=generator, dtype=torch.float64)
            ab = torch.tensor([level.alpha_bar for level in schedule.levels[1:]])
            return [one[0]] + [a.sqrt() * one[0] + (1 - a).sqrt() * eps for a in ab.double()]
        z, found = one[0], [one[0]]
        with torch.no_grad():
            for low, high in schedule.ascending():
                a, b = coefficients(low, high)
                z = a * z + b * eps_of(unet, z, high.timestep, cond)
                found.append(z)
        return found

    starts = trajectory()
    hidden = (null if fitted == "null" else cond).clone().requires_grad_()
    adam = torch.optim.Adam([hidden], lr=options.learning_rate)
    for _ in range(options.iterations):
        at = trajectory()
        total = 0.0
        for step, high, low in schedule.descending():
            a, b = coefficients(high, low)
            z, wanted = at[-1 - step], at[-2 - step]
            eps_u = eps_of(unet, z, high.timestep, hidden if fitted == "null" else null)
            eps_c = eps_of(unet, z, high.timestep, cond if fitted == "null" else hidden)
            total = total + (wanted - a * z - b * (eps_u + SCALE * (eps_c - eps_u))).square().mean()
        adam.zero_grad()
        (total / STEPS).backward()
        adam.step()
    torch.testing.assert_close(ours.noise, starts[-1], rtol=1e-6, atol=1e-7)
    for step in range(STEPS):
        found = ours.stored["embeddings"][:, step]
        torch.testing.assert_close(found, hidden.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fitted", ["null", "prompt"])
def test_random_pivots_of_each_step_are_plain_adams(calm, calm_unet, gentle, case, there, fitted):
    one, schedule = case(), gentle(STEPS)
    options = AblationOptions(
        guidance_scale=SCALE, fitted=fitted, embeddings="each", pivots="random", iterations=2
    )
    ours = there(null_text_ablations, calm(), schedule, one, options)
    unet, generator = calm_unet(), torch.Generator().manual_seed(0)
    cond, null = one[1].hidden_states, one[2].hidden_states

    def drawn():
        return torch.randn(one[0].shape[1:], generator=generator, dtype=torch.float64)

    drawn()  # the noise to sample from
    hidden = (null if fitted == "null" else cond).clone().requires_grad_()
    for step, high, low in schedule.descending():
        a, b = coefficients(high, low)
        adam = torch.optim.Adam([hidden], lr=options.learning_rate)
        for _ in range(options.iterations):
            eps = drawn()
            z, wanted = (
                level.alpha_bar**0.5 * one[0] + (1 - level.alpha_bar) ** 0.5 * eps
                if level is not schedule.levels[0]
                else one[0]
                for level in (high, low)
            )
            eps_u = eps_of(unet, z, high.timestep, hidden if fitted == "null" else null)
            eps_c = eps_of(unet, z, high.timestep, cond if fitted == "null" else hidden)
            adam.zero_grad()
            (wanted - a * z - b * (eps_u + SCALE * (eps_c - eps_u))).square().mean().backward()
            adam.step()
        found = ours.stored["embeddings"][:, step]
        torch.testing.assert_close(found, hidden.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fitted", ["null", "prompt"])
@pytest.mark.parametrize("pivots", ["ddim", "random"])
@pytest.mark.parametrize("embeddings", ["each", "one"])
def test_every_ablation_fits_what_it_says(calm, gentle, case, there, fitted, pivots, embeddings):
    one, schedule = case(), gentle(STEPS)
    options = AblationOptions(
        guidance_scale=SCALE, fitted=fitted, pivots=pivots, embeddings=embeddings, iterations=2
    )
    inverted = there(null_text_ablations, calm(), schedule, one, options)
    found = inverted.stored["embeddings"]
    start = (one[2] if fitted == "null" else one[1]).hidden_states
    moved = (found[:, 0] - start).abs()
    assert 0 < moved.max() < 0.1
    same = all(torch.equal(found[:, 0], found[:, step]) for step in range(STEPS))
    assert same == (embeddings == "one")
    plain = there(null_text_ablations, calm(), schedule, one, replace(options, pivots="ddim"))
    assert torch.equal(plain.noise, inverted.noise) == (pivots == "ddim")


def test_a_fitted_prompt_is_the_sources_alone(calm, gentle, case, there, back, some):
    class FirstIsSource(NoEdit):
        def sources(self, rows):
            return torch.zeros(rows, dtype=torch.int64)

    two, schedule = case(2), gentle(STEPS)
    options = AblationOptions(guidance_scale=SCALE, fitted="prompt", iterations=2)
    inverted = there(null_text_ablations, calm(), schedule, some(two, [0]), options)
    both = back(
        null_text_ablations, calm(), schedule, inverted.expand(2), two, SCALE, options,
        FirstIsSource(),
    )  # fmt: skip
    alone = back(null_text_ablations, calm(), schedule, inverted, some(two, [0]), SCALE, options)
    torch.testing.assert_close(both[:1], alone, rtol=1e-8, atol=1e-8)
    unfitted = replace(options, fitted="null")
    plain = replace(
        inverted, stored={"embeddings": two[2].hidden_states[1:, None].expand(-1, STEPS, -1, -1)}
    )
    target = back(null_text_ablations, calm(), schedule, plain, some(two, [1]), SCALE, unfitted)
    torch.testing.assert_close(both[1:], target, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LineSearchOptions(probe=0.0), "probe=0.0; it must be above 0"),
        (lambda: ParallelOptions(iterations=-1), "iterations=-1; 0 or more"),
        (lambda: AblationOptions(fitted="both"), "fitted='both' is unknown; accepted are null"),
        (lambda: AblationOptions(learning_rate=0.0), "learning_rate=0.0; it must be above 0"),
    ],
)
def test_impossible_options_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.gpu
@pytest.mark.parametrize("direction", ["conjugate", "lbfgs", "subspace"])
@pytest.mark.parametrize("module", [null_text_line_search, null_text_parallel])
def test_searches_on_a_gpu_find_what_the_cpu_finds(
    calm, calm_unet, gentle, case, there, module, direction
):
    two, schedule = case(2), gentle(STEPS)
    kind = LineSearchOptions if module is null_text_line_search else ParallelOptions
    options = kind(guidance_scale=SCALE, direction=direction, **SHORT)
    wanted = there(module, calm(), schedule, two, options)
    denoiser = TorchDenoiser(RoutedUNet(calm_unet().cuda(), word_map_downscale=2), "epsilon")
    moved = (two[0].cuda(), two[1].to("cuda"), two[2].to("cuda"))
    found = there(module, denoiser, schedule, moved, options)
    assert found.noise.is_cuda
    for name, tensor in wanted.stored.items():
        torch.testing.assert_close(found.stored[name].cpu(), tensor, rtol=1e-5, atol=1e-6)
