import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pivotal.bench.limits import Ceilings, Counted, count
from pivotal.bench.memory import peak_bytes

CPU = torch.device("cpu")


def test_products_convolutions_and_the_cpus_attention_are_counted():
    a, b = torch.randn(8, 16), torch.randn(16, 32)
    assert count(lambda: a @ b).flops == 2 * 8 * 16 * 32
    image, kernel = torch.randn(2, 3, 10, 10), torch.randn(5, 3, 3, 3)
    flops = count(lambda: torch.conv2d(image, kernel, padding=1)).flops
    assert flops == 2 * 2 * 5 * 100 * 3 * 9
    q, k = torch.randn(2, 4, 64, 32), torch.randn(2, 4, 7, 32)
    with torch.no_grad():
        flops = count(lambda: scaled_dot_product_attention(q, k, k)).flops
    assert flops == 2 * 2 * (2 * 4 * 64 * 7 * 32)


def test_gradients_are_counted_too():
    a, b = torch.randn(8, 16), torch.randn(16, 32, requires_grad=True)
    once = count(lambda: a @ b).flops
    assert count(lambda: torch.autograd.grad((a @ b).sum(), b)).flops == 2 * once


def test_bytes_are_what_operations_move_and_least_what_must_be():
    a = torch.randn(100)
    work = count(lambda: (a + 1).view(10, 10) * 2)
    assert work.moved_bytes == 4 * 400  # a read, a + 1 written and read, the product written
    assert work.least_bytes == 2 * 400


def test_the_unets_flops_grow_with_its_rows(torch_denoiser, latents, prompts, levels):
    from pivotal.query import Denoise

    denoiser, level = torch_denoiser(dtype=torch.float32), levels.schedule(4).levels[2]

    def flops(rows):
        asked = Denoise.at(
            latents(rows, dtype=torch.float32), level, prompts(rows, dtype=torch.float32)
        )
        with torch.no_grad():
            return count(lambda: denoiser.answer(asked)).flops

    assert flops(4) == 4 * flops(1) > 1e6


def test_the_roofline_is_the_nearer_of_two_bounds():
    ceilings = Ceilings(1e9, 1e8)
    assert ceilings.least_seconds(Counted(10**9, 0, 10)) == pytest.approx(1)
    assert ceilings.least_seconds(Counted(10, 0, 10**9)) == pytest.approx(10)


def test_peak_memory_is_what_was_there_at_once():
    def run():
        big = torch.empty(1_000_000)
        del big
        return torch.empty(500_000)

    assert peak_bytes(run, CPU) == pytest.approx(4_000_000, rel=0.01)
