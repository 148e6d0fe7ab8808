import json

import null_text_study


def test_a_study_measures_each_trial_once_and_draws_it(tmp_path, capsys):
    rows, plot = tmp_path / "rows.jsonl", tmp_path / "plot.png"
    given = ["--scenes", "1", "--steps", "2", "--only", "gradient, 1", "--results", str(rows)]
    null_text_study.main([*given, "--plot", str(plot)])
    (row,) = [json.loads(line) for line in rows.read_text().splitlines()]
    assert row["options"]["iterations"] == 1
    assert row["options"]["direction"] == "gradient"
    assert null_text_study.passes(row) == 2 * 5 + 2
    assert row["each"][0]["edit"]["outside_db"] > 10
    assert plot.stat().st_size > 1000
    shown = capsys.readouterr().out
    assert f"{row['latents_db']:.2f}" in shown
    null_text_study.main(given)
    assert len(rows.read_text().splitlines()) == 1


def test_every_trial_has_a_label_and_options_of_its_own():
    trials = null_text_study.trials()
    assert len({trial.label for trial in trials}) == len(trials)
    made = {(t.method, str(null_text_study.options_of(t))) for t in trials}
    assert len(made) == len(trials)
