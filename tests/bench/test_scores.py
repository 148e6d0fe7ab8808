"""CLIP's score and LPIPS from weights made here, against plain references."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from pivotal.bench.clip import clip_score
from pivotal.bench.errors import ResultsError
from pivotal.bench.lpips import lpips
from pivotal.bench.shapes.edits import KINDS
from pivotal.cli import main
from pivotal.images import to_tensor

RNG = np.random.default_rng(0)
ONE, OTHER = RNG.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
TOP = np.arange(64)[:, None].repeat(64, 1) < 32


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of a few thousand weights, as transformers writes it."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(words)},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def test_the_score_is_a_hundred_times_the_cosine_of_both_embeddings(clip_folder):
    score = clip_score(clip_folder)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPProcessor.from_pretrained(clip_folder)
    scores = []
    for text in ("red", "a blue ring", "no picture", "ring"):
        pixels = processor.image_processor(ONE, return_tensors="pt")["pixel_values"]
        tokens = processor.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
            said = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        cosine = float(seen @ said / (seen.norm() * said.norm()))
        scores.append(score(ONE, text))
        assert scores[-1] == pytest.approx(100 * max(cosine, 0), abs=1e-3)
    assert max(scores) > 0


def test_a_folder_without_a_clip_model_gets_a_sentence(tmp_path):
    with pytest.raises(ResultsError, match="holds no CLIP model"):
        clip_score(tmp_path)


class Reference(nn.Module):
    """torchvision's AlexNet features, in the authors' five slices, of a sixteenth of the width."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        widths = (4, 12, 24, 16, 16)
        self.slices = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, widths[0], 11, 4, 2), nn.ReLU()),
                nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(4, widths[1], 5, padding=2), nn.ReLU()),
                nn.Sequential(
                    nn.MaxPool2d(3, 2), nn.Conv2d(12, widths[2], 3, padding=1), nn.ReLU()
                ),
                nn.Sequential(nn.Conv2d(24, widths[3], 3, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(16, widths[4], 3, padding=1), nn.ReLU()),
            ]
        )
        self.weights = [torch.rand(width) for width in widths]
        self.shift, self.scale = (torch.rand(1, 3, 1, 1) + each for each in (-0.5, 0.5))

    def forward(self, first, second):
        a, b = ((each - self.shift) / self.scale for each in (first, second))
        total = 0.0
        for part, weight in zip(self.slices, self.weights, strict=True):
            a, b = part(a), part(b)
            unit_a, unit_b = (nn.functional.normalize(each, dim=1) for each in (a, b))
            total += ((unit_a - unit_b) ** 2 * weight[:, None, None]).sum(1).mean()
        return float(total)

    def file(self, path):
        """Under the names of the authors' package."""
        names = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")
        state = {"scaling_layer.shift": self.shift, "scaling_layer.scale": self.scale}
        for place, (name, part) in enumerate(zip(names, self.slices, strict=True)):
            (conv,) = (each for each in part if isinstance(each, nn.Conv2d))
            state |= {f"net.{name}.weight": conv.weight, f"net.{name}.bias": conv.bias}
            state[f"lin{place}.model.1.weight"] = self.weights[place][None, :, None, None]
        save_file({key: each.detach().contiguous() for key, each in state.items()}, path)
        return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return Reference().eval().file(tmp_path_factory.mktemp("lpips") / "lpips.safetensors")


def test_lpips_is_what_the_papers_formula_gives_over_the_chosen_pixels(weights):
    distance = lpips(weights)
    everywhere = np.ones((64, 64), dtype=bool)
    with torch.no_grad():
        expected = Reference()(to_tensor(ONE), to_tensor(OTHER))
    assert expected > 0.01
    assert distance(ONE, OTHER, everywhere) == pytest.approx(expected, rel=1e-4)
    assert distance(ONE, ONE, everywhere) == 0
    changed_below = np.where(TOP[..., None], ONE, OTHER)
    assert distance(ONE, changed_below, TOP) == 0
    assert distance(ONE, changed_below, ~TOP) > 0
    assert np.isnan(distance(ONE, OTHER, None))


def test_a_file_without_the_weights_gets_a_sentence(tmp_path):
    save_file({"conv": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ResultsError, match=r"lacks scaling_layer\.shift"):
        lpips(tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ResultsError, match="can't be read"):
        lpips(tmp_path / "torn.safetensors")


def test_drawn_scenes_of_every_kind_are_judged_and_scored(clip_folder, weights, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--scenes", "1", "--steps", "2", "--method", "direct", "--json", "--quiet",
              "--clip", str(clip_folder), "--lpips", str(weights)])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert not stop.value.code
    (row,) = found["rows"]
    assert set(row["kinds"]) == set(KINDS)
    assert row["failed"] == 0
    assert row["source_psnr"]["mean"] == pytest.approx(row["vae_psnr"]["mean"], abs=0.1)
    assert row["clip_score"]["count"] == row["lpips"]["count"] == 8
    assert row["lpips"]["mean"] > 0
    assert found["not_measured"] == {}
