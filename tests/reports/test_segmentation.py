"""The page of a fine-tuning: outlines on pixel edges, which cases are shown, and that it gives nothing away."""

import json
import re
import shutil

import numpy as np
import pytest

from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.evaluation.folders import evaluate_folder
from viewalign.evaluation.results import read_evaluation
from viewalign.evaluation.segmentation_metrics import Rules
from viewalign.finetuning.segmentation.schedule import published
from viewalign.reports import segmentation
from viewalign.reports.planes import outline
from viewalign.reports.segmentation import write_page
from viewalign.reports.segmentation_charts import case_chart, read_curves


def length(markup, kind):
    """Return the length of all lines of one kind."""
    d = re.search(rf'class="{kind}" d="([^"]*)"', markup)[1]
    total = 0
    for x, y, way, end in re.findall(r"M(-?\d+) (-?\d+)([HV])(-?\d+)", d):
        total += abs(int(end) - int(x if way == "H" else y))
    return total


@pytest.mark.parametrize(("mask", "perimeter"), [(np.ones((1, 1)), 4), (np.ones((3, 5)), 16), (np.eye(3), 12)])
def test_an_outline_is_the_perimeter(mask, perimeter):
    assert length(outline("c0", np.pad(mask.astype(bool), 2)), "c0") == perimeter
    assert length(outline("c0", mask.astype(bool)), "c0") == perimeter


def test_a_hole_is_outlined_too_and_nothing_is_nothing():
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert length(outline("c0", ring), "c0") == 20 + 4
    assert outline("c0", np.zeros((4, 4), bool)) == ""


@pytest.fixture
def run(tmp_path):
    pytest.importorskip("monai")
    folders = {name: tmp_path / "secret" / name for name in ("guess", "truth", "images")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for k in range(5):
        truth = np.zeros((16, 20, 24), np.uint8)
        truth[4:12, 4:12, 4:12] = 1
        guess = np.zeros_like(truth)
        guess[4:12, 4:12, 4 : 12 - k] = 1
        for folder, array in (("guess", guess), ("truth", truth), ("images", truth.astype(np.float32))):
            name = f"case_{k}_0000.nii.gz" if folder == "images" else f"case_{k}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folders[folder] / name))
    out = tmp_path / "run"
    rules = Rules({"thing <b>": (1,)}, {"thing <b>": 1.0})
    evaluate_folder(folders["guess"], folders["truth"], rules).write(out / "evaluation" / "fold-0")
    row = {"name": "fold 0", "fold": 0, "evaluation": "evaluation/fold-0", "predictions": str(folders["guess"])}
    row |= {"references": str(folders["truth"]), "images": str(folders["images"])}
    tree = {
        "dataset": "Dataset001_X",
        "labels": {"thing <b>": [1]},
        "plans": "viewalign_x",
        "model": str(tmp_path / "secret"),
        "encoder": None,
        "patch": [16, 16, 16],
        "spacing": [1.0, 1.0, 1.0],
        "schedule": published("resenc", 10).as_json(),
        "results": [row],
    }
    (out / "results.json").write_text(json.dumps(tree))
    for number, first in ((1, 0), (2, 2)):  # the second log is of a resumed training
        log = tmp_path / "secret" / "fold_0" / f"training_log_2026_1_{number}_00_00_00.txt"
        log.parent.mkdir(exist_ok=True)
        log.write_text("".join(epoch_lines(epoch, number) for epoch in range(first, first + 3)))
    return out


def epoch_lines(epoch, number):
    start = "2026-01-01 10:00:00.123456: "
    lines = ["", f"Epoch {epoch}", "Current learning rate: 0.01", f"train_loss {-0.1 * epoch - number:.4f}"]
    lines += [f"val_loss {-0.2 * epoch:.4f}", f"Pseudo dice [np.float32(0.{epoch}), np.float32(0.{epoch + 2}), nan]"]
    return "".join(f"{start}{line}\n" for line in lines)


def test_a_moved_run_is_whole(run, tmp_path):
    """What lies in it is stated relative to it."""
    shutil.move(tmp_path / "secret", run / "own")
    tree = json.loads((run / "results.json").read_text())
    row = tree["results"][0]
    tree["model"], row["predictions"], row["references"] = "own", "own/guess", "own/truth"
    row["images"] = "own/images"
    (run / "results.json").write_text(json.dumps(tree))
    page = write_page(run.rename(tmp_path / "elsewhere")).read_text()
    assert page.count("data:image/png;base64,") == 36


def test_the_page_shows_best_median_and_worst(run):
    page = write_page(run).read_text()
    assert [page.index(f"{what}: case_{k}") for what, k in (("Best", 0), ("Median", 2), ("Worst", 4))]
    assert page.count("data:image/png;base64,") == 36  # four panels, three rows, three planes
    assert "Largest error of the worst case: case_4" in page
    assert page.count('class="class c0"') == 23
    assert '<p class="verdict good">' in page
    assert "thing &lt;b&gt;" in page
    assert "thing <b>" not in page
    assert "secret" not in page
    assert not re.search(r"https?://", page)


def test_training_curves_are_those_of_the_logs(run, tmp_path):
    found = read_curves(tmp_path / "secret" / "fold_0")
    assert found["train_loss"] == pytest.approx({1: -1.0, 2: -1.1, 3: -2.2, 4: -2.3, 5: -2.4})
    assert found["Pseudo dice"][2] == pytest.approx(0.2)
    titles = re.findall(r"<figcaption><strong>(.*?)</strong>", write_page(run).read_text())
    assert titles == ["Loss", "Pseudo Dice", "Dice of every case"]


def test_every_case_is_a_dot_of_its_class(run):
    evaluation = read_evaluation(run / "evaluation" / "fold-0")
    chart = case_chart({"fold 0": evaluation})
    (drawn,) = [trace for trace in chart.figure["data"] if trace["type"] == "scatter"]
    assert drawn["x"] == pytest.approx(evaluation.values("dice").tolist())
    assert drawn["text"][4].startswith("case_4 (fold 0): ")


def test_the_reference_chooses_the_slices(run, tmp_path):
    truth = np.zeros((16, 20, 24), np.uint8)
    truth[4:6, 4:12, 4:12] = 1
    guess = np.zeros_like(truth)
    guess[12:14] = 1
    paths = [tmp_path / f"{name}.nii.gz" for name in ("guess", "truth")]
    for path, array in zip(paths, (guess, truth), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    case = segmentation.Scored("one", "fold 0", 0.0, None, *paths)
    panel = segmentation._panel("Worst", case, {"thing": (1,)})
    reference, prediction = panel.strips[1].slices[0], panel.strips[2].slices[0]
    assert "c0" in str(reference.overlay)
    assert str(prediction.overlay) == "", "the axial slice is one of the reference"


def test_the_worst_case_is_shown_where_it_is_most_wrong(tmp_path):
    truth = np.zeros((16, 20, 24), np.uint8)
    truth[4:8, 4:12, 4:12] = 1
    guess = truth.copy()
    guess[12, 2:18, 2:22] = 1  # the largest error, where the reference has nothing
    paths = [tmp_path / f"{name}.nii.gz" for name in ("guess", "truth")]
    for path, array in zip(paths, (guess, truth), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    case = segmentation.Scored("one", "fold 0", 0.5, None, *paths)
    worst, errors = segmentation._panels([("Worst", case)], {"thing": (1,)})
    assert ["c0" in str(strip.slices[0].overlay) for strip in worst.strips] == [False, True, True]
    assert ["c0" in str(strip.slices[0].overlay) for strip in errors.strips] == [False, False, True]
    perfect = segmentation.Scored("one", "fold 0", 1.0, None, paths[1], paths[1])
    assert len(segmentation._panels([("Best", perfect)], {"thing": (1,)})) == 1


def test_a_folder_without_results(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        write_page(tmp_path)
