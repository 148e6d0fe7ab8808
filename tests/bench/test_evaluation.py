import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pivotal.bench.background import masked_psnr, masked_ssim
from pivotal.bench.errors import ResultsError
from pivotal.bench.evaluation import Task, edit_after, evaluate, summary
from pivotal.bench.judged import Judged, JudgedFile
from pivotal.bench.pie_bench import decode_mask, tasks, unbracketed
from pivotal.bench.shapes.edits import KINDS, cases
from pivotal.bench.shapes.scenes import draw
from pivotal.bench.shapes.verdict import succeeded, unedited
from pivotal.cli import main
from pivotal.editing.edit import Edit
from pivotal.engine import Engine

CASES = cases(4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_wanted_picture_succeeds_and_the_source_does_not(kind):
    for case in (each for each in CASES if each.kind == kind):
        assert succeeded(case, draw(case.wanted)[0]), case
        assert not succeeded(case, draw(case.scene)[0]), case


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_exact_the_wanted_picture_leaves_the_rest_as_it_is(kind):
    for case in (each for each in CASES if each.kind == kind):
        rest = unedited(case)
        before, after = draw(case.scene)[0], draw(case.wanted)[0]
        assert 0 < rest.mean() < 1
        assert np.array_equal(before[rest], after[rest])
        assert not np.array_equal(before[~rest], after[~rest])


def test_cases_are_the_same_ones_however_many_are_asked_for():
    few = [each for each in cases(2) if each.kind == "add object"]
    assert few == [each for each in CASES if each.kind == "add object"][:2]
    assert cases(1, seed=5) != cases(1, seed=6)


def test_the_other_object_must_stay_where_one_of_two_is_edited():
    case = next(each for each in CASES if each.kind == "one of two")
    both = [case.wanted.objects[0], case.wanted.objects[1]]
    gone = type(case.scene)((both[0],), case.scene.background)
    assert not succeeded(case, draw(gone)[0])


def test_background_figures_are_of_the_chosen_pixels_alone():
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    where = np.zeros((32, 32), dtype=bool)
    where[:16] = True
    edited = source.copy()
    edited[16:] = 0
    assert masked_psnr(source, edited, where) == 60.0
    assert masked_ssim(source, edited, np.arange(32)[:, None].repeat(32, 1) < 12) > 0.999
    edited[:16] = np.clip(source[:16].astype(int) + 10, 0, 255)
    error = np.mean((edited[:16].astype(float) - source[:16]) ** 2)
    assert masked_psnr(source, edited, where) == pytest.approx(10 * np.log10(255**2 / error))
    assert np.isnan(masked_psnr(source, edited, None))
    assert np.isnan(masked_ssim(source, edited, np.zeros((32, 32), dtype=bool)))


def test_what_has_no_meaning_is_left_out_of_means_and_counted_so():
    nan = float("nan")
    found = summary(
        [Judged("1", "a", 1.0, 20.0, 0.5, 30.0, 31.0), Judged("2", "a", 0.0, nan, nan, 28, 31)]
    )
    assert found["success"]["mean"] == 0.5
    assert found["background_psnr"] == {"mean": 20.0, "low": 20.0, "high": 20.0, "count": 1}
    assert found["clip_score"] is None
    json.dumps(found, allow_nan=False)


def test_brackets_are_no_part_of_a_prompt():
    assert unbracketed("a [rusty] bicycle on [the road]") == "a rusty bicycle on the road"
    assert unbracketed("[a cat]sits") == "a cat sits"


def test_masks_are_runs_over_the_flattened_picture_with_the_rim_masked():
    mask = decode_mask([9, 2, 30, 100], (6, 6))
    assert mask[[0, -1]].all()
    assert mask[:, [0, -1]].all()
    assert [tuple(each) for each in np.argwhere(mask[1:-1, 1:-1])] == [(0, 2), (0, 3)]
    for wrong in ([1], [1, -2], "12", [1, 2.5]):
        with pytest.raises(ResultsError, match="starts and lengths"):
            decode_mask(wrong, (6, 6))


@pytest.fixture
def data(tmp_path):
    """Two of our scenes in PIE-Bench's format."""
    folder, mapping = tmp_path / "pie", {}
    chosen = [next(c for c in CASES if c.kind == kind) for kind in ("change colour", "add object")]
    for number, case in enumerate(chosen):
        path = folder / "annotation_images" / str(number) / f"{number}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(draw(case.scene)[0]).save(path)
        flat = np.flatnonzero(~unedited(case))
        thing = case.wanted.objects[-1]
        mapping[f"00{number}"] = {
            "image_path": f"{number}/{number}.png",
            "original_prompt": case.prompt,
            "editing_prompt": case.target.replace(thing.colour, f"[{thing.colour}]"),
            "editing_type_id": "6" if number == 0 else "2",
            "blended_word": f"{case.scene.objects[0].shape} {thing.shape}",
            "mask": [int(each) for start in flat for each in (start, 1)],
        }
    (folder / "mapping_file.json").write_text(json.dumps(mapping))
    return folder


def test_a_folder_in_pie_benchs_format_gives_the_scenes_back(data):
    colour, added = tasks(data, (64, 64))
    case = next(each for each in CASES if each.kind == "change colour")
    assert (colour.kind, added.kind) == ("change attribute colour", "add object")
    assert colour.prompt == case.prompt
    assert colour.edit.target == case.target
    assert np.array_equal(colour.picture, draw(case.scene)[0])
    assert np.array_equal(colour.unedited[1:-1, 1:-1], unedited(case)[1:-1, 1:-1])
    assert len(tasks(data, (64, 64), limit=1)) == 1


def test_words_that_bound_an_edit_are_found_beside_commas_and_absent_ones_bound_nothing(data):
    mapping = json.loads((data / "mapping_file.json").read_text())
    mapping["000"] |= {
        "original_prompt": "a [red] circle, on gray", "editing_prompt": "a [blue] circle, on gray",
        "blended_word": "circle zebra",
    }  # fmt: skip
    (data / "mapping_file.json").write_text(json.dumps(mapping))
    assert tasks(data, (64, 64))[0].edit.blend == ("circle",)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [(7, "an object of names"), ({"image_path": 7}, "image_path is 7"), ({"mask": None}, "starts")],
)
def test_an_entry_of_another_kind_gets_a_sentence(data, entry, sentence):
    mapping = json.loads((data / "mapping_file.json").read_text())
    mapping["000"] = mapping["000"] | entry if isinstance(entry, dict) else entry
    (data / "mapping_file.json").write_text(json.dumps(mapping))
    with pytest.raises(ResultsError, match=sentence):
        tasks(data, (64, 64))


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/hostname"])
def test_no_picture_outside_the_folder_is_read(data, path):
    mapping = json.loads((data / "mapping_file.json").read_text())
    mapping["000"]["image_path"] = path
    (data / "mapping_file.json").write_text(json.dumps(mapping))
    with pytest.raises(ResultsError, match="out of the folder"):
        tasks(data, (64, 64))


def evaluated(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["eval", *map(str, words), "--json", "--quiet"])
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


def test_two_runs_give_identical_json_with_a_row_a_method(data, capsys):
    words = (data, "--limit", 1, "--steps", 2, "--method", "ddim", "--method", "direct")
    code, out, err = evaluated(capsys, *words)
    assert code == 0, err
    assert evaluated(capsys, *words)[1] == out
    found = json.loads(out)
    assert [row["method"] for row in found["rows"]] == ["ddim", "direct"]
    ddim, direct = found["rows"]
    assert direct["source_psnr"]["mean"] > ddim["source_psnr"]["mean"] + 3
    assert direct["background_psnr"]["count"] == 1
    assert "pickles" in found["not_measured"]["lpips"]


def small_tasks(count, target="a blue circle on a gray background"):
    """Pictures of nothing but noise: what is judged here is the judging."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    rest = np.arange(64)[:, None].repeat(64, 1) < 32
    return [
        Task(f"task {place}", "noise", picture, "a red circle on a gray background",
             Edit(target, null_text_steps=0.2), rest)
        for place, picture in enumerate(pictures)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    with Engine.load("shapes") as loaded:
        yield loaded


def test_a_task_that_fails_is_named_with_its_error_and_the_rest_is_judged(engine):
    broken = replace(small_tasks(1)[0], name="broken", edit=Edit("a blue circle", blend=("zebra",)))
    (row,) = evaluate(engine, [broken, *small_tasks(1)], ["direct"], steps=2, guidance_scale=3.0)
    assert row["failed"] == 1
    assert list(row["errors"]) == ["broken"]
    assert "zebra" in row["errors"]["broken"]
    assert row["source_psnr"]["count"] == 1
    assert row["success"]["count"] == 1


def test_an_interrupted_evaluation_goes_on_where_it_was_and_gives_the_same_rows(engine, tmp_path):
    path, todo, seen = tmp_path / "judged.jsonl", small_tasks(3), []

    def run(tasks, steps=2, path=path, stop_at=None):
        def score(source, picture, where, text):
            if len(seen) == stop_at:
                raise KeyboardInterrupt
            seen.append(text)
            return 1.0

        return evaluate(
            engine, tasks, ["direct"], steps=steps, guidance_scale=3.0,
            scores={"clip_score": score}, kept=JudgedFile(path, {"model": "shapes"}),
        )  # fmt: skip

    whole = run(todo, path=None)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(todo, stop_at=2)
    with path.open("a") as file:
        file.write('{"key": "torn')
    seen.clear()
    assert run(todo) == whole
    assert len(seen) == 1
    assert run(todo) == whole
    assert len(seen) == 1
    run(todo[:1], steps=3)
    assert len(seen) == 2


def test_what_is_kept_is_found_by_all_that_decides_it(tmp_path):
    one, other = (JudgedFile(tmp_path / "a.jsonl", {"fingerprint": each}) for each in "ab")
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    assert one.key("ddim", "a", picture) == one.key("ddim", "a", picture.copy())
    different = {
        one.key("ddim", "a", picture), other.key("ddim", "a", picture),
        one.key("direct", "a", picture), one.key("ddim", "b", picture),
        one.key("ddim", "a", picture + 1),
    }  # fmt: skip
    assert len(different) == 5


def test_the_window_of_a_fitted_null_embedding_is_for_methods_that_fit_one():
    swap = next(each for each in CASES if each.kind == "change object")
    edit = Edit(swap.target, blend=swap.blend, **swap.windows)
    assert edit.null_text_steps == 0.2
    assert edit_after("null-text", edit) == edit
    assert edit_after("direct", edit) == replace(edit, null_text_steps=1.0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "magic"], "method='magic' is unknown"),
        (["--scenes", "0"], "--scenes 0; at least 1"),
        (["nowhere"], "has no mapping_file.json"),
    ],
)
def test_wrong_input_gets_a_sentence(capsys, words, sentence):
    code, _, err = evaluated(capsys, *words)
    assert code == 2
    assert sentence in " ".join(err.split())
