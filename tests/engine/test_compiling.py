"""Which network code an engine runs is the caller's choice, and the record says it."""

import pytest
import torch

import pivotal
from pivotal.records import inversion_record
from pivotal.runtime.buckets import Buckets
from pivotal.runtime.compiled_unet import CompileOptions

PROMPT, TARGET = "a red circle on a gray background", "a blue circle on a gray background"


def test_the_record_says_what_ran(inversion, engine):
    assert inversion.report["backend"] == "torch"
    assert inversion.report["attention"] == "sdpa"
    record = inversion_record(inversion, engine.reconstruct(inversion))
    assert record["backend"] == "torch"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("flash", "attention='flash' is unknown; accepted are auto"), ("xformers", "xformers needs")],
)
def test_an_attention_that_can_not_serve_is_refused_when_loading(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        pivotal.Engine.load("shapes", attention=name)


def test_a_named_attention_runs_every_routed_layer(trained_inversion, trained):
    explicit = pivotal.Engine.load("shapes", attention="reference")
    assert explicit.model.unet.attention == "reference"
    by_maps = explicit.edit(trained_inversion, TARGET)
    fused = trained.edit(trained_inversion, TARGET)
    torch.testing.assert_close(by_maps.latents, fused.latents, rtol=1e-3, atol=1e-3)
    assert not torch.equal(by_maps.latents, fused.latents)


def test_warm_up_asks_every_kind_of_batch_and_probes(engine):
    seconds = engine.warm_up(rows=(2,))
    assert list(seconds) == ["plain, 2 rows", "routed, 2 rows", "gradient, 2 rows", "probe"]
    with pytest.raises(ValueError, match=r"rows=\[\]"):
        engine.warm_up(rows=())


@pytest.mark.slow
def test_a_compiled_engine_gives_what_the_eager_one_gives(trained, trained_inversion, picture):
    options = CompileOptions(Buckets((1, 4)), regional=True, backend="eager")
    compiled = pivotal.Engine.load("shapes", compile=options)
    compiled.warm_up(rows=(1, 4))
    with torch.compiler.set_stance("fail_on_recompile"):
        again = compiled.invert(picture, PROMPT, method="ddim", num_inference_steps=4)
        edited = compiled.edit(trained_inversion, TARGET, blend="auto")
    assert again.report["backend"] == "compiled"
    noise = (again.inverted.noise, trained_inversion.inverted.noise)
    torch.testing.assert_close(*noise, rtol=1e-3, atol=1e-3)
    expected = trained.edit(trained_inversion, TARGET, blend="auto")
    torch.testing.assert_close(edited.latents, expected.latents, rtol=1e-2, atol=1e-2)


def test_the_command_line_hands_both_choices_on(monkeypatch):
    import pivotal.engine
    from pivotal.cli.options import ModelOptions

    given = {}
    monkeypatch.setattr(pivotal.engine.Engine, "load", lambda *_, **options: given.update(options))
    ModelOptions(compile=True, attention_impl="reference").load()
    assert given["compile"] is True
    assert given["attention"] == "reference"
