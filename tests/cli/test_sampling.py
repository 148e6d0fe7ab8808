"""`pivotal generate` and `style`: samplers, losses, blends of prompts, inverted noise."""

import json

import numpy as np
import pytest
from PIL import Image

from pivotal.cli.sampling import SAMPLERS
from pivotal.images import read_settings
from pivotal.sampling import samplers

PROMPT, OTHER = "a red circle on a gray background", "a blue square on a white background"
STEPS = ("--steps", 3, "--quiet", "--json")


@pytest.fixture
def made(pivotal, home):
    """`made(words..)`: the record and the picture that a command gives."""

    def run(*words):
        done = pivotal(*words, "-o", "made.png", "--force", "--json", cwd=home)
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        return record, np.asarray(Image.open(home / "made.png")).astype(int)

    return run


def test_the_samplers_that_help_names_are_those_there_are():
    assert tuple(samplers.SAMPLERS) == SAMPLERS


def test_a_blend_of_prompts_goes_from_one_to_the_other(made):
    few = ("--steps", 2, "--size", "32x32")

    def at(amount, *more):
        blend = ("--prompt-blend", f"{OTHER}={amount}", *more)
        return made("generate", PROMPT, *few, *blend)

    (record, none), (_, half), (_, whole) = at(0), at(0.5), at(1)
    alone = made("generate", PROMPT, *few)[1], made("generate", OTHER, *few)[1]
    assert np.abs(none - alone[0]).max() <= 1
    assert np.abs(whole - alone[1]).max() <= 1
    assert min(np.abs(half - end).max() for end in alone) > 10
    assert record["prompt"] == PROMPT
    assert record["prompt_blend"] == {"prompt": OTHER, "amount": 0.0, "path": "linear"}
    assert np.abs(at(0.5, "--prompt-path", "spherical")[1] - half).max() > 1


def test_a_loss_draws_the_picture_and_is_told_without_folders(made, home):
    (home / "sub").mkdir()
    Image.new("RGB", (96, 64), (20, 30, 240)).save(home / "sub" / "blue.png")
    Image.new("L", (96, 64), 255).save(home / "sub" / "light.png")
    left = Image.new("L", (96, 64), 255)
    left.paste(0, (0, 0, 48, 64))
    left.save(home / "sub" / "left.png")
    common = ("generate", PROMPT, "--steps", 4, "--loss-every", 1)
    _, plain = made("generate", PROMPT, "--steps", 4)
    record, blue = made(*common, "--loss", "blue:0.9")
    assert np.abs(blue[..., 2] - 230).mean() < np.abs(plain[..., 2] - 230).mean()
    assert record["loss"]["scale"] == 75
    wish = ("--loss", f"image:{home / 'sub' / 'blue.png'}", "--loss-scale", 300)
    record, near = made(*common, *wish)
    assert np.abs(near - (20, 30, 240)).mean() < np.abs(plain - (20, 30, 240)).mean()
    assert record["loss_asked"] == "image:blue.png"
    settings = read_settings(home / "made.png")
    assert settings["loss_asked"] == "image:blue.png"
    assert str(home) not in json.dumps(settings)
    _, half = made(*common, *wish, "--loss-mask", home / "sub" / "left.png")
    far = [np.abs(each - (20, 30, 240)).mean(axis=(0, 2)) for each in (half, near, plain)]
    assert far[0][:32].mean() < far[2][:32].mean()
    assert far[0][40:].mean() > far[1][40:].mean()


def test_style_starts_from_the_inverted_noise(made, home):
    record, there = made("style", "cat.safetensors", "--target", OTHER, "--guidance-scale", 1)
    _, back = made("style", "cat.safetensors", "--target", OTHER, "--amount", 0,
                   "--guidance-scale", 1)  # fmt: skip
    _, reconstructed = made("reconstruct", "cat.safetensors", "--guidance-scale", 1)
    assert there.shape == (96, 128, 3)
    assert np.abs(back - reconstructed).max() <= 1
    assert np.abs(there - back).max() > 10
    assert (record["prompt"], record["amount"]) == (OTHER, 1.0)
    assert record["source"]["prompt"] == PROMPT
    common = ("style", "cat.safetensors", "--target", OTHER, "--guidance-scale", 1)
    _, near = made(*common, "--loss", "image", "--loss-every", 1, "--loss-scale", 300)
    source = np.asarray(Image.open(home / "photo.png").convert("RGB")).astype(int)
    assert np.abs(near - source).mean() < np.abs(there - source).mean()


def test_several_targets_and_animations_get_a_file_each(pivotal, home, names):
    done = pivotal(
        "style", "cat.safetensors", "--target", OTHER, "--target", PROMPT, "--sampler",
        "euler-ancestral", "--animation", "way.gif", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {f"cat-style-{n}.png" for n in (1, 2)} | {"way-1.gif", "way-2.gif"} <= names(home)


WRONG = {
    "--sampler heun": "sampler='heun' is unknown; accepted are ddim, ddpm, euler",
    "--sampler euler --eta 0.5": "sampler euler has no option 'eta'",
    "--eta 1.5": "eta=1.5; 0 to 1 is possible",
    "--eta nan": "eta=nan; 0 to 1 is possible",
    "--order 3": "sampler ddim has no option 'order'",
    "--step-size 3": "step_size=3; a divisor of 1000",
    "--steps 3 --step-size 10": "num_inference_steps=3 beside step_size=10",
    "--loss cyan:0.9": "--loss 'cyan:0.9': write blue:0.9",
    "--loss blue:2": "--loss 'blue:2': '2' is no level from 0 to 1",
    "--loss blue:x": "--loss 'blue:x': 'x' is no level from 0 to 1",
    "--loss image": "--loss image: name the picture",
    "--loss image:none.png": "none.png",
    "--loss blue --loss-mask other.png": "--loss-mask is for --loss image:FILE",
    "--loss-every 2": "--loss-every is for a loss",
    "--loss-through-unet": "--loss-through-unet is for a loss",
    "--loss blue --loss-every 0": "--loss-every 0; 1 or more",
    "--loss blue --loss-scale inf": "scale=inf; a finite number",
    "--prompt-blend square": "--prompt-blend 'square': write PROMPT=AMOUNT",
    "--prompt-blend =0.5": "--prompt-blend '=0.5': write PROMPT=AMOUNT",
    "--prompt-blend square=x": "--prompt-blend 'square=x': write PROMPT=AMOUNT",
    "--prompt-blend square=nan": "amount=nan; a finite number",
    "--prompt-path linear": "--prompt-path linear is for --prompt-blend",
    "--prompt-blend square=1 --prompt-path cubic": "path='cubic' is unknown",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_wish_ends_in_one_sentence(pivotal, prepared, names, words):
    before = names(prepared)
    done = pivotal("generate", PROMPT, *words.split(), cwd=prepared)
    assert done.returncode == 2
    assert WRONG[words] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert names(prepared) == before


def test_a_mask_that_keeps_nothing_is_named(pivotal, home):
    Image.new("L", (64, 64), 255).save(home / "light.png")
    done = pivotal(
        "style", "cat.safetensors", "--target", OTHER, "--loss", "image", "--loss-mask",
        "light.png", cwd=home,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--loss-mask 'light.png' is light all over" in done.stderr
