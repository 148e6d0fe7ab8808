import pytest
import torch

from pivotal.inversion.loss_reading import LossReading


def test_on_a_cpu_losses_are_there_at_once():
    losses = torch.tensor([1.0, torch.nan])
    assert LossReading(losses).values() is losses


@pytest.mark.gpu
def test_on_a_gpu_losses_arrive_while_it_works_on():
    losses = torch.arange(3, dtype=torch.float32, device="cuda").square()
    torch.cuda.synchronize()
    reading = LossReading(losses)
    torch.cuda._sleep(2_000_000_000)  # cycles: about a second
    later = torch.cuda.Event()
    later.record()
    found = reading.values()
    assert not later.query()  # not waited for
    assert found.device.type == "cpu"
    assert found.tolist() == [0.0, 1.0, 4.0]
    torch.cuda.synchronize()
