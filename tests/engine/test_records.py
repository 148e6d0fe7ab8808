"""What is written about an edit: all that made it, and nothing of the machine."""

from dataclasses import asdict, replace

import numpy as np
import torch

import pivotal
from pivotal.records import edit_record, embedded, mask_of
from pivotal.sheets import footer

TARGET = "a blue circle on a gray background"


def test_an_edits_record_holds_every_setting_of_the_edit(engine, inversion):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[5:41, 13:50] = True
    wish = pivotal.Edit(TARGET, blend="auto", blend_threshold=0.2, blend_start=0.1, mask=mask)
    said = edit_record(inversion, engine.edit(inversion, wish), 0, {})["edit"]
    assert set(said) == set(asdict(wish))
    assert torch.equal(mask_of(said["mask"]), mask)
    again = engine.edit(inversion, pivotal.Edit(**{**said, "mask": mask_of(said["mask"])}))
    assert np.array_equal(again.pictures[0], engine.edit(inversion, wish).pictures[0])


def test_neither_sheets_nor_pictures_tell_where_the_model_lies(inversion):
    at_home = replace(inversion, model="/home/somebody/models/mine/")
    assert footer(at_home).startswith("mine · ddim")
    assert "somebody" not in footer(at_home)
    assert "cpu" not in footer(at_home)
    assert "somebody" not in embedded({"model": at_home.model})["pivotal"]
