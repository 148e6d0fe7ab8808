"""LoRAs against the same low-rank layers added beside each module of diffusers' own networks."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounter
from transformers import CLIPTextModel

from pivotal.errors import ModelError
from pivotal.model.ldm_names import unet_name
from pivotal.model.load import load
from pivotal.model.lora_file import Lora, LowRank

RANK = 2
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
RESIDUAL = "up_blocks.0.resnets.0.conv1"
SAMPLER = "up_blocks.0.upsamplers.0.conv"
PROJECTION = "text_model.encoder.layers.1.self_attn.q_proj"
UNET_MODULES = (LINEAR, OUT, RESIDUAL, SAMPLER)


def seeded(*shape, seed):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(module, seed):
    """down and up of a module's LoRA."""
    out, *rest = module.weight.shape
    down = seeded(RANK, *rest, seed=seed)
    return down, seeded(out, RANK, *[1] * (len(rest) - 1), seed=seed + 100)


def submodule(network, path):
    """transformers has `text_model` or not, by version."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return network.get_submodule(path.removeprefix("text_model."))


@pytest.fixture(scope="module")
def theirs(sd_folder):
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet", local_files_only=True)
    text = CLIPTextModel.from_pretrained(sd_folder / "text_encoder", local_files_only=True)
    return unet.eval(), text.eval()


@pytest.fixture(scope="module")
def layers(theirs):
    """(component, path) to down and up."""
    unet, text = theirs
    found = {
        ("unet", path): factors(unet.get_submodule(path), i) for i, path in enumerate(UNET_MODULES)
    }
    found["text_encoder", PROJECTION] = factors(submodule(text, PROJECTION), 9)
    return found


def kohya(layers, unet, *, ldm=False, alpha=1.0):
    made = {}
    for (component, path), (down, up) in layers.items():
        name = unet_name(path, unet.config) if ldm and component == "unet" else path
        stem = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component]
        stem += name.replace(".", "_")
        made[f"{stem}.lora_down.weight"], made[f"{stem}.lora_up.weight"] = down, up
        made[f"{stem}.alpha"] = torch.tensor(alpha)
    return made


def dotted(layers, ends):
    """diffusers' and peft's names."""
    return {
        f"{component}.{path}{end}": factor
        for (component, path), pair in layers.items()
        for end, factor in zip(ends, pair, strict=True)
    }


@pytest.fixture
def written(tmp_path):
    def write(tensors, name="one.safetensors", metadata=None):
        path = tmp_path / name
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata)
        return path

    return write


def weights(model):
    networks = (model.unet, *model.text.encoders)
    return {
        f"{n}.{key}": t for n, each in enumerate(networks) for key, t in each.state_dict().items()
    }


def copies(model):
    return {name: tensor.clone() for name, tensor in weights(model).items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def beside(module, down, up, scale):
    """Add the low-rank layers' output to a module's."""

    def hook(module, inputs, output):
        if down.ndim == 2:
            return output + scale * (inputs[0] @ down.T @ up.T)
        mid = torch.nn.functional.conv2d(inputs[0], down, stride=module.stride, padding=1)
        return output + scale * torch.nn.functional.conv2d(mid, up)

    return module.register_forward_hook(hook)


def test_a_merged_lora_is_the_low_rank_layers_beside_the_modules(
    sd_folder, theirs, layers, written
):
    unet, text = theirs
    path = written(kohya(layers, unet, alpha=1.0))
    model = load(sd_folder, family="sd1", lora=f"{path}:0.7")
    scale = 0.7 * 1.0 / RANK
    hooks = [
        beside(submodule(unet if name == "unet" else text, at), *pair, scale)
        for (name, at), pair in layers.items()
    ]
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([3.0, 900.0])
    tokens = model.text.tokens("a red cat")
    with torch.no_grad():
        hidden = text(torch.tensor([tokens.ids, tokens.ids])).last_hidden_state
        expected = unet(latents, timesteps, hidden).sample
        ours = model.text.encode(["a red cat"] * 2).hidden_states
        found, _ = model.unet(latents, timesteps, ours)
    for hook in hooks:
        hook.remove()
    plain = load(sd_folder, family="sd1")
    torch.testing.assert_close(ours, hidden)
    torch.testing.assert_close(found, expected)
    assert (plain.text.encode(["a red cat"]).hidden_states - ours[:1]).abs().max() > 1e-3


def test_all_namings_mean_the_same(sd_folder, theirs, layers, written):
    unet, _ = theirs
    files = {
        "kohya": written(kohya(layers, unet, alpha=RANK), "kohya.safetensors"),
        "ldm": written(kohya(layers, unet, ldm=True, alpha=RANK), "ldm.safetensors"),
        "peft": written(dotted(layers, (".lora_A.weight", ".lora_B.weight")), "peft.safetensors"),
        "diffusers": written(
            dotted(layers, (".lora.down.weight", ".lora.up.weight")), "d.safetensors"
        ),
    }
    metadata = {
        "lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "text_encoder.lora_alpha": 4})
    }
    doubled = written(
        dotted(layers, (".lora_A.weight", ".lora_B.weight")), "x.safetensors", metadata
    )
    model = load(sd_folder, family="sd1")
    plain, found = copies(model), {}
    for name, path in files.items():
        model.loras.wear([Lora(path)])
        found[name] = copies(model)
    assert not same(found["kohya"], plain)
    assert all(same(each, found["kohya"]) for each in found.values())
    model.loras.wear([Lora(doubled, 0.5)])
    assert same(copies(model), found["kohya"])


def test_a_folder_of_pefts_has_its_alpha_beside_the_weights(
    sd_folder, theirs, layers, written, tmp_path
):
    unet, _ = theirs
    one = {("unet", LINEAR): layers["unet", LINEAR]}
    expected = weights(
        load(sd_folder, family="sd1", lora=written(kohya(one, unet, alpha=16.0), "a.safetensors"))
    )
    bare = {
        f"base_model.model.{name.removeprefix('unet.')}": tensor
        for name, tensor in dotted(one, (".lora_A.weight", ".lora_B.weight")).items()
    }
    folder = tmp_path / "peft"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"is a folder without adapter_model\.safetensors or"):
        load(sd_folder, family="sd1", lora=folder)
    written(bare, "peft/adapter_model.safetensors")
    config = folder / "adapter_config.json"
    prints = set()
    for alpha in (16, 4):
        config.write_text(json.dumps({"r": RANK, "lora_alpha": alpha, "use_dora": False}))
        model = load(sd_folder, family="sd1", lora=f"{folder}:{16 / alpha}")
        assert same(weights(model), expected)
        prints.add(model.fingerprint)
    assert len(prints) == 2
    for wrong, sentence in (({"use_rslora": True}, "use_rslora, which"), ({}, "no lora_alpha")):
        config.write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match=sentence):
            load(sd_folder, family="sd1", lora=folder)


def test_whatever_ends_a_change_midway_leaves_the_plain_weights(
    sd_folder, theirs, layers, written, monkeypatch
):
    unet, _ = theirs
    one = written(kohya(layers, unet), "one.safetensors")
    fewer = {k: (d, -u) for k, (d, u) in layers.items() if k[1] != OUT}
    other = written(kohya(fewer, unet), "b.safetensors")
    model = load(sd_folder, family="sd1")
    plain, fingerprint = copies(model), model.fingerprint
    model.loras.wear([Lora(other)])
    wanted = copies(model)
    whole = LowRank.change

    for moment in range(len(layers)):
        model.loras.wear([Lora(other)])
        left = iter(range(moment))

        def interrupted(self, shape, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return whole(self, shape)

        with monkeypatch.context() as patched:
            patched.setattr(LowRank, "change", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.loras.wear([Lora(one)])
        assert same(copies(model), plain), moment
        assert (model.loras.worn, model.fingerprint) == ((), fingerprint)
    model.loras.wear([Lora(other)])
    assert same(copies(model), wanted)


def test_a_tilde_is_the_home_folder(sd_folder, theirs, layers, written, tmp_path, monkeypatch):
    path = written(kohya(layers, theirs[0]))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = load(sd_folder, family="sd1", lora=f"~/{path.name}:0.5")
    assert same(weights(found), weights(load(sd_folder, family="sd1", lora=f"{path}:0.5")))


def test_names_of_old_processors_are_understood(sd_folder, theirs, layers, written):
    unet, _ = theirs
    one = {("unet", each): layers["unet", each] for each in (LINEAR, OUT)}
    expected = written(kohya(one, unet, alpha=RANK), "kohya.safetensors")
    old = {
        name.replace(".attn2.to_k", ".attn2.processor.to_k_lora")
        .replace(".attn1.to_out.0", ".attn1.processor.to_out_lora")
        .replace("_lora.lora.", "_lora."): tensor
        for name, tensor in dotted(one, (".lora.down.weight", ".lora.up.weight")).items()
    }
    model = load(sd_folder, family="sd1", lora=written(old, "old.safetensors"))
    assert same(weights(model), weights(load(sd_folder, family="sd1", lora=expected)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_in_and_out_leaves_every_bit_and_every_address(sd_folder, theirs, layers, written, dtype):
    unet, _ = theirs
    one = written(kohya(layers, unet), "one.safetensors")
    other = written(
        kohya({k: (d, -u) for k, (d, u) in layers.items() if k[1] != OUT}, unet), "b.safetensors"
    )
    model = load(sd_folder, family="sd1", dtype=dtype)
    plain, fingerprint = copies(model), model.fingerprint
    addresses = {name: tensor.data_ptr() for name, tensor in weights(model).items()}
    seen = {fingerprint}
    for worn in ([Lora(one)], [Lora(one, 0.5), Lora(other, -2)], [Lora(other)], [Lora(one, 1e4)]):
        model.loras.wear(worn)
        assert not same(copies(model), plain)
        assert model.fingerprint not in seen
        seen.add(model.fingerprint)
        assert model.loras.worn == tuple(worn)
    model.loras.wear([])
    assert same(copies(model), plain)
    assert model.fingerprint == fingerprint
    assert {name: tensor.data_ptr() for name, tensor in weights(model).items()} == addresses


def test_several_add_up_in_any_order(sd_folder, theirs, layers, written):
    unet, _ = theirs
    one = Lora(written(kohya(layers, unet), "one.safetensors"), 0.25)
    other = Lora(
        written(kohya({k: (d, -u) for k, (d, u) in layers.items()}, unet), "b.safetensors")
    )
    model = load(sd_folder, family="sd1")
    plain = copies(model)
    model.loras.wear([one, other])
    both, fingerprint = copies(model), model.fingerprint
    model.loras.wear([other, one])
    assert model.fingerprint == fingerprint
    torch.testing.assert_close(copies(model), both)
    model.loras.wear([Lora(one.path, 0.5), Lora(one.path, -0.5)])  # each other's opposite
    torch.testing.assert_close(copies(model), plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_switching_compiles_nothing_again(sd_folder, theirs, layers, written, whole):
    """Of one residual block, whose convolution a LoRA changes; of the whole network if slow."""
    unet, _ = theirs
    path = written(kohya(layers, unet))
    model = load(sd_folder, family="sd1")
    counter = CompileCounter()
    network = model.unet if whole else model.unet.unet.get_submodule(RESIDUAL.rpartition(".")[0])
    compiled = torch.compile(network, backend=counter, dynamic=False)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 20, 32)
    if not whole:
        inputs = torch.randn(1, 64, 4, 4), torch.randn(1, 64)

    def run():
        with torch.no_grad():
            return compiled(*inputs)[0]

    plain = run()
    frames = counter.frame_count
    assert frames
    results = []
    for worn in ([Lora(path)], [Lora(path, 0.5)], []):
        model.loras.wear(worn)
        results.append(run())
    assert counter.frame_count == frames
    assert not torch.equal(results[0], plain)
    assert not torch.equal(results[1], results[0])
    assert torch.equal(results[2], plain)


def damaged(layers, unet):
    whole = kohya({("unet", LINEAR): layers["unet", LINEAR]}, unet)
    down, up = (
        f"lora_unet_{LINEAR.replace('.', '_')}.lora_{each}.weight" for each in ("down", "up")
    )
    stem = down.partition(".")[0]
    return {
        "another model's": (
            {name.replace("mid_block", "mid_block_9"): each for name, each in whole.items()},
            "was made for another model: 1 of its 1 layers have no place in this one",
        ),
        "no up": ({name: each for name, each in whole.items() if name != up}, "has no up"),
        "another width": (
            whole | {down: torch.zeros(RANK, 7)},
            r"do not fit a weight of \[32, 32\]",
        ),
        "other ranks": (whole | {down: torch.zeros(RANK + 1, 32)}, "do not fit"),
        "no matrix": (whole | {down: torch.zeros(4)}, "factors that are no matrices"),
        "no rank": (whole | {down: torch.zeros(0, 32)}, "factors that are no matrices"),
        "NaN": (whole | {down: torch.full((RANK, 32), torch.nan)}, "NaN or infinity"),
        "endless": (whole | {f"{stem}.alpha": torch.tensor(torch.inf)}, "alpha inf"),
        "two alphas": (whole | {f"{stem}.alpha": torch.zeros(2)}, "no single number"),
        "integers": (whole | {down: torch.zeros(RANK, 32).int()}, "no part of a LoRA"),
        "LoHa": ({f"{stem}.hada_w1_a": torch.zeros(2, 2)}, "is a LoHa"),
        "LoKr": ({f"{stem}.lokr_w1": torch.zeros(2, 2)}, "is a LoKr"),
        "DoRA": (whole | {f"{stem}.dora_scale": torch.zeros(32, 1)}, "is a DoRA"),
        "whole weights": (whole | {f"{stem}.diff": torch.zeros(32, 32)}, "whole weights"),
        "a checkpoint": ({"model.diffusion_model.out.2.bias": torch.zeros(4)}, "no part of a LoRA"),
    }


def test_what_can_not_be_merged_is_one_sentence_and_changes_nothing(
    sd_folder, theirs, layers, written
):
    unet, _ = theirs
    model = load(sd_folder, family="sd1", lora=(good := written(kohya(layers, unet))))
    before, fingerprint = copies(model), model.fingerprint
    for name, (tensors, sentence) in damaged(layers, unet).items():
        path = written(tensors, "bad.safetensors")
        with pytest.raises(ModelError, match=sentence) as caught:
            model.loras.wear([Lora(good), Lora(path)])
        assert "\n" not in str(caught.value), name
        assert path.name in str(caught.value), name
        assert same(copies(model), before), name
        assert model.fingerprint == fingerprint


def test_a_lora_is_told_by_its_file_and_its_scale(tmp_path):
    assert Lora.of("a/b.safetensors:0.8") == Lora(Path("a/b.safetensors"), 0.8)
    assert Lora.of("b.safetensors").scale == 1
    assert Lora.of("C:b.safetensors").path.name == "C:b.safetensors"
    assert str(Lora.of("b.safetensors:-1.5")) == "b.safetensors:-1.5"
    with pytest.raises(ValueError, match="scale=nan; a finite number"):
        Lora.of("b.safetensors:nan")
    with pytest.raises(ModelError, match="can't be read"):
        load("shapes", lora=tmp_path / "nowhere.safetensors")


def test_a_lora_of_sdxl_reaches_both_text_encoders(sdxl_folder, written):
    model = load(sdxl_folder, family="sdxl")
    made, expected = {}, {}
    for number, encoder in enumerate(model.text.encoders, start=1):
        module = submodule(encoder, "text_model.encoder.layers.0.mlp.fc1")
        down, up = factors(module, number)
        stem = f"lora_te{number}_text_model_encoder_layers_0_mlp_fc1"
        made |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        expected[number] = module.weight + up @ down
    model.loras.wear([Lora(written(made))])
    for number, encoder in enumerate(model.text.encoders, start=1):
        module = submodule(encoder, "text_model.encoder.layers.0.mlp.fc1")
        torch.testing.assert_close(module.weight, expected[number])


def test_the_file_is_only_read(sd_folder, theirs, layers, written):
    path = written(kohya(layers, theirs[0]))
    before = load_file(path)
    load(sd_folder, family="sd1", lora=[path, Lora(path, 2)])
    assert same(load_file(path), before)
