"""Tiny models of every family, their exports to ONNX, and denoisers on both."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from pivotal.model.families import Architecture, Family
from pivotal.model.load import Model, load
from pivotal.model.unet import RoutedUNet
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.runtime.exported.denoiser import ExportedDenoiser
from pivotal.runtime.exported.onnx_check import checked
from pivotal.runtime.exported.onnx_export import write_onnx
from pivotal.runtime.exported.onnx_network import OnnxNetwork
from pivotal.runtime.exported.parts import capacity_of, pixel_unit, unet_parts
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.record import FILE, ExportRecord, read_record
from pivotal.runtime.torch_denoiser import TorchDenoiser

LENGTH, WIDTH, COLUMNS, ROWS = 7, 16, 16, 6
SIDE, SCALE = 8, 2  # of the latents, and pixels per latent
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.003,  # where little noise is left, rounding errors do not grow
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
UNET = {
    "sample_size": SIDE,
    "block_out_channels": (16,),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
SD1 = {"down_block_types": ("DownBlock2D",), "mid_block_type": None}  # two transformers: tracing
# one takes seconds
SD2 = {"use_linear_projection": True, "upcast_attention": True}
SDXL = {
    "block_out_channels": (16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 12,
}


def text_encoder(width, **more):
    return {
        "vocab_size": 64,
        "max_position_embeddings": LENGTH,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published; the largest id is then the end
        "projection_dim": width,
        **more,
    }


def tiny_family(name, unet, encoders, prediction_type="epsilon", **more):
    autoencoder = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": SIDE * SCALE,
        "scaling_factor": 0.5,
    }
    scheduler = {**SCHEDULER, "prediction_type": prediction_type}
    return Family(
        name,
        f"tiny {name}",
        SCALE,
        (SIDE * SCALE, SIDE * SCALE),
        self_injection_downscale=1,
        architecture=Architecture({**UNET, **unet}, autoencoder, tuple(encoders), scheduler),
        **more,
    )


FAMILIES = {
    family.name: family
    for family in (
        tiny_family("sd1", SD1, [text_encoder(WIDTH)], word_map_downscale=1),
        tiny_family("sd2", SD2, [text_encoder(WIDTH)], "v_prediction", word_map_downscale=1),
        tiny_family(
            "sdxl",
            SDXL,
            [text_encoder(4), text_encoder(12)],
            word_map_downscale=2,
            time_ids=True,
        ),
    )
}


@pytest.fixture(scope="session", autouse=True)
def engine_key(tmp_path_factory):
    """A key of the tests' own seals engines."""
    path = tmp_path_factory.mktemp("key") / "engine-key"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOTAL_ENGINE_KEY", str(path))
        yield path


@pytest.fixture(scope="session")
def tiny_model():
    """`tiny_model(family, dtype="float32", device="cpu")`: random weights that heed prompts."""

    def make(family="sd1", dtype="float32", device="cpu"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pivotal.model.located.FAMILIES", FAMILIES)
            return load(f"random:{family}", dtype=dtype, device=device)

    return make


@dataclass
class Export:
    model: Model
    folder: Path
    record: ExportRecord
    parts: list

    @property
    def unet(self) -> RoutedUNet:
        return self.model.unet

    def torch(self):
        return TorchDenoiser(self.unet, self.record.prediction_type)

    @cached_property
    def networks(self):
        cpu = torch.device("cpu")
        paths = [self.folder / f"{part.name}.onnx" for part in self.parts]
        return [OnnxNetwork(path, cpu, threads=1) for path in paths]

    @property
    def deaf(self):
        """The network with routes, whose second cross-attention ignores its own; its name is
        `deaf_layer`.
        """
        network = self.networks[0]

        def run(inputs):
            gate = inputs["cross_gate"].clone()
            gate[1] = 0
            return network({**inputs, "cross_gate": gate})

        return run

    @property
    def deaf_layer(self):
        (name,) = (x.name for x in self.unet.layers if (x.kind, x.index) == ("cross", 1))
        return name

    def exported(self, routed=None):
        """The denoiser on the files alone, which takes what the profile does."""
        networks = (routed or self.networks[0], self.networks[1])
        return ExportedDenoiser("onnx", *networks, self.record, scale=SCALE)

    def onnx(self, routed=None):
        """As an engine has it: in buckets."""
        sizes = tuple(range(1, ROWS + 1))
        return BucketedDenoiser(self.exported(routed), Buckets(sizes, COLUMNS), self.unet.layers)


@pytest.fixture(scope="session")
def export_unet(tmp_path_factory):
    """`export_unet(model, profile=.., folder=..)`: both of its UNet's graphs on disk, each compared
    with torch. A folder that holds them already is taken as it is.
    """

    def make(model, profile=None, folder=None):
        fixed = Span(SIDE * SCALE, SIDE * SCALE)
        profile = profile or ShapeProfile(Span(1, ROWS), fixed, fixed)
        folder = folder or tmp_path_factory.mktemp("export")
        parts = list(unet_parts(model.unet, capacity_of(model), profile, SCALE, pixel_unit(model)))
        if not (folder / FILE).is_file():
            write(model, profile, folder, parts)
        return Export(model, folder, read_record(folder), parts)

    def write(model, profile, folder, parts):
        errors = {}
        for part in parts:
            path = folder / f"{part.name}.onnx"
            write_onnx(part, profile, path, {"pivotal.model": "small"})
            errors[part.name] = checked(part, path, profile)
        record = ExportRecord(
            model.name,
            model.family.name,
            model.fingerprint,
            str(model.dtype).removeprefix("torch."),
            model.levels.config.prediction_type,
            profile,
            capacity_of(model),
            {},
            errors,
            {},
        ).with_digests(folder)
        record.write(folder)

    return make


@pytest.fixture(scope="session")
def small(tiny_model, export_unet, tmp_path_factory):
    """Made by the first process of a test run that needs it, and read by the others."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / "small-export"
    with FileLock(shared / "small-export.lock"):
        folder.mkdir(exist_ok=True)
        return export_unet(tiny_model(), folder=folder)
