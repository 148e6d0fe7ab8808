import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from pivotal.engine import Engine
from pivotal.query import NoiseGradient
from pivotal.records import edit_record, generation_record, reconstruction_record
from pivotal.runtime.float32_arithmetic import float32_arithmetic
from pivotal.runtime.loss_scaling import LossScaling
from pivotal.runtime.precision import NAMED, Precision, precision_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NAMED)
def test_a_named_precision_goes_by_its_name(name):
    precision = precision_of(name)
    assert precision.name == name
    assert precision_of(precision) is precision
    assert precision.record()["autoencoder"] == "float32"


def test_a_dtype_names_the_networks():
    assert precision_of(torch.float16) == Precision(torch.float16)
    assert precision_of("torch.bfloat16") == Precision(torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": torch.int8}, "accepted are float32, bfloat16, float16, float64"),
        ({"autoencoder": torch.float16}, "autoencoder=float16 overflows .* accepted are float32"),
        ({"arithmetic": "int4"}, "accepted are plain, tf32, fp8"),
        ({"arithmetic": "tf32", "networks": torch.float16}, "for networks in float32, not float16"),
        ({"arithmetic": "fp8"}, "for networks in bfloat16, not float32"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Precision(**change)


def test_an_unknown_name_is_refused_with_the_accepted_ones():
    with pytest.raises(ValueError, match=r"dtype='half' is unknown; accepted are float32, .*fp8"):
        precision_of("half")


@pytest.mark.parametrize("name", ["tf32", "fp8"])
def test_what_a_cpu_does_not_have_is_refused_before_anything_is_loaded(name):
    with pytest.raises(ValueError, match=rf"{name} needs a CUDA device of compute capability 8"):
        Engine.load("no such model", dtype=name)


def test_tf32_is_put_back_after_an_error():
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]

    def failing():
        with float32_arithmetic(tf32=not before[0]):
            assert places[0].allow_tf32 is not before[0]
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        failing()
    assert [place.allow_tf32 for place in places] == before


NEW_FLAGS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


@pytest.fixture
def torchs_flags():
    """torch's own flags, put back after the test."""
    old = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in old], [each.fp32_precision for each in NEW_FLAGS]
    yield
    for each, value in zip(old, before[0], strict=True):
        each.allow_tf32 = value
    for each, value in zip(NEW_FLAGS, before[1], strict=True):
        each.fp32_precision = value


@pytest.mark.parametrize("asked", ["tf32", "ieee"])
@pytest.mark.parametrize("tf32", [True, False])
def test_an_application_may_use_torchs_newer_flags(asked, tf32, torchs_flags):
    for each in NEW_FLAGS[:2]:
        each.fp32_precision = asked
    before = [each.fp32_precision for each in NEW_FLAGS]
    for _ in range(2):
        with float32_arithmetic(tf32=tf32):
            inside = {each.fp32_precision for each in NEW_FLAGS}
            assert inside == {"tf32" if tf32 else "ieee"}
            # torch's compiler reads the older ones, which raise where the two disagree.
            assert torch.backends.cuda.matmul.allow_tf32 is tf32
            assert torch.backends.cudnn.allow_tf32 is tf32
        assert [each.fp32_precision for each in NEW_FLAGS] == before


def test_threads_share_the_flags_or_wait_and_the_last_puts_them_back(torchs_flags):
    before = [each.fp32_precision for each in NEW_FLAGS]
    first_in, first_out, other_in = (threading.Event() for _ in range(3))
    seen = []

    def hold(tf32, entered, leave):
        with float32_arithmetic(tf32=tf32):
            entered.set()
            leave.wait(30)
            seen.append((tf32, {each.fp32_precision for each in NEW_FLAGS}))

    second_in, second_out, other_out = (threading.Event() for _ in range(3))
    threads = [
        threading.Thread(target=hold, args=(True, first_in, first_out)),
        threading.Thread(target=hold, args=(True, second_in, second_out)),
        threading.Thread(target=hold, args=(False, other_in, other_out)),
    ]
    for thread, entered in zip(threads[:2], (first_in, second_in), strict=True):
        thread.start()
        assert entered.wait(30)
    threads[2].start()
    first_out.set()
    threads[0].join(30)
    assert not other_in.wait(0.05)  # the second still has what it asked for
    second_out.set()
    assert other_in.wait(30)
    other_out.set()
    for thread in threads:
        thread.join(30)
    assert seen == [(True, {"tf32"}), (True, {"tf32"}), (False, {"ieee"})]
    assert [each.fp32_precision for each in NEW_FLAGS] == before


def test_inside_another_context_of_the_thread_the_outer_one_holds(torchs_flags):
    with float32_arithmetic(tf32=True), float32_arithmetic(tf32=False):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize(("name", "flag"), [("float32", "ieee"), ("bfloat16", "tf32")])
def test_the_autoencoder_multiplies_as_the_precision_says_not_as_the_process(
    name, flag, torchs_flags, monkeypatch
):
    engine = Engine.load(dtype=name)
    seen = []
    for part in ("encode", "decode"):
        plain = getattr(engine.model.autoencoder, part)

        def noting(given, plain=plain):
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return plain(given)

        monkeypatch.setattr(engine.model.autoencoder, part, noting)
    for asked in ("tf32", "ieee"):
        torch.backends.cudnn.conv.fp32_precision = asked
        engine.decode(torch.zeros(1, 4, 4, 4))
        engine._runner.encode_picture(np.zeros((16, 16, 3), np.uint8))
    assert seen == [flag] * 4


def test_the_autoencoder_has_a_dtype_of_its_own():
    precision = Precision(torch.float16, autoencoder=torch.bfloat16)
    model = Engine.load(dtype=precision).model
    assert model.dtype == next(model.unet.parameters()).dtype == torch.float16
    assert next(model.text.encoders[0].parameters()).dtype == torch.float16
    assert model.autoencoder.dtype == torch.bfloat16
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model.autoencoder.decode(latents).isfinite().all()


def shown(gradient, exact):
    """Cosine, and error over size, of the whole gradient, in float64."""
    gradient, exact = gradient.double().flatten(), exact.double().flatten()
    cosine = float(gradient @ exact / gradient.norm() / exact.norm())
    return cosine, float((gradient - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def shapes_query():
    """Null-text's question at a loss of 1e-4, and float64's answer, on the bundled model."""
    engine = Engine.load(dtype="float64")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    with torch.no_grad():
        null = engine.model.text.encode(["", ""])
    query = NoiseGradient(
        latents,
        torch.tensor([801.0, 201.0]),
        engine.model.levels.alpha_bar(torch.tensor([801.0, 201.0])).double(),
        null,
        scale=torch.full((2,), 0.05),
        offset=torch.zeros_like(latents),
    )
    eps = engine.denoiser.answer(query).eps
    residual = 1e-2 * torch.randn(latents.shape, generator=generator)
    query = replace(query, offset=residual - 0.05 * eps)
    wide = replace(
        query, latents=latents.double(), scale=query.scale.double(), offset=query.offset.double()
    )
    return query, engine.denoiser.answer(wide).gradient


@pytest.mark.parametrize(
    ("name", "cosine", "error"),
    [("float32", 0.9999999, 3e-5), ("float16", 0.9995, 0.04), ("bfloat16", 0.98, 0.25)],
)
def test_the_null_embeddings_gradient_is_near_float64s(shapes_query, name, cosine, error):
    """The residual is a small difference: what it loses is eps' rounding, not the backward pass."""
    query, exact = shapes_query
    gradient = Engine.load(dtype=name).denoiser.answer(query).gradient
    assert gradient.dtype == torch.float32
    found = shown(gradient, exact)
    assert found[0] > cosine, found
    assert found[1] < error, found


def test_without_scaling_float16_has_no_gradient(shapes_query):
    query, exact = shapes_query
    unscaled = Precision(torch.float16, loss_scaling=LossScaling("static", 0))
    scaled = replace(unscaled, loss_scaling=LossScaling("static", 20))
    lost = Engine.load(dtype=unscaled).denoiser.answer(query).gradient
    kept = Engine.load(dtype=scaled).denoiser.answer(query).gradient
    assert shown(lost, exact)[1] > 0.9
    assert shown(kept, exact)[0] > 0.999


@pytest.mark.parametrize(("name", "loss"), [("float16", 0.3), ("bfloat16", 1.0)])
def test_null_text_loses_few_decibels_in_half_precision(fitted, name, loss):
    """The reconstruction's latents against float32's, at guidance 7.5."""
    assert fitted(name) > fitted("float32") - loss


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loss"), [("float16", 0.3), ("bfloat16", 1.0)])
def test_null_text_of_fifty_steps_loses_few_decibels_in_half_precision(fitted, name, loss):
    assert fitted(name, steps=50) > fitted("float32", steps=50) - loss


@pytest.fixture(scope="module")
def fitted():
    """`fitted(name, steps)`: decibels of a picture's latents after null-text and back."""
    found = {}
    scene = Engine.load().generate(
        "a red circle on a gray background",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=4,
    )

    def decibels(name, steps=2):
        if (name, steps) not in found:
            engine = Engine.load(dtype=name)
            inversion = engine.invert(
                scene.images[0],
                scene.prompts[0],
                num_inference_steps=steps,
                options={"inner_steps": 2},
            )
            seen = []
            engine.reconstruct(
                inversion,
                callback_on_step_end=lambda _, step, at, tensors: seen.append(tensors) or {},
            )
            square = (seen[-1]["latents"] - inversion.latents).square().mean()
            found[name, steps] = float(-10 * square.log10())
        return found[name, steps]

    return decibels


def test_records_say_what_ran_and_count_overflows():
    engine = Engine.load(dtype="float16")
    with torch.no_grad():
        engine.model.unet.unet.conv_in.weight.mul_(1e4)  # overflows float16, not float32
    inversion = engine.invert(
        torch.rand(3, 64, 64), "a red circle", method="ddim", num_inference_steps=2
    )
    report = inversion.report
    assert report["precision"]["networks"] == "float16"
    assert report["overflows"] == {"retried_rows": 2, "lost_rows": 0}
    edited = engine.edit(inversion, "a blue circle")
    made = engine.generate("a red circle", num_inference_steps=1)
    records = {
        8: edit_record(inversion, edited, 0, {}),  # source and target, guided, two steps
        4: reconstruction_record(inversion, engine.reconstruct(inversion)),
        2: generation_record(engine.model, made, 0, {}),
    }
    for rows, record in records.items():
        assert record["overflows"] == {"retried_rows": rows, "lost_rows": 0}
        assert (record["backend"], record["attention"]) == ("torch", "sdpa")
