"""A small UNet, its export to ONNX, and denoisers on both."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from pivotal.model.unet import RoutedUNet
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.runtime.exported.comparison import compare
from pivotal.runtime.exported.denoiser import ExportedDenoiser
from pivotal.runtime.exported.onnx_export import write_onnx
from pivotal.runtime.exported.onnx_network import OnnxNetwork
from pivotal.runtime.exported.parts import unet_parts
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.record import Capacity, ExportRecord
from pivotal.runtime.torch_denoiser import TorchDenoiser

LENGTH, COLUMNS, ROWS, SIDE = 7, 16, 6, 8


@pytest.fixture(scope="session")
def small_unet():
    """`small_unet(sdxl=False)`: four transformer blocks that heed prompts, float32."""

    def make(*, sdxl=False):
        torch.manual_seed(0)
        more = {}
        if sdxl:
            more = {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + 12,
            }
        unet = UNet2DConditionModel(
            sample_size=SIDE,
            block_out_channels=(16,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=8,
            **more,
        )
        with torch.no_grad():
            for name, module in unet.named_modules():
                if name.endswith(".attn2"):
                    for layer in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
                        layer.weight.mul_(4)
            unet.conv_out.weight.mul_(0.5)
        return RoutedUNet(unet.eval(), word_map_downscale=1).requires_grad_(False)

    return make


@dataclass
class Export:
    unet: RoutedUNet
    folder: Path
    record: ExportRecord
    parts: list

    def torch(self):
        return TorchDenoiser(self.unet, "epsilon")

    def exported(self):
        """The denoiser on the files alone, which takes what the profile does."""
        networks = [
            OnnxNetwork(self.folder / f"{part.name}.onnx", torch.device("cpu"), threads=1)
            for part in self.parts
        ]
        return ExportedDenoiser("onnx", *networks, self.record, self.folder, scale=1)

    def onnx(self):
        """As an engine has it: in buckets."""
        sizes = tuple(range(1, ROWS + 1))
        return BucketedDenoiser(self.exported(), Buckets(sizes, COLUMNS), self.unet.layers)


@pytest.fixture(scope="session")
def export_unet(tmp_path_factory):
    """`export_unet(unet, profile=..)`: both its graphs on disk, each compared with torch."""

    def make(unet, profile=None):
        fixed = Span(SIDE, SIDE)
        profile = profile or ShapeProfile(Span(1, ROWS), fixed, fixed)
        folder = tmp_path_factory.mktemp("export")
        layers = len(unet.self_layers), len(unet.cross_layers)
        capacity = Capacity(LENGTH, COLUMNS, *layers)
        parts = list(unet_parts(unet, capacity, profile, 1, 1))
        errors = {}
        for part in parts:
            path = folder / f"{part.name}.onnx"
            write_onnx(part, profile, path, {"pivotal.model": "small"})
            network = OnnxNetwork(path, torch.device("cpu"), threads=1)
            errors[part.name] = compare(part, network, profile)
        dtype = str(next(unet.parameters()).dtype).removeprefix("torch.")
        record = ExportRecord(
            "small", "sd1", "f" * 64, dtype, "epsilon", profile, capacity, {}, errors, {}
        ).with_digests(folder)
        record.write(folder)
        return Export(unet, folder, record, parts)

    return make


@pytest.fixture(scope="session")
def small(small_unet, export_unet):
    return export_unet(small_unet())
