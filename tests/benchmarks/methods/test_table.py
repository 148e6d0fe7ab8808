"""The table's command on the bundled model, with few steps."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from methods import odd_timestep, table
from methods.measuring import edits_for, measure, options_of, scenes_of
from methods.plots import PLOTS, draw
from methods.results import joined, key_of, rows_of
from methods.together import measure_together
from methods.trials import STUDIES, Trial
from pivotal.editing.edit import Edit
from pivotal.engine import Engine
from pivotal.inversion import registry
from pivotal.inversion.null_text_line_search import LineSearchOptions
from pivotal.inversion.registry import METHODS
from shapes.cases import EVALUATION_SEED
from shapes.judge import judge_edit

STEPS = 2


@pytest.fixture(scope="module")
def engine():
    return Engine.load("shapes", device="cpu")


@pytest.fixture(scope="module")
def scenes(engine):
    return scenes_of(engine, 2, EVALUATION_SEED)


@pytest.mark.parametrize("study", STUDIES)
def test_every_trials_options_are_its_methods_and_its_name_its_own(study):
    trials = STUDIES[study]()
    assert len({trial.label for trial in trials}) == len(trials)
    for trial in trials:
        options_of(trial)


def test_the_table_has_every_method_at_the_usual_guidance_and_at_what_it_suits():
    shown = {(trial.method, trial.scale) for trial in STUDIES["table"]()}
    for name, method in METHODS.items():
        assert (name, 7.5) in shown
        for scale in (3.0, 5.0):
            low, high = method.guidance
            if low <= scale <= high and name != "null-text-ablation":
                assert (name, scale) in shown


@pytest.mark.parametrize("method", ["direct", "edit-friendly", "belm", "bdia", "edict"])
def test_what_is_exact_loses_nothing_on_the_trained_model(engine, scenes, method):
    row = measure(engine, scenes, Trial(method, method, 3.0), STEPS, edited=False)
    assert row["picture_db"] == pytest.approx(row["vae_db"], abs=0.1)
    assert row["latents_db"] > 60


def test_one_more_evaluation_beats_ddim_by_a_decibel_in_latents(engine, scenes):
    ddim = measure(engine, scenes, Trial("", "ddim", 1.0), 6, edited=False)
    more = measure(
        engine, scenes, Trial("", "fixed-point", 1.0, {"iterations": 2}), 6, edited=False
    )
    assert more["rows_invert"] == 2 * ddim["rows_invert"]
    assert more["latents_db"] > ddim["latents_db"] + 1


def test_a_failing_trial_is_a_row_with_its_error(engine, scenes):
    class Broken(torch.nn.Module):
        layers = engine.model.unet.layers

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, *ignored):
            raise RuntimeError("no network today")

    class Model:
        def __getattr__(self, name):
            return Broken() if name == "unet" else getattr(engine.model, name)

    class Other:
        model = Model()

    row = measure(Other(), scenes, Trial("a label", "ddim", 1.0), STEPS)
    assert "no network today" in row["error"]
    assert row["label"] == "a label"


def test_an_edit_is_what_the_engine_makes_of_it_and_is_judged_by_the_oracle(engine, scenes):
    """The batch's pictures against one `engine.edit` at a time."""
    row = measure(engine, scenes, Trial("", "direct", 7.5), STEPS)
    for case, source, scene in zip(scenes.cases, scenes.pictures, row["each"], strict=True):
        inversion = engine.invert(
            source, case.prompt, method="direct", num_inference_steps=STEPS, guidance_scale=7.5
        )
        wish = Edit(case.target, blend=case.words, **edits_for(METHODS["direct"])[case.kind])
        picture = np.asarray(engine.edit(inversion, wish).pictures[0])
        verdict = judge_edit(case, picture).record()
        assert scene["edit"]["outside_db"] == pytest.approx(verdict["outside_db"], abs=0.05)
        assert scene["edit"]["seen"] == verdict["seen"]
    successes = {scene["kind"]: float(scene["edit"]["success"]) for scene in row["each"]}
    assert row["colour_success"] == successes["colour"]
    assert row["shape_success"] == successes["shape"]
    assert row["rows_replay"] == 4 * STEPS


def test_trials_together_give_what_each_gives_alone(engine, scenes):
    corrected = {"gradient": "exact", "refine_skip": 0.0, "refine_iterations": 2}
    trials = [
        Trial("a", "ddim", 3.0, {"guidance_scale": 3.0}),
        Trial("b", "k-euler", 1.0, {"invert_steps": 3}),
        Trial("c", "finite-difference", 3.0, corrected),
    ]
    rows = measure_together(engine, scenes, trials, STEPS)
    for trial, row in zip(trials, rows, strict=True):
        alone = measure(engine, scenes, trial, STEPS, edited=False)
        assert row["options"] == alone["options"]
        for name in ("latents_db", "picture_db", "noise_std_ratio", "vae_db"):
            assert row[name] == pytest.approx(alone[name], rel=1e-3)
        assert row["rows_replay"] == alone["rows_replay"]
        assert row["rows_invert"] >= alone["rows_invert"]


def test_one_trials_failure_is_its_own(engine, scenes, monkeypatch):
    def fail(*ignored):
        raise RuntimeError("not this one")
        yield

    method = replace(METHODS["direct"], invert=fail)
    monkeypatch.setattr(registry, "METHODS", {**METHODS, "direct": method})
    trials = [Trial("a", "direct", 1.0), Trial("b", "ddim", 1.0)]
    failed, well = measure_together(engine, scenes, trials, 1)
    assert "not this one" in failed["error"]
    assert "error" not in well
    assert len(well["each"]) == 2


def test_scenes_are_the_same_however_they_are_divided(engine, scenes):
    second = scenes_of(engine, 1, EVALUATION_SEED, first=1)
    assert second.cases[0] == scenes.cases[1]
    assert np.array_equal(second.pictures[0], scenes.pictures[1])


def command(monkeypatch, results, *words):
    monkeypatch.setattr(
        "sys.argv", ["methods.table", "--steps", "2", "--results", str(results), *words]
    )
    table.main()
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_what_is_measured_is_written_once_and_put_together(monkeypatch, tmp_path, capsys):
    results = tmp_path / "methods.jsonl"
    monkeypatch.setattr(table, "GROUP", 1)
    words = ["--only", "DDIM, 1"]
    rows = command(monkeypatch, results, *words, "--scenes", "1")
    assert [row["label"] for row in rows] == ["DDIM, 1 in, 1 out", "DDIM, 1 in, 7.5 out"]
    for row in rows:
        assert row["rows_invert"] == 2
        assert row["commit"]
        assert row["fingerprint"]
        assert row["each"][0]["edit"]["seen"]
    again = command(monkeypatch, results, *words, "--scenes", "2")
    assert again[:2] == rows
    assert [(row["first"], row["label"]) for row in again[2:]] == [
        (1, "DDIM, 1 in, 1 out"),
        (1, "DDIM, 1 in, 7.5 out"),
    ]
    assert "2 of 4 groups of scenes are not measured yet" in capsys.readouterr().out
    first, second = joined(rows_of(results))
    assert first["scenes"] == second["scenes"] == 2
    halves = [row["picture_db"] for row in again[::2]]
    assert first["picture_db"] == pytest.approx(sum(halves) / 2)


def test_rows_of_other_weights_and_rows_that_failed_do_not_count(tmp_path):
    row = {
        "study": "table", "label": "a", "method": "ddim", "scale": 1.0, "options": {}, "first": 0,
        "count": 1, "steps": 2, "edits": None, "fingerprint": "old",
    }  # fmt: skip
    path = tmp_path / "methods.jsonl"
    lines = [row, {**row, "fingerprint": "new", "error": "no"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rows_of(path, "new") == []
    assert rows_of(path, "old") == [row]
    assert rows_of(tmp_path / "none.jsonl", "old") == []


def test_groups_that_overlap_count_a_scene_once(engine, scenes):
    row = measure(engine, scenes, Trial("a", "ddim", 1.0), 1, edited=False)
    both = {**row, "study": "table", "count": 2}
    one = {**both, "count": 1, "each": row["each"][:1]}
    (found,) = joined([both, one])
    assert found["scenes"] == 2
    assert found["latents_db"] == pytest.approx(row["latents_db"])


def test_a_row_stays_its_trials_when_the_method_gets_another_option():
    options = asdict(LineSearchOptions())
    row = {
        "study": "table", "label": "a", "method": "null-text-line-search", "scale": 7.5, "first": 0,
        "count": 2, "steps": 50, "edits": 2, "fingerprint": "f", "options": options,
    }  # fmt: skip
    before = {name: value for name, value in options.items() if name != "again_from"}
    assert key_of({**row, "options": before}) == key_of(row)
    for changed in ({"again_from": 0.5}, {"iterations": 3}):
        assert key_of({**row, "options": {**options, **changed}}) != key_of(row)


def test_rows_of_other_options_or_edits_are_not_put_together(engine, scenes):
    row = {**measure(engine, scenes, Trial("a", "k-euler", 1.0), 1, edited=False), "study": "table"}
    row |= {"count": 2, "edits": {"colour": {"null_text_steps": 0.2}}}
    other = {**row, "options": {**row["options"], "grid": "linear"}}
    former = {**row, "edits": {"colour": {}}}
    assert [found["options"]["grid"] for found in joined([row, other, former])] == [
        row["options"]["grid"], "linear", row["options"]["grid"]
    ]  # fmt: skip


def test_an_unknown_study_is_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path / "none", "--study", "euler")
    assert "'euler' is unknown; accepted are all, table" in capsys.readouterr().err


@pytest.mark.parametrize("study", PLOTS)
def test_every_studys_plot_shows_rows_and_bears_missing_ones(study, tmp_path):
    trials = STUDIES[study]()
    rows = [
        {
            "label": trial.label, "steps": 2, "scenes": 1, "vae_db": 33.0, "picture_db": 20.0 + n,
            "latents_db": 10.0 + n, "noise_std_ratio": 1.0, "diverged": float(n % 2),
        }
        for n, trial in enumerate(trials)
    ]  # fmt: skip
    sizes = []
    for shown in (rows, [*rows[1::3], {"label": rows[0]["label"], "steps": 2, "error": ""}]):
        path = draw(study, shown, tmp_path)
        sizes.append(path.stat().st_size)
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    assert sizes[0] != sizes[1]
    assert draw(study, [], tmp_path) is None


def test_plots_name_trials_that_there_are():
    """A label that no trial has would leave a hole in the plot."""
    for study in PLOTS:
        asked = Asked()
        PLOTS[study](Figure(), asked)
        missing = asked.labels - {trial.label for trial in STUDIES[study]()}
        assert asked.labels
        assert not missing


class Asked(dict):
    """Rows that keep which labels were looked up."""

    def __init__(self):
        super().__init__()
        self.labels = set()

    def get(self, label, default=None):
        self.labels.add(label)
        return default

    def __contains__(self, label):
        self.labels.add(label)
        return False


def test_the_odd_timesteps_error_is_relative_to_asking_both_at_t(engine, scenes, tmp_path):
    lines = [odd_timestep.errors(engine, scenes, scale, 4) for scale in (1.0, 3.0)]
    assert [line[0] for line in lines] == [1.0, 1.0]
    # At guidance 1 the unconditional pass, and so its timestep, has no part.
    assert lines[0] == pytest.approx([1.0] * len(lines[0]), rel=1e-3)
    assert len(set(lines[1])) == len(odd_timestep.OFFSETS)
    assert all(value > 0 for value in lines[1])
    assert odd_timestep.draw([lines[1]] * len(odd_timestep.SCALES), tmp_path).stat().st_size > 5000


def test_corrections_of_every_step_beat_both_kinds_of_ddim_in_latents(engine):
    """Asked where the sampler asks; without the first step, which loses most, they would not."""
    rows = measure_together(engine, scenes_of(engine, 1, EVALUATION_SEED), every_step(3.0), 8)
    destination, source, every = (row["latents_db"] for row in rows)
    assert every > max(destination, source) + 1.5


def every_step(scale):
    given = {"guidance_scale": scale}
    return [
        Trial("ddim", "ddim", scale, given),
        Trial("at the source", "ddim", scale, {**given, "asked_at": "source"}),
        Trial("every", "finite-difference", scale, {"gradient": "frozen", "refine_skip": 0.0}),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [3.0, 5.0])
def test_finite_differences_beat_ddim_at_the_same_guidance_in_and_out(engine, scenes, scale):
    trials = [
        *every_step(scale),
        Trial("finite", "finite-difference", scale),
        Trial("exact", "finite-difference", scale, {"gradient": "exact"}),
    ]
    ddim, source, every, finite, exact = measure_together(engine, scenes, trials, 50)
    assert finite["picture_db"] > ddim["picture_db"] + 0.3
    assert exact["latents_db"] > ddim["latents_db"] + 1
    assert every["latents_db"] > max(ddim["latents_db"], source["latents_db"]) + 3
