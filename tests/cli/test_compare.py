"""`pivotal compare`."""

import json

import pytest
from PIL import Image

PROMPT, TARGET = "a red circle on a gray background", "a blue circle on a gray background"
FEW = ("--method", "ddim", "--method", "direct", "--steps", 2, "--size", "32x32")


def test_a_sheet_a_table_and_json(pivotal, home):
    words = ("compare", "photo.png", "--prompt", PROMPT, "--target", TARGET, *FEW)
    done = pivotal(*words, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [each["method"] for each in record["methods"]] == ["ddim", "direct"]
    noise = record["methods"][0]["noise"]
    assert set(noise) == {"mean", "std_ratio", "normality", "autocorrelation"}
    assert Image.open(home / "compare.png").size[0] > 400
    again = pivotal(*words, cwd=home)
    assert (home / "compare-2.png").is_file()
    assert "drawn noise" in again.stderr
    assert "…" not in again.stderr


def test_a_mask_measures_what_is_kept(pivotal, home):
    half = Image.new("L", (128, 96))
    half.paste(255, (0, 0, 64, 96))
    half.save(home / "half.png")
    done = pivotal(
        "compare", "photo.png", "--prompt", PROMPT, "--target", TARGET, "--mask", "half.png",
        *FEW, "--json", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(each["outside_psnr"] > 5 for each in json.loads(done.stdout)["methods"])


WRONG = {
    ("--method", "ddmi"): "method='ddmi' is unknown; accepted are ddim",
    ("--blend", "circle"): "options of an edit are for --target",
    ("--mask", "none.png"): "none.png",
    ("--target", ""): "--target is empty",
    ("--target", TARGET, "--mask", "photo.png", "--size", "30x30"): "size=(30, 30)",
    ("-o", "compare.txt"): "compare.txt",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_words_end_in_one_sentence(pivotal, prepared, names, words):
    before = names(prepared)
    done = pivotal("compare", "photo.png", "--prompt", PROMPT, *words, cwd=prepared)
    assert done.returncode == 2, done.stderr
    assert WRONG[words] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert names(prepared) == before
