from dataclasses import asdict, replace

import pytest
import torch

from baselines.null_text import null_text_inversion
from baselines.schedule import make_schedule
from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.inversion import null_text
from pivotal.query import Conditioning, NoiseGradient
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS, INNER = 3, 4


@pytest.fixture
def case(latents, prompts):
    """`case(rows)`: latents, prompts and nulls near enough that guidance is not absurd."""

    def make(rows=1, *, dtype=torch.float64):
        z, cond = 0.5 * latents(rows), prompts(rows, seed=1).hidden_states
        null = cond + 0.1 * prompts(rows, seed=2).hidden_states
        return z.to(dtype), Conditioning(cond.to(dtype)), Conditioning(null.to(dtype))

    return make


def invert(denoiser, schedule, case, **options):
    return drive(null_text.invert(schedule, *case, null_text.NullTextOptions(**options)), denoiser)


def replayed(denoiser, schedule, inverted, case, guidance_scale):
    _, cond, null = case
    return drive(
        null_text.replay(schedule, inverted, cond, null, guidance_scale, NoEdit()), denoiser
    )


# Rounding in float64 grows to about 1e-6 along a random network's guided trajectory: the baseline
# differs as much from itself when its latents are moved by one unit in the last place.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def baseline(unet, config, case, **options):
    z, cond, null = case
    return null_text_inversion(
        unet,
        make_schedule(asdict(config), STEPS),
        z,
        cond.hidden_states,
        null.hidden_states,
        **options,
    )


def made(losses):
    """The losses of the updates that were made, per step; NaN stands for none."""
    return [[loss for loss in step.tolist() if loss == loss] for step in losses]


@pytest.mark.parametrize(
    ("scale", "early_stop", "offset"),
    [(7.5, 0.0, 1), (2.5, "some", 1), (2.5, "some", 0), (0.0, 0.0, 1)],
)
def test_embeddings_losses_and_latents_are_the_baselines(
    torch_denoiser, plain_unet, case, scale, early_stop, offset
):
    config = ScheduleConfig(steps_offset=offset)
    schedule, one = NoiseLevels(config).schedule(STEPS), case()
    options = {"guidance_scale": scale, "inner_steps": INNER}
    if early_stop == "some":  # a threshold that some steps reach in the middle
        full = baseline(plain_unet(), config, one, early_stop_epsilon=0.0, **options)
        early_stop = full.losses[1][2] * 1.01
    theirs = baseline(plain_unet(), config, one, early_stop_epsilon=early_stop, **options)
    denoiser = torch_denoiser()
    ours = invert(denoiser, schedule, one, early_stop=early_stop, **options)

    counts = [len(step) for step in theirs.losses]
    if early_stop:
        assert min(counts) < INNER
        assert len(set(counts)) > 1
    elif offset == 1:
        assert max(counts) == INNER
    found = made(ours.diagnostics["losses"][0])
    if offset == 0:  # the last step goes from a level to itself: nothing to fit, nothing is asked
        assert found[-1] == []
        found[-1] = theirs.losses[-1]
    assert [len(step) for step in found] == counts
    for mine, their in zip(found, theirs.losses, strict=True):
        assert mine == pytest.approx(their, rel=1e-4)
    embeddings = ours.stored["null_embeddings"][0]
    for step in range(STEPS - (offset == 0)):
        torch.testing.assert_close(embeddings[step], theirs.nulls[step][0], **CLOSE)
    torch.testing.assert_close(ours.noise, theirs.pivots[-1], rtol=1e-8, atol=1e-8)
    back = replayed(denoiser, schedule, ours, one, scale)
    torch.testing.assert_close(back, theirs.latents, **CLOSE)


def test_float32_is_close_to_the_baseline_and_stays_float32(
    torch_denoiser, plain_unet, case, levels
):
    options = {"guidance_scale": 2.5, "inner_steps": 2}
    theirs = baseline(plain_unet(), levels.config, case(), early_stop_epsilon=0.0, **options)
    one = case(dtype=torch.float32)
    schedule, denoiser = levels.schedule(STEPS), torch_denoiser(dtype=torch.float32)
    ours = invert(denoiser, schedule, one, early_stop=0.0, early_stop_growth=0.0, **options)
    assert ours.noise.dtype == ours.stored["null_embeddings"].dtype == torch.float32
    apart = torch.stack(theirs.nulls, dim=1) - ours.stored["null_embeddings"].double()
    assert apart[:, 0].abs().median() < 2e-5
    assert apart[:, 0].abs().max() < 1e-3
    # Adam's sign-like first steps make float32 rounding grow about tenfold a step from here on.
    first = [step[0] for step in theirs.losses[:2]]
    torch.testing.assert_close(
        ours.diagnostics["losses"][0, :2, 0].double(),
        torch.tensor(first).double(),
        rtol=0.02,
        atol=1e-6,
    )


def test_a_low_precision_network_is_fitted_in_float32(torch_denoiser, case, levels):
    one = case(dtype=torch.float32)
    denoiser = torch_denoiser(dtype=torch.bfloat16)
    ours = invert(denoiser, levels.schedule(2), one, guidance_scale=2.5, inner_steps=3)
    embeddings = ours.stored["null_embeddings"]
    assert ours.noise.dtype == embeddings.dtype == ours.diagnostics["losses"].dtype == torch.float32
    assert embeddings.isfinite().all()
    moved = embeddings[:, 0] - one[2].hidden_states
    rounded = embeddings.to(torch.bfloat16).float()
    assert moved.abs().max() < 0.05
    assert not torch.equal(rounded, embeddings)  # finer than the network's dtype


def test_images_in_a_batch_stop_early_each_for_itself(torch_denoiser, case, levels):
    denoiser, schedule, three = torch_denoiser(), levels.schedule(STEPS), case(3)
    options = {"guidance_scale": 2.5, "inner_steps": INNER}
    full = invert(denoiser, schedule, three, early_stop=0.0, **options).diagnostics["losses"]
    options["early_stop"] = full[:, 1, 2].median().item()
    together = invert(denoiser, schedule, three, **options)
    losses = together.diagnostics["losses"]
    counts = losses.isfinite().sum(dim=-1)
    assert (counts != counts[:1]).any()  # they do not stop together
    assert (
        denoiser.rows_backward == full.isfinite().sum() + counts.sum()
    )  # who stopped is not asked
    for image in range(3):
        index = torch.tensor([image])
        alone = invert(
            denoiser,
            schedule,
            (three[0][index], three[1].select(index), three[2].select(index)),
            **options,
        )
        chosen = together.select(index)
        torch.testing.assert_close(alone.noise, chosen.noise, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            alone.diagnostics["losses"], losses[index], equal_nan=True, **CLOSE
        )
        torch.testing.assert_close(
            alone.stored["null_embeddings"],
            chosen.stored["null_embeddings"],
            **CLOSE,
        )


@pytest.mark.parametrize("rows", [1, 2])
def test_the_cost_is_counted_by_the_denoiser(torch_denoiser, case, levels, rows):
    schedule, some = levels.schedule(STEPS), case(rows)
    full = torch_denoiser()
    options = {"guidance_scale": 2.5, "inner_steps": INNER}
    inverted = invert(full, schedule, some, early_stop=0.0, early_stop_growth=0.0, **options)
    assert full.rows_forward == rows * (STEPS * (1 + 1 + INNER) + STEPS)
    assert full.rows_backward == rows * STEPS * INNER

    stopping = torch_denoiser()
    threshold = inverted.diagnostics["losses"][:, 1, 2].max().item()
    stopped = invert(stopping, schedule, some, early_stop=threshold, **options)
    made_updates = stopped.diagnostics["losses"].isfinite().sum().item()
    assert stopping.rows_backward == made_updates < rows * STEPS * INNER
    assert stopping.rows_forward == rows * STEPS * (1 + 1 + 1) + made_updates


@pytest.mark.parametrize(
    ("options", "queries"), [({"guidance_scale": 1.0}, 2), ({"inner_steps": 0}, 3)]
)
def test_nothing_is_asked_where_nothing_is_fitted(
    torch_denoiser, recording, case, levels, options, queries
):
    denoiser = recording(torch_denoiser())
    one = case()
    inverted = invert(denoiser, levels.schedule(STEPS), one, **options)
    assert not any(isinstance(query, NoiseGradient) for query in denoiser.batches)
    assert len(denoiser.batches) == queries * STEPS
    kept = one[2].hidden_states[:, None].expand(-1, STEPS, -1, -1)
    assert torch.equal(inverted.stored["null_embeddings"], kept)
    assert inverted.diagnostics["losses"].isnan().all()


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_fitting_reconstructs_better_than_the_plain_null(torch_denoiser, case, levels, scale):
    denoiser, schedule, one = torch_denoiser(), levels.schedule(STEPS), case()

    def error(inner_steps):
        inverted = invert(
            denoiser, schedule, one, guidance_scale=scale, inner_steps=inner_steps, early_stop=0.0
        )
        back = replayed(denoiser, schedule, inverted, one, scale)
        return (back - one[0]).square().mean().item()

    assert error(8) < 0.85 * error(0)


def test_replay_gives_every_row_its_images_embeddings(torch_denoiser, case, levels):
    denoiser, schedule, two = torch_denoiser(), levels.schedule(STEPS), case(2)
    options = {"guidance_scale": 2.5, "inner_steps": 2}
    inverted = invert(denoiser, schedule, two, **options)
    both = replayed(denoiser, schedule, inverted, two, 2.5)
    second = torch.tensor([1])
    rows = torch.tensor([1, 1, 1])
    repeated = replayed(
        denoiser,
        schedule,
        inverted.select(second).expand(3),
        (None, two[1].select(rows), two[2].select(rows)),
        2.5,
    )
    torch.testing.assert_close(repeated, both[[1, 1, 1]], rtol=1e-8, atol=1e-8)


def test_sdxls_pooled_vector_and_time_ids_are_left_alone(
    torch_denoiser, recording, latents, prompts, levels
):
    denoiser = recording(torch_denoiser(sdxl=True))
    cond, null = prompts(2, seed=1, sdxl=True), prompts(2, seed=2, sdxl=True)
    null = replace(null, hidden_states=cond.hidden_states + 0.1 * null.hidden_states)
    case = (0.5 * latents(2), cond, null)
    inverted = invert(denoiser, levels.schedule(2), case, guidance_scale=2.5, inner_steps=2)
    for query in denoiser.batches:
        if isinstance(query, NoiseGradient):
            assert torch.equal(query.conditioning.pooled, null.pooled[: query.rows])
            assert torch.equal(query.conditioning.time_ids, null.time_ids[: query.rows])
    assert (inverted.stored["null_embeddings"][:, 0] - null.hidden_states).abs().max() > 1e-3


def test_at_zero_terminal_snr_the_first_step_asks_nothing_and_all_is_finite(torch_denoiser, case):
    config = ScheduleConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    schedule = NoiseLevels(config).schedule(3)
    assert schedule.levels[-1].alpha_bar == 0
    inverted = invert(
        torch_denoiser("v_prediction"), schedule, case(), guidance_scale=2.0, inner_steps=2
    )
    losses = inverted.diagnostics["losses"][0]
    assert losses[0].isnan().all()
    assert losses[1:, 0].isfinite().all()
    assert inverted.stored["null_embeddings"].isfinite().all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"inner_steps": -1}, "inner_steps=-1; 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; it must be above 0"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        null_text.NullTextOptions(**options)
