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
from safetensors.torch import save_file
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


class Ldm:
    """Names and shapes of single-file checkpoints, spelt out as the code that trained them builds
    its networks: openaimodel.py and autoencoder of latent-diffusion, OpenCLIP's transformer.
    """

    def __init__(self, prefix=""):
        self.prefix = prefix
        self.shapes = {}

    def add(self, name, *shape, bias=True):
        self.shapes[f"{self.prefix}{name}.weight"] = shape
        if bias:
            self.shapes[f"{self.prefix}{name}.bias"] = shape[:1]

    def residual(self, name, into, out, time):
        self.add(f"{name}.in_layers.0", into)
        self.add(f"{name}.in_layers.2", out, into, 3, 3)
        self.add(f"{name}.emb_layers.1", out, time)
        self.add(f"{name}.out_layers.0", out)
        self.add(f"{name}.out_layers.3", out, out, 3, 3)
        if into != out:
            self.add(f"{name}.skip_connection", out, into, 1, 1)

    def transformer(self, name, width, depth, words, linear):
        pixel = () if linear else (1, 1)
        self.add(f"{name}.norm", width)
        self.add(f"{name}.proj_in", width, width, *pixel)
        for number in range(depth):
            block = f"{name}.transformer_blocks.{number}"
            for attention, memory in (("attn1", width), ("attn2", words)):
                self.add(f"{block}.{attention}.to_q", width, width, bias=False)
                self.add(f"{block}.{attention}.to_k", width, memory, bias=False)
                self.add(f"{block}.{attention}.to_v", width, memory, bias=False)
                self.add(f"{block}.{attention}.to_out.0", width, width)
            self.add(f"{block}.ff.net.0.proj", 8 * width, width)
            self.add(f"{block}.ff.net.2", width, 4 * width)
            for norm in ("norm1", "norm2", "norm3"):
                self.add(f"{block}.{norm}", width)
        self.add(f"{name}.proj_out", width, width, *pixel)

    def unet(self, base, mults, layers, depths, words, *, linear, adm=None, channels=4):
        """depths: transformer blocks at each level; the middle has the last's, or 1."""
        time = 4 * base
        self.add("time_embed.0", time, base)
        self.add("time_embed.2", time, time)
        if adm is not None:
            self.add("label_emb.0.0", time, adm)
            self.add("label_emb.0.2", time, time)
        self.add("input_blocks.0.0", base, channels, 3, 3)
        widths, width, place = [base], base, 1
        for level, mult in enumerate(mults):
            for _ in range(layers):
                self.residual(f"input_blocks.{place}.0", width, mult * base, time)
                width = mult * base
                if depths[level]:
                    name = f"input_blocks.{place}.1"
                    self.transformer(name, width, depths[level], words, linear)
                widths.append(width)
                place += 1
            if level < len(mults) - 1:
                self.add(f"input_blocks.{place}.0.op", width, width, 3, 3)
                widths.append(width)
                place += 1
        self.residual("middle_block.0", width, width, time)
        self.transformer("middle_block.1", width, depths[-1] or 1, words, linear)
        self.residual("middle_block.2", width, width, time)
        place = 0
        for level, mult in reversed(list(enumerate(mults))):
            for number in range(layers + 1):
                self.residual(f"output_blocks.{place}.0", width + widths.pop(), mult * base, time)
                width = mult * base
                if depths[level]:
                    name = f"output_blocks.{place}.1"
                    self.transformer(name, width, depths[level], words, linear)
                if level and number == layers:
                    up = 2 if depths[level] else 1
                    self.add(f"output_blocks.{place}.{up}.conv", width, width, 3, 3)
                place += 1
        self.add("out.0", width)
        self.add("out.2", 4, width, 3, 3)
        return self

    def vae_residual(self, name, into, out):
        self.add(f"{name}.norm1", into)
        self.add(f"{name}.conv1", out, into, 3, 3)
        self.add(f"{name}.norm2", out)
        self.add(f"{name}.conv2", out, out, 3, 3)
        if into != out:
            self.add(f"{name}.nin_shortcut", out, into, 1, 1)

    def vae_middle(self, tower, width):
        for number in (1, 2):
            self.vae_residual(f"{tower}.mid.block_{number}", width, width)
        self.add(f"{tower}.mid.attn_1.norm", width)
        for name in ("q", "k", "v", "proj_out"):
            self.add(f"{tower}.mid.attn_1.{name}", width, width, 1, 1)

    def autoencoder(self, base, mults, layers, latents=4):
        self.add("encoder.conv_in", base, 3, 3, 3)
        width = base
        for level, mult in enumerate(mults):
            for number in range(layers):
                self.vae_residual(f"encoder.down.{level}.block.{number}", width, mult * base)
                width = mult * base
            if level < len(mults) - 1:
                self.add(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
        self.vae_middle("encoder", width)
        self.add("encoder.norm_out", width)
        self.add("encoder.conv_out", 2 * latents, width, 3, 3)
        self.add("decoder.conv_in", width, latents, 3, 3)
        self.vae_middle("decoder", width)
        for level, mult in reversed(list(enumerate(mults))):
            for number in range(layers + 1):
                self.vae_residual(f"decoder.up.{level}.block.{number}", width, mult * base)
                width = mult * base
            if level:
                self.add(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
        self.add("decoder.norm_out", width)
        self.add("decoder.conv_out", 3, width, 3, 3)
        self.add("quant_conv", 2 * latents, 2 * latents, 1, 1)
        self.add("post_quant_conv", latents, latents, 1, 1)
        return self

    def clip(self, vocabulary, positions, width, layers):
        self.add("text_model.embeddings.token_embedding", vocabulary, width, bias=False)
        self.add("text_model.embeddings.position_embedding", positions, width, bias=False)
        for number in range(layers):
            layer = f"text_model.encoder.layers.{number}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                self.add(f"{layer}.self_attn.{name}", width, width)
            self.add(f"{layer}.layer_norm1", width)
            self.add(f"{layer}.layer_norm2", width)
            self.add(f"{layer}.mlp.fc1", 4 * width, width)
            self.add(f"{layer}.mlp.fc2", width, 4 * width)
        self.add("text_model.final_layer_norm", width)
        return self

    def open_clip(self, vocabulary, positions, width, layers):
        self.add("token_embedding", vocabulary, width, bias=False)
        for number in range(layers):
            block = f"transformer.resblocks.{number}"
            self.shapes[f"{self.prefix}{block}.attn.in_proj_weight"] = (3 * width, width)
            self.shapes[f"{self.prefix}{block}.attn.in_proj_bias"] = (3 * width,)
            self.add(f"{block}.attn.out_proj", width, width)
            self.add(f"{block}.ln_1", width)
            self.add(f"{block}.ln_2", width)
            self.add(f"{block}.mlp.c_fc", 4 * width, width)
            self.add(f"{block}.mlp.c_proj", width, 4 * width)
        self.add("ln_final", width)
        self.shapes[f"{self.prefix}positional_embedding"] = (positions, width)
        self.shapes[f"{self.prefix}text_projection"] = (width, width)
        self.shapes[f"{self.prefix}logit_scale"] = ()
        return self


UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, SDXL_CLIP = "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."
OPEN, SDXL_OPEN = "cond_stage_model.model.", "conditioner.embedders.1.model."


def ldm_shapes(family, vocabulary=None):
    """A whole file's names and shapes: the published sizes, or tiny ones for a vocabulary."""
    tiny = vocabulary is not None
    words, length = vocabulary or 49408, LENGTH if tiny else 77
    base, layers = (32, 1) if tiny else (320, 2)
    sides = (1, 2, 2, 2) if tiny else (1, 2, 4, 4)
    made = Ldm(VAE).autoencoder(*((32, (1, 2), 1) if tiny else (128, (1, 2, 4, 4), 2))).shapes
    text = (words, length)
    if family == "sd1":
        width = 64 if tiny else 768
        made |= Ldm(CLIP).clip(*text, width, 2 if tiny else 12).shapes
        unet = Ldm(UNET).unet(base, sides, layers, (1, 1, 1, 0), width, linear=False)
    elif family == "sd2":
        width = 64 if tiny else 1024
        made |= Ldm(OPEN).open_clip(*text, width, 3 if tiny else 24).shapes
        unet = Ldm(UNET).unet(base, sides, layers, (1, 1, 1, 0), width, linear=True)
    else:
        widths, counts = ((64, 128), (2, 3)) if tiny else ((768, 1280), (12, 32))
        made |= Ldm(SDXL_CLIP).clip(*text, widths[0], counts[0]).shapes
        made |= Ldm(SDXL_OPEN).open_clip(*text, widths[1], counts[1]).shapes
        depths, sides = ((0, 1, 2), (1, 2, 2)) if tiny else ((0, 2, 10), (1, 2, 4))
        adm = widths[1] + 6 * (16 if tiny else 256)
        unet = Ldm(UNET).unet(base, sides, layers, depths, sum(widths), linear=True, adm=adm)
    return made | unet.shapes


def ldm_tensors(shapes, dtype=torch.float16):
    """Seeded weights: normal, smaller where more is summed; norms near 1."""
    generator = torch.Generator().manual_seed(5)

    def drawn(name, shape):
        normal = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            return 0.02 * normal + (name.endswith("weight"))
        return normal / max(1, shape[1:].numel()) ** 0.5

    return {name: drawn(name, torch.Size(shape)).to(dtype) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def vocabulary_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary") / "tokenizer"
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def single_file(tmp_path_factory, vocabulary_folder):
    """`single_file(family)`: a tiny checkpoint in one file, made once."""
    made = {}
    words = len(json.loads((vocabulary_folder / "vocab.json").read_text()))

    def make(family):
        if family not in made:
            path = tmp_path_factory.mktemp("single") / f"tiny-{family}.safetensors"
            save_file(ldm_tensors(ldm_shapes(family, words)), path)
            made[family] = path
        return made[family]

    return make


@pytest.fixture(scope="session")
def published_shapes():
    """`published_shapes(family)`: names and shapes of a published file."""
    return ldm_shapes
