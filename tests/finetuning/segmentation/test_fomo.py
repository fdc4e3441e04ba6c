"""FOMO's segmentations: from the challenge's folder to a mask on the grid of the input, in every orientation."""

import json

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.compat.fomo import prepare
from viewalign.compat.fomo_check import check_submission
from viewalign.compat.fomo_submission import main, write_submission
from viewalign.data.geometry import orientation_code
from viewalign.data.readers.files import read_volume
from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import predict as lps
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.tasks.manifest import TaskCase

from .conftest import write_encoder

pytest.importorskip("nnunetv2")
CODES = ["LPS", "RAS", "PIR", "ASL", "IPL"]
SIZE = (32, 40, 36)


def image_of(seed, tumour=True):
    """Return an image and its mask as SimpleITK images in LPS, with a tilted direction and odd spacing."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij"))
    centre = np.array([14.0, 24.0, 11.0]) + rng.uniform(-2, 2, 3)
    ball = (((grid - centre[:, None, None, None]) ** 2).sum(0) < 36) & tumour
    array = (100 + 40 * ball + 8 * rng.normal(size=SIZE)).astype(np.float32)
    return [placed(part) for part in (array, ball.astype(np.uint8))]


def placed(array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.1, 1.2))
    image.SetOrigin((-20.0, 7.0, 3.0))
    angle = np.deg2rad(8)
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    image.SetDirection(tilt.ravel().tolist())
    return image


def save(image, path, code="LPS"):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(path))
    return path


@pytest.fixture
def challenge(tmp_path):
    """Five subjects in five orientations; the second has t2s for swi, the third no flair, the fourth both and more."""
    words = [("dwi_b1000", "flair", "swi"), ("dwi_b1000", "flair", "t2s"), ("dwi_b1000", "swi"),
             ("dwi_b1000", "flair", "swi", "t2s", "t1"), ("dwi_b1000", "flair", "swi")]  # fmt: skip
    for number, (code, there) in enumerate(zip(CODES, words, strict=True), 1):
        image, mask = image_of(number)
        for k, word in enumerate(there):
            save(image + float(10 * k), tmp_path / "fomo/preprocessed" / f"sub_{number}/ses_1/{word}.nii.gz", code)
        save(mask, tmp_path / "fomo/labels" / f"sub_{number}/ses_1/seg.nii.gz", code)
    return tmp_path / "fomo"


@pytest.mark.parametrize("code", CODES)
def test_reorientation_keeps_world_coordinates(tmp_path, code):
    image, mask = image_of(1)
    volume = read_volume(save(image, tmp_path / "a.nii.gz", code))
    turned = lps.to_lps(volume)
    assert orientation_code(turned.direction) == "LPS"
    back = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(turned.array, back)
    np.testing.assert_allclose(turned.origin, image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(turned.direction.ravel(), image.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(turned.spacing[::-1], image.GetSpacing(), atol=1e-5)
    lps.write_labels(sitk.GetArrayFromImage(mask), volume, tmp_path / "mask.nii.gz", lps=True)
    own = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(own.affine, nibabel.load(tmp_path / "a.nii.gz").affine, atol=1e-4)
    save(mask, tmp_path / "true.nii.gz", code)
    np.testing.assert_array_equal(own.get_fdata(), nibabel.load(tmp_path / "true.nii.gz").get_fdata())


def test_masks_keep_their_grid_and_missing_sequences_are_zeros(challenge, tmp_path):
    names, left_out = prepare(challenge, tmp_path / "Dataset602_M")
    assert names == [f"sub_{k}_ses_1" for k in range(1, 6)]
    assert not left_out
    root = tmp_path / "Dataset602_M"
    for number in range(1, 6):
        image, mask = image_of(number)
        channels = [read_maybe(root / "imagesTr" / f"sub_{number}_ses_1_{k:04d}.nii.gz") for k in range(3)]
        for file in sorted(root.glob(f"*Tr/sub_{number}_*")):
            one = sitk.ReadImage(str(file))
            np.testing.assert_allclose(one.GetOrigin(), image.GetOrigin(), atol=1e-3)
            np.testing.assert_allclose(one.GetDirection(), image.GetDirection(), atol=1e-4)
        np.testing.assert_array_equal(channels[0], sitk.GetArrayFromImage(image))
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(sitk.ReadImage(str(root / "labelsTr" / f"sub_{number}_ses_1.nii.gz"))),
            sitk.GetArrayFromImage(mask),
        )
        assert channels[1].any() == (number != 3)
        assert channels[2].any()
        if number == 4:  # swi before t2s
            np.testing.assert_allclose(channels[2], sitk.GetArrayFromImage(image) + 20, atol=1e-3)


def test_empty_channels_and_channels_of_one_name_are_predicted(tmp_path):
    """nnU-Net normalises by the names of channels: those of two CT phases are both CT."""
    names = {"channel_names": {"0": "CT", "1": "CT"}, "file_ending": ".nii.gz"}
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    (tmp_path / "plans.json").write_text("{}")
    (tmp_path / "dataset.json").write_text(json.dumps(names))
    trained = lps.read_trained(tmp_path)
    image, _ = image_of(1)
    images = tmp_path / "images"
    for name, channels in {"a": (image, image + 20), "b": (image, image * 0), "c": (image * 0, image * 0)}.items():
        for k, channel in enumerate(channels):
            save(channel, images / f"{name}_{k:04d}.nii.gz")
    a, b, c = lps.cases_in(images, trained)
    first, second = (volume.array for volume in lps._read_channels(trained, a).volumes)
    np.testing.assert_allclose(second, first + 20, atol=1e-3)
    np.testing.assert_array_equal(lps._read_channels(trained, b).volumes[1].array, 0 * first)
    with pytest.raises(UserError, match=r"c_0000\.nii\.gz: all voxels are zero"):
        lps._read_channels(trained, c)


def test_trigeminal_nerves_keep_both_labels_and_masks_may_be_shifted_a_little(tmp_path):
    """FOMO26's masks have affines that differ by up to 0.03 mm from those of the images."""
    root = tmp_path / "Task_4" / "Task_4"
    for number, code in enumerate(("LPS", "PIR"), 1):
        image, mask = image_of(number)
        labels = sitk.GetArrayFromImage(mask)
        labels[:, :10] *= 2
        labels[0, 0, 0] = 2
        moved = placed(labels)
        moved.SetOrigin([place + 0.03 for place in moved.GetOrigin()])
        save(image, root / "preprocessed" / f"sub-0{number}/ses-01/t2w.nii.gz", code)
        save(moved, root / "labels" / f"sub-0{number}/ses-01/seg.nii.gz", code)
    names, left_out = prepare(tmp_path / "Task_4", tmp_path / "d", 4)
    assert (names, left_out) == (["sub-01_ses-01", "sub-02_ses-01"], [])
    description = json.loads((tmp_path / "d" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "nerve": 1, "vessel": 2}
    assert description["channel_names"] == {"0": "t2"}
    for name, number in zip(names, (1, 2), strict=True):
        written = sitk.ReadImage(str(tmp_path / "d" / "labelsTr" / f"{name}.nii.gz"))
        expected = sitk.GetArrayFromImage(image_of(number)[1])
        expected[:, :10] *= 2
        expected[0, 0, 0] = 2
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), expected)
        np.testing.assert_allclose(written.GetOrigin(), image_of(number)[0].GetOrigin(), atol=1e-3)


def test_a_label_that_the_task_does_not_have_excludes_its_session(tmp_path):
    image, mask = image_of(1)
    save(image, tmp_path / "preprocessed/sub-01/ses-01/t2w.nii.gz")
    save(mask * 3, tmp_path / "labels/sub-01/ses-01/seg.nii.gz")
    with pytest.raises(UserError, match="label 3; this task has 0 to 2"):
        prepare(tmp_path, tmp_path / "d", 4)


def read_maybe(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_unusable_sessions_are_excluded_with_their_reason(challenge, tmp_path):
    (challenge / "labels/sub_1/ses_1/seg.nii.gz").unlink()
    _, mask = image_of(2)
    mask.SetOrigin((0.0, 0.0, 90.0))
    save(mask, challenge / "labels/sub_2/ses_1/seg.nii.gz", "RAS")
    (challenge / "preprocessed/sub_3/ses_1/swi.nii.gz").write_bytes(b"x")
    told = CliRunner().invoke(app, ["fomo", "prepare", str(challenge), "task=2", "-o", str(tmp_path / "d")])
    assert told.exit_code == 0, told.output
    assert "2 cases" in told.output
    for words in (
        "sub_1_ses_1: has no seg.nii.gz",
        "dwi_b1000: ",
        "swi.nii.gz:",
    ):
        assert words in told.output
    with pytest.raises(UserError, match="is not written: it contains"):
        prepare(challenge, tmp_path / "d")


def test_many_cases_are_predicted_in_batches_without_their_voxels_in_memory(tmp_path, monkeypatch):
    image, _ = image_of(1)
    table = {code: save(image, tmp_path / "in" / f"{code}.nii.gz", code) for code in CODES}
    cases = [TaskCase(code, code, {"flair": path}) for code, path in table.items()]
    cases.insert(1, TaskCase("none", "none", {"flair": tmp_path / "none.nii.gz"}))
    (tmp_path / "dataset.json").write_text("{}")
    batches = []

    def segment(model, images, masks, *_):
        batches.append(sorted(path.name for path in images.iterdir()))
        masks.mkdir()
        for path in images.iterdir():
            lps_mask = sitk.ReadImage(str(path))
            sitk.WriteImage(lps_mask > 120, str(masks / path.name.replace("_0000", "")))

    written = lps._write_batch

    def without_voxels(*arguments):
        grids = written(*arguments)
        assert all(grid.array.strides == (0, 0, 0) for grid in grids.values())
        return grids

    monkeypatch.setattr(lps.nnunet, "predict", segment)
    monkeypatch.setattr(lps, "_write_batch", without_voxels)
    monkeypatch.setattr(lps, "_BATCH_BYTES", int(1.5 * table["LPS"].stat().st_size))
    trained = lps.Trained(tmp_path, (0,), ("flair",), ".nii.gz", {"orientation": "LPS"})
    excluded = lps.predict(trained, cases, tmp_path / "out", Machine("cpu"))
    assert [name for name, _ in excluded] == ["none"]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    for code, path in table.items():
        made, given = nibabel.load(tmp_path / "out" / f"{code}.nii.gz"), nibabel.load(path)
        np.testing.assert_allclose(made.affine, given.affine, atol=1e-4)
        np.testing.assert_array_equal(made.get_fdata(), given.get_fdata() > 120)


@pytest.mark.long
def test_a_submission_masks_the_input_in_every_orientation(challenge, tmp_path, monkeypatch, capsys):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}", raising=False)
    encoder, _ = write_encoder(tmp_path, "resenc-xxs")
    dataset, run = tmp_path / "Dataset602_M", tmp_path / "run"
    prepare(challenge, dataset)
    quick = ["epochs=1", "warmup_epochs=0", "iterations=20", "validation_iterations=1", "tta=false",
             "device=cpu", "workers=1", "patch_size=32,40,40"]  # fmt: skip
    told = CliRunner().invoke(app, ["finetune", "segmentation", str(dataset), str(encoder), "-o", str(run), *quick])
    assert told.exit_code == 0, (told.output, told.exception)
    submission = write_submission(run, tmp_path / "submission")
    assert "nnunet" in (submission / "Dockerfile").read_text()
    image, _ = image_of(9)
    plain = None
    for code in CODES:
        flair = save(image, tmp_path / code / "flair.nii.gz", code)
        dwi = save(image + 10.0, tmp_path / code / "dwi.nii.gz", "LPS")
        out = tmp_path / code / "mask.nii.gz"
        sequences = ["--flair", str(flair), "--dwi_b1000", str(dwi), "--t1", str(dwi)]
        assert main(submission / "model", [*sequences, "--output", str(out)]) == 0
        made, given = nibabel.load(out), nibabel.load(flair)
        assert made.shape == given.shape
        np.testing.assert_allclose(made.affine, given.affine, atol=1e-4)
        assert set(np.unique(made.get_fdata())) <= {0, 1}
        world = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(out)), "LPS"))
        plain = world if plain is None else plain
        np.testing.assert_array_equal(world, plain)
    assert 0 < plain.mean() < 1
    assert [case.problems for case in check_submission(submission, 2)] == [()] * 4
    swi = [part for word in ("swi", "t2s") for part in (f"--{word}", str(flair))]
    assert main(submission / "model", [*swi, "--output", str(tmp_path / "both.nii.gz")]) == 0
    assert main(submission / "model", ["--t1", str(flair), "--output", str(out)]) == 1
    assert "this task takes dwi_b1000, flair, swi, t2s" in capsys.readouterr().err
    # the same through `viewalign predict`, which knows a segmentation by its folder
    table = tmp_path / "new.csv"
    table.write_text(f"case,image.flair,image.dwi_b1000\na,{flair},{dwi}\nb,{flair},{tmp_path / 'none.nii.gz'}\n")
    for model in (run, submission / "model"):
        told = CliRunner().invoke(app, ["predict", str(model), str(table), "-o", str(tmp_path / "masks"), "device=cpu"])
        assert told.exit_code == 3, (told.output, told.exception)
        assert "b: none.nii.gz" in told.output
        made = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "masks" / "a.nii.gz")), "LPS"))
        np.testing.assert_array_equal(made, plain)
    assert json.loads((submission / "model" / "dataset.json").read_text())["viewalign"]["orientation"] == "LPS"
