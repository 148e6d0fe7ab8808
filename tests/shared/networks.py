"""Small real networks and exact denoisers that all tests share."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

import pivotal
from pivotal.attention_routes import AttentionRoutes
from pivotal.model import load
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning, Denoise, Noise
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.sampling.steps import eps_and_x0
from pivotal.schedule import NoiseLevels, ScheduleConfig

LENGTH, WIDTH, SIDE = 7, 16, 8


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """These networks are far too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _tiny_unet(sdxl, width):
    """Cross-attention at the full and half side; attn2 scaled up, or random weights ignore text."""
    torch.manual_seed(0)
    more = {}
    if sdxl:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 12,
        }
    model = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=8,
        **more,
    )
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith((".attn1", ".attn2")):
                gain = 4.0 if name.endswith("attn2") else 2.0
                for layer in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
                    layer.weight.mul_(gain)
        model.conv_out.weight.mul_(0.4)  # or no few steps resolve so wild a field
    return model.eval()


def copy_of(network, memo):
    """A network on weights of its own, in a sixth of deepcopy's time: tests make hundreds of them.
    What else its parts hold (configurations, attention processors) both have.
    """
    if network is None or id(network) in memo:
        return memo.get(id(network))
    memo[id(network)] = mine = object.__new__(type(network))
    dicts = dict, OrderedDict  # not diffusers' own, whose copies lose their attributes
    held = {k: v.copy() if type(v) in dicts else v for k, v in vars(network).items()}
    vars(mine).update(held)
    for kind in ("_parameters", "_buffers"):
        vars(mine)[kind] = copy.deepcopy(held[kind], memo)
    vars(mine)["_modules"] = {k: copy_of(part, memo) for k, part in held["_modules"].items()}
    return mine


@pytest.fixture(scope="session")
def plain_unet():
    """`plain_unet(sdxl=.., dtype=float64, width=..)`: a fresh seeded diffusers UNet that heeds
    prompts; width: of their embeddings.
    """
    made = {}

    def make(*, sdxl=False, dtype=torch.float64, width=WIDTH):
        key = sdxl, dtype, width
        if key not in made:
            made[key] = _tiny_unet(sdxl, width).to(dtype)
        return copy_of(made[key], {})

    return make


@pytest.fixture(scope="session")
def torch_denoiser(plain_unet):
    """`torch_denoiser(prediction_type, dtype=.., sdxl=.., decode=..)` on the tiny UNet."""

    def make(prediction_type="epsilon", *, dtype=torch.float64, sdxl=False, decode=None):
        routed = RoutedUNet(plain_unet(sdxl=sdxl, dtype=dtype), word_map_downscale=2)
        return TorchDenoiser(routed, prediction_type, decode=decode)

    return make


@pytest.fixture(scope="session")
def read_once():
    """The bundled model is read once; who loads it again gets a copy of its own."""
    kept, read = {}, load.folder_parts
    bundled = Path(pivotal.__file__).parent / "bundled"

    def folder_parts(folder, *rest):
        if not folder.root.is_relative_to(bundled):
            return read(folder, *rest)
        key = str((folder, rest))
        if key not in kept:
            kept[key] = read(folder, *rest)
        memo = {}
        for network in (kept[key].unet, kept[key].autoencoder):
            copy_of(network, memo)
        return copy.deepcopy(kept[key], memo)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "folder_parts", folder_parts)
        yield


@dataclass
class GaussianDenoiser:
    """The best denoiser of N(mean, std^2) data, in closed form; it ignores its conditioning."""

    levels: NoiseLevels
    mean: float = 0.7
    std: float = 0.4
    name: str = "gaussian"
    answers: frozenset = frozenset({Denoise})

    def answer(self, query):
        """The posterior mean at the asked timestep, as a network of the config's type predicts."""
        latents, kind = query.latents, self.levels.config.prediction_type
        alpha_bar = self.levels.alpha_bar(query.timesteps)[:, None, None, None]
        signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        variance = alpha_bar * self.std**2 + 1 - alpha_bar
        residual = latents - signal * self.mean
        eps = spread * residual / variance
        x0 = self.mean + signal * self.std**2 * residual / variance
        prediction = {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - spread * x0}
        return Noise(*eps_and_x0(prediction[kind], latents, query.alpha_bars, kind))

    def flow(self, latents, start, end):
        """The probability flow's exact map of latents from one noise level to another."""
        mean, std = self.mean, self.std

        def deviation(level):
            return (level.alpha_bar * std**2 + 1 - level.alpha_bar) ** 0.5

        centred = latents - start.alpha_bar**0.5 * mean
        return end.alpha_bar**0.5 * mean + deviation(end) / deviation(start) * centred


@pytest.fixture(scope="session")
def gaussian():
    """`gaussian(levels)`: the exact denoiser of Gaussian data."""
    return GaussianDenoiser


@dataclass
class Recording:
    """A denoiser that passes everything on and keeps each batch it was asked."""

    inner: object
    batches: list = field(default_factory=list)

    @property
    def name(self):
        return self.inner.name

    @property
    def answers(self):
        return self.inner.answers

    def answer(self, query):
        self.batches.append(query)
        return self.inner.answer(query)

    @property
    def sizes(self):
        return [query.rows for query in self.batches]


@pytest.fixture(scope="session")
def recording():
    return Recording


@dataclass
class StaticBuffer:
    """A denoiser that writes every answer into the same memory, as a captured graph does."""

    inner: object
    buffers: dict = field(default_factory=dict)

    @property
    def name(self):
        return self.inner.name

    @property
    def answers(self):
        return self.inner.answers

    def answer(self, query):
        answer = self.inner.answer(query)
        static = {}
        for entry in fields(answer):
            value = getattr(answer, entry.name)
            if value is not None:
                key = (entry.name, value.shape, value.dtype)
                value = self.buffers.setdefault(key, torch.empty_like(value)).copy_(value)
            static[entry.name] = value
        return replace(answer, **static)


@pytest.fixture(scope="session")
def static_buffer():
    return StaticBuffer


@pytest.fixture(scope="session")
def sd_config():
    """SD 1.x's own schedule."""
    return ScheduleConfig(steps_offset=1, set_alpha_to_one=False)


@pytest.fixture(scope="session")
def levels(sd_config):
    return NoiseLevels(sd_config)


@pytest.fixture
def latents():
    """`latents(rows, seed=.., dtype=..)`."""

    def make(rows=1, *, seed=0, dtype=torch.float64, side=SIDE):
        generator = torch.Generator().manual_seed(100 + seed)
        return torch.randn(rows, 4, side, side, generator=generator, dtype=torch.float64).to(dtype)

    return make


@pytest.fixture
def prompts():
    """`prompts(rows, seed=.., dtype=.., length=.., sdxl=..)`: embeddings of so many prompts."""

    def make(rows=1, *, seed=0, dtype=torch.float64, length=LENGTH, sdxl=False):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        hidden_states = normal(rows, length, WIDTH)
        if not sdxl:
            return Conditioning(hidden_states)
        time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).to(dtype).repeat(rows, 1)
        return Conditioning(hidden_states, normal(rows, 12), time_ids)

    return make


@pytest.fixture(scope="session")
def swap_routes():
    """`swap_routes(unet, columns=1)`: rows [source, target]; the target borrows everything."""

    def make(unet, *, length=LENGTH, columns=1):
        routes = AttentionRoutes.identity(
            2, length, columns, len(unet.self_layers), len(unet.cross_layers)
        )
        routes.self_queries[:, 1] = 0
        routes.self_keys[:, 1] = 0
        routes.donors[1] = 0
        routes.cross_gate[:, 1] = 1
        routes.mix[1] = 0.5 * torch.eye(length)
        routes.keep[1] = 0.5
        routes.words[:, 2, :] = 1
        return routes

    return make
