"""Submitted calls: futures that share UNet batches and never each other's fate."""

import asyncio
import atexit
import gc
import os
import random
import signal
import threading
import time
import weakref
from concurrent.futures import wait
from functools import partial

import pytest
import torch

import pivotal

PROMPT = "a red circle on a gray background"
BLUE = "a blue circle on a gray background"
STEPS = 4
LONG = 900  # steps that no test waits for


class Gate:
    """Passes queries on, notes their rows, and holds one up until it is let through."""

    def __init__(self, inner, hold_at=None):
        self.name, self.answers, self.inner = inner.name, inner.answers, inner
        self.hold_at, self.sizes = hold_at, []
        self.reached, self.opened = threading.Event(), threading.Event()

    def answer(self, query):
        self.sizes.append(query.rows)
        if len(self.sizes) == self.hold_at:
            self.reached.set()
            assert self.opened.wait(60)
        return self.inner.answer(query)


@pytest.fixture
def serve(engine):
    """`serve(denoiser=.., **serving)`: an engine on the same model, closed at the end."""
    opened = []

    def make(denoiser=None, **serving):
        made = pivotal.Engine(
            engine.model, denoiser or engine.denoiser, serving=pivotal.Serving(**serving)
        )
        made._runner._probed = True
        opened.append(made)
        return made

    yield make
    for each in opened:
        each.close()


def wait_until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def threads_of(served):
    service = served._runner.service
    return [*service._requests.values(), *([service._worker] if service._worker.alive else [])]


def long_call(served, **more):
    future = served.submit(served.generate, PROMPT, num_inference_steps=LONG, **more)
    wait_until(lambda: future.progress is not None)
    return future


def test_submitted_calls_share_batches_and_give_what_direct_ones_give(
    serve, engine, inversion, picture
):
    gate = Gate(engine.denoiser, hold_at=1)
    served = serve(gate)
    mirrored = picture[:, ::-1].copy()
    three = ("a red square on a gray background", BLUE)
    calls = [
        partial(engine.generate, [PROMPT, BLUE], num_inference_steps=STEPS, seed=5),
        partial(engine.invert, picture, PROMPT, method="ddim", num_inference_steps=STEPS),
        partial(engine.edit, inversion, BLUE, blend="auto"),
        partial(engine.edit, inversion, three),
        partial(engine.reconstruct, inversion),
        partial(
            engine.invert_many, [picture, mirrored], PROMPT, method="ddim", num_inference_steps=3
        ),
    ]
    futures = []
    for call in calls:
        method = getattr(served, call.func.__name__)
        futures.append(served.submit(method, *call.args, **call.keywords))
    assert gate.reached.wait(60)
    worker = served._runner.service._worker
    wait_until(lambda: len(worker._joining) + len(worker._running) == len(calls))
    gate.opened.set()
    for future, call in zip(futures, calls, strict=True):
        for given, expected in zip(tensors(future.result(60)), tensors(call()), strict=True):
            torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)
    # 6 is the most that one of them asks for; a batch with an inversion in it stops at 8.
    assert 6 < max(gate.sizes) <= 16


def tensors(result):
    if isinstance(result, list):
        return [each.inverted.noise for each in result]
    if isinstance(result, pivotal.Inversion):
        return [result.inverted.noise]
    if isinstance(result, pivotal.Reconstruction):
        return [torch.tensor(result.psnr)]
    return [result.latents]


def test_calls_kept_apart_give_the_bits_of_direct_ones(serve, engine, inversion):
    served = serve(shared_rows=1)
    made = [
        served.submit(served.generate, PROMPT, num_inference_steps=3, seed=seed) for seed in (1, 2)
    ]
    edited = served.submit(served.edit, inversion, BLUE)
    alone = engine.generate(PROMPT, num_inference_steps=3, seed=2)
    assert torch.equal(made[1].result(60).latents, alone.latents)
    assert torch.equal(edited.result(60).latents, engine.edit(inversion, BLUE).latents)


def test_a_short_call_does_not_wait_for_a_long_one(serve):
    served = serve()
    long = long_call(served)
    served.submit(served.generate, PROMPT, num_inference_steps=2).result(60)
    assert not long.done()
    assert long.progress.step < LONG - 1


def test_direct_calls_and_submitted_ones_take_turns(serve):
    served = serve()
    long = long_call(served)
    before = long.progress.step
    served.generate(PROMPT, num_inference_steps=3)
    assert long.progress.step > before
    assert not long.done()


def test_a_cancelled_call_ends_within_one_query(serve, engine):
    gate = Gate(engine.denoiser, hold_at=3)
    served = serve(gate)
    future = served.submit(served.generate, PROMPT, num_inference_steps=LONG)
    assert gate.reached.wait(60)
    assert future.running()
    assert future.cancel()
    gate.opened.set()
    with pytest.raises(pivotal.Cancelled):
        future.result(60)
    assert future.cancelled()
    assert not future.cancel()
    assert len(gate.sizes) == 3


def test_a_cancellation_of_the_callers_own_counts_too(serve):
    served, stop = serve(), pivotal.Cancellation()
    future = long_call(served, cancellation=stop)
    stop.cancel()
    with pytest.raises(pivotal.Cancelled):
        future.result(60)


def test_a_deadline_ends_a_call_and_no_other(serve):
    served = serve()
    kept = served.submit(served.generate, PROMPT, num_inference_steps=3)
    late = served.submit(served.generate, PROMPT, num_inference_steps=LONG, deadline=0.2)
    with pytest.raises(pivotal.DeadlineExceeded, match="by its deadline"):
        late.result(60)
    assert not late.cancelled()
    assert kept.result(60).pictures


def test_the_higher_priority_ends_first_where_a_batch_is_full(serve):
    served = serve(shared_rows=2)
    first = [
        served.submit(served.generate, PROMPT, num_inference_steps=24, seed=n) for n in range(2)
    ]
    urgent = served.submit(served.generate, PROMPT, num_inference_steps=10, priority=5)
    urgent.result(60)
    assert not any(future.done() for future in first)
    for future in first:
        future.cancel()


def test_one_calls_error_reaches_no_other(serve, picture):
    class Enough(Exception):
        pass

    def callback(engine, step, timestep, tensors):
        raise Enough

    served = serve()
    good = served.submit(served.generate, PROMPT, num_inference_steps=6)
    bad = [
        served.submit(
            served.generate, PROMPT, num_inference_steps=6, callback_on_step_end=callback
        ),
        served.submit(served.invert, "no-such-picture.png", PROMPT),
        served.submit(served.invert, picture, PROMPT, method="unheard-of"),
    ]
    for future, error in zip(bad, (Enough, ValueError, ValueError), strict=True):
        with pytest.raises(error):
            future.result(60)
    assert good.result(60).pictures


def test_a_function_of_ones_own_is_one_call(serve, engine, inversion):
    served = serve()
    threads = []

    def both(target):
        threads.append(threading.current_thread())
        return served.edit(inversion, target), served.reconstruct(inversion)

    edited, back = served.submit(both, BLUE).result(60)
    assert edited.source.psnr == pytest.approx(back.psnr, abs=0.01)
    assert threads != [threading.current_thread()]
    stopped = served.submit(lambda: [served.edit(inversion, BLUE) for _ in range(LONG)])
    wait_until(lambda: stopped.progress is not None)
    stopped.cancel()
    with pytest.raises(pivotal.Cancelled):
        stopped.result(60)


def test_callbacks_may_call_the_engine_but_not_wait_for_a_submitted_call(serve):
    served, said = serve(), []

    def callback(engine, step, timestep, tensors):
        said.append(engine.generate(BLUE, num_inference_steps=1).pictures)
        with pytest.raises(RuntimeError, match="can't wait for a submitted call"):
            engine.submit(engine.generate, BLUE, num_inference_steps=1).result()
        return {}

    future = served.submit(
        served.generate, PROMPT, num_inference_steps=2, callback_on_step_end=callback
    )
    future.result(60)
    assert len(said) == 2


def test_what_a_done_callback_calls_is_no_part_of_the_call_that_ended(serve):
    served = serve()
    future, made = long_call(served), []

    def next_one(ended):
        assert ended.cancelled()
        made.append(served.generate(PROMPT, num_inference_steps=1))

    future.add_done_callback(next_one)
    future.cancel()
    wait_until(lambda: made)
    assert len(made[0].images) == 1


def test_a_direct_calls_callback_can_neither_wait_nor_be_waited_for(engine):
    """It holds the turn that the submitted call's next batch waits for."""
    served = pivotal.Engine(engine.model, engine.denoiser)
    futures = []

    def callback(engine, step, timestep, tensors):
        futures.append(engine.submit(engine.generate, BLUE, num_inference_steps=1))
        with pytest.raises(RuntimeError, match="can't wait for a submitted call"):
            futures[-1].result(60)
        if step == 1:
            engine.close()
        return {}

    made = served.generate(PROMPT, num_inference_steps=2, callback_on_step_end=callback)
    assert len(made.pictures) == 1
    with pytest.raises(pivotal.Cancelled):
        futures[-1].result(60)
    wait_until(lambda: threads_of(served) == [])


def test_wrong_arguments_are_refused_when_submitted(serve, inversion):
    served = serve()
    with pytest.raises(TypeError, match="target"):
        served.submit(served.edit, inversion)
    with pytest.raises(ValueError, match="deadline=-1"):
        served.submit(served.edit, inversion, BLUE, deadline=-1)
    with pytest.raises(ValueError, match="priority='high'"):
        served.submit(served.edit, inversion, BLUE, priority="high")
    with pytest.raises(ValueError, match="max_requests=0"):
        pivotal.Serving(max_requests=0)
    assert threads_of(served) == []


def test_more_calls_than_an_engine_takes_are_refused_until_one_has_ended(serve):
    served = serve(max_requests=2)
    first = long_call(served)
    second = long_call(served)
    with pytest.raises(pivotal.QueueFullError, match="2 calls are in progress and max_requests=2"):
        served.submit(served.generate, PROMPT)
    first.cancel()
    wait([first], timeout=60)
    third = served.submit(served.generate, PROMPT, num_inference_steps=1)
    assert third.result(60).pictures
    assert not second.done()


def test_closing_cancels_what_runs_ends_the_worker_and_refuses_more(engine):
    with pivotal.Engine(engine.model, engine.denoiser) as served:
        future = long_call(served)
        waiting = served.submit(served.generate, PROMPT, num_inference_steps=LONG)
    for each in (future, waiting):
        with pytest.raises(pivotal.Cancelled):
            each.result(0)
    assert threads_of(served) == []
    with pytest.raises(pivotal.EngineClosedError):
        served.submit(served.generate, PROMPT)
    assert served.generate(PROMPT, num_inference_steps=1).pictures  # needs no worker
    served.close()


def test_a_dropped_engine_is_collected_and_its_worker_ends(engine):
    served = pivotal.Engine(engine.model, engine.denoiser)
    served.submit(served.generate, PROMPT, num_inference_steps=1).result(60)
    worker = served._runner.service._worker
    assert worker.alive
    gone = weakref.ref(served)
    del served
    gc.collect()
    assert gone() is None
    wait_until(lambda: not worker.alive)


def test_asyncio_awaits_gathers_and_cancels_submitted_calls(serve):
    served = serve()

    async def work():
        made, others = await asyncio.gather(
            served.submit(served.generate, PROMPT, num_inference_steps=2),
            asyncio.wrap_future(served.submit(served.generate, BLUE, num_inference_steps=2)),
        )
        future = served.submit(served.generate, PROMPT, num_inference_steps=LONG)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.2)
        late = served.submit(served.generate, PROMPT, num_inference_steps=LONG, deadline=0.1)
        with pytest.raises(pivotal.DeadlineExceeded):
            await late
        return made, others, future

    made, others, future = asyncio.run(work())
    assert made.prompts + others.prompts == [PROMPT, BLUE]
    with pytest.raises(pivotal.Cancelled):
        future.result(60)


def test_random_sequences_of_submitting_cancelling_and_deadlines_leave_nothing_alive(
    engine, inversion, picture
):
    for seed in range(50):
        _random_sequence(engine, inversion, picture, random.Random(seed))


def _random_sequence(engine, inversion, picture, random):
    calls = [
        lambda served: (served.generate, (PROMPT,), {"num_inference_steps": 1}),
        lambda served: (served.generate, (PROMPT,), {"num_inference_steps": LONG}),
        lambda served: (served.edit, (inversion, BLUE), {}),
        lambda served: (served.edit, (inversion, []), {}),  # an error
        lambda served: (served.invert, (picture, PROMPT), {"num_inference_steps": LONG}),
    ]
    settings = pivotal.Serving(shared_rows=random.choice([1, 4, 16]), max_requests=5)
    served = pivotal.Engine(engine.model, engine.denoiser, serving=settings)
    served._runner._probed = True
    futures = []
    for _ in range(random.randrange(1, 8)):
        call, arguments, options = random.choice(calls)(served)
        options["deadline"] = random.choice([None, 0.001, 0.05])
        options["priority"] = random.choice([-1, 0, 3])
        try:
            futures.append(served.submit(call, *arguments, **options))
        except pivotal.QueueFullError:
            random.choice(futures).cancel()
        if random.random() < 0.3:
            random.choice(futures).cancel()
        time.sleep(random.choice([0, 0, 0.01]))
    served.close()
    assert threads_of(served) == []
    worker = served._runner.service._worker
    assert worker._driver.live == worker._joining == worker._running == []
    assert not served._runner._turns._waiting
    assert all(isinstance(f.exception(0), ValueError | pivotal.Cancelled | None) for f in futures)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told_so_and_ctrl_c_ends_a_process_that_waits(engine):
    """In a forked process, which has torch already; a call in progress outlives its exit not."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = _interrupted_while_waiting(pivotal.Engine(engine.model, engine.denoiser))
        finally:
            os._exit(code)
    limit = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the process hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 7


def _interrupted_while_waiting(served):
    """7 where a fork of this process is refused, Ctrl-C arrives and exit leaves no thread."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit._clear()  # what the tests' own process has to do at its end
    future = long_call(served)
    grandchild = os.fork()
    if grandchild == 0:
        try:
            served.submit(served.generate, PROMPT)
        except pivotal.EngineClosedError as error:
            os._exit(0 if "another process" in str(error) else 1)
        finally:
            os._exit(2)
    if os.waitpid(grandchild, 0)[1] != 0:
        return 1
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        future.result()
        return 2
    except KeyboardInterrupt:
        if future.done():
            return 3
    atexit._run_exitfuncs()  # as the interpreter's end
    return 7 if future.cancelled() and threads_of(served) == [] else 4
