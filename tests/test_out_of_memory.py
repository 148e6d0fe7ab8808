"""Out of memory: a batch is tried in halves; only a job that can't be made smaller fails."""

import weakref
from dataclasses import dataclass, field

import pytest
import torch

from pivotal.driver import drive, drive_many
from pivotal.engine import Engine
from pivotal.errors import OutOfMemoryError
from pivotal.query import Denoise
from pivotal.runtime.out_of_memory import is_out_of_memory, saying
from pivotal.schedule import NoiseLevel

LEVEL = NoiseLevel(0.5, 500.0)


@dataclass
class Cramped:
    """A denoiser on a device with room for so many rows."""

    inner: object
    room: int
    error: type = torch.OutOfMemoryError
    name: str = "cramped"
    tried: list = field(default_factory=list)

    @property
    def answers(self):
        return self.inner.answers

    def answer(self, query):
        self.tried.append(query.rows)
        if query.rows > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.inner.answer(query)


@pytest.fixture
def cramped(gaussian, levels):
    def make(room, **more):
        return Cramped(gaussian(levels), room, **more)

    return make


def asking(latents, conditioning, routes=None, times=1):
    for _ in range(times):
        noise = yield from Denoise.at(latents, LEVEL, conditioning, routes)
    return noise.eps


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_a_batch_is_halved_until_it_fits(cramped, latents, prompts, room):
    denoiser = cramped(room)
    found = drive(asking(latents(7), prompts(7)), denoiser)
    assert torch.equal(found, drive(asking(latents(7), prompts(7)), denoiser.inner))
    answered = [rows for rows in denoiser.tried if rows <= room]
    assert sum(answered) == 7


def test_what_did_not_fit_is_not_tried_again(cramped, latents, prompts):
    denoiser = cramped(4)
    drive(asking(latents(8), prompts(8), times=3), denoiser)
    assert denoiser.tried == [8, 4, 4, 4, 4, 4, 4]


def test_ties_larger_than_what_fitted_in_company_are_tried_all_the_same(
    torch_denoiser, latents, prompts, swap_routes
):
    """Single rows of many jobs were too many; a later question's tied pair may not be."""
    inner = torch_denoiser()
    routes = swap_routes(inner.unet)

    def plain_then_tied():
        yield from asking(latents(1), prompts(1))
        return (yield from asking(latents(2), prompts(2), routes))

    @dataclass
    class CrampedOnce(Cramped):
        def answer(self, query):
            self.room = 1 if not self.tried else 2
            return super().answer(query)

    denoiser = CrampedOnce(inner, 1)
    jobs = drive_many([plain_then_tied(), asking(latents(1), prompts(1))], denoiser)
    alone = drive(asking(latents(2), prompts(2), routes), inner)
    assert torch.equal(jobs[0].result(), alone)
    assert denoiser.tried == [2, 1, 1, 2]


def test_an_error_keeps_nothing_of_what_the_batch_had_allocated(cramped, latents, prompts):
    """A caller may keep the error: its traceback's frames held the network's activations."""
    allocated = []

    @dataclass
    class Hungry(Cramped):
        def answer(self, query):
            activations = torch.zeros(1000)
            allocated.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    (job,) = drive_many([asking(latents(2), prompts(2))], Hungry(cramped(1).inner, 1))
    assert isinstance(job.error, OutOfMemoryError)
    assert len(allocated) == 2
    assert [each() for each in allocated] == [None, None]


def test_jobs_in_one_batch_all_get_their_answers(cramped, latents, prompts):
    denoiser = cramped(3)
    jobs = drive_many([asking(latents(2, seed=i), prompts(2)) for i in range(4)], denoiser)
    for i, job in enumerate(jobs):
        alone = drive(asking(latents(2, seed=i), prompts(2)), denoiser.inner)
        assert torch.equal(job.result(), alone)


def test_a_row_that_does_not_fit_alone_fails_its_job_and_no_other(cramped, latents, prompts):
    small = latents(1)
    large = latents(1, side=16)

    @dataclass
    class Picky(Cramped):
        def answer(self, query):
            if query.latents.shape[-1] > 8:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return self.inner.answer(query)

    denoiser = Picky(cramped(1).inner, 1)
    jobs = drive_many([asking(large, prompts(1)), asking(small, prompts(1))], denoiser)
    with pytest.raises(OutOfMemoryError, match="with 1 row of the network at once, the fewest"):
        jobs[0].result()
    assert isinstance(jobs[0].error.__cause__, torch.OutOfMemoryError)
    assert jobs[1].result().isfinite().all()


def test_tied_rows_stay_together(torch_denoiser, latents, prompts, swap_routes):
    """[source, target] twice: halves hold a pair each, and a pair is the fewest."""
    inner = torch_denoiser()
    routes = swap_routes(inner.unet)
    pairs = type(routes).cat([routes, routes])
    denoiser = Cramped(inner, 2)
    found = drive(asking(latents(4), prompts(4), pairs), denoiser)
    alone = drive(asking(latents(4), prompts(4), pairs), inner)
    torch.testing.assert_close(found, alone)
    assert denoiser.tried == [4, 2, 2]
    with pytest.raises(OutOfMemoryError, match="with 2 rows of the network at once"):
        drive(asking(latents(2), prompts(2), routes), Cramped(inner, 1))


def test_a_cpus_allocator_is_understood_too(cramped, latents, prompts):
    class Full(RuntimeError):
        def __init__(self, message):
            super().__init__("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    denoiser = cramped(2, error=Full)
    assert drive(asking(latents(4), prompts(4)), denoiser).isfinite().all()
    assert denoiser.tried == [4, 2, 2]


def test_an_algorithm_may_catch_it_and_go_on(cramped, latents, prompts):
    def modest():
        try:
            return (yield from asking(latents(1), prompts(1)))
        except OutOfMemoryError:
            return "went on"

    assert drive(modest(), cramped(0)) == "went on"


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes differ"), saying("decoding"):
        raise RuntimeError("shapes differ")
    with (
        pytest.raises(OutOfMemoryError, match="out of memory while decoding: use a smaller"),
        saying("decoding"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_an_autoencoder_out_of_memory_is_said_in_a_sentence(monkeypatch):
    engine = Engine.load()

    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine.model.autoencoder, "decode", full)
    with pytest.raises(OutOfMemoryError, match="while decoding latents of 16 x 16: use a smaller"):
        engine.decode(torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_a_devices_other_ways_to_run_out_are_told_from_its_other_errors(error, memory):
    assert is_out_of_memory(error) is memory
