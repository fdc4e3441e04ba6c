"""The time left of a study is the sum of what its open cells took elsewhere."""

import json

from viewalign.studies.cells import FILE, Cell
from viewalign.studies.run import time_left


def cells_of(folder, taken):
    """Two arms, two seeds, one evaluation; `taken` has the seconds of finished cells."""
    made = []
    for seed in (0, 1):
        for arm in ("mae", "cva"):
            before = Cell(f"pretrain/{arm}/{seed}", folder / f"p-{arm}-{seed}", arm, seed, None, None)
            made += [before, Cell(f"evaluate/seg/{arm}/{seed}", folder / f"j-{arm}-{seed}", arm, seed, "seg", before)]
    for cell in made:
        cell.folder.mkdir()
        if cell.name in taken:
            (cell.folder / FILE).write_text(json.dumps({"status": "done", "seconds": taken[cell.name]}))
    return made


def test_remaining_time_uses_cells_of_the_same_kind(tmp_path):
    taken = {"pretrain/mae/0": 100, "pretrain/cva/0": 300, "evaluate/seg/mae/0": 10, "evaluate/seg/cva/0": 20}
    cells = cells_of(tmp_path, taken)
    assert time_left(cells, cells) == "about 7 min 10 s left"  # 100 + 300 + 15 + 15
    assert time_left(cells[4:6], cells) == "about 1 min 55 s left"
    assert time_left(cells[:4], cells) == ""


def test_unknown_durations_are_not_guessed(tmp_path):
    cells = cells_of(tmp_path, {"pretrain/mae/0": 60})
    assert time_left(cells, cells) == "more than 1 min 00 s left"
    assert time_left(cells[2:4], cells) == ""


def test_records_without_duration_are_ignored(tmp_path):
    cells = cells_of(tmp_path, {})
    (cells[0].folder / FILE).write_text(json.dumps({"status": "done"}))
    assert time_left(cells, cells) == ""
