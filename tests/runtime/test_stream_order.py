"""Streams that share memory take turns on it."""

import pytest
import torch

from pivotal.runtime.stream_order import StreamOrder


def test_a_cpu_has_nothing_to_order():
    order, ran = StreamOrder(torch.device("cpu")), []
    for turn in range(2):
        with order.turn():
            ran.append(turn)
    assert ran == [0, 1]


@pytest.mark.gpu
def test_a_stream_reads_what_another_wrote_in_the_turn_before():
    device = torch.device("cuda")
    order, shared = StreamOrder(device), torch.zeros(1 << 20, device=device)
    streams = [torch.cuda.Stream(device) for _ in range(2)]
    torch.cuda.synchronize()
    read = []
    for value in range(1, 5):
        writer, reader = streams if value % 2 else streams[::-1]
        with torch.cuda.stream(writer), order.turn():
            torch.cuda._sleep(10_000_000)  # cycles: a reader that did not wait would be early
            shared.fill_(value)
        with torch.cuda.stream(reader), order.turn():
            read.append(shared.clone())
    torch.cuda.synchronize()
    assert [each.unique().tolist() for each in read] == [[1.0], [2.0], [3.0], [4.0]]


@pytest.mark.gpu
def test_inside_a_capture_no_event_is_waited_for():
    device = torch.device("cuda")
    order, value = StreamOrder(device), torch.ones(4, device=device)
    with order.turn():
        value += 1
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), order.turn():
        value += 1
    graph.replay()
    torch.cuda.synchronize()
    assert value.tolist() == [3.0] * 4
