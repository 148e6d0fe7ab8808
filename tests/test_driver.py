import threading
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pivotal.attention_routes import AttentionRoutes
from pivotal.cancellation import Cancellation
from pivotal.control import NoEdit
from pivotal.driver import Driver, Job, drive, drive_many, require
from pivotal.errors import BackendError, Cancelled, DeadlineExceeded
from pivotal.inversion import ddim, null_text
from pivotal.query import Conditioning, Denoise, LossGradient, NoiseGradient, Progress
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.sampling.ddim import sample
from pivotal.sampling.guidance import both_noises


@pytest.fixture
def exact(gaussian, levels):
    return gaussian(levels)


@pytest.fixture
def level(levels):
    return levels.schedule(10).levels[5]


@pytest.fixture
def question(latents, prompts, level):
    """`question(rows, seed)`: one Denoise."""

    def make(rows=1, *, seed=0, dtype=torch.float64, length=7, side=8, routes=None):
        conditioning = prompts(rows, seed=seed, dtype=dtype, length=length)
        return Denoise.at(
            latents(rows, seed=seed, dtype=dtype, side=side), level, conditioning, routes
        )

    return make


def ask(*queries):
    """The plainest algorithm: the answers to some questions."""
    answers = []
    for query in queries:
        answers.append((yield from query))
    return answers


def phases(query, steps):
    for step in range(steps):
        yield from Progress("sample", step, steps)
        yield from query
    return steps


@dataclass
class Borrowing:
    """A control whose target row borrows the source's attention in the first steps."""

    swap: AttentionRoutes
    until: int

    def __post_init__(self):
        self.word_maps = []

    def routes(self, step):
        return self.swap if step < self.until else None

    def after_step(self, step, latents, word_maps):
        self.word_maps.append(word_maps)
        return latents


@dataclass
class Fragile:
    """Fails as a backend does when a row is not finite, or at a given call."""

    inner: object
    at_call: int = 0
    error: type = RuntimeError
    calls: int = 0

    name = "fragile"

    @property
    def answers(self):
        return self.inner.answers

    def answer(self, query):
        self.calls += 1
        if self.calls == self.at_call or not query.latents.isfinite().all():
            raise self.error("the backend gave up")
        return self.inner.answer(query)


@pytest.fixture
def mixed(levels, latents, prompts, swap_routes):
    """Fresh algorithms of every kind, at different steps, and what to compare of each."""

    def make(denoiser):
        def invert(steps, rows, seed):
            result = yield from ddim.invert(
                levels.schedule(steps),
                latents(rows, seed=seed),
                prompts(rows, seed=seed),
                prompts(rows, seed=9),
                ddim.DDIMOptions(),
            )
            return [result.noise]

        def fit(steps, rows, seed):
            result = yield from null_text.invert(
                levels.schedule(steps),
                0.5 * latents(rows, seed=seed),
                prompts(rows, seed=seed),
                prompts(rows, seed=seed),
                null_text.NullTextOptions(guidance_scale=2.0, inner_steps=2, early_stop=1e-3),
            )
            return [result.noise, result.stored["null_embeddings"], result.diagnostics["losses"]]

        def guided(steps, seed, control):
            result = yield from sample(
                levels.schedule(steps),
                latents(2, seed=seed),
                prompts(2, seed=seed),
                lambda step: prompts(2, seed=9),
                3.0,
                control,
            )
            maps = getattr(control, "word_maps", [])
            return [result, *(m for m in maps if m is not None)]

        return [
            invert(3, 1, 1),
            fit(2, 1, 2),
            guided(3, 3, Borrowing(swap_routes(denoiser.unet, columns=1), until=2)),
            guided(2, 4, NoEdit()),
            guided(2, 5, Borrowing(swap_routes(denoiser.unet, columns=3), until=1)),
            fit(2, 2, 6),
            invert(4, 3, 7),
        ]

    return make


def test_jobs_in_company_get_what_they_get_alone(torch_denoiser, mixed):
    denoiser = torch_denoiser()
    alone = [drive(algorithm, denoiser) for algorithm in mixed(denoiser)]
    for max_rows in (1, 3, None):
        together = drive_many(mixed(denoiser), denoiser, max_rows=max_rows)
        for expected, job in zip(alone, together, strict=True):
            if max_rows == 1 and job.name in ("job 2", "job 4"):  # those with donors
                with pytest.raises(ValueError, match=r"2 rows share attention.*max_rows=1"):
                    job.result()
            else:
                torch.testing.assert_close(
                    job.result(), expected, rtol=1e-6, atol=1e-6, equal_nan=True
                )


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, None])
def test_rows_of_one_query_are_split_and_answered_in_the_asked_order(
    exact, recording, question, max_rows
):
    denoiser = recording(exact)
    query = question(7)
    (answer,) = drive(ask(query), denoiser, max_rows=max_rows)
    torch.testing.assert_close(answer.eps, exact.answer(query).eps, rtol=0, atol=0)
    torch.testing.assert_close(answer.x0, exact.answer(query).x0, rtol=0, atol=0)
    assert sum(denoiser.sizes) == 7
    assert max(denoiser.sizes) == min(7, max_rows or 7)


def test_no_batch_exceeds_max_rows(torch_denoiser, recording, mixed):
    inner = torch_denoiser()
    denoiser = recording(inner)
    drive_many(mixed(inner), denoiser, max_rows=4)
    assert max(denoiser.sizes) <= 4


def test_only_queries_of_one_kind_share_a_batch(torch_denoiser, recording, prompts, level, latents):
    denoiser = recording(torch_denoiser(sdxl=True, decode=lambda z: z[:, :3]))

    def common(rows=1, *, dtype=torch.float64, length=7, side=8):
        return latents(rows, dtype=dtype, side=side), prompts(
            rows, dtype=dtype, length=length, sdxl=True
        )

    def denoise(**kind):
        z, conditioning = common(**kind)
        return Denoise.at(z, level, conditioning)

    def gradient(wrt):
        z, conditioning = common()
        query = Denoise.at(z, level, conditioning)
        return NoiseGradient(
            z,
            query.timesteps,
            query.alpha_bars,
            conditioning,
            torch.ones(1),
            torch.zeros_like(z),
            wrt,
        )

    def image_loss(loss, through_unet=False):
        z, conditioning = common()
        query = Denoise.at(z, level, conditioning)
        return LossGradient(z, query.timesteps, query.alpha_bars, conditioning, loss, through_unet)

    def darkness(images):
        return images.mean(dim=(1, 2, 3))

    kinds = [
        lambda: denoise(),
        lambda: denoise(length=5),
        lambda: denoise(side=12),
        lambda: denoise(dtype=torch.float32),
        lambda: gradient("hidden_states"),
        lambda: gradient("pooled"),
        lambda: gradient("latents"),
        lambda: image_loss(darkness),
        lambda: image_loss(darkness, through_unet=True),
        lambda: image_loss(lambda images: images.amax(dim=(1, 2, 3))),
    ]
    jobs = drive_many([ask(kind()) for kind in kinds + kinds], denoiser)
    for job in jobs:
        job.result()
    # the loss of the last kind is another callable each time
    assert denoiser.sizes == [2] * 9 + [1, 1]


def test_conditionings_of_two_kinds_do_not_meet(exact, recording, latents, prompts, level):
    denoiser = recording(exact)
    drive_many(
        [
            ask(Denoise.at(latents(), level, prompts(sdxl=sdxl, length=5)))
            for sdxl in (False, True, False)
        ],
        denoiser,
    )
    assert denoiser.sizes == [2, 1]


def test_a_loss_that_can_not_be_hashed_is_no_obstacle(torch_denoiser, latents, prompts, level):
    @dataclass  # equality without a hash
    class Darkness:
        factor: float

        def __call__(self, images):
            return self.factor * images.mean(dim=(1, 2, 3))

    query = Denoise.at(latents(), level, prompts())
    asked = LossGradient(
        query.latents, query.timesteps, query.alpha_bars, query.conditioning, Darkness(2.0)
    )
    denoiser = torch_denoiser(decode=lambda z: z[:, :3])
    (answer,) = drive(ask(asked), denoiser)
    torch.testing.assert_close(answer.loss, 2 * answer.x0[:, :3].mean(dim=(1, 2, 3)))


def test_route_indices_are_rebased_and_unrouted_rows_carry_the_identity(
    torch_denoiser, recording, question, swap_routes
):
    inner = torch_denoiser()
    denoiser = recording(inner)
    routes = swap_routes(inner.unet)
    queries = [
        question(2, seed=1, routes=routes),
        question(1, seed=2),
        question(2, seed=3, routes=routes),
    ]
    together = drive_many([ask(query) for query in queries], denoiser)
    (batch,) = denoiser.batches
    assert batch.routes.donors.tolist() == [0, 0, 2, 3, 3]
    assert batch.routes.self_queries[0].tolist() == [0, 0, 2, 3, 3]
    assert batch.routes.self_values[0].tolist() == [0, 1, 2, 3, 4]
    assert batch.routes.keep[2].eq(1).all()
    assert batch.routes.mix[2].eq(0).all()
    for query, job in zip(queries, together, strict=True):
        torch.testing.assert_close(
            job.result()[0].eps, inner.answer(query).eps, rtol=1e-10, atol=1e-10
        )
    plain = inner.answer(question(2, seed=1))
    assert (together[0].result()[0].eps[1] - plain.eps[1]).abs().max() > 1e-2


@pytest.mark.parametrize("max_rows", [2, 3, 5, None])
def test_word_maps_do_not_depend_on_the_company(torch_denoiser, question, swap_routes, max_rows):
    denoiser = torch_denoiser()
    queries = [
        question(1, seed=1),
        question(2, seed=2, routes=swap_routes(denoiser.unet, columns=1)),
        question(3, seed=3),
        question(2, seed=4, routes=swap_routes(denoiser.unet, columns=4)),
    ]
    jobs = drive_many([ask(query) for query in queries], denoiser, max_rows=max_rows)
    for query, job in zip(queries, jobs, strict=True):
        maps, expected = job.result()[0].word_maps, denoiser.answer(query).word_maps
        assert (maps is None) == (expected is None)
        if maps is not None:
            torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("max_rows", [2, 3, 4])
def test_rows_tied_by_donors_are_never_split(
    torch_denoiser, recording, question, swap_routes, max_rows
):
    inner = torch_denoiser()
    denoiser = recording(inner)
    routes = swap_routes(inner.unet)
    # rows 0 and 2, and 1 and 3, are pairs; row 4 is free
    apart = AttentionRoutes.cat([routes, routes, routes.identity_like(1)])
    query = question(5, routes=apart.select(torch.tensor([0, 2, 1, 3, 4])))
    assert query.ties() == [[0, 2], [1, 3], [4]]
    (answer,) = drive(ask(query), denoiser, max_rows=max_rows)
    expected = inner.answer(query)
    torch.testing.assert_close(answer.eps, expected.eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(answer.word_maps, expected.word_maps, rtol=1e-10, atol=1e-10)
    assert max(denoiser.sizes) <= max_rows
    for batch in denoiser.batches:
        pairs = (batch.routes.donors != torch.arange(batch.rows)).sum()
        assert pairs == batch.rows // 2


def test_tied_rows_over_max_rows_are_refused_in_one_sentence(torch_denoiser, question, swap_routes):
    denoiser = torch_denoiser()
    tied = question(2, routes=swap_routes(denoiser.unet))
    bad, good = drive_many([ask(tied), ask(question(1))], denoiser, max_rows=1)
    good.result()
    with pytest.raises(ValueError, match=r"2 rows share attention.*max_rows=1; raise it") as caught:
        bad.result()
    assert any("job 0" in note for note in caught.value.__notes__)


def test_no_device_waits_for_the_host_to_say_which_rows_are_whose(
    torch_denoiser, question, latents, prompts, level
):
    eager = torch_denoiser()
    bucketed = BucketedDenoiser(eager, Buckets((4, 8)), eager.unet.layers)
    seen = []

    class Indices(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.index.Tensor:
                seen.append(func)
            return func(*args, **(kwargs or {}))

    def guided():
        yield from both_noises(latents(2), level, prompts(2), prompts(2, seed=9))

    with Indices():
        jobs = drive_many([ask(question(2)), ask(question(1)), guided()], bucketed)
        jobs += drive_many([ask(question(5))], bucketed, max_rows=2)
        bucketed.answer(question(9))
    assert not any(job.error for job in jobs)
    assert not seen


@pytest.mark.parametrize("company", [0, 2])
@pytest.mark.parametrize("max_rows", [1, 3, None])
def test_an_answer_belongs_to_its_receiver(exact, static_buffer, question, company, max_rows):
    queries = [question(1, seed=seed) for seed in range(4)]
    algorithms = [ask(*queries) for _ in range(1 + company)]
    jobs = drive_many(algorithms, static_buffer(exact), max_rows=max_rows)
    for job in jobs:
        for query, answer in zip(queries, job.result(), strict=True):
            torch.testing.assert_close(answer.eps, exact.answer(query).eps)
            torch.testing.assert_close(answer.x0, exact.answer(query).x0)


def test_algorithms_run_without_gradients_but_not_in_inference_mode(exact, question):
    seen = []

    def look():
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        answer = yield from question()
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return answer

    answer = drive(look(), exact)
    assert seen == [(False, False)] * 2
    assert not answer.eps.is_inference()
    assert torch.is_grad_enabled()
    answer.eps.requires_grad_().sum().backward()  # usable in autograd afterwards


def test_a_backends_error_is_thrown_into_the_one_that_asked_saying_where(exact, question):
    bad = question(2)
    bad.latents[1] = torch.nan

    def asking():
        yield from Progress("fit", 3, 10)
        yield from bad

    with pytest.raises(RuntimeError, match="gave up") as caught:
        drive(asking(), Fragile(exact), name="request 7", method="null-text")
    (note,) = caught.value.__notes__
    for part in ("request 7", "null-text", "fit step 3", "Denoise", "2 rows"):
        assert part in note


@pytest.mark.parametrize("max_rows", [1, 2, 4, None])
def test_a_bad_job_in_a_shared_batch_fails_alone(exact, question, max_rows):
    bad = question(2, seed=1)
    bad.latents[0] = torch.nan
    good = [question(2, seed=seed) for seed in (2, 3)]
    jobs = drive_many(
        [ask(good[0], good[1]), ask(good[0], bad, good[1]), ask(good[1], good[0])],
        Fragile(exact),
        max_rows=max_rows,
    )
    with pytest.raises(RuntimeError, match="gave up") as caught:
        jobs[1].result()
    assert "job 1" in caught.value.__notes__[0]
    for job, first, second in ((jobs[0], *good), (jobs[2], *good[::-1])):
        answers = job.result()
        torch.testing.assert_close(answers[0].eps, exact.answer(first).eps)
        torch.testing.assert_close(answers[1].eps, exact.answer(second).eps)
        assert job.rows_asked == 4


def test_queries_that_do_not_join_are_asked_alone(torch_denoiser, question, swap_routes):
    denoiser = torch_denoiser()
    routes = swap_routes(denoiser.unet)
    foreign = AttentionRoutes.identity(2, 7, 1, 1, 1)  # of a UNet with fewer layers
    good, bad = drive_many(
        [ask(question(2, routes=routes)), ask(question(2, routes=foreign))], denoiser
    )
    expected = denoiser.answer(question(2, routes=routes))
    torch.testing.assert_close(good.result()[0].eps, expected.eps)
    with pytest.raises(IndexError):
        bad.result()


@pytest.mark.parametrize("max_rows", [1, 2, 3, None])
def test_an_algorithm_may_catch_an_error_and_go_on(exact, question, max_rows):
    query = question(3)

    def patient():
        caught = None
        try:
            yield from query
        except RuntimeError as error:
            caught = error
        answer = yield from query  # the very same question again
        return caught, answer

    company = [ask(question(2, seed=seed), question(2, seed=seed)) for seed in (1, 2)]
    denoiser = Fragile(exact, at_call=2 if max_rows == 1 else 1)
    first, *others = drive_many([patient(), *company], denoiser, max_rows=max_rows)
    caught, answer = first.result()
    torch.testing.assert_close(answer.eps, exact.answer(query).eps)
    if max_rows is None:  # the shared batch failed once; asked alone, all were served
        assert caught is None
    else:
        assert "gave up" in str(caught)
    for job in others:
        assert len(job.result()) == 2


def test_a_cancelled_job_is_closed_before_its_next_query_and_others_go_on(
    exact, recording, question
):
    ended = []

    def asking(name, steps):
        try:
            for step in range(steps):
                yield from question()
                ended.append((name, step))
        finally:
            ended.append((name, "finally"))

    denoiser = recording(exact)
    driver = Driver(denoiser)
    stopped, kept = driver.add(Job(asking("a", 9), "a")), driver.add(Job(asking("b", 3), "b"))
    driver.turn()
    stopped.cancel()
    driver.run()
    assert ended == [("a", 0), ("b", 0), ("a", "finally"), ("b", 1), ("b", 2), ("b", "finally")]
    assert denoiser.sizes == [2, 1, 1]
    assert kept.result() is None
    with pytest.raises(Cancelled, match="a was cancelled"):
        stopped.result()


def test_a_job_cancelled_in_mid_turn_is_not_answered_any_more(exact, question):
    answered = []

    def asking(name):
        yield from question()
        yield from Progress("sample", 1, 2)
        answered.append(name)
        yield from question()

    second = Job(asking("second"), "second")
    first = Job(asking("first"), "first", listener=lambda notice: second.cancel())
    driver = Driver(exact, max_rows=1)
    for job in (first, second):
        driver.add(job)
    driver.run()
    assert answered == ["first"]
    first.result()
    with pytest.raises(Cancelled):
        second.result()


def test_one_cancellation_ends_all_jobs_that_share_it_and_no_other(exact, recording, question):
    shared = Cancellation()
    denoiser = recording(exact)
    driver = Driver(denoiser)
    jobs = [Job(phases(question(), 5), name, cancellation=shared) for name in "ab"]
    kept = Job(phases(question(), 5), "c")
    for job in (*jobs, kept):
        driver.add(job)
    driver.turn()
    thread = threading.Thread(target=shared.cancel)
    thread.start()
    thread.join()
    driver.run()
    assert denoiser.sizes == [3, 1, 1, 1, 1]
    assert kept.result() == 5
    for job in jobs:
        with pytest.raises(Cancelled, match=f"{job.name} was cancelled"):
            job.result()


def test_a_cleanup_that_fails_stays_with_its_job(exact, question):
    def untidy():
        try:
            yield from question()
        finally:
            raise OSError("no space left")

    driver = Driver(exact)
    cancelled, other = driver.add(Job(untidy(), "untidy")), driver.add(Job(ask(question())))
    cancelled.cancel()
    driver.run()
    assert len(other.result()) == 1
    with pytest.raises(Cancelled) as caught:
        cancelled.result()
    assert any("no space left" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("where", ["backend", "listener", "start"])
def test_an_interruption_closes_every_generator(exact, question, where):
    closed = []

    def asking(name):
        try:
            if where == "start" and name == "b":
                raise KeyboardInterrupt
            yield from phases(question(), 3)
        finally:
            closed.append(name)

    def interrupt(notice):
        if notice.step == 1 and where == "listener":
            raise KeyboardInterrupt

    at_call = 2 if where == "backend" else 0
    driver = Driver(Fragile(exact, at_call=at_call, error=KeyboardInterrupt))

    def run_both():
        for name in ("a", "b"):
            driver.add(Job(asking(name), name, listener=interrupt))
        driver.run()

    with pytest.raises(KeyboardInterrupt):
        run_both()
    assert sorted(closed) == ["a", "b"]
    driver.run()  # nothing is left
    assert driver.live == []


def test_an_error_of_an_algorithm_or_its_listener_is_its_jobs_own(exact, question):
    closed = []

    def broken():
        yield from question()
        raise ZeroDivisionError

    def watched():
        try:
            yield from phases(question(), 3)
        finally:
            closed.append("watched")

    def listener(notice):
        if notice.step == 2:
            raise LookupError("no such bar")

    def nonsense():
        yield "how noisy?"

    driver = Driver(exact)
    jobs = [
        driver.add(Job(broken())),
        driver.add(Job(watched(), listener=listener)),
        driver.add(Job(nonsense(), "odd")),
        driver.add(Job(ask(question()))),
    ]
    driver.run()
    with pytest.raises(ZeroDivisionError):
        jobs[0].result()
    with pytest.raises(LookupError):
        jobs[1].result()
    assert closed == ["watched"]
    with pytest.raises(TypeError, match="odd yielded str"):
        jobs[2].result()
    assert len(jobs[3].result()) == 1


def test_a_listener_can_not_end_a_job_as_if_it_were_done(exact, question):
    ticks = iter(range(1))
    job = Job(phases(question(), 3), "ticking", listener=lambda _: next(ticks))
    drive_many([job], exact)
    with pytest.raises(RuntimeError, match="the listener of ticking raised StopIteration"):
        job.result()


@pytest.mark.parametrize("count", [1, 4])
def test_equal_jobs_cost_as_many_batches_as_one(
    torch_denoiser, recording, levels, latents, prompts, count
):
    denoiser = recording(torch_denoiser())
    options = null_text.NullTextOptions(
        guidance_scale=2.0, inner_steps=2, early_stop=0.0, early_stop_growth=0.0
    )
    jobs = drive_many(
        [
            null_text.invert(
                levels.schedule(2), 0.5 * latents(seed=n), prompts(seed=n), prompts(seed=n), options
            )
            for n in range(count)
        ],
        denoiser,
    )
    assert denoiser.sizes == [count] * (2 * (1 + 1 + 2) + 2)
    assert all(job.rows_asked == 2 * (1 + 1 + 2) + 2 for job in jobs)


def test_rows_asked_counts_what_was_answered(exact, question):
    jobs = drive_many([ask(question(3), question(2)), ask(question(1)), ask()], exact, max_rows=2)
    assert [job.rows_asked for job in jobs] == [5, 1, 0]


def test_progress_reaches_the_listener_in_order(exact, question):
    heard = []
    assert drive(phases(question(), 3), exact, listener=heard.append) == 3
    assert heard == [Progress("sample", step, 3) for step in range(3)]


def test_jobs_join_between_turns(exact, recording, question):
    denoiser = recording(exact)
    driver = Driver(denoiser)
    first = driver.add(Job(ask(*[question()] * 3)))
    driver.turn()
    second = driver.add(Job(ask(*[question(2, seed=1)] * 3)))
    with pytest.raises(RuntimeError, match="has not ended"):
        first.result()
    driver.run()
    assert denoiser.sizes == [1, 3, 3, 2]
    assert len(first.result()) == len(second.result()) == 3


def test_a_job_may_add_another_from_its_listener(exact, question):
    driver = Driver(exact)
    added = []

    def join(notice):
        if notice.step == 1:
            added.append(driver.add(Job(ask(question()))))

    driver.add(Job(phases(question(), 3), listener=join))
    driver.run()
    assert len(added[0].result()) == 1


def test_an_algorithm_that_asks_nothing_is_done_at_once(exact):
    assert drive(ask(), exact) == []
    assert drive_many([], exact) == []


def test_a_backend_that_can_not_answer_is_refused_at_planning_time(exact, torch_denoiser):
    require(exact, {Denoise}, "DDIM inversion")
    with pytest.raises(
        BackendError, match=r"gaussian backend can't answer NoiseGradient.*null-text"
    ):
        require(exact, {Denoise, NoiseGradient}, "null-text")
    require(torch_denoiser(), {Denoise, NoiseGradient}, "null-text")
    with pytest.raises(BackendError, match="LossGradient"):
        require(torch_denoiser(), {LossGradient}, "loss guidance")
    require(torch_denoiser(decode=lambda z: z), {LossGradient}, "loss guidance")


def test_max_rows_below_one_is_refused(exact):
    with pytest.raises(ValueError, match="max_rows=0"):
        Driver(exact, max_rows=0)


def test_conditioning_moves_as_a_whole(prompts):
    moved = prompts(2, sdxl=True).to("meta")
    assert isinstance(moved, Conditioning)
    assert {
        moved.hidden_states.device.type,
        moved.pooled.device.type,
        moved.time_ids.device.type,
    } == {"meta"}


def test_a_newcomer_is_in_the_batch_after_the_one_that_runs(exact, recording, question):
    """Among jobs of another kind, too, whose questions alternate and fill every batch."""
    denoiser = recording(exact)
    driver = Driver(denoiser, max_rows=2)
    for side in (8, 12):
        driver.add(Job(ask(*[question(2, side=side)] * 20)))
    for _ in range(5):
        driver.turn()
        driver.turn()
        newcomer = driver.add(Job(ask(question(1, side=16))))
        driver.turn()
        assert denoiser.batches[-1].latents.shape[-1] == 16
        assert newcomer.rows_asked == 1
    driver.run()


def test_the_higher_priority_goes_first_and_equals_alternate(exact, question):
    order = []

    def asking(name):
        for _ in range(3):
            yield from question()
            order.append(name)

    driver = Driver(exact, max_rows=1)
    for name, priority in (("low", -1), ("a", 1), ("b", 1)):
        driver.add(Job(asking(name), name, priority=priority))
    for _ in range(6):
        driver.turn()
    assert [name for name in order if name != "low"][:4] == ["a", "b", "a", "b"]
    assert order.count("low") <= 1


@pytest.mark.parametrize("gap", [0, 1, 3])
def test_no_job_starves_whatever_comes_before_it(exact, question, gap):
    """A stream of newcomers of a higher priority, each of which fills a batch."""
    driver = Driver(exact, max_rows=1)
    patient = driver.add(Job(ask(*[question()] * 2), "patient"))
    driver.turn()  # newcomers go before those that were served already
    turns = 0
    while not patient.done:
        driver.add(Job(ask(question()), priority=gap))
        driver.turn()
        turns += 1
    assert turns <= Driver.PATIENCE * (gap + 1) + 1


def test_jobs_share_no_more_than_shared_rows_but_one_alone_may_ask_for_more(
    exact, recording, question
):
    denoiser = recording(exact)
    driver = Driver(denoiser, shared_rows=4)
    jobs = [driver.add(Job(ask(question(rows, seed=rows)))) for rows in (6, 2, 1, 3)]
    driver.run()
    assert sorted(denoiser.sizes) == [2, 4, 6]
    for job, rows in zip(jobs, (6, 2, 1, 3), strict=True):
        expected = exact.answer(question(rows, seed=rows)).eps
        torch.testing.assert_close(job.result()[0].eps, expected)


def test_a_job_that_does_not_join_leaves_its_room_to_others(exact, recording, question):
    denoiser = recording(exact)
    modest = Job(ask(question(1)), max_rows=1)
    drive_many([ask(question(4)), modest, ask(question(3))], denoiser)
    assert denoiser.sizes == [7, 1]


def test_a_jobs_own_max_rows_bounds_the_batches_that_it_is_in(exact, recording, question):
    denoiser = recording(exact)
    driver = Driver(denoiser)
    small = driver.add(Job(ask(question(4)), max_rows=2))
    driver.add(Job(ask(question(5, seed=1))))
    driver.run()
    assert small.rows_asked == 4
    assert sum(denoiser.sizes) == 9
    assert sum(size for size in denoiser.sizes if size <= 2) >= 4


def test_a_question_of_no_rows_is_answered(exact, question):
    (answer,) = drive(
        ask(question(2).select(torch.tensor([], dtype=torch.int64))), exact, max_rows=1
    )
    assert answer.eps.shape[0] == 0


def test_a_deadline_that_has_passed_closes_the_job(exact, question):
    def slow():
        while True:
            yield from question()

    job = Job(slow(), "the long one", cancellation=Cancellation(deadline=0.02))
    driver = Driver(exact)
    driver.add(job)
    driver.run()
    with pytest.raises(DeadlineExceeded, match="the long one had not ended by its deadline"):
        job.result()


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan")])
def test_a_deadline_that_is_no_positive_number_is_refused(deadline):
    with pytest.raises(ValueError, match="deadline="):
        Cancellation(deadline=deadline)
