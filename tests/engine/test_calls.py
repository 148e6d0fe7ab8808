"""What every call offers: callbacks, cancellation, safety from several threads."""

import signal
import threading

import numpy as np
import pytest
import torch

import pivotal

PROMPT = "a red circle on a gray background"
BLUE = "a blue circle on a gray background"
STEPS = 4


class Exclusive:
    """Passes everything on, and notes whether two threads ever asked at once."""

    def __init__(self, inner):
        self.name, self.answers, self.inner = inner.name, inner.answers, inner
        self.inside = threading.Lock()
        self.met = False

    def answer(self, query):
        if not self.inside.acquire(blocking=False):
            self.met = True
            return self.inner.answer(query)
        try:
            return self.inner.answer(query)
        finally:
            self.inside.release()


def test_threads_take_turns(engine, inversion):
    expected = engine.edit(inversion, BLUE).pictures[0]
    denoiser = Exclusive(engine.denoiser)
    shared = pivotal.Engine(engine.model, denoiser)  # fresh: its first edit probes as well
    results = [None] * 2

    def work(index):
        results[index] = shared.edit(inversion, BLUE).pictures[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not denoiser.met
    assert all(np.array_equal(result, expected) for result in results)


class Counting:
    """Passes everything on, counts the calls, and does something at the nth."""

    def __init__(self, inner, at, act):
        self.name, self.answers, self.inner = inner.name, inner.answers, inner
        self.at, self.act, self.calls = at, act, 0

    def answer(self, query):
        self.calls += 1
        if self.calls == self.at:
            self.act()
        return self.inner.answer(query)


CALLS = {
    "invert": lambda engine, inversion, picture, **more: engine.invert(
        picture, PROMPT, num_inference_steps=STEPS, options={"inner_steps": 1}, **more
    ),
    "invert_many": lambda engine, inversion, picture, **more: engine.invert_many(
        [picture, picture[:, ::-1]], PROMPT, method="ddim", num_inference_steps=STEPS,
        max_rows=1, **more,
    ),
    "reconstruct": lambda engine, inversion, picture, **more: engine.reconstruct(
        inversion, **more
    ),
    "edit_many": lambda engine, inversion, picture, **more: engine.edit_many(
        inversion, [BLUE], **more
    ),
    "generate": lambda engine, inversion, picture, **more: engine.generate(
        PROMPT, num_inference_steps=STEPS, **more
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_cancelled_call_asks_the_network_nothing_more(engine, inversion, picture, call):
    cancellation = pivotal.Cancellation()
    denoiser = Counting(engine.denoiser, 3, cancellation.cancel)
    counted = pivotal.Engine(engine.model, denoiser)
    counted._runner._probed = True  # its one call is not the call's own
    with pytest.raises(pivotal.Cancelled):
        CALLS[call](counted, inversion, picture, cancellation=cancellation)
    assert denoiser.calls == 3  # the one that ran while it was cancelled was the last
    CALLS[call](counted, inversion, picture)
    assert denoiser.calls > 3 + 3


@pytest.mark.parametrize("call", CALLS)
def test_a_call_cancelled_beforehand_never_begins(engine, inversion, picture, call):
    cancellation = pivotal.Cancellation()
    cancellation.cancel()
    before = engine.denoiser.rows_forward
    with pytest.raises(pivotal.Cancelled):
        CALLS[call](engine, inversion, picture, cancellation=cancellation)
    assert engine.denoiser.rows_forward == before


def test_a_call_that_waits_for_another_can_be_cancelled(engine, inversion):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        inside.set()
        assert leave.wait(60)

    busy = pivotal.Engine(engine.model, Counting(engine.denoiser, 1, hold))
    first = threading.Thread(target=busy.reconstruct, args=(inversion,))
    first.start()
    assert inside.wait(60)
    cancellation = pivotal.Cancellation()
    timer = threading.Timer(0.1, cancellation.cancel)
    timer.start()
    try:
        with pytest.raises(pivotal.Cancelled):
            busy.generate(PROMPT, num_inference_steps=1, cancellation=cancellation)
        assert first.is_alive()
    finally:
        leave.set()
        first.join()
        timer.join()


@pytest.mark.parametrize("call", CALLS)
def test_an_interrupted_engine_goes_on_working(engine, inversion, picture, call):
    denoiser = Counting(engine.denoiser, 2, lambda: signal.raise_signal(signal.SIGINT))
    interrupted = pivotal.Engine(engine.model, denoiser)
    with pytest.raises(KeyboardInterrupt):
        CALLS[call](interrupted, inversion, picture)
    after = []
    thread = threading.Thread(  # the lock is free for others too
        target=lambda: after.append(interrupted.reconstruct(inversion, guidance_scale=1.0))
    )
    thread.start()
    thread.join(60)
    assert np.array_equal(
        after[0].picture, engine.reconstruct(inversion, guidance_scale=1.0).picture
    )


def test_a_short_call_does_not_wait_for_all_of_a_long_one(engine, inversion):
    ended, begun = [], threading.Event()

    def long():
        engine.generate(PROMPT, num_inference_steps=12, on_progress=lambda notice: begun.set())
        ended.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    assert begun.wait(60)
    engine.reconstruct(inversion, guidance_scale=1.0)
    ended.append("short")
    thread.join()
    assert ended == ["short", "long"]


def test_many_kinds_of_calls_from_four_threads_equal_serial_ones(engine, inversion, picture):
    work = [
        lambda: engine.edit(inversion, BLUE).latents,
        lambda: engine.generate(PROMPT, num_inference_steps=3, seed=5).latents,
        lambda: (
            engine.invert(picture, PROMPT, method="ddim", num_inference_steps=STEPS).inverted.noise
        ),
        lambda: torch.from_numpy(engine.reconstruct(inversion).picture),
    ]
    serial = [each() for each in work]
    results = [None] * 4

    def run(index):
        results[index] = work[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, result in enumerate(results):
        assert torch.equal(result, serial[index])


@pytest.mark.parametrize("call", ["reconstruct", "edit_many", "generate"])
def test_the_callback_hears_each_step_as_diffusers_tells_it(engine, inversion, picture, call):
    heard = []

    def callback(told, step, timestep, tensors):
        assert told is engine
        heard.append((step, timestep, tensors["latents"].shape[0]))
        return {}

    CALLS[call](engine, inversion, picture, callback_on_step_end=callback)
    rows = 2 if call == "edit_many" else 1
    timesteps = [int(timestep) for timestep in inversion.schedule["timesteps"]]
    assert heard == [(step, timesteps[step], rows) for step in range(STEPS)]
    assert all(type(timestep) is int for _, timestep, _ in heard)


def test_the_last_latents_that_a_callback_hears_are_the_result(engine, inversion):
    heard = []

    def callback(_, step, timestep, tensors):
        heard.append(tensors["latents"].clone())
        return tensors

    edited = engine.edit(inversion, BLUE, callback_on_step_end=callback)
    assert torch.equal(heard[-1], edited.latents)
    assert torch.equal(edited.latents, engine.edit(inversion, BLUE).latents)


def test_a_callback_may_change_the_latents(engine, inversion):
    def callback(_, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else {}

    edited = engine.edit(inversion, BLUE, callback_on_step_end=callback)
    assert float(edited.latents.abs().max()) == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "returned NoneType; a dict is expected"),
        ({"prompt_embeds": 1}, "prompt_embeds"),
        ({"latents": torch.zeros(1)}, r"latents \[1\] at step 0; \[1, 4, 16, 16\] are expected"),
        ({"latents": 3}, "latents int"),
    ],
)
def test_a_callbacks_wrong_answer_is_named(engine, answer, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(PROMPT, num_inference_steps=2, callback_on_step_end=lambda *told: answer)


def test_what_a_callback_raises_ends_the_call_and_nothing_else(engine, inversion):
    class Enough(Exception):
        pass

    def callback(_, step, timestep, tensors):
        if step == 1:
            raise Enough
        return {}

    before = engine.denoiser.rows_forward
    with pytest.raises(Enough):
        engine.edit(inversion, BLUE, callback_on_step_end=callback)
    assert engine.denoiser.rows_forward - before == 2 * 4  # two steps of four rows
    assert engine.edit(inversion, BLUE).pictures


def test_a_callback_may_call_the_engine(engine, inversion):
    previews = []

    def callback(called, step, timestep, tensors):
        previews.extend(called.decode(tensors["latents"]))
        if step == 0:
            called.reconstruct(inversion, guidance_scale=1.0)
        return {}

    edited = engine.edit(inversion, BLUE, callback_on_step_end=callback)
    assert len(previews) == 2 * STEPS
    assert np.array_equal(np.asarray(previews[-1]), edited.pictures[0])


def test_a_listener_that_raises_ends_the_call(engine, inversion):
    def listener(notice):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        engine.reconstruct(inversion, on_progress=listener)
