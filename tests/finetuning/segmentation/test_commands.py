"""What stands beside results: nnU-Net's commands without placeholders, and the names of the classes."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from viewalign.data.readers.itk import sitk
from viewalign.finetuning.segmentation import environment, nnunet, predict, record
from viewalign.finetuning.segmentation.environment import Folders


@pytest.mark.parametrize("predicted", [None, "imagesTs", "elsewhere"])
def test_the_commands_are_complete(tmp_path, predicted):
    for name in ("imagesTr", "imagesTs"):
        (tmp_path / "my data" / name).mkdir(parents=True)
    run = SimpleNamespace(
        out=tmp_path,
        machine=SimpleNamespace(device="cpu", processes=3),
        folders=Folders.of(tmp_path / "nnunet"),
        dataset=SimpleNamespace(id=4, root=tmp_path / "my data"),
        settings=SimpleNamespace(predict=predicted),
    )
    record.write_commands(run, SimpleNamespace(name="viewalign_run_1a2b3c"), [0, 1])
    lines = [shlex.split(line) for line in (tmp_path / "commands.sh").read_text().splitlines()]
    commands = [words for words in lines if words[0].startswith("nnUNetv2_")]
    names = ["nnUNetv2_preprocess", "nnUNetv2_train", "nnUNetv2_train", "nnUNetv2_predict"]
    assert [words[0] for words in commands] == names
    assert all("viewalign_run_1a2b3c" in words for words in commands)
    images = Path(commands[-1][commands[-1].index("-i") + 1])
    assert images == (Path("elsewhere").absolute() if predicted == "elsewhere" else tmp_path / "my data" / "imagesTs")
    assert not {"IMAGES", "OUT"} & {word for words in commands for word in words}


def test_predictions_have_the_names_of_the_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "check_installed", lambda: None)
    model, images = tmp_path / "model", tmp_path / "images"
    model.mkdir()
    images.mkdir()
    description = {"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    (model / "dataset.json").write_text(json.dumps(description))
    sitk.WriteImage(
        sitk.GetImageFromArray(np.arange(120, dtype=np.float32).reshape(4, 5, 6)), str(images / "one_0000.nii.gz")
    )

    def segment(folder, source, masks, *_):
        masks.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 5, 6), np.uint8)), str(masks / "one.nii.gz"))

    monkeypatch.setattr(nnunet, "predict", segment)
    trained = predict.Trained(model, (0,), ("MR",), ".nii.gz", {})
    cases = predict.cases_in(images, trained)
    machine = SimpleNamespace(processes=1)
    assert predict.predict(trained, cases, tmp_path / "out", machine) == []
    assert (tmp_path / "out" / "one.nii.gz").is_file()
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == description
