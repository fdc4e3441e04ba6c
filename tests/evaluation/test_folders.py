"""Evaluation of folders: cases, missing predictions, rules and written files."""

import csv
import json
import re

import numpy as np
import pytest

from viewalign.cli.main import run
from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.evaluation.comparison import compare
from viewalign.evaluation.folders import classes_of, evaluate_folder, ignore_of, tolerances_of
from viewalign.evaluation.results import read_evaluation
from viewalign.evaluation.segmentation_metrics import Rules, score_maps

pytest.importorskip("monai")


def write(path, array, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def cube(low, high, value=1, size=24):
    array = np.zeros((size,) * 3, np.uint8)
    array[low:high, low:high, low:high] = value
    return array


@pytest.fixture
def folders(tmp_path):
    """Seven cases: predictions one voxel too small, but the first is perfect."""
    for name in ("guess", "truth"):
        (tmp_path / name).mkdir()
    for k in range(7):
        write(tmp_path / "truth" / f"case_{k}.nii.gz", cube(6, 16) + cube(18, 20, 2))
        write(tmp_path / "guess" / f"case_{k}.nrrd", cube(6, 16 if k == 0 else 15) + cube(18, 20, 2))
    return tmp_path / "guess", tmp_path / "truth"


def rules(**changes):
    return Rules(**({"classes": {"a": (1,), "b": (2,)}, "tolerances": {"a": 1.0, "b": 1.0}} | changes))


def test_scores_and_files(folders, tmp_path):
    result = evaluate_folder(*folders, rules())
    assert result.complete
    smaller = 2 * 729 / (729 + 1000)
    assert result.values("dice", "a").tolist() == pytest.approx([1.0] + [smaller] * 6)
    assert result.summary("dice", "a").mean == pytest.approx((1 + 6 * smaller) / 7)
    assert 0.97 < result.summary("nsd", "a").mean < 1  # all surfaces are within a voxel, but for one corner of a cube
    assert result.summary("dice").mean == pytest.approx(np.mean([(v + 1) / 2 for v in [1.0] + [smaller] * 6]))
    low, high = result.summary("dice", "a").interval
    assert low < result.summary("dice", "a").mean < high
    result.write(tmp_path / "scores")
    tree = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert tree["rules"]["tolerance_mm"] == {"a": 1.0, "b": 1.0}
    assert len(tree["cases"][0]["prediction_sha256"]) == 64
    assert "viewalign" in tree["versions"]
    assert "monai" in tree["versions"]
    rows = list(csv.DictReader((tmp_path / "scores" / "cases.csv").open()))
    assert len(rows) == 14
    assert float(rows[0]["dice"]) == 1.0
    again = read_evaluation(tmp_path / "scores")
    assert again.values("dice", "a").tolist() == result.values("dice", "a").tolist()
    assert again.rules == result.rules
    assert "0.8" in again.table()


def test_missing_excluded_and_extra_cases(folders):
    guess, truth = folders
    (guess / "case_3.nrrd").unlink()
    write(guess / "case_4.nrrd", cube(6, 15, size=20))
    write(guess / "case_5.nrrd", cube(6, 15), (2.0, 1.0, 1.0))
    (guess / "case_6.nrrd").write_bytes(b"NRRD0004\n")
    write(guess / "stranger.nrrd", cube(6, 15))
    (guess / "summary.json").write_text("{}")
    result = evaluate_folder(guess, truth, rules())
    assert not result.complete
    assert result.missing == ("case_3",)
    assert result.extra == ("stranger",)
    assert set(result.excluded) == {"case_4", "case_5", "case_6"}
    assert "different sizes (20×20×20 and 24×24×24)" in result.excluded["case_4"]
    assert "different voxel sizes" in result.excluded["case_5"]
    assert "cannot be read" in result.excluded["case_6"]
    assert [case.name for case in result.cases] == ["case_0", "case_1", "case_2"]
    few = evaluate_folder(guess, truth, rules(), cases=["case_0", "case_1"])
    assert few.complete
    with pytest.raises(UserError, match="case_99"):
        evaluate_folder(guess, truth, rules(), cases=["case_99"])
    with pytest.raises(UserError, match="no prediction"):
        evaluate_folder(guess, truth, rules(), cases=["case_3"])


@pytest.mark.long
def test_two_processes_give_the_same(folders):
    one, two = evaluate_folder(*folders, rules()), evaluate_folder(*folders, rules(), processes=2)
    assert one == two


def test_ignored_voxels_do_not_count():
    truth, guess = cube(6, 16), cube(6, 16)
    guess[0:3] = 1  # wrong, but where nobody labelled
    truth[0:4] = 9
    scores = score_maps(guess, truth, (1, 1, 1), rules(ignore=9))
    assert scores["a"].dice == 1.0
    assert scores["a"].nsd == 1.0
    assert score_maps(guess, truth, (1, 1, 1), rules())["a"].dice < 1.0


def test_classes_in_one_map_or_neither():
    both_empty = score_maps(cube(6, 16), cube(6, 16), (1, 1, 1), rules())["b"]
    assert np.isnan(both_empty.dice)
    assert np.isnan(both_empty.nsd)
    assert score_maps(cube(6, 16), cube(6, 16), (1, 1, 1), rules(empty="one"))["b"].dice == 1.0
    only_guess = score_maps(cube(6, 16) + cube(18, 20, 2), cube(6, 16), (1, 1, 1), rules(empty="one"))["b"]
    assert (only_guess.dice, only_guess.nsd) == (0.0, 0.0)


def test_regions():
    truth = cube(6, 16) + cube(16, 20, 2)
    guess = cube(6, 16, 2) + cube(16, 20, 1)  # the classes exchanged: each wrong, their union right
    scores = score_maps(guess, truth, (1, 1, 1), rules(classes={"a": (1,), "b": (1, 2)}))
    assert scores["a"].dice == 0.0
    assert scores["b"].dice == 1.0


def test_where_classes_come_from(folders, tmp_path):
    guess, truth = folders
    assert classes_of(guess, truth) == {"1": (1,), "2": (2,)}
    description = {"labels": {"background": 0, "both": [1, 2], "core": 2, "ignore": 3}}
    (guess / "dataset.json").write_text(json.dumps(description))
    assert classes_of(guess, truth) == {"both": (1, 2), "core": (2,)}
    assert ignore_of(guess, truth) == 3
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"other\.json.*labels"):
        classes_of(guess, truth, tmp_path / "other.json")


def test_tolerances():
    assert tolerances_of("2", ["a", "b"]) == {"a": 2.0, "b": 2.0}
    assert tolerances_of("a=0.5", ["a", "b"]) == {"a": 0.5, "b": 1.0}
    for wrong, sentence in [("x", "tolerance.*x"), ("-1", "negative"), ("c=1", "'c'")]:
        with pytest.raises(UserError, match=sentence):
            tolerances_of(wrong, ["a", "b"])


def test_a_damaged_reference_is_reported_and_the_others_are_evaluated(folders):
    guess, truth = folders
    (truth / "case_3.nii.gz").write_bytes(b"nothing")
    assert classes_of(guess, truth) == {"1": (1,), "2": (2,)}
    result = evaluate_folder(guess, truth, rules())
    assert list(result.excluded) == ["case_3"]
    assert len(result.cases) == 6
    for file in truth.iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"case_0\.nii\.gz"):
        classes_of(guess, truth)


def test_label_maps_with_values_that_are_no_numbers_are_reported(folders):
    """NaN is the padding of some registration programs; it ended the evaluation of all cases."""
    guess, truth = folders
    array = cube(6, 16).astype(np.float32)
    array[0] = np.nan
    (truth / "case_3.nii.gz").unlink()
    sitk.WriteImage(sitk.GetImageFromArray(array), str(truth / "case_3.nrrd"))
    assert classes_of(guess, truth) == {"1": (1,), "2": (2,)}
    result = evaluate_folder(guess, truth, rules())
    assert "NaN" in result.excluded["case_3"]
    assert len(result.cases) == 6


def test_a_class_that_is_rightly_absent_counts_against_one_that_is_wrongly_there(tmp_path):
    for name in ("truth", "perfect", "false"):
        (tmp_path / name).mkdir()
        for k in range(6):
            shown = k < 2 or name == "false"
            write(tmp_path / name / f"case_{k}.nii.gz", cube(6, 16) + (cube(18, 20, 2) if shown else 0))
    a, b = (evaluate_folder(tmp_path / name, tmp_path / "truth", rules()) for name in ("perfect", "false"))
    result = compare(a, b)
    one = result.differences["dice"]["b"]
    assert (one.mean, one.worse, one.pairs) == (pytest.approx(-4 / 6), 4, 6)
    assert result.differences["dice"]["mean"].mean == pytest.approx(-2 / 6)
    assert result.differences["nsd"]["a"].mean == 0
    assert compare(a, a).differences["dice"]["b"].pairs == 2  # in neither map of both: no score


def test_a_comparison_is_paired(folders, tmp_path):
    guess, truth = folders
    (tmp_path / "perfect").mkdir()
    for k in range(7):
        write(tmp_path / "perfect" / f"case_{k}.nii.gz", cube(6, 16) + cube(18, 20, 2))
    worse, better = evaluate_folder(guess, truth, rules()), evaluate_folder(tmp_path / "perfect", truth, rules())
    result = compare(worse, better, ("worse", "better"))
    one = result.differences["dice"]["a"]
    expected = np.array([0.0] + [1 - 2 * 729 / 1729] * 6)
    assert one.mean == pytest.approx(expected.mean())
    assert (one.better, one.worse, one.pairs) == (6, 0, 7)
    # Exact: of the 2^7 sign patterns those with all six changes of one sign are as extreme, on both sides.
    assert one.p_value == pytest.approx(4 / 128)
    assert one.interval[0] > 0
    other = evaluate_folder(guess, truth, rules(tolerances={"a": 2.0, "b": 2.0}))
    with pytest.raises(UserError, match="tolerance"):
        compare(worse, other)
    write(truth / "case_0.nii.gz", cube(7, 16) + cube(18, 20, 2))
    with pytest.raises(UserError, match="case_0"):
        compare(worse, evaluate_folder(guess, truth, rules()))


def test_the_commands(folders, tmp_path, capsys):
    guess, truth = folders
    run_ok(["evaluate", str(guess), str(truth), "-o", str(tmp_path / "a"), "tolerance=1=2"])
    assert "0.8" in capsys.readouterr().out
    (guess / "case_3.nrrd").unlink()
    with pytest.raises(SystemExit) as caught:
        run(["evaluate", str(guess), str(truth), "-o", str(tmp_path / "b"), "tolerance=1=2"])
    assert caught.value.code == 1
    assert "means: case_3" in capsys.readouterr().out
    run_ok(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "c")])
    told = capsys.readouterr().out
    assert re.search(r"\b6\b.*both.*\b1\b", told)
    assert (tmp_path / "c" / "comparison.html").read_text().count("case_2: A ") == 2, "Dice and NSD"
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["left_out"] == ["case_3"]
    for command in (["evaluate", str(tmp_path / "nowhere"), str(truth)], ["compare", str(truth), str(truth)]):
        with pytest.raises(SystemExit) as caught:
            run(command)
        assert caught.value.code == 1
        assert "Traceback" not in capsys.readouterr().err


def run_ok(command):
    with pytest.raises(SystemExit) as end:
        run(command)
    assert not end.value.code


def test_evaluations_in_a_fine_tuning_are_named(tmp_path):
    place = tmp_path / "liver" / "evaluation" / "fold-0-of-5"
    place.mkdir(parents=True)
    (place / "evaluation.json").touch()
    with pytest.raises(UserError, match=re.escape(f"no evaluation at {tmp_path / 'liver'}; it has {place}.")):
        read_evaluation(tmp_path / "liver")
