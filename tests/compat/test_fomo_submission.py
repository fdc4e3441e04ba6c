"""FOMO submissions: any subset of sequences in any orientation, both swi and t2s, an age with decimals, embeddings."""

import re
import subprocess
import sys

import numpy as np
import pytest

import viewalign
from viewalign.compat.fomo_submission import main, write_submission
from viewalign.compat.fomo_tasks import TASKS
from viewalign.errors import UserError
from viewalign.evaluation.encoders import build_encoder, read_pretrained
from viewalign.finetuning.classification.models import Predictor, write_model
from viewalign.finetuning.classification.network import GlobalNetwork
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor


def model(folder, number):
    spec = TASKS[number].spec(TASKS[number].channels)
    backbone, _ = build_encoder(read_pretrained("untrained:resenc-xxs"), (16, 16, 16), len(spec.channels))
    network = GlobalNetwork(backbone, spec.outputs, "multistage", 0.0, [0.0] * spec.outputs)
    network.head.weight.data.normal_(std=0.02)
    preprocessor = Preprocessor(spec.channels, (16, 16, 16), frames="resample")
    write_model(
        folder / "fold_0", network, "resenc-xxs", spec, preprocessor, (61.4, 12.3) if number == 3 else (0.0, 1.0)
    )
    return folder


@pytest.fixture
def subject(tmp_path, write_image, head):
    words = ("flair", "adc", "dwi_b1000", "t2s", "swi", "t1", "t2")
    return {word: write_image(tmp_path / "in" / f"{word}.nii.gz", head(k)) for k, word in enumerate(words)}


def answer(folder, files, out):
    arguments = [part for word, path in files.items() for part in (f"--{word}", str(path))]
    assert main(folder, [*arguments, "--output", str(out)]) == 0
    return float(out.read_text())


def test_any_subset_of_sequences_gives_a_probability(tmp_path, subject):
    folder, out = model(tmp_path / "m", 1), tmp_path / "out" / "sub_1.txt"
    everything = answer(folder, subject, out)
    assert 0 < everything < 1
    without_t2s = answer(folder, {k: v for k, v in subject.items() if k != "t2s"}, out)
    assert without_t2s == everything
    swapped = dict(reversed(subject.items()))
    assert answer(folder, swapped, out) == everything
    for word in ("flair", "adc", "dwi_b1000", "t2s", "swi"):
        assert 0 < answer(folder, {word: subject[word]}, out) < 1


def test_an_age_keeps_its_decimals(tmp_path, subject):
    folder, out = model(tmp_path / "m", 3), tmp_path / "age.txt"
    value = answer(folder, subject, out)
    direct = Predictor(folder).predict(TaskCase("s", "s", {"t1": subject["t1"], "t2": subject["t2"]}))
    assert value == pytest.approx(float(direct[0]), abs=1e-6)
    assert value != int(value)


def test_predictions_do_not_depend_on_the_orientation_of_the_file(tmp_path, subject, write_image, head):
    folder, out = model(tmp_path / "m", 3), tmp_path / "age.txt"
    plain = answer(folder, {"t1": subject["t1"]}, out)
    turned = np.ascontiguousarray(head(5)[::-1, :, ::-1].transpose(1, 0, 2))
    direction = np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    file = write_image(tmp_path / "turned.nii.gz", turned, direction=direction)
    assert answer(folder, {"t1": file}, out) == pytest.approx(plain, abs=1e-5)


def test_a_broken_sequence_is_missing_and_none_is_an_error(tmp_path, subject, capsys):
    folder, out = model(tmp_path / "m", 3), tmp_path / "age.txt"
    alone = answer(folder, {"t1": subject["t1"]}, out)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"x")
    assert answer(folder, {"t1": subject["t1"], "t2": broken}, out) == alone
    assert "t2 is ignored" in capsys.readouterr().err
    assert main(folder, ["--flair", str(subject["flair"]), "--output", str(out)]) == 1
    assert "No sequence can be used; this task takes t1, t2" in capsys.readouterr().err


def test_both_years_names_of_an_argument_are_the_same_sequence(tmp_path, subject):
    folder, out = model(tmp_path / "m", 1), tmp_path / "out.txt"
    pair = {"flair": subject["flair"], "dwi_b1000": subject["dwi_b1000"]}
    old = answer(folder, pair, out)
    assert answer(folder, {"flair": pair["flair"], "dwi": pair["dwi_b1000"]}, out) == old
    assert answer(folder, {"flair": pair["flair"]}, out) != old
    with pytest.raises(SystemExit):  # an abbreviation would be another sequence
        main(folder, ["--fla", str(subject["flair"]), "--output", str(out)])


@pytest.mark.parametrize("pool", ["multistage", "average"])
def test_an_embedding_is_that_of_the_frozen_encoder(tmp_path, subject, pool):
    settings = {"patch_size": (16, 16, 16), "pool": pool}
    folder = write_submission("untrained:resenc-xxs", tmp_path / "s", **settings) / "model"
    out = tmp_path / "out" / "sub-01.npy"
    assert main(folder, ["--input", str(subject["t1"]), "--output", str(out)]) == 0
    vector = np.load(out, allow_pickle=False)
    direct = viewalign.embed("untrained:resenc-xxs", [subject["t1"]], **settings).features
    assert (vector.dtype, vector.shape) == (np.float32, direct[0].shape)
    np.testing.assert_array_equal(vector, direct[0])


def test_an_embedding_survives_values_that_are_not_finite(tmp_path, write_image, head, capsys):
    folder = write_submission("untrained:resenc-xxs", tmp_path / "s", patch_size=(16, 16, 16)) / "model"
    array = head(1)
    array[3, 4, 5] = np.nan
    image = write_image(tmp_path / "image.nii.gz", array)
    assert main(folder, ["--input", str(image), "--output", str(tmp_path / "out.npy")]) == 0
    assert np.isfinite(np.load(tmp_path / "out.npy")).all()
    assert main(folder, ["--t1", str(image), "--output", str(tmp_path / "other.npy")]) == 1
    assert "input" in capsys.readouterr().err
    assert not (tmp_path / "other.npy").exists()


def test_a_definition_pins_its_base_and_needs_no_run_script(tmp_path):
    out = write_submission("untrained:resenc-xxs", tmp_path / "s", patch_size=(16, 16, 16))
    definitions = [(out / name).read_text() for name in ("Apptainer.def", "Dockerfile")]
    bases = [re.search(r"^(?:From: |FROM )(\S+)$", text, re.M).group(1) for text in definitions]
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python@sha256:[0-9a-f]{64}", bases[0])  # Apptainer takes no tag beside a digest
    for text in definitions:
        assert "/app/predict.py" in text
        assert "/app/model" in text
        assert not re.search(r"EXTRAS|BASE|%runscript", text)
    assert "--arch amd64" in (out / "README.txt").read_text()


def test_what_is_neither_fine_tuned_nor_an_encoder_is_no_submission(tmp_path):
    with pytest.raises(UserError):
        write_submission(str(tmp_path / "none"), tmp_path / "s")
    with pytest.raises(UserError, match="is a fine-tuning, which has its own"):
        write_submission(model(tmp_path / "m", 1), tmp_path / "s", patch_size=(16, 16, 16))
    assert not (tmp_path / "s").exists()


def test_a_folder_of_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "project" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match="is no earlier submission"):
        write_submission(model(tmp_path / "m", 1), tmp_path / "project")
    assert (tmp_path / "project" / "model").is_dir()


def test_a_new_model_replaces_all_of_the_earlier_one(tmp_path):
    first, second = model(tmp_path / "a", 3), model(tmp_path / "b", 3)
    (first / "fold_0").rename(first / "fold_1")
    out = write_submission("untrained:resenc-xxs", tmp_path / "s", patch_size=(16, 16, 16))
    assert (out / "model" / "model.json").is_file()
    write_submission(first, out)
    assert [path.name for path in (out / "model").iterdir()] == ["fold_1"]
    write_submission(second, out)
    assert [path.name for path in (out / "model").iterdir()] == ["fold_0"]


def test_a_submission_that_fails_keeps_the_earlier_model(tmp_path, monkeypatch):
    out = write_submission(model(tmp_path / "a", 3), tmp_path / "s")
    weights = (out / "model" / "fold_0" / "model.safetensors").read_bytes()
    other = model(tmp_path / "b", 3)
    (other / "fold_0" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError):
        write_submission(other, out)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full_disk)
        with pytest.raises(OSError, match="space"):
            write_submission(model(tmp_path / "c", 3), out)
    assert (out / "model" / "fold_0" / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in out.iterdir())[0] == "Apptainer.def"


def full_disk(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_the_written_program_runs_by_itself(tmp_path, subject):
    out = write_submission(model(tmp_path / "m", 3), tmp_path / "submission")
    assert {"predict.py", "Apptainer.def", "Dockerfile", "README.txt", "model"} == {path.name for path in out.iterdir()}
    told = subprocess.run(
        [sys.executable, str(out / "predict.py"), "--t1", str(subject["t1"]), "--output", str(tmp_path / "a.txt")],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert 0 < float((tmp_path / "a.txt").read_text()) <= 120
