"""Directions of the line search, its safeguards, and how often it searches."""

from dataclasses import dataclass, replace

import pytest
import torch

from pivotal.driver import drive
from pivotal.inversion.null_text_directions import in_span
from pivotal.inversion.null_text_fit import Residual
from pivotal.inversion.null_text_line_search import LineSearchOptions, search_rows
from pivotal.query import Conditioning, Denoise, Noise, NoiseGradient, NoiseLoss

KINDS = ["gradient", "conjugate", "lbfgs", "subspace"]


@dataclass
class OfEmbedding:
    """An exact denoiser whose eps [B, 1, 2, 4] is a given function of the embedding [B, 2, 3]
    alone.
    """

    function: object
    name: str = "function"
    answers: frozenset = frozenset({Denoise, NoiseGradient})
    asked: int = 0

    def answer(self, query):
        self.asked += query.rows
        embedding = query.conditioning.hidden_states.detach().clone()
        if isinstance(query, Denoise):
            eps = self.function(embedding)
            return Noise(eps, torch.zeros_like(eps))
        with torch.enable_grad():
            embedding.requires_grad_()
            eps = self.function(embedding)
            end = query.scale[:, None, None, None] * eps + query.offset
            loss = end.square().mean(dim=(1, 2, 3))
            (gradient,) = torch.autograd.grad(loss.sum(), embedding)
        return NoiseLoss(eps.detach(), loss.detach(), gradient)


@pytest.fixture(scope="module")
def problem():
    """`problem(rows, seed)`: a residual of random targets, and embeddings to start from."""

    def make(rows=1, *, seed=0):
        generator = torch.Generator().manual_seed(seed)
        short = torch.randn(rows, 1, 2, 4, generator=generator, dtype=torch.float64)
        start = 0.1 * torch.randn(rows, 2, 3, generator=generator, dtype=torch.float64)
        slope = torch.full((rows,), 0.7, dtype=torch.float64)
        half = torch.full((rows,), 0.5, dtype=torch.float64)
        return Residual(short, half.float(), half, slope, short), Conditioning(start)

    return make


@pytest.fixture(scope="module")
def linear():
    """A network whose eps is linear in the embedding, 8 elements of 6."""
    matrix = torch.randn(8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return lambda embedding: (embedding.flatten(1) @ matrix.T).view(-1, 1, 2, 4)


def searched(denoiser, residual, null, **options):
    options = LineSearchOptions(**{"longest": 100.0, **options})
    return drive(search_rows(residual, null, options), denoiser)


def step_of(kind, history, gradient, point, moves):
    """The direction, by textbook formulas on flat vectors: L-BFGS by its dense matrix."""
    g = gradient.flatten()
    if kind == "conjugate" and history:
        _, before, direction = history[-1]
        return g + max(0.0, (g @ (g - before) / (before @ before)).item()) * direction
    if kind == "lbfgs" and history:
        points = [each[0] for each in history] + [point.flatten()]
        gradients = [each[1] for each in history] + [g]
        pairs = [
            (points[i + 1] - points[i], gradients[i + 1] - gradients[i])
            for i in range(len(history))
        ]
        pairs = [(s, y) for s, y in pairs if s @ y > 0]
        if not pairs:
            return g
        s, y = pairs[-1]
        eye = torch.eye(len(g), dtype=g.dtype)
        inverse = (s @ y) / (y @ y) * eye
        for s, y in pairs:
            left = eye - torch.outer(s, y) / (s @ y)
            inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
        return inverse @ g
    return g


@pytest.mark.parametrize("kind", KINDS)
def test_every_direction_is_the_textbooks(calm, calm_unet, gentle, case, kind):
    """On the tiny UNet by autograd, three searches; steps so short that no safeguard acts."""
    z, cond, null = case()
    level, unet, h = gentle(4).levels[-1], calm_unet(), 1e-4

    def eps_of(hidden):
        return unet(z, level.timestep, encoder_hidden_states=hidden).sample

    with torch.no_grad():
        near = eps_of(null.hidden_states + 0.02 * cond.hidden_states.roll(2, dims=1))
    slope = torch.full((1,), 0.6, dtype=torch.float64)
    alpha_bar = torch.tensor([level.alpha_bar], dtype=torch.float64)
    residual = Residual(z, torch.tensor([level.timestep]), alpha_bar, slope, -0.6 * near)
    ours = searched(calm(), residual, null, iterations=3, direction=kind, probe=h)

    hidden, history, units, moves, losses = null.hidden_states, [], [], [], []
    for _ in range(3):
        point = hidden.detach().requires_grad_()
        eps = eps_of(point)
        end = 0.6 * eps - 0.6 * near
        (gradient,) = torch.autograd.grad(end.square().mean(), point)
        losses.append(end.square().mean().item())
        direction = step_of(kind, history, gradient, point.detach(), moves)
        history.append((point.detach().flatten(), gradient.flatten(), direction))
        units.append((direction / direction.square().mean().sqrt()).view_as(hidden))
        with torch.no_grad():
            ahead = eps_of(point - h * units[-1])
            moves.append((0.6 * (ahead - eps) / h).flatten())
            used = range(len(moves)) if kind == "subspace" else [len(moves) - 1]
            columns = torch.stack([moves[i] for i in used], dim=1)
            best = torch.linalg.lstsq(columns, -end.flatten()[:, None]).solution.flatten()
            hidden = point - sum(k * units[i] for k, i in zip(best, used, strict=True))
    assert losses[2] < losses[1] < losses[0]
    assert ours.losses[0].tolist() == pytest.approx(losses, rel=1e-4)
    moved = (hidden - null.hidden_states).abs().max().item()
    torch.testing.assert_close(ours.null.hidden_states, hidden, rtol=0, atol=2e-3 * moved)


def test_on_a_linear_network_all_but_the_gradient_are_done_in_as_many_searches_as_dimensions(
    linear, problem
):
    """There conjugate directions, L-BFGS and Gauss-Newton in the span make the same steps."""
    residual, null = problem(2)
    ends = {}
    for kind in KINDS:
        fitted = searched(OfEmbedding(linear), residual, null, iterations=6, direction=kind)
        ends[kind] = residual.loss(linear(fitted.null.hidden_states))
        assert (fitted.losses.diff(dim=1) < 0).all()
    columns = torch.stack([linear(e.view(1, 2, 3)).flatten() for e in torch.eye(6).double()], dim=1)
    wanted = -residual.short.flatten(1).mT
    left = columns @ torch.linalg.lstsq(columns, wanted).solution - wanted
    least = left.square().mean(dim=0)
    for kind in KINDS[1:]:
        torch.testing.assert_close(ends[kind], least, rtol=1e-3, atol=0)
    assert (ends["gradient"] > 1.01 * least).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_search_as_often_as_their_residual_asks_alone_and_in_company(linear, problem, kind):
    residual, null = problem(3, seed=1)
    scaled = torch.tensor([1.0, 0.03, 1e-4])[:, None, None, None]
    small = replace(residual, short=scaled * residual.short)
    options = {"iterations": 6, "direction": kind, "enough": 0.1}
    denoiser = OfEmbedding(linear)
    together = searched(denoiser, small, null, **options)
    counts = together.losses.isfinite().sum(dim=1)
    assert counts[0] > counts[1] >= counts[2]
    # a row under the threshold from the start costs its one gradient and the last forward
    assert (together.losses[2, 0] < 0.1) == (counts[2] == 1)
    alone = 0
    for row in range(3):
        index, one = torch.tensor([row]), OfEmbedding(linear)
        fitted = searched(one, small.select(index), null.select(index), **options)
        alone += one.asked
        torch.testing.assert_close(fitted.losses, together.losses[index], equal_nan=True)
        torch.testing.assert_close(fitted.null.hidden_states, together.null.hidden_states[index])
    assert denoiser.asked == alone


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_too_long_is_halved_and_none_ends_worse_than_it_began(problem, kind):
    """eps is the embedding's sixth power: flat where the search stands, steep where it lands."""
    residual, null = problem(2)

    def curved(embedding):
        flat = embedding.flatten(1)
        return torch.cat([flat, flat[:, :2]], dim=1).pow(6).view(-1, 1, 2, 4)

    null = replace(null, hidden_states=0.3 + 0.01 * null.hidden_states)
    residual = replace(residual, short=-residual.short.abs())
    before = residual.loss(curved(null.hidden_states))
    once = searched(OfEmbedding(curved), residual, null, iterations=1, direction=kind, probe=1e-4)
    assert torch.equal(once.null.hidden_states, null.hidden_states)
    torch.testing.assert_close(once.uncond.eps, curved(null.hidden_states))
    often = searched(OfEmbedding(curved), residual, null, iterations=12, direction=kind, probe=1e-4)
    assert (often.losses[:, 1] > often.losses[:, 0]).all()
    after = residual.loss(curved(often.null.hidden_states))
    assert (after < 0.9 * before).all()
    assert (after <= often.losses.nan_to_num(torch.inf).min(dim=1).values).all()


def test_a_network_that_ignores_the_embedding_is_not_probed(problem):
    residual, null = problem(2)
    denoiser = OfEmbedding(
        lambda embedding: (
            0 * embedding.sum() + residual.short[:1].repeat(embedding.shape[0], 1, 1, 1)
        )
    )
    fitted = searched(denoiser, residual, null, iterations=3)
    assert torch.equal(fitted.null.hidden_states, null.hidden_states)
    assert denoiser.asked == 2 + 2  # a gradient and the last forward


@pytest.mark.parametrize("what", ["gradient", "probe"])
def test_a_row_without_a_finite_gradient_or_probe_stays_and_the_others_go_on(linear, problem, what):
    residual, null = problem(2)
    start = null.hidden_states[1]

    @dataclass
    class Overflowing(OfEmbedding):
        def answer(self, query):
            answer = super().answer(query)
            for row, embedding in enumerate(query.conditioning.hidden_states):
                near = (embedding - start).abs().max()
                if what == "gradient" and isinstance(query, NoiseGradient) and near == 0:
                    answer.gradient[row, 0, 0] = torch.inf
                if what == "probe" and isinstance(query, Denoise) and 0 < near < 0.2:
                    answer.eps[row, 0, 0, 0] = torch.nan
            return answer

    fitted = searched(Overflowing(linear), residual, null, iterations=3)
    assert torch.equal(fitted.null.hidden_states[1], start)
    assert fitted.losses[1, 1:].isnan().all()
    first = torch.tensor([0])
    alone = searched(OfEmbedding(linear), residual.select(first), null.select(first), iterations=3)
    torch.testing.assert_close(fitted.null.hidden_states[:1], alone.null.hidden_states)


def test_an_answer_that_is_not_a_number_is_not_hidden(problem):
    residual, null = problem()
    fitted = searched(
        OfEmbedding(lambda e: e.new_full((1, 1, 2, 4), torch.nan) + e.sum()),
        *(residual, null),
        iterations=2,
    )
    assert fitted.uncond.eps.isnan().all()
    assert torch.equal(fitted.null.hidden_states, null.hidden_states)


def test_a_row_put_back_goes_on_from_the_noise_of_its_embedding(calm, gentle, case):
    """So replay, which asks the network again, follows the same trajectory."""
    z, _, null = case(3)
    level = gentle(4).levels[-1]
    alpha_bars = torch.full((3,), level.alpha_bar, dtype=torch.float64)
    timesteps, slope = torch.full((3,), level.timestep), torch.ones(3, dtype=torch.float64)
    residual = Residual(z, timesteps, alpha_bars, slope, -z)
    fitted = searched(calm(), residual, null, iterations=2, probe=1e-3)
    again = drive(iter(residual.noise(fitted.null)), calm())
    torch.testing.assert_close(fitted.uncond.eps, again.eps, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fitted.uncond.x0, again.x0, rtol=1e-6, atol=1e-6)
    back = (fitted.null.hidden_states == null.hidden_states).flatten(1).all(dim=1)
    assert back.any()  # a step of a random network overshoots


def test_the_span_of_what_does_not_move_is_left_alone():
    moves = torch.zeros(2, 3, 5, dtype=torch.float64)
    moves[1, 0, 0] = 2.0
    residual = torch.ones(2, 5, dtype=torch.float64)
    lengths = in_span(residual, moves)
    assert torch.equal(lengths[0], torch.zeros(3, dtype=torch.float64))
    assert lengths[1].tolist() == pytest.approx([-0.5, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"direction": "newton"}, "direction='newton' is unknown; accepted are gradient, conj"),
        ({"enough": -1.0}, "enough=-1.0; 0 or more"),
        ({"longest": 0.0}, "longest=0.0; it must be above 0"),
        ({"again_from": 1.5}, "again_from=1.5; 0 to 1"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        LineSearchOptions(**options)
