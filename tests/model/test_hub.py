"""The hub's client is real; its cache is a folder made here, or its answers are a list of names."""

import shutil
import socket

import huggingface_hub.constants
import pytest

from pivotal.errors import ModelError
from pivotal.model.hub import fetch, needed
from pivotal.model.load import load

PUBLISHED = [
    ".gitattributes",
    "README.md",
    "v1-5-pruned.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


@pytest.fixture
def cached_model(cache, sd_folder):
    repository = cache / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    shutil.copytree(sd_folder, repository / "snapshots" / REVISION)
    return "owner/tiny"


def test_only_what_is_needed_is_fetched():
    names = needed(PUBLISHED, "owner/name", None)
    weights = [name for name in names if name.endswith(".safetensors")]
    assert weights == [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ]
    assert not any(name.endswith((".bin", ".ckpt")) for name in names)
    assert not any(name.startswith(("safety", "feature")) for name in names)
    small = {"tokenizer/vocab.json", "scheduler/scheduler_config.json", "unet/config.json"}
    assert small < set(names)
    half = needed(PUBLISHED, "owner/name", "fp16")
    assert sum(name.endswith(".fp16.safetensors") for name in half) == 3
    assert len(half) == len(names)


def test_what_can_not_be_loaded_is_refused_before_any_download():
    with pytest.raises(ModelError, match=r"owner/lora has no model_index\.json"):
        needed(["lora.safetensors"], "owner/lora", None)
    pickles = [name for name in PUBLISHED if not name.startswith("unet/diff") or "bin" in name]
    with pytest.raises(ModelError, match="unet in owner/old has only pickled weights"):
        needed(pickles, "owner/old", None)
    with pytest.raises(ModelError, match="no variant 'bf16'; it has 'fp16', 'non_ema', plain"):
        needed(PUBLISHED, "owner/name", "bf16")
    ambiguous = [name for name in PUBLISHED if name != "unet/diffusion_pytorch_model.safetensors"]
    with pytest.raises(ModelError, match="no plain weights; it has 'fp16', 'non_ema'"):
        needed(ambiguous, "owner/name", None)


def test_a_cached_model_loads_without_network(cached_model, sd_folder, monkeypatch, caplog):
    caplog.set_level("INFO", logger="pivotal")
    model = load(cached_model, local_files_only=True, family="sd1")
    assert model.name == cached_model
    assert f"owner/tiny, revision {REVISION}, from the local cache" in caplog.text
    assert model.fingerprint == load(sd_folder, family="sd1").fingerprint
    assert load(cached_model, local_files_only=True, revision="main", family="sd1").name
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(cached_model).name == REVISION  # the environment says offline


def test_what_is_not_cached_says_so(cached_model):
    with pytest.raises(ModelError, match=r"'owner/other'.* not in the local cache"):
        load("owner/other", local_files_only=True)
    with pytest.raises(ModelError, match="not in the local cache"):
        load(cached_model, local_files_only=True, revision="v2")


def test_a_hub_that_can_not_be_reached_is_one_sentence(cache):
    with pytest.raises(ModelError, match="'owner/name' is no local folder, and the hub") as caught:
        load("owner/name")
    assert "\n" not in str(caught.value)
