import pytest
import torch

from pivotal.errors import ModelError
from pivotal.model.families import FAMILIES, Family, family_named, family_of
from pivotal.model.networks import empty_autoencoder, empty_text_encoder, empty_unet
from pivotal.schedule import ScheduleConfig


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "unet", "texts"),
    [
        ("sd1", 859_520_964, [123_060_480]),
        ("sd2", 865_910_724, [340_387_840]),
        ("sdxl", 2_567_463_684, [123_060_480, 694_659_840]),
    ],
)
def test_architectures_have_the_published_parameter_counts(name, unet, texts):
    architecture = FAMILIES[name].architecture
    network = empty_unet(architecture.unet)
    assert network.device.type == "meta"
    assert parameters(network) == unet
    assert parameters(empty_autoencoder(architecture.autoencoder)) == 83_653_863
    encoders = [
        empty_text_encoder(config, projected=index == 1)
        for index, config in enumerate(architecture.text_encoders)
    ]
    assert [parameters(encoder) for encoder in encoders] == texts


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_architectures_are_recognised_as_their_family(name):
    architecture = FAMILIES[name].architecture
    assert family_of(architecture.unet).name == name
    side, scale = architecture.unet["sample_size"], FAMILIES[name].latent_scale
    assert FAMILIES[name].default_size == (side * scale, side * scale)
    kind = "v_prediction" if name == "sd2" else "epsilon"
    schedule = ScheduleConfig.from_diffusers(architecture.scheduler)
    assert (schedule.prediction_type, schedule.steps_offset) == (kind, 1)


def test_the_bundled_models_config_is_shapes():
    config = {"in_channels": 4, "cross_attention_dim": 128, "sample_size": 16}
    assert family_of(config) is FAMILIES["shapes"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"in_channels": 9, "cross_attention_dim": 768}, "9 input channels.*inpainting"),
        ({"in_channels": 8, "cross_attention_dim": 768}, "InstructPix2Pix"),
        ({"in_channels": 7, "cross_attention_dim": 768}, "unknown to pivotal"),
        ({"cross_attention_dim": 768, "time_cond_proj_dim": 256}, "distilled"),
        ({"cross_attention_dim": 768, "num_class_embeds": 1000}, "num_class_embeds=1000"),
        ({"cross_attention_dim": 768, "addition_embed_type": "image"}, "'image'"),
        ({"cross_attention_dim": 1280, "addition_embed_type": "text_time"}, "1280 with time ids"),
        ({"cross_attention_dim": 512}, "cross_attention_dim=512"),
        ({"cross_attention_dim": 128, "sample_size": 64}, "cross_attention_dim=128"),
        ({"cross_attention_dim": [768]}, r"cross_attention_dim=\[768\]"),
        ({}, "cross_attention_dim=None"),
    ],
)
def test_what_can_not_run_is_refused_with_a_reason(config, sentence):
    with pytest.raises(ModelError, match=sentence):
        family_of(config)


def test_a_given_family_must_not_contradict_the_config():
    assert family_of({"cross_attention_dim": 32}, FAMILIES["sd1"]) is FAMILIES["sd1"]
    with pytest.raises(ModelError, match="takes no SDXL's time ids"):
        family_of({"cross_attention_dim": 32}, FAMILIES["sdxl"])
    with pytest.raises(ModelError, match="needs SDXL's time ids"):
        family_of({"addition_embed_type": "text_time"}, FAMILIES["sd1"])
    with pytest.raises(ModelError, match="inpainting"):
        family_of({"in_channels": 9}, FAMILIES["sd1"])


def test_unknown_names_and_impossible_families_are_wrong_arguments():
    with pytest.raises(ValueError, match="'sd3' is unknown; accepted are sd1, sd2, sdxl, shapes"):
        family_named("sd3")
    with pytest.raises(ValueError, match="no multiple of 8"):
        Family("mine", "mine", 8, (500, 512))
    with pytest.raises(ValueError, match="below 1"):
        Family("mine", "mine", 8, (512, 512), guidance_scale=0.5)


def test_a_config_that_describes_no_network_is_one_sentence():
    with pytest.raises(ModelError, match="the unet can't be built as its config says"):
        empty_unet({"down_block_types": ("NoSuchBlock",)})
    with pytest.raises(ModelError, match="the text encoder can't be built"):
        empty_text_encoder({"hidden_size": 30, "num_attention_heads": 4}, projected=False)
    assert torch.get_default_device().type == "cpu"
