"""`--config`: defaults that the command line overrides."""

import json

import pytest


@pytest.fixture
def configured(pivotal, home):
    """Run a command with this TOML."""

    def run(toml, *arguments):
        (home / "my.toml").write_text(toml)
        return pivotal(*arguments, "--config", "my.toml", cwd=home)

    return run


INVERT = ("invert", "photo.png", "--prompt", "a circle", "--json", "--no-cache")


def test_a_table_sets_the_defaults_of_its_command(configured):
    toml = '[invert]\nsteps = 3\nmethod = "ddim"\nguidance-scale = 2\n[edit]\nkind = "swap"\n'
    record = json.loads(configured(toml, *INVERT).stdout)
    assert (record["steps"], record["method"], record["guidance_scale"]) == (3, "ddim", 2)


def test_what_stands_above_the_tables_holds_for_every_command_that_has_it(configured):
    toml = 'steps = 2\nseed = 7\ndtype = "float64"\n[invert]\nmethod = "ddim"\nseed = 0\n'
    made = json.loads(configured(toml, "generate", "a circle", "--json").stdout)
    assert (made["steps"], made["seed"], made["dtype"]) == (2, 7, "float64")


def test_the_command_line_wins(configured):
    toml = '[invert]\nsteps = 3\nmethod = "ddim"\n'
    assert json.loads(configured(toml, *INVERT, "--steps", "2").stdout)["steps"] == 2


def test_a_required_option_may_come_from_the_file(configured):
    done = configured(
        'steps = 2\n[invert]\nprompt = ["a circle"]\nmethod = "ddim"\n',
        "invert", "photo.png", "--json",
    )  # fmt: skip
    assert json.loads(done.stdout)["prompt"] == "a circle"


def test_flags_lists_and_tables_of_named_values(configured, home):
    toml = 'no-metadata = true\n[edit]\nblend = ["circle"]\n[edit.weight]\nblue = 2\n'
    done = configured(
        toml, "edit", "cat.safetensors", "--target", "a blue circle on a gray background", "--json"
    )
    record = json.loads(done.stdout)
    assert record["edit"]["weights"] == {"blue": 2.0}
    assert record["edit"]["blend"] == ["circle"]
    from PIL import Image

    with Image.open(home / record["outputs"]["picture"]) as picture:
        assert not picture.info


def test_a_family_of_commands_has_tables_in_a_table(configured):
    record = json.loads(
        configured('[cache.gc]\nmax-size = "1GB"\n', "cache", "gc", "--json").stdout
    )
    assert record["removed"]["files"] == 0


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("stepps = 3\n", "'stepps'"),
        ("[invert]\nstepps = 3\n", "accepted are .*steps"),
        ("[edit]\nsteps = 3\n", "[edit] has no option 'steps'"),
        ("[cache]\nls = 3\n", "ls = 3"),
        ("[cache.rm]\n", "'rm'; accepted are ls, gc, clear"),
        ("invert = 3\n", "invert = 3"),
        ("[invert]\nprompt = 'x'\n", "an array is expected"),
        ("[invert]\nsteps = [3]\n", "steps = [3]"),
        ("[invert]\nforce = 1\n", "true or false"),
        ("[invert]\nsteps = 'many'\n", "many"),
        ("[invert]\nconfig = 'other.toml'\n", "'config'"),
        ("[invert\n", "no valid TOML"),
    ],
)
def test_a_wrong_file_gets_one_sentence(configured, home, names, toml, named):
    before = names(home) | {"my.toml"}
    done = configured(toml, *INVERT)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    *_, last = named.split(".*")
    assert last in done.stderr
    assert names(home) == before


def test_a_file_that_is_not_there_is_named(pivotal, home):
    done = pivotal(*INVERT, "--config", "none.toml", cwd=home)
    assert (done.returncode, "none.toml" in done.stderr) == (2, True)
    (home / "binary.toml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in pivotal(*INVERT, "--config", "binary.toml", cwd=home).stderr
