"""The table's command on the bundled model, with few steps."""

import json

import pytest
import torch

from methods import table
from methods.measuring import measure, scenes_of
from methods.trials import STUDIES, Trial
from pivotal.engine import Engine
from pivotal.inversion.registry import METHODS, method_named
from shapes.cases import EVALUATION_SEED

STEPS = 4


@pytest.fixture(scope="module")
def engine():
    return Engine.load("shapes", device="cpu")


@pytest.fixture(scope="module")
def scenes(engine):
    return scenes_of(engine, 2, EVALUATION_SEED)


@pytest.mark.parametrize("study", STUDIES)
def test_every_trials_options_are_its_methods(study):
    labels = [trial.label for trial in STUDIES[study]()]
    assert len(set(labels)) == len(labels) or study == "exact"
    for trial in STUDIES[study]():
        method = method_named(trial.method)
        given = dict(trial.options)
        if method.fits_guidance:
            assert "guidance_scale" not in given
            given["guidance_scale"] = trial.scale
        method.options_from(given)


def test_the_studies_leave_no_method_out():
    shown = {trial.method for study in STUDIES.values() for trial in study()}
    assert shown == set(METHODS)


@pytest.mark.parametrize("method", ["direct", "edit-friendly", "belm", "bdia", "edict"])
def test_what_is_exact_loses_nothing_on_the_trained_model(engine, scenes, method):
    row = measure(engine, scenes, Trial(method, method, 3.0), STEPS)
    assert row["picture_db"] == pytest.approx(row["vae_db"], abs=0.1)
    assert row["latents_db"] > 60


def test_one_more_evaluation_beats_ddim_by_a_decibel_in_latents(engine, scenes):
    ddim = measure(engine, scenes, Trial("", "ddim", 1.0), 10)
    more = measure(engine, scenes, Trial("", "fixed-point", 1.0, {"iterations": 2}), 10)
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


def test_the_command_writes_a_line_a_trial(monkeypatch, tmp_path, capsys):
    results = tmp_path / "methods.jsonl"
    monkeypatch.setattr(table, "RESULTS", results)
    command = ["methods.table", "--scenes", "1", "--steps", "2", "--only", "DDIM"]
    monkeypatch.setattr("sys.argv", command)
    table.main()
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["label"] for row in rows] == ["DDIM, 1 in, 1 out", "DDIM, 1 in, 7.5 out"]
    for row in rows:
        assert row["rows_invert"] == 2
        assert row["commit"]
        assert row["steps"] == 2
    assert "DDIM, 1 in, 7.5 out" in capsys.readouterr().out
