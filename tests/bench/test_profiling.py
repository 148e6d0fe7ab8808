import gzip
import json

import pytest
import torch

from pivotal.bench.limits import count
from pivotal.bench.parts import OUTSIDE, part_of, parts
from pivotal.bench.profiling import profile_run
from pivotal.bench.window import Window
from pivotal.cli import main
from pivotal.query import Denoise, Progress

CPU = torch.device("cpu")


@pytest.fixture
def asking(torch_denoiser, latents, prompts, levels):
    """A denoiser, and a call that asks it two rows."""
    denoiser, level = torch_denoiser(dtype=torch.float32), levels.schedule(4).levels[2]
    asked = Denoise.at(latents(2, dtype=torch.float32), level, prompts(2, dtype=torch.float32))
    return denoiser, lambda: denoiser.answer(asked)


def test_parts_cover_the_network_once(plain_unet):
    network = plain_unet()
    inside = [weight for _, module in parts(network) for weight in module.parameters()]
    assert len({id(weight) for weight in inside}) == len(inside) == len(list(network.parameters()))
    assert part_of("down_blocks.1.attentions.0") == "down_blocks.1.attentions"
    assert part_of("conv_in") == "conv_in"


def test_all_flops_are_found_again_by_part_and_the_trace_names_the_parts(asking, tmp_path):
    denoiser, ask = asking

    def run(inside):
        with torch.no_grad(), inside:
            ask()

    network, trace = denoiser.unet.unet, tmp_path / "trace.json.gz"
    found = profile_run(run, network, CPU, trace=trace)
    with torch.no_grad():
        assert sum(each.flops for each in found.kernels) == count(ask).flops > 0
    kinds = {(each.part, each.kind) for each in found.kernels}
    assert ("mid_block.attentions", "attention") in kinds
    assert ("conv_in", "convolution") in kinds
    assert OUTSIDE in {each.part for each in found.kernels}
    assert 0 < sum(each.seconds for each in found.kernels) < 1.5 * found.seconds
    names = {
        event.get("name")
        for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    }
    assert "part mid_block.attentions" in names


def test_the_networks_hooks_are_gone_afterwards(asking):
    def run(inside):
        with inside:
            pass

    network = asking[0].unet.unet
    profile_run(run, network, CPU)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())


def test_a_window_is_open_for_the_chosen_steps_of_its_phase_alone():
    class Inside:
        def __enter__(self):
            order.append("in")

        def __exit__(self, *error):
            order.append("out")

    order = []
    window = Window("fit", 1, 2, Inside())
    for phase in ("invert", "fit"):
        for step in range(5):
            window(Progress(phase, step, 5))
            order.append((phase, step))
    window.close()
    start, end = order.index("in"), order.index("out")
    assert order[start + 1 : end] == [("fit", 1), ("fit", 2)]
    with pytest.raises(ValueError, match="never came"):
        Window("fit", 1, 2, Inside()).close()


def test_a_memory_snapshot_is_refused_on_a_cpu(asking, tmp_path):
    with pytest.raises(ValueError, match="GPU's allocator"):
        profile_run(lambda inside: None, asking[0].unet.unet, CPU, snapshot=tmp_path / "s")


def test_the_command_profiles_a_step_of_an_edit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["profile", "--steps", "2", "--phase", "sample", "-o", "t.json.gz", "--json"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == [1, 1]
    assert {"part", "kind", "seconds", "percent_of_roofline"} <= set(found["kernels"][0])
    assert "GPU only" in found["note"]
    assert gzip.decompress((tmp_path / "t.json.gz").read_bytes())
    with pytest.raises(SystemExit) as stop:
        main(["profile", "--steps", "2", "--first", "2"])
    assert stop.value.code == 2
    assert "--first <= --last" in " ".join(capsys.readouterr().err.split())


@pytest.mark.gpu
def test_on_a_gpu_device_time_is_what_counts_and_a_snapshot_is_written(tmp_path):
    from pivotal.engine import Engine

    engine = Engine.load("shapes", device="cuda")

    def run(inside):
        with inside:
            engine.generate("a red star", num_inference_steps=2)

    found = profile_run(
        run, engine.model.unet.unet, engine.model.device, snapshot=tmp_path / "snapshot"
    )
    assert sum(each.seconds for each in found.kernels) > 0
    assert (tmp_path / "snapshot").stat().st_size > 0
