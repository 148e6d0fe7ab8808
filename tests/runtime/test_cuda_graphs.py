"""Graphs of batches. On a CPU the capture is a stand-in that keeps a graph's habits: it reads and
writes fixed memory, and a replay runs what was recorded."""

import contextlib
from dataclasses import fields, replace
from unittest import mock

import pytest
import torch

from pivotal.driver import drive
from pivotal.errors import BackendError
from pivotal.query import Denoise, LossGradient, NoiseGradient
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.runtime.cuda_graphs import CudaCapture, GraphedDenoiser


class RecordedOnCpu:
    """Runs the work again at each replay, into the first run's memory."""

    def __init__(self):
        self.rows, self.replays = [], 0

    def __call__(self, work):
        static = work()
        self.rows.append(static.eps.shape[0])

        def replay():
            self.replays += 1
            again = work()
            for each in fields(static):
                if getattr(static, each.name) is not None:
                    getattr(static, each.name).copy_(getattr(again, each.name))

        return replay, static


@pytest.fixture
def graphed(torch_denoiser):
    def make(device="cpu", dtype=torch.float64, **options):
        eager = torch_denoiser(dtype=dtype, **options)
        capture = None
        if device == "cpu":
            capture = RecordedOnCpu()
        else:
            eager = type(eager)(eager.unet.to(device), "epsilon")
        return GraphedDenoiser(eager, torch.device(device), capture=capture), eager, capture

    return make


@pytest.fixture
def question(latents, prompts):
    def make(rows, seed=0, *, dtype=torch.float64, gradient=False, routes=None):
        generator = torch.Generator().manual_seed(seed)
        shared = (
            latents(rows, seed=seed, dtype=dtype),
            900 * torch.rand(rows, generator=generator),
            0.05 + 0.9 * torch.rand(rows, generator=generator, dtype=torch.float64),
            prompts(rows, seed=seed, dtype=dtype),
        )
        if not gradient:
            return Denoise(*shared, routes)
        scale = torch.rand(rows, generator=generator).to(dtype)
        return NoiseGradient(*shared, scale, latents(rows, seed=seed + 50, dtype=dtype))

    return make


def values(answer):
    found = {each.name: getattr(answer, each.name) for each in fields(answer)}
    return {name: value for name, value in found.items() if value is not None}


def three_kinds(question, routes, seed, dtype=torch.float64):
    return [
        question(2, seed, dtype=dtype),
        question(2, seed, dtype=dtype, routes=routes),
        question(2, seed, dtype=dtype, gradient=True),
    ]


def test_replays_answer_every_later_query_as_the_network_does(graphed, question, swap_routes):
    denoiser, eager, capture = graphed()
    routes = swap_routes(eager.unet, columns=2)
    for seed in range(3):
        for query in three_kinds(question, routes, seed):
            torch.testing.assert_close(
                values(denoiser.answer(query)), values(eager.answer(query)), rtol=1e-9, atol=1e-9
            )
    assert capture.rows == [2, 2, 2]  # one graph a kind
    assert capture.replays == 9


def test_an_answer_is_never_the_graphs_memory(graphed, question, swap_routes):
    denoiser, eager, _ = graphed()
    routes = swap_routes(eager.unet, columns=2)
    firsts = [denoiser.answer(query) for query in three_kinds(question, routes, 0)]
    kept = [{name: value.clone() for name, value in values(each).items()} for each in firsts]
    for query in three_kinds(question, routes, 5):
        denoiser.answer(query)
    for first, before in zip(firsts, kept, strict=True):
        torch.testing.assert_close(values(first), before, rtol=0, atol=0)


def test_a_query_is_copied_and_never_kept(graphed, question):
    denoiser, eager, _ = graphed()
    query = question(2)
    denoiser.answer(query)
    expected = eager.answer(question(2, 1)).eps
    query.latents.fill_(torch.nan)
    torch.testing.assert_close(denoiser.answer(question(2, 1)).eps, expected, rtol=1e-9, atol=1e-9)


def test_the_largest_batch_is_captured_first(graphed, question):
    denoiser, _, capture = graphed()
    denoiser.capture([question(1), question(4), question(2)])
    assert capture.rows == [4, 2, 1]


def test_buckets_bound_the_number_of_graphs(graphed, question):
    denoiser, eager, capture = graphed()
    bucketed = BucketedDenoiser(denoiser, Buckets((2, 4)), eager.unet.layers)
    for rows in (1, 2, 3, 4, 5, 7):
        query = question(rows, rows)
        torch.testing.assert_close(
            values(bucketed.answer(query)), values(eager.answer(query)), rtol=1e-8, atol=1e-9
        )
    assert sorted(capture.rows) == [2, 4]


def test_a_users_loss_is_not_captured(graphed, question):
    denoiser, _, _ = graphed(decode=lambda z: z[:, :3].sigmoid())
    assert denoiser.answers == {Denoise, NoiseGradient}
    plain = question(1)
    query = LossGradient(
        plain.latents, plain.timesteps, plain.alpha_bars, plain.conditioning, lambda images: images
    )
    with pytest.raises(TypeError, match="LossGradient"):
        denoiser.answer(query)


def test_what_can_not_be_captured_says_what_to_switch_off(torch_denoiser, question):
    def waiting(work):
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    denoiser = GraphedDenoiser(torch_denoiser(), torch.device("cpu"), capture=waiting)
    with pytest.raises(BackendError, match=r"capturing\); switch graphs off with .*cuda_graphs="):
        denoiser.answer(question(2))


@pytest.mark.parametrize(
    "reason", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"]
)
def test_a_capture_without_memory_is_tried_in_smaller_batches(
    graphed, torch_denoiser, question, reason
):
    capture, tried = RecordedOnCpu(), []

    def crowded(work):
        static = work()
        tried.append(static.eps.shape[0])
        if tried[-1] > 2:
            raise RuntimeError(reason)
        return capture(work)

    eager = torch_denoiser(dtype=torch.float64)
    denoiser = GraphedDenoiser(eager, torch.device("cpu"), capture=crowded)
    found = drive(iter(question(4)), denoiser)
    assert tried == [4, 2]
    torch.testing.assert_close(values(found), values(eager.answer(question(4))), rtol=0, atol=1e-9)


def test_all_captures_are_on_one_stream_whose_memory_they_share(monkeypatch):
    cuda, captured, nothing = torch.cuda, [], contextlib.nullcontext
    monkeypatch.setattr(cuda, "Stream", mock.MagicMock)
    monkeypatch.setattr(cuda, "CUDAGraph", mock.MagicMock)
    for name in ("device", "stream"):
        monkeypatch.setattr(cuda, name, lambda *_: nothing())
    for name in ("current_stream", "graph_pool_handle"):
        monkeypatch.setattr(cuda, name, mock.MagicMock())
    monkeypatch.setattr(
        cuda, "graph", lambda _, pool, stream, **__: captured.append((pool, stream)) or nothing()
    )
    capture = CudaCapture(torch.device("cuda"))
    for _ in range(3):
        capture(lambda: None)
    assert len(captured) == 3
    assert all(each == captured[0] for each in captured)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_captured_graphs_answer_as_the_network_does(graphed, question, swap_routes, dtype):
    denoiser, eager, _ = graphed("cuda", dtype)
    routes = swap_routes(eager.unet, columns=2)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for seed in range(3):
        for query in three_kinds(question, routes, seed, torch.float32):
            on_device = query.to("cuda")
            if getattr(query, "routes", None) is not None:
                on_device = replace(on_device, routes=query.routes.to("cuda"))
            torch.testing.assert_close(
                values(denoiser.answer(on_device)),
                values(eager.answer(on_device)),
                rtol=tolerance,
                atol=tolerance,
            )


@pytest.mark.gpu
def test_a_smaller_batchs_graph_fits_into_the_memory_of_a_larger_ones(graphed, question):
    denoiser, _, _ = graphed("cuda", torch.float32)
    taken = []
    for rows in (16, 8, 4):
        before = torch.cuda.memory_reserved()
        denoiser.capture([question(rows, dtype=torch.float32).to("cuda")])
        torch.cuda.empty_cache()
        taken.append(torch.cuda.memory_reserved() - before)
    assert max(taken[1:]) < taken[0] / 4


@pytest.mark.gpu
def test_a_replay_allocates_nothing_but_its_answer(graphed, question):
    denoiser, _, _ = graphed("cuda", torch.float32)
    query = question(4, dtype=torch.float32).to("cuda")
    denoiser.answer(query)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    answer = denoiser.answer(query)
    torch.cuda.synchronize()
    own = sum(value.numel() * value.element_size() for value in values(answer).values())
    assert torch.cuda.max_memory_allocated() - before <= 2 * own + 4096
