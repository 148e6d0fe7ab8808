"""What holds for every inversion method in the registry."""

import pytest
import torch

from pivotal.control import NoEdit
from pivotal.driver import Driver, Job, drive, drive_many
from pivotal.editing.edit import Edit
from pivotal.editing.masactrl import MutualSelfAttention
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.editing.routes import Layers
from pivotal.errors import Cancelled
from pivotal.inversion.registry import METHODS
from pivotal.query import Denoise, Progress, Query
from pivotal.tokens import Tokens

STEPS, SCALE = 2, 2.0
NAMES = list(METHODS)
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


# Fewer iterations than the defaults, to be quick; ReNoise's penalty is for noise of unit variance,
# which this network does not predict.
FEWER = {
    "null-text": {"inner_steps": 1},
    "null-text-ablation": {"iterations": 1},
    "edit-friendly": {"skip": 0.0},
    "finite-difference": {"refine_skip": 0.0, "refine_iterations": 2, "gradient": "exact"},
    "renoise": {"regularisation_steps": 1, "divergence_weight": 1e-6},
}


def options_of(method):
    """Fitted for this file's guidance; the randomised ones are seeded already."""
    given = {"guidance_scale": SCALE} if method.fits_guidance else {}
    return method.options_from(given | FEWER.get(method.name, {}))


def replaying(method, schedule, inverted, case, control=None, scale=SCALE):
    return method.replay(
        schedule, inverted, case[1], case[2], scale, control or NoEdit(), options_of(method)
    )


def inverting(method, schedule, case):
    return method.invert(schedule, *case, options_of(method))


@pytest.fixture(scope="module")
def denoiser(calm):
    return calm()


@pytest.fixture
def tokens():
    """`tokens(prompt)`: a token a word, seven in all with start, end and padding."""

    def make(prompt):
        words, spans, place = prompt.split(), [], 0
        for word in words:
            spans.append((place, place + len(word)))
            place += len(word) + 1
        padding = 7 - 1 - len(words)
        ids = (90, *[sum(map(ord, word)) for word in words], *[91] * padding)
        return Tokens(prompt, ids, (None, *spans, *[None] * padding), len(words) + 2)

    return make


@pytest.fixture
def swap(denoiser, tokens):
    """A word swap with a blend, as the control of [source, target]."""

    def make(steps=STEPS, **options):
        unet = denoiser.unet
        layers = Layers(
            tuple(layer.downscale for layer in unet.self_layers),
            tuple(layer.downscale for layer in unet.cross_layers),
        )
        edit = Edit("a red dog", blend=("cat", "dog"), **options)
        return PromptToPrompt(tokens("a red cat"), [tokens("a red dog")], [edit], steps, layers)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_two_images_in_one_batch_are_each_alone(name, denoiser, gentle, case, some):
    method, schedule, two = METHODS[name], gentle(STEPS), case(2)
    together = drive(inverting(method, schedule, two), denoiser)
    sampled = drive(replaying(method, schedule, together, two), denoiser)
    for image in range(2):
        one = some(two, [image])
        alone = drive(inverting(method, schedule, one), denoiser)
        chosen = together.select(torch.tensor([image]))
        torch.testing.assert_close(alone.noise, chosen.noise, **CLOSE)
        assert alone.stored.keys() == chosen.stored.keys()
        for stored, tensor in alone.stored.items():
            torch.testing.assert_close(tensor, chosen.stored[stored], **CLOSE)
        again = drive(replaying(method, schedule, alone, one), denoiser)
        torch.testing.assert_close(again, sampled[image : image + 1], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_beside_another_method_it_gives_what_it_gives_alone(name, denoiser, gentle, case, some):
    method, other = METHODS[name], METHODS["ddim" if name != "ddim" else "direct"]
    schedule, mine, theirs = gentle(STEPS), some(case(2), [0]), some(case(2), [1])
    alone = drive(inverting(method, schedule, mine), denoiser)
    job, company = drive_many(
        [inverting(method, schedule, mine), inverting(other, schedule, theirs)], denoiser
    )
    torch.testing.assert_close(job.result().noise, alone.noise, **CLOSE)
    company.result()
    samples = drive_many(
        [
            replaying(method, schedule, job.result(), mine),
            replaying(other, schedule, company.result(), theirs),
        ],
        denoiser,
        max_rows=3,
    )
    expected = drive(replaying(method, schedule, alone, mine), denoiser)
    torch.testing.assert_close(samples[0].result(), expected, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_what_its_check_expects(name, denoiser, gentle, case):
    method, schedule, two = METHODS[name], gentle(STEPS), case(2)
    inverted = drive(inverting(method, schedule, two), denoiser)
    assert set(inverted.stored) == set(method.stored)
    method.check(inverted, STEPS, two[1])
    expanded = inverted.select(torch.tensor([1])).expand(3)
    method.check(expanded, STEPS, two[1])
    for tensor in (inverted.noise, *inverted.stored.values()):
        assert tensor.isfinite().all()
        assert tensor.shape[0] == 2
    for tensor in inverted.diagnostics.values():
        assert tensor.shape[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_only_what_it_says_it_needs(name, calm, recording, gentle, case):
    method, schedule, one = METHODS[name], gentle(STEPS), case()
    denoiser = recording(calm())
    inverted = drive(inverting(method, schedule, one), denoiser)
    assert {type(query) for query in denoiser.batches} <= method.needs
    drive(replaying(method, schedule, inverted, one), denoiser)
    assert {type(query) for query in denoiser.batches} == method.needs


@pytest.mark.parametrize("name", NAMES)
def test_edits_act_on_the_target_alone(name, denoiser, gentle, case, swap, some):
    method, schedule = METHODS[name], gentle(STEPS)
    one = some(case(2), [0])
    inverted = drive(inverting(method, schedule, one), denoiser)
    plain = drive(replaying(method, schedule, inverted, one), denoiser)
    pair = (None, *(part.select(torch.tensor([0, 1])) for part in case(2)[1:]))
    pair = (None, pair[1], pair[2].select(torch.tensor([0, 0])))
    found = {}
    for kind, control in {
        "swap": swap(self_replace_steps=(0.5, 1.0), cross_replace_steps=1.0),
        "mutual": swap(self_replace_steps=0.0, mutual=MutualSelfAttention(start_step=0)),
    }.items():
        rows = inverted.expand(2)
        found[kind] = drive(replaying(method, schedule, rows, pair, control), denoiser)
        torch.testing.assert_close(found[kind][:1], plain, **CLOSE)
        assert (found[kind][1] - found[kind][0]).abs().max() > 1e-4
        assert control.masks is not None
        outside = ~control.masks[0].expand(found[kind].shape[1], -1, -1)
        torch.testing.assert_close(
            found[kind][1][outside], found[kind][0][outside], rtol=1e-6, atol=1e-6
        )
    assert (found["swap"][1] - found["mutual"][1]).abs().max() > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_target_equal_to_its_source_is_its_reconstruction(name, denoiser, gentle, case):
    method, schedule, one = METHODS[name], gentle(STEPS), case()
    inverted = drive(inverting(method, schedule, one), denoiser)
    plain = drive(replaying(method, schedule, inverted, one), denoiser)

    class Twins(NoEdit):
        def sources(self, rows):
            return torch.zeros(rows, dtype=torch.int64)

    rows = torch.tensor([0, 0])
    both = drive(
        replaying(
            method,
            schedule,
            inverted.expand(2),
            (None, one[1].select(rows), one[2].select(rows)),
            Twins(),
        ),
        denoiser,
    )
    torch.testing.assert_close(both[:1], plain, **CLOSE)
    if name not in SOURCE_ALONE:
        torch.testing.assert_close(both[1:], plain, **CLOSE)


# They put the source back where it belongs and let targets run free.
SOURCE_ALONE = {"direct", "null-text-parallel"}


@pytest.mark.parametrize("name", NAMES)
def test_an_edits_control_is_met_before_and_after_every_step(name, denoiser, gentle, case):
    method, schedule, one = METHODS[name], gentle(STEPS), case()
    inverted = drive(inverting(method, schedule, one), denoiser)
    calls = []

    class Watching(NoEdit):
        def routes(self, step):
            calls.append(("routes", step))

        def after_step(self, step, latents, word_maps):
            calls.append(("after", step))
            assert latents.shape == one[0].shape
            return latents

    drive(replaying(method, schedule, inverted, one, Watching()), denoiser)
    steps = [step for when, step in calls if when == "after"]
    assert steps == list(range(STEPS))
    for step in range(STEPS):
        first = calls.index(("routes", step))
        assert first < calls.index(("after", step))


@pytest.mark.parametrize("name", NAMES)
def test_cancelling_ends_it_before_another_query(name, calm, recording, gentle, case):
    method, denoiser = METHODS[name], recording(calm())
    driver = Driver(denoiser)
    job = driver.add(Job(inverting(method, gentle(STEPS), case()), name))
    driver.turn()
    asked = len(denoiser.batches)
    job.cancel()
    driver.run()
    assert len(denoiser.batches) == asked
    with pytest.raises(Cancelled):
        job.result()


@pytest.mark.parametrize("name", NAMES)
def test_it_says_how_far_it_is(name, denoiser, gentle, case):
    method, seen = METHODS[name], []
    schedule = gentle(STEPS)
    inverted = drive(inverting(method, schedule, case()), denoiser, listener=seen.append)
    drive(replaying(method, schedule, inverted, case()), denoiser, listener=seen.append)
    phases = {notice.phase for notice in seen}
    assert "sample" in phases
    assert phases & {"invert", "fit"}
    for notice in seen:
        assert isinstance(notice, Progress)
        assert 0 <= notice.step <= notice.steps


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_float32(name, torch_denoiser, gentle, case):
    method, one = METHODS[name], case(dtype=torch.float32)
    schedule, denoiser = gentle(STEPS), torch_denoiser(dtype=torch.float32)
    inverted = drive(inverting(method, schedule, one), denoiser)
    sampled = drive(replaying(method, schedule, inverted, one), denoiser)
    assert sampled.dtype == torch.float32
    assert sampled.isfinite().all()
    precise = METHODS[name].name in {"edict", "bdia", "belm"}
    assert inverted.noise.dtype == (torch.float64 if precise else torch.float32)


def test_every_method_names_its_facts():
    for method in METHODS.values():
        low, high = method.guidance
        assert 0 <= low <= high
        assert method.rows
        assert method.stores
        assert Denoise in method.needs
        assert all(issubclass(query, Query) for query in method.needs)
        with pytest.raises(ValueError, match=r"has no option 'stpes'; accepted are"):
            method.options_from({"stpes": 3})
