"""What is counted before a run is what the allocator hands out in it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pivotal.engine import Engine
from pivotal.errors import MemoryLimitError
from pivotal.inversion.registry import METHODS
from pivotal.model.families import FAMILIES
from pivotal.model.load import load
from pivotal.model.networks import empty_unet
from pivotal.model.random_weights import RandomWeights
from pivotal.model.unet import RoutedUNet
from pivotal.planning import Planner, rehearsed
from pivotal.query import Conditioning, Denoise, NoiseGradient
from pivotal.runtime.memory_count import AllocationCount, Moment, Peak
from pivotal.runtime.memory_plan import MemoryPlan, NetworkMemory
from pivotal.runtime.precision import Precision
from pivotal.runtime.torch_denoiser import TorchDenoiser

SOURCE, TARGET = "a red circle on a gray background", "a blue circle on a gray background"


def measured_bytes(run):
    """The most bytes that the CPU's allocator had handed out at once, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    live = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        live += size
        peak = max(peak, live)
    return peak


def questions(rows, shape, length, width, time_ids=0):
    """A forward pass and a gradient of so many rows."""
    conditioning = Conditioning(torch.randn(rows, length, width))
    if time_ids:
        conditioning = Conditioning(
            conditioning.hidden_states, torch.randn(rows, time_ids), torch.ones(rows, 6)
        )
    asked = Denoise(
        torch.randn(rows, *shape),
        torch.full((rows,), 500.0),
        torch.full((rows,), 0.5, dtype=torch.float64),
        conditioning,
    )
    return asked, NoiseGradient(
        asked.latents,
        asked.timesteps,
        asked.alpha_bars,
        conditioning,
        scale=torch.ones(rows),
        offset=torch.zeros_like(asked.latents),
    )


def test_storages_are_counted_until_they_are_let_go():
    with AllocationCount() as count:
        first = torch.ones(1000)
        view = first[:10]
        second = first + 1
        del first
        assert count.live == 8000  # the view keeps its whole storage
        del view
        second.mul_(2)
        assert count.live == 4000
    assert count.peak(1) == 8000


@torch.no_grad()
def test_a_convolutions_weights_are_copied_once_for_all_rows():
    """The second convolution has more weights than pixels: two rows need the most there, many in
    the first; one row is convolved without a copy.
    """
    wide, deep = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 5000, 1)
    with AllocationCount() as count:
        deep(torch.nn.functional.adaptive_avg_pool2d(wide(torch.ones(1, 1, 16, 16)), 1))
    peak = count.peak
    picture, weights, made = 16 * 16 * 4, 4 * 5000 * 4, 5000 * 4  # bytes
    assert made <= peak(1) < weights
    assert weights + 2 * made <= peak(2) < 1.1 * (weights + 2 * made)
    assert peak(100) - peak(99) == peak.row
    for rows in (1, 2, 7, 100):
        assert peak.within(peak(rows)) == rows
    assert peak.within(picture) == 0


@pytest.fixture(scope="module")
def shapes():
    return Engine.load()


@pytest.fixture(scope="module")
def networks(shapes):
    """`networks[checkpointed]`: the counts, made once for all tests."""
    return {
        wanted: Planner.of(shapes.model, None, gradient_checkpointing=wanted).networks
        for wanted in (False, True)
    }


@pytest.fixture
def limited(shapes, networks, recording):
    """`limited(limit)`: an engine with a limit, and what its network was asked."""

    def make(limit):
        denoiser = recording(shapes.denoiser)
        engine = Engine(shapes.model, denoiser, memory_limit=limit)
        assert engine._runner.planner.limit == limit
        engine._runner.planner = Planner(networks[False], limit)  # counted already
        return engine, denoiser

    return make


@pytest.mark.parametrize("checkpointed", [False, True])
def test_rows_need_what_the_allocator_hands_out(shapes, networks, checkpointed):
    shapes.model.unet.checkpoint_gradients(checkpointed)
    denoiser = TorchDenoiser(shapes.model.unet, "epsilon")
    with torch.no_grad():
        for rows in (3,) if checkpointed else (1, 3):
            denoise, gradient = questions(rows, (4, 16, 16), 77, 128)
            denoiser.answer(gradient)  # what a first call sets up once is not the row's
            forward = measured_bytes(lambda asked=denoise: denoiser.answer(asked))
            backward = measured_bytes(lambda asked=gradient: denoiser.answer(asked))
            counted = networks[False].denoise((4, 16, 16))
            assert counted(rows) == pytest.approx(forward, rel=0.15)
            counted = networks[checkpointed].gradient((4, 16, 16), "hidden_states")
            assert counted(rows) == pytest.approx(backward, rel=0.15)
    shapes.model.unet.checkpoint_gradients(False)


def test_the_autoencoder_and_the_weights_need_what_they_take(shapes, networks):
    vae = shapes.model.autoencoder
    picture, latents = torch.randn(1, 3, 64, 64), torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        vae.decode(latents)
        most = max(
            measured_bytes(lambda: vae.encode(picture)), measured_bytes(lambda: vae.decode(latents))
        )
    assert networks[False].autoencode((64, 64)) == pytest.approx(most, rel=0.15)
    parts = (shapes.model.unet, vae.vae, *shapes.model.text.encoders)
    held = sum(p.numel() * p.itemsize for part in parts for p in part.parameters())
    assert networks[False].weights() == pytest.approx(held, rel=0.001)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_weights_and_rows_need_what_was_counted():
    """SD 1.5 in float16 at 512 x 512, four rows: the network alone is on the device."""
    model, device, latents = load("random:sd1", dtype="float16"), torch.device("cuda"), (4, 64, 64)
    networks = Planner.of(model, None).networks
    denoiser = TorchDenoiser(model.unet.to(device), "epsilon")
    counts = networks.denoise(latents), networks.gradient(latents, "hidden_states")
    for asked, counted in zip(questions(4, latents, 77, 768), counts, strict=True):
        query = asked.to(device)
        denoiser.answer(query)  # what a first call sets up once is not the rows'
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        denoiser.answer(query)
        peak = torch.cuda.max_memory_allocated()
        assert held + counted(4) == pytest.approx(peak, rel=0.15)


def test_half_precision_halves_weights_and_rows(shapes, networks):
    whole = networks[False]
    half = NetworkMemory(whole.configs, whole.family, Precision(torch.float16))
    autoencoder = sum(p.numel() * 4 for p in shapes.model.autoencoder.vae.parameters())
    assert 2 * (half.weights() - autoencoder) == pytest.approx(
        whole.weights() - autoencoder, rel=0.01
    )
    assert half.denoise((4, 16, 16))(2) < 0.7 * whole.denoise((4, 16, 16))(2)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_says_how_many_rows_it_asks_at_once(method, levels):
    asked = rehearsed(method, method.options_from({}), levels.schedule(4))
    assert asked[None] >= 1
    if method.name == "null-text-parallel":
        assert asked == {None: 4, "hidden_states": 4}
    if method.name == "null-text":
        assert asked == {None: 1, "hidden_states": 1}


def plan(**change):
    figures = {
        "job": "inverting",
        "weights": 1000,
        "batch": Peak((Moment(100, 0, 1),)),
        "rows": 8,
        "least": 1,
        "state": 50,
        "autoencoder": 300,
        "limit": None,
    }
    return MemoryPlan(**{**figures, **change})


@pytest.mark.parametrize(
    ("limit", "rows", "peak"), [(None, 8, 1850), (1900, 8, 1850), (1700, 6, 1650), (1360, 3, 1350)]
)
def test_rows_are_as_many_as_fit(limit, rows, peak):
    found = plan(limit=limit)
    assert found.fits
    assert found.require() == found.rows_at_once == rows
    assert found.peak() == peak


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 1100},  # no row
        {"limit": 1340},  # a row, but no picture
        {"limit": 1400, "least": 4},  # not the rows that an edit ties
        {"limit": 900},  # not the weights
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(change):
    found = plan(**change)
    assert not found.fits
    with pytest.raises(MemoryLimitError, match=r"inverting needs .* of memory .* and may use"):
        found.require()


@pytest.mark.parametrize("limit", [0, -1, 1.5, "8GB"])
def test_a_limit_is_a_number_of_bytes(shapes, limit):
    with pytest.raises(ValueError, match=r"memory_limit=.*; bytes, 'auto' or None are possible"):
        Engine(shapes.model, memory_limit=limit)


def test_an_engine_asks_for_as_many_rows_as_fit_and_gets_the_same(shapes, limited):
    def made(engine):
        return engine.generate(
            [SOURCE, TARGET], num_inference_steps=2, guidance_scale=3.0, output_type="latent"
        ).images

    unlimited, _ = limited(10**12)
    need = unlimited.plan(None, images=2)
    assert need.rows == 4
    tight, denoiser = limited(need.weights + need.state + max(need.autoencoder, need.batch(3)))
    fit = tight.plan(None, images=2).rows_at_once
    assert 1 <= fit < 4
    torch.testing.assert_close(made(tight), made(shapes), rtol=1e-4, atol=1e-4)
    assert max(denoiser.sizes) == fit


def test_an_engine_edits_fewer_targets_at_once_where_memory_is_short(shapes, limited):
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    inversion = shapes.invert(picture, SOURCE, method="ddim", num_inference_steps=2)
    targets = [TARGET, "a green circle on a gray background"]
    need = limited(10**12)[0].plan(None, targets=2)
    assert (need.rows, need.least) == (6, 2)
    tight, denoiser = limited(need.peak(2))
    found = tight.edit(inversion, targets, guidance_scale=2.0)
    alike = shapes.edit(inversion, targets, guidance_scale=2.0)
    torch.testing.assert_close(found.latents, alike.latents, rtol=1e-3, atol=1e-3)
    assert max(denoiser.sizes[1:]) == tight.plan(None, targets=1).rows_at_once < need.rows
    assert len(found.pictures) == 2


def test_an_engine_refuses_what_can_not_fit_before_it_runs(networks, limited):
    tight, denoiser = limited(networks[False].weights() + 1000)
    picture = torch.rand(3, 64, 64)
    with pytest.raises(MemoryLimitError, match=r"inverting an image of 64 x 64 by ddim"):
        tight.invert(picture, SOURCE, method="ddim", num_inference_steps=2)
    with pytest.raises(MemoryLimitError, match=r"generating 1 of 64 x 64"):
        tight.generate(SOURCE, num_inference_steps=2)
    assert denoiser.sizes == []


def test_plans_of_jobs(limited):
    engine, _ = limited(None)
    one, four = engine.plan(images=1), engine.plan(images=4)
    assert (one.rows, four.rows) == (1, 4)
    assert one.row == four.row > engine.plan("ddim").row
    assert engine.plan("ddim", options={"guidance_scale": 4.0}).rows == 2
    with pytest.raises(ValueError, match="targets=1 beside a method"):
        engine.plan(targets=1)
    with pytest.raises(ValueError, match="images=0; at least 1"):
        engine.plan(images=0)


def test_a_checkpointed_gradient_is_the_same_in_fewer_bytes(shapes):
    _, gradient = questions(2, (4, 16, 16), 77, 128)
    denoiser = TorchDenoiser(shapes.model.unet, "epsilon")
    answers, bytes_ = [], []
    for wanted in (False, True):
        shapes.model.unet.checkpoint_gradients(wanted)
        answers.append(denoiser.answer(gradient))
        bytes_.append(measured_bytes(lambda: denoiser.answer(gradient)))
    shapes.model.unet.checkpoint_gradients(False)
    torch.testing.assert_close(answers[1].gradient, answers[0].gradient, rtol=1e-5, atol=1e-9)
    assert torch.equal(answers[1].loss, answers[0].loss)
    assert bytes_[1] < 0.7 * bytes_[0], bytes_


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "backward"),
    [("sd1", 64, True), ("sd1", 32, False), ("sd2", 32, False), ("sdxl", 32, False)],
)
def test_the_true_architectures_need_what_was_counted(name, side, backward):
    """SD 1.5 at 512 x 512, all at 256 x 256, where a copy of one convolution's weights is more
    than all activations.
    """
    family = FAMILIES[name]
    published = family.architecture
    configs = {
        "unet": published.unet,
        "vae": published.autoencoder,
        "text_encoder": published.text_encoders[0],
        "text_encoder_2": published.text_encoders[-1],
    }
    networks = NetworkMemory(configs, family, Precision())
    unet = empty_unet(published.unet)
    RandomWeights(0).fill(unet, device=torch.device("cpu"), dtype=torch.float32)
    denoiser = TorchDenoiser(
        RoutedUNet(unet, word_map_downscale=family.word_map_downscale), "epsilon"
    )
    width, pooled = published.unet["cross_attention_dim"], 1280 if family.time_ids else 0
    with torch.no_grad():
        for rows in (1, 2):
            denoise, gradient = questions(rows, (4, side, side), 77, width, pooled)
            forward = measured_bytes(lambda asked=denoise: denoiser.answer(asked))
            assert networks.denoise((4, side, side))(rows) == pytest.approx(forward, rel=0.15)
        if backward:
            whole = measured_bytes(lambda: denoiser.answer(gradient))
            counted = networks.gradient((4, side, side), "hidden_states")(2)
            assert counted == pytest.approx(whole, rel=0.15)
