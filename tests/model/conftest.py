"""Tiny checkpoints in the published layouts: true file and key names, tiny widths."""

import json
import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

LENGTH = 20
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "t h", "th e</w>", "r e", "re d</w>", "s i", "i n"]


def write_tokenizer(folder, pad="<|endoftext|>", length=LENGTH):
    """CLIP's files with a vocabulary of bytes and a few merges."""
    folder.mkdir(parents=True)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [merge.replace(" ", "") for merge in MERGES]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def text_config(tokenizer, width=32, act="quick_gelu"):
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def autoencoder(scaling_factor=0.18215):
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=scaling_factor,
    )


def unet(width, **more):
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
        **more,
    )


def save_sd(folder):
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(32),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    keep_vocabulary(pipeline, folder)
    return folder


def save_sdxl(folder):
    torch.manual_seed(1)
    first = write_tokenizer(folder / "tokenizer")
    second = write_tokenizer(folder / "tokenizer_2", pad="!")
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(0.13025),
        text_encoder=CLIPTextModel(text_config(first)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(second, width=48, act="gelu")),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(
            80,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 6 * 8,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    )
    keep_vocabulary(pipeline, folder)
    return folder


def keep_vocabulary(pipeline, folder):
    """Save a pipeline, plain and as fp16, but leave the tokenizers' files as they are published."""
    kept = {path: path.read_bytes() for path in folder.glob("tokenizer*/*")}
    pipeline.save_pretrained(folder)
    kept |= {path: path.read_bytes() for path in folder.glob("text_encoder*/config.json")}
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    for tokenizer in folder.glob("tokenizer*"):
        shutil.rmtree(tokenizer)
        tokenizer.mkdir()
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    return save_sd(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory):
    return save_sdxl(tmp_path_factory.mktemp("models") / "tiny-sdxl")


@pytest.fixture
def sd_copy(sd_folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(sd_folder, tmp_path / "copy")
