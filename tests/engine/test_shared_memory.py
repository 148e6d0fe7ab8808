"""Submitted calls that run together stay together within the memory limit."""

import threading

import pytest

import pivotal
from pivotal.driver import Job
from pivotal.errors import MemoryLimitError
from pivotal.planning import Planner
from pivotal.reservations import Reservations
from pivotal.runtime.memory_count import Moment, Peak
from pivotal.runtime.memory_plan import MemoryPlan
from pivotal.serving import Submitted

PROMPT = "a red circle on a gray background"


def plan(**change):
    figures = {
        "job": "inverting",
        "weights": 1000,
        "batch": Peak((Moment(100, 0, 1),)),
        "rows": 8,
        "least": 1,
        "state": 50,
        "autoencoder": 300,
        "limit": 2000,
    }
    return MemoryPlan(**{**figures, **change})


def call(max_rows=None):
    """A submitted call that runs one job."""
    made = Submitted(worker=None, priority=0, deadline=None)
    job = Job(iter(()), "job")
    job.max_rows = max_rows
    made.jobs = (job,)
    return made


def test_a_call_alone_gets_what_fits_alone():
    reservations, request = Reservations(), call()
    assert reservations.rows(plan(), request) == plan().require() == 8
    assert reservations.rows(plan(limit=1500), request) == 4  # its next job, in place of the first
    assert reservations.rows(plan(), None) == 8


def test_states_and_one_picture_count_beside_the_largest_batch():
    reservations, first, second = Reservations(), call(8), call()
    reservations.rows(plan(), first)
    rows = reservations.rows(plan(state=150, autoencoder=200), second)
    most = first.jobs[0].max_rows
    assert (rows, most) == (5, 5)  # 2000 - 1000 - 50 - 150 - 300 are left for a batch


def test_a_call_that_has_not_yet_begun_makes_room_too():
    reservations, first, second = Reservations(), call(), call()
    planned = reservations.rows(plan(), first)
    reservations.rows(plan(state=150, autoencoder=200), second)  # while the first one encodes
    job = Job(iter(()), "job", max_rows=planned)
    reservations.begin([job], first)
    assert (planned, job.max_rows) == (8, 5)


def test_what_fits_alone_and_not_beside_others_is_refused_in_a_sentence():
    reservations, first = Reservations(), call()
    reservations.rows(plan(least=4), first)
    sentence = "inverting does not fit into 0 MB beside 1 call in progress; submit it again later"
    with pytest.raises(MemoryLimitError, match=sentence):
        reservations.rows(plan(state=300), call())
    assert first.jobs[0].max_rows is None
    first.set_result(None)
    assert reservations.rows(plan(state=300), call()) == 7


@pytest.fixture
def gate(engine):
    """Holds the first query up until it is let through."""

    class Gate:
        name, answers = engine.denoiser.name, engine.denoiser.answers
        reached, opened = threading.Event(), threading.Event()

        def answer(self, query):
            self.reached.set()
            assert self.opened.wait(60)
            return engine.denoiser.answer(query)

    return Gate()


def test_an_engine_refuses_a_call_that_would_not_fit_beside_another(engine, gate):
    networks = Planner.of(engine.model, None).networks
    need = Planner(networks).sampling("generating", (64, 64), rows=1, guided=False)
    limit = need.weights + need.state + max(need.batch(1), need.autoencoder) + 1000
    options = {"num_inference_steps": 2, "guidance_scale": 1.0}
    with pivotal.Engine(engine.model, gate) as tight:
        tight._runner.planner = Planner(networks, limit)  # counted already
        first = tight.submit(tight.generate, PROMPT, **options)
        assert gate.reached.wait(60)
        second = tight.submit(tight.generate, PROMPT, **options)
        with pytest.raises(MemoryLimitError, match="beside 1 call in progress"):
            second.result(60)
        gate.opened.set()
        first.result(60)
        assert tight.submit(tight.generate, PROMPT, **options).result(60).pictures
