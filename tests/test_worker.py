"""The worker on an exact denoiser: who joins when, and what ends whom."""

import threading
import time

import pytest
import torch

from pivotal.driver import Driver, Job
from pivotal.errors import Cancelled, EngineClosedError, WorkerError
from pivotal.inversion import ddim
from pivotal.query import Denoise, Progress
from pivotal.turns import Turns
from pivotal.worker import Worker


class Gate:
    """Passes queries on, notes their rows, and holds one up until it is let through."""

    name = "gate"

    def __init__(self, inner, hold_at=None, error_at=None):
        self.answers, self.inner = inner.answers, inner
        self.hold_at, self.error_at, self.sizes = hold_at, error_at, []
        self.reached, self.opened = threading.Event(), threading.Event()

    def answer(self, query):
        self.sizes.append(query.rows)
        if len(self.sizes) == self.hold_at:
            self.reached.set()
            assert self.opened.wait(60)
        if len(self.sizes) == self.error_at:
            raise SystemExit("the driver library gave up")
        return self.inner.answer(query)


@pytest.fixture
def question(levels, latents, prompts):
    level = levels.schedule(10).levels[5]
    return lambda rows=1: Denoise.at(latents(rows), level, prompts(rows))


@pytest.fixture
def started():
    """`started(work, *arguments)`: a thread, joined at the end."""
    threads = []

    def start(work, *arguments):
        threads.append(threading.Thread(target=work, args=arguments))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def worker_on():
    """`worker_on(denoiser, turns)`: a worker, stopped at the end."""
    made = []

    def make(denoiser, turns=None, shared_rows=16):
        made.append(Worker(denoiser, turns or Turns(), shared_rows))
        return made[-1]

    yield make
    for worker in made:
        worker.stop()
        assert not worker.alive


def asking(query, times):
    for step in range(times):
        yield from Progress("sample", step, times)
        yield from query
    return times


def wait_until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_jobs_join_in_the_batch_after_the_one_that_runs_and_leave_as_they_end(
    gaussian, levels, question, worker_on, started
):
    gate = Gate(gaussian(levels), hold_at=3)
    worker = worker_on(gate)
    long, short = Job(asking(question(), 8), "long"), Job(asking(question(2), 3), "short")
    first = started(worker.run, [long])
    assert gate.reached.wait(60)
    second = started(worker.run, [short])
    wait_until(lambda: worker._joining)
    gate.opened.set()
    second.join(60)
    first.join(60)
    assert gate.sizes == [1, 1, 1, 3, 3, 3, 1, 1]
    assert (long.result(), short.result()) == (8, 3)


def test_who_waits_for_a_turn_gets_one_between_two_batches(
    gaussian, levels, question, worker_on, started
):
    """However many wait: what runs is held up by one of them at a time."""
    turns, order = Turns(), []
    worker = worker_on(gaussian(levels), turns)
    job = Job(asking(question(), 6), "job", listener=lambda notice: order.append("batch"))

    def have_a_turn():
        with turns.take():
            order.append("other")

    with turns.take():
        for count in range(1, 5):
            started(have_a_turn)
            wait_until(lambda count=count: len(turns._waiting) == count)
        running = started(worker.run, [job])
        wait_until(lambda: len(turns._waiting) == 5)
    running.join(60)
    # the first turn starts the job and answers its first question: two notices
    assert "".join(name[0] for name in order).startswith("obbobobob")


def test_a_listener_that_exits_ends_its_job_alone(gaussian, levels, question, worker_on, started):
    worker = worker_on(Gate(gaussian(levels)))

    def leave(notice):
        if notice.step == 2:
            raise SystemExit(3)

    leaving = Job(asking(question(), 5), "leaving", listener=leave)
    at_once = Job(_exiting(), "at once")
    staying = Job(asking(question(), 5), "staying")
    for thread in [started(worker.run, [job]) for job in (leaving, at_once, staying)]:
        thread.join(60)
    assert staying.result() == 5
    for job in (leaving, at_once):
        with pytest.raises(SystemExit):
            job.result()
    assert worker.alive


def _exiting():
    raise SystemExit(4)
    yield


def test_a_worker_that_dies_fails_its_jobs_with_the_cause_and_the_next_job_starts_another(
    gaussian, levels, question, worker_on, started
):
    worker = worker_on(Gate(gaussian(levels), error_at=3))
    closed = []

    def careful():
        try:
            yield from asking(question(), 9)
        finally:
            closed.append("closed")

    jobs = [Job(careful(), "lost"), Job(asking(question(), 9), "lost too")]
    started(worker.run, jobs).join(60)
    for job in jobs:
        with pytest.raises(WorkerError, match="ended by SystemExit: the driver library") as caught:
            job.result()
        assert isinstance(caught.value.__cause__, SystemExit)
    assert closed == ["closed"]
    again = Job(asking(question(), 2), "again")
    worker.run([again])
    assert again.result() == 2


def test_a_stopped_worker_refuses_and_leaves_no_thread(gaussian, levels, question, worker_on):
    worker = worker_on(gaussian(levels))
    worker.run([Job(asking(question(), 1))])
    thread = worker._thread
    worker.stop()
    assert not thread.is_alive()
    with pytest.raises(EngineClosedError, match="was closed"):
        worker.run([Job(asking(question(), 1))])


def test_the_worker_starts_with_the_first_job_only(gaussian, levels, worker_on):
    assert not worker_on(gaussian(levels)).alive


def test_cancelled_jobs_leave_without_a_question_more(
    gaussian, levels, question, worker_on, started
):
    gate = Gate(gaussian(levels), hold_at=2)
    worker = worker_on(gate)
    job = Job(asking(question(), 50), "long")
    running = started(worker.run, [job])
    assert gate.reached.wait(60)
    job.cancel()
    gate.opened.set()
    running.join(60)
    assert gate.sizes == [1, 1]
    with pytest.raises(Cancelled):
        job.result()


def test_results_are_those_of_each_job_alone(
    torch_denoiser, levels, latents, prompts, worker_on, started
):
    def inversion(seed):
        return ddim.invert(
            levels.schedule(3), latents(seed=seed), prompts(seed=seed), prompts(seed=9),
            ddim.DDIMOptions(),
        )  # fmt: skip

    denoiser = torch_denoiser()
    worker = worker_on(denoiser, shared_rows=3)
    jobs = [Job(inversion(seed), f"job {seed}") for seed in range(5)]
    for thread in [started(worker.run, [job]) for job in jobs]:
        thread.join(60)
    for seed, job in enumerate(jobs):
        driver = Driver(denoiser)
        alone = driver.add(Job(inversion(seed)))
        driver.run()
        torch.testing.assert_close(job.result().noise, alone.result().noise, rtol=1e-9, atol=1e-9)
