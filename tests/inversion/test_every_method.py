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
    """What `observed` made of each method, once."""
    return {}


@pytest.fixture
def observed(done, denoiser, recording, gentle, case, some):
    """`observed(name)`: what `alone` gives, the types of the queries asked, and what was told."""

    def make(name):
        if name not in done:
            one, method = some(case(2), [0]), METHODS[name]
            asked, told = recording(denoiser), []
            up = inverting(method, gentle(STEPS), one)
            inverted = drive(up, asked, listener=told.append)
            down = replaying(method, gentle(STEPS), inverted, one)
            sampled = drive(down, asked, listener=told.append)
            kinds = {type(query) for query in asked.batches}
            done[name] = (one, inverted, sampled), kinds, told
        return done[name]

    return make


@pytest.fixture
def alone(observed):
    """`alone(name)`: the first image, its inversion, and that sampled back."""
    return lambda name: observed(name)[0]


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
def test_it_asks_what_it_says_it_needs_and_says_how_far_it_is(name, observed):
    method, (_, asked, told) = METHODS[name], observed(name)
    assert asked == method.needed(options_of(method))
    phases = {notice.phase for notice in told}
    assert "sample" in phases
    assert phases & {"invert", "fit"}
    for notice in told:
        assert 0 <= notice.step <= notice.steps


BLEND = {"blend": ("cat", "dog"), "blend_threshold": 0.95}  # or all may change in so small a map
EDITS = {
    "swap": Edit("a red dog", self_replace_steps=(0.5, 1.0), cross_replace_steps=1.0, **BLEND),
    "mutual": Edit(
        "a red dog", self_replace_steps=0.0, mutual=MutualSelfAttention(start_step=0), **BLEND
    ),
    "refinement": Edit("a big red cat"),
    "re-weighting": Edit("a red cat", weights={"red": -4.0}),
    "a user's mask": Edit("a red dog", mask=torch.ones(8, 8, dtype=torch.bool).tril()),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_edit_acts_on_the_target_alone(name, denoiser, gentle, case, editing, alone):
    """All in one batch, each with its source."""
    method, schedule = METHODS[name], gentle(STEPS)
    _, inverted, plain = alone(name)
    _, cond, null = case(2)
    controls = {kind: editing(edit) for kind, edit in EDITS.items()}
    replays = []
    for kind, control in controls.items():
        rows = torch.tensor([0, 0] if kind == "re-weighting" else [0, 1])
        pair = (None, cond.select(rows), null.select(torch.tensor([0, 0])))
        replays.append(replaying(method, schedule, inverted.expand(2), pair, control))
    jobs = drive_many(replays, denoiser)
    found = {kind: job.result() for kind, job in zip(EDITS, jobs, strict=True)}
    for kind, (source, target) in found.items():
        torch.testing.assert_close(source[None], plain, **CLOSE)
        apart = (target - source).abs()
        assert apart.max() > 1e-4
        mask = EDITS[kind].mask
        if EDITS[kind].blend:
            mask = controls[kind].masks[0]
        if mask is not None:
            assert apart[~mask.expand(target.shape[0], -1, -1)].max() < 2e-6
    assert (found["swap"][1] - found["mutual"][1]).abs().max() > 1e-5


class Twins(NoEdit):
    """Every row's source is the first one; keeps when it is called."""

    def __init__(self):
        self.calls = []

    def sources(self, rows):
        return torch.zeros(rows, dtype=torch.int64)

    def routes(self, step):
        self.calls.append(("routes", step))

    def after_step(self, step, latents, word_maps):
        self.calls.append(("after", step))
        return latents


@pytest.mark.parametrize("name", NAMES)
def test_a_target_equal_to_its_source_is_its_reconstruction_and_each_step_meets_the_control(
    name, denoiser, gentle, alone
):
    method, schedule, twins = METHODS[name], gentle(STEPS), Twins()
    one, inverted, plain = alone(name)
    rows = torch.tensor([0, 0])
    pair = (None, one[1].select(rows), one[2].select(rows))
    both = drive(replaying(method, schedule, inverted.expand(2), pair, twins), denoiser)
    torch.testing.assert_close(both[:1], plain, **CLOSE)
    if name not in SOURCE_ALONE:
        torch.testing.assert_close(both[1:], plain, **CLOSE)
    assert [step for when, step in twins.calls if when == "after"] == list(range(STEPS))
    for step in range(STEPS):
        assert twins.calls.index(("routes", step)) < twins.calls.index(("after", step))


# They put the source back where it belongs and let targets run free.
SOURCE_ALONE = {"direct", "null-text-parallel"}


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


def test_all_run_in_float32(single, gentle, case):
    """In one batch; what is exact to the bit keeps its latents in float64."""
    one, schedule = case(dtype=torch.float32), gentle(STEPS)
    up = drive_many([inverting(METHODS[name], schedule, one) for name in NAMES], single)
    down = drive_many(
        [
            replaying(METHODS[name], schedule, job.result(), one)
            for name, job in zip(NAMES, up, strict=True)
        ],
        single,
    )
    for name, inverted, sampled in zip(NAMES, up, down, strict=True):
        assert sampled.result().dtype == torch.float32
        assert sampled.result().isfinite().all()
        precise = name in {"edict", "bdia", "belm"}
        assert inverted.result().noise.dtype == (torch.float64 if precise else torch.float32)


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
