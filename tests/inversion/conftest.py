"""What tests of all methods share: gentle cases on the tiny UNet, and runs there and back."""

import pytest
import torch

from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.schedule import NoiseLevels, ScheduleConfig

STEPS = 4


@pytest.fixture(scope="session")
def gentle():
    """`gentle(steps)`: ends at sigma 1.3, so that rounding hardly grows along a random network."""

    def make(steps=STEPS, **config):
        return NoiseLevels(ScheduleConfig(beta_end=0.003, steps_offset=1, **config)).schedule(steps)

    return make


@pytest.fixture(scope="session")
def calm_unet(plain_unet):
    """A fresh copy of the tiny UNet, its prediction scaled down: each step's implicit equation is
    then a contraction, as a trained network's nearly always is.
    """

    def make():
        unet = plain_unet()
        with torch.no_grad():
            unet.conv_out.weight.mul_(0.1)
        return unet

    return make


@pytest.fixture(scope="session")
def calm(calm_unet):
    """`calm()`: a denoiser on `calm_unet`."""
    return lambda: TorchDenoiser(RoutedUNet(calm_unet(), word_map_downscale=2), "epsilon")


@pytest.fixture
def case(latents, prompts):
    """`case(rows)`: latents, prompts and nulls near enough that guidance is not absurd."""

    def make(rows=1, *, dtype=torch.float64):
        z, cond = 0.5 * latents(rows), prompts(rows, seed=1).hidden_states
        null = cond + 0.1 * prompts(rows, seed=2).hidden_states
        return z.to(dtype), Conditioning(cond.to(dtype)), Conditioning(null.to(dtype))

    return make


@pytest.fixture(scope="session")
def some():
    """`some(case, rows)`: a few of a case's images."""

    def select(case, rows):
        rows = torch.tensor(rows)
        return case[0][rows], case[1].select(rows), case[2].select(rows)

    return select


@pytest.fixture(scope="session")
def there():
    """`there(method, denoiser, schedule, case, **options)`: what a module or Method inverts to."""

    def run(method, denoiser, schedule, case, options):
        return drive(method.invert(schedule, *case, options), denoiser)

    return run


@pytest.fixture(scope="session")
def back():
    """`back(method, denoiser, schedule, inverted, case, scale, options)`: sampled back."""

    def run(method, denoiser, schedule, inverted, case, scale, options, control=None):
        _, cond, null = case
        return drive(
            method.replay(schedule, inverted, cond, null, scale, control or NoEdit(), options),
            denoiser,
        )

    return run


@pytest.fixture(scope="session")
def text():
    """What stands for a prompt in a plain transcription: a float64 function of (z, t) -> eps."""

    def make(unet, conditioning):
        def eps(latents, timestep):
            with torch.no_grad():
                return unet(
                    latents, timestep, encoder_hidden_states=conditioning.hidden_states
                ).sample

        return eps

    return make


@pytest.fixture(scope="session")
def data():
    """Samples of the Gaussian that the exact denoiser knows, and a conditioning it ignores."""
    generator = torch.Generator().manual_seed(0)
    latents = 0.7 + 0.4 * torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    return latents, Conditioning(torch.zeros(1, 1, 1, dtype=torch.float64))


@pytest.fixture(scope="session")
def fine_levels():
    """A table so fine that 800 steps divide it: integer timesteps are no limit to convergence."""

    def make(kind="epsilon", count=12800):
        return NoiseLevels(
            ScheduleConfig(
                num_train_timesteps=count,
                beta_schedule="linear",
                beta_start=0.1 / count,
                beta_end=20 / count,
                timestep_spacing="trailing",
                prediction_type=kind,
            )
        )

    return make


@pytest.fixture(scope="session")
def order():
    """The slope of log error over log steps, least squares."""

    def slope(counts, values):
        x = torch.tensor(counts, dtype=torch.float64).log()
        y = torch.tensor(values, dtype=torch.float64).log()
        return (
            -((x - x.mean()) * (y - y.mean())).sum().item() / (x - x.mean()).square().sum().item()
        )

    return slope


@pytest.fixture(scope="session")
def rms():
    return lambda difference: difference.square().mean().sqrt().item()
