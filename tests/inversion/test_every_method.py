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
    "newton-raphson": {"iterations": 2, "through_network": True},
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


@pytest.fixture(scope="module")
def single(torch_denoiser):
    """A float32 network."""
    return torch_denoiser(dtype=torch.float32)


@pytest.fixture(scope="module")
def done():
    """What `alone` made of each method, once."""
    return {}


@pytest.fixture
def alone(done, denoiser, gentle, case, some):
    """`alone(name)`: the first image, its inversion, and that sampled back."""

    def make(name):
        if name not in done:
            one, method = some(case(2), [0]), METHODS[name]
            inverted = drive(inverting(method, gentle(STEPS), one), denoiser)
            sampled = drive(replaying(method, gentle(STEPS), inverted, one), denoiser)
            done[name] = one, inverted, sampled
        return done[name]

    return make


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
def editing(denoiser, tokens):
    """`editing(edit)`: the control of [source, target], from "a red cat"."""

    def make(edit, steps=STEPS):
        unet = denoiser.unet
        layers = Layers(
            tuple(layer.downscale for layer in unet.self_layers),
            tuple(layer.downscale for layer in unet.cross_layers),
        )
        return PromptToPrompt(tokens("a red cat"), [tokens(edit.target)], [edit], steps, layers)

    return make


@pytest.fixture
def swap(editing):
    """A word swap with a blend."""
    return lambda **options: editing(Edit("a red dog", blend=("cat", "dog"), **options))


@pytest.mark.parametrize("name", NAMES)
def test_two_images_in_one_batch_are_each_alone(name, denoiser, gentle, case, some, alone):
    method, schedule, two = METHODS[name], gentle(STEPS), case(2)
    together = drive(inverting(method, schedule, two), denoiser)
    sampled = drive(replaying(method, schedule, together, two), denoiser)
    second = some(two, [1])
    inverted = drive(inverting(method, schedule, second), denoiser)
    again = drive(replaying(method, schedule, inverted, second), denoiser)
    for image, (mine, back) in enumerate([alone(name)[1:], (inverted, again)]):
        chosen = together.select(torch.tensor([image]))
        torch.testing.assert_close(mine.noise, chosen.noise, **CLOSE)
        assert set(mine.stored) == set(chosen.stored) == set(method.stored)
        for stored, tensor in mine.stored.items():
            torch.testing.assert_close(tensor, chosen.stored[stored], **CLOSE)
        torch.testing.assert_close(back, sampled[image : image + 1], **CLOSE)
    method.check(together, STEPS, two[1])
    method.check(together.select(torch.tensor([1])).expand(3), STEPS, two[1])
    for tensor in (together.noise, *together.stored.values()):
        assert tensor.isfinite().all()
    for tensor in together.diagnostics.values():
        assert tensor.shape[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_beside_another_method_it_gives_what_it_gives_alone(
    name, denoiser, gentle, case, some, alone
):
    method, other = METHODS[name], METHODS["ddim" if name != "ddim" else "direct"]
    schedule, theirs = gentle(STEPS), some(case(2), [1])
    mine, inverted, sampled = alone(name)
    job, company = drive_many(
        [inverting(method, schedule, mine), inverting(other, schedule, theirs)], denoiser
    )
    torch.testing.assert_close(job.result().noise, inverted.noise, **CLOSE)
    samples = drive_many(
        [
            replaying(method, schedule, job.result(), mine),
            replaying(other, schedule, company.result(), theirs),
        ],
        denoiser,
        max_rows=3,
    )
    torch.testing.assert_close(samples[0].result(), sampled, **CLOSE)


def test_all_together_in_one_batch_each_gives_what_it_gives_alone(denoiser, gentle, alone):
    schedule = gentle(STEPS)
    jobs = drive_many(
        [inverting(METHODS[name], schedule, alone(name)[0]) for name in NAMES], denoiser
    )
    samples = drive_many(
        [
            replaying(METHODS[name], schedule, job.result(), alone(name)[0])
            for name, job in zip(NAMES, jobs, strict=True)
        ],
        denoiser,
        max_rows=5,
    )
    for name, job, sample in zip(NAMES, jobs, samples, strict=True):
        _, inverted, sampled = alone(name)
        torch.testing.assert_close(job.result().noise, inverted.noise, **CLOSE)
        for stored, tensor in inverted.stored.items():
            torch.testing.assert_close(job.result().stored[stored], tensor, **CLOSE)
        torch.testing.assert_close(sample.result(), sampled, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_beside_any_other_method_it_gives_what_it_gives_alone(name, denoiser, gentle, alone):
    """Every pair of two methods, on their way up and on their way down."""
    schedule, (mine, inverted, sampled) = gentle(STEPS), alone(name)
    for other in NAMES[NAMES.index(name) :]:
        pair = [(METHODS[each], *alone(each)) for each in (name, other)]
        up = drive_many([inverting(each[0], schedule, each[1]) for each in pair], denoiser)
        down = drive_many(
            [
                replaying(METHODS[name], schedule, up[0].result(), mine),
                replaying(pair[1][0], schedule, up[1].result(), pair[1][1]),
            ],
            denoiser,
        )
        torch.testing.assert_close(up[0].result().noise, inverted.noise, **CLOSE)
        torch.testing.assert_close(up[1].result().noise, pair[1][2].noise, **CLOSE)
        torch.testing.assert_close(down[0].result(), sampled, **CLOSE)
        torch.testing.assert_close(down[1].result(), pair[1][3], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_only_what_it_says_it_needs_and_says_how_far_it_is(
    name, calm, recording, gentle, case
):
    method, schedule, one = METHODS[name], gentle(STEPS), case()
    denoiser, seen = recording(calm()), []
    inverted = drive(inverting(method, schedule, one), denoiser, listener=seen.append)
    assert {type(query) for query in denoiser.batches} <= method.needs
    drive(replaying(method, schedule, inverted, one), denoiser, listener=seen.append)
    assert {type(query) for query in denoiser.batches} == method.needs
    phases = {notice.phase for notice in seen}
    assert "sample" in phases
    assert phases & {"invert", "fit"}
    for notice in seen:
        assert 0 <= notice.step <= notice.steps


@pytest.mark.parametrize("name", NAMES)
def test_edits_act_on_the_target_alone(name, denoiser, gentle, case, swap, alone):
    method, schedule = METHODS[name], gentle(STEPS)
    _, inverted, plain = alone(name)
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


OTHERS = {
    "refinement": Edit("a big red cat"),
    "re-weighting": Edit("a red cat", weights={"red": -4.0}),
    "a user's mask": Edit("a red dog", mask=torch.ones(8, 8, dtype=torch.bool).tril()),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_other_kind_of_edit_acts_too(name, kind, denoiser, gentle, case, editing, alone):
    method, schedule, edit = METHODS[name], gentle(STEPS), OTHERS[kind]
    _, inverted, plain = alone(name)
    _, cond, null = case(2)
    rows = torch.tensor([0, 0] if kind == "re-weighting" else [0, 1])
    pair = (None, cond.select(rows), null.select(torch.tensor([0, 0])))
    control = editing(edit)
    found = drive(replaying(method, schedule, inverted.expand(2), pair, control), denoiser)
    torch.testing.assert_close(found[:1], plain, **CLOSE)
    apart = (found[1] - found[0]).abs()
    assert apart.max() > 1e-4
    if edit.mask is not None:
        assert apart[:, ~edit.mask].max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_target_equal_to_its_source_is_its_reconstruction(name, denoiser, gentle, alone):
    method, schedule = METHODS[name], gentle(STEPS)
    one, inverted, plain = alone(name)

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
def test_an_edits_control_is_met_before_and_after_every_step(name, denoiser, gentle, alone):
    method, schedule, calls = METHODS[name], gentle(STEPS), []
    one, inverted, _ = alone(name)

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
def test_cancelling_its_way_down_ends_it_before_another_query(name, denoiser, gentle, alone):
    one, inverted, _ = alone(name)
    driver = Driver(denoiser)
    job = driver.add(Job(replaying(METHODS[name], gentle(STEPS), inverted, one), name))
    driver.turn()
    asked = denoiser.rows_forward
    job.cancel()
    driver.run()
    assert denoiser.rows_forward == asked
    with pytest.raises(Cancelled):
        job.result()


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_float32(name, single, gentle, case):
    method, one = METHODS[name], case(dtype=torch.float32)
    schedule, denoiser = gentle(STEPS), single
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


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("null-text")][:3])
def test_all_tensors_are_made_where_the_latents_are(name, denoiser, gentle, case):
    """What a method makes without saying where lands on "meta" here, and can't be used."""
    algorithm, answer = inverting(METHODS[name], gentle(STEPS), case(2)), None
    while True:
        try:
            with torch.device("meta"), torch.no_grad():
                asked = algorithm.send(answer)
        except StopIteration as end:
            inverted = end.value
            break
        answer = None if isinstance(asked, Progress) else denoiser.answer(asked)
    tensors = (inverted.noise, *inverted.stored.values(), *inverted.diagnostics.values())
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
