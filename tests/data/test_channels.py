"""Several files of a session as channels of one image, from their layout on disk to an encoder's first layer."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

import viewalign
from viewalign.data.catalogue import Record
from viewalign.data.channels import stacked
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_records
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store
from viewalign.errors import UserError

ORDER = ("T2w", "t1w", "FLAIR")
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def write(root: Path, person: int, modality: str, offset: float = 0.0, shape: tuple[int, ...] = (14, 16, 18)) -> Path:
    path = root / f"sub-{person:02d}" / "anat" / f"sub-{person:02d}_{modality}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = 10 * person + len(modality) + ord(modality[1])
    array = np.random.default_rng(seed).normal(100, 10, size=shape).astype(np.float32)
    affine = AFFINE.copy()
    affine[0, 3] = offset
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for person in range(3):
        for modality in ("T1w", "T2w", "FLAIR"):
            write(tmp_path / "scans", person, modality)
    return tmp_path / "scans"


def records_of(scans: Path) -> list[Record]:
    return index_sources([str(scans)]).collection.records()


def test_channels_are_the_files_in_the_order_of_the_setting(scans: Path, tmp_path: Path) -> None:
    """Each is normalised by itself, as nnU-Net does."""
    report = prepare_records(records_of(scans), tmp_path / "s", PrepareSettings(channels=ORDER, spacing=None), 0)
    assert (report.prepared, report.excluded) == (3, [])
    store = Store.open(tmp_path / "s")
    assert store.channels.tolist() == [3, 3, 3]
    for number in range(3):
        person = store.subjects[number].split("__")[-1]
        for channel, name in enumerate(("T2w", "T1w", "FLAIR")):
            array = nibabel.load(scans / person / "anat" / f"{person}_{name}.nii.gz").get_fdata().T
            wanted = (array - array.mean()) / array.std()
            np.testing.assert_allclose(store.read(number)[channel], wanted, atol=1e-4)


def test_a_second_run_keeps_them_and_a_changed_channel_is_prepared_again(scans: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(channels=ORDER)
    prepare_records(records_of(scans), tmp_path / "s", settings, 0)
    assert prepare_records(records_of(scans), tmp_path / "s", settings, 0).skipped == 3
    path = scans / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.flip(image.get_fdata()).astype(np.float32), image.affine), path)
    report = prepare_records(records_of(scans), tmp_path / "s", settings, 0)
    assert (report.skipped, report.made) == (2, 1)


def test_a_list_names_stacked_images_by_their_id(scans: Path, tmp_path: Path) -> None:
    viewalign.prepare(scans, tmp_path / "s", channels=ORDER, workers=0)
    store = Store.open(tmp_path / "s")
    (tmp_path / "out.txt").write_text(store.ids[1] + "\n")
    report = viewalign.prepare(scans, tmp_path / "s", channels=ORDER, workers=0, exclude=[str(tmp_path / "out.txt")])
    assert report.prepared == 2
    assert store.ids[1] not in list(Store.open(tmp_path / "s").ids)


def test_incomplete_sessions_other_images_and_other_grids_are_excluded(scans: Path, tmp_path: Path) -> None:
    (scans / "sub-00" / "anat" / "sub-00_FLAIR.nii.gz").unlink()
    write(scans, 1, "FLAIR", offset=7.0)
    write(scans, 2, "PDw")
    report = prepare_records(records_of(scans), tmp_path / "s", PrepareSettings(channels=ORDER), 0)
    reasons = {Path(each.file).name: each.reason for each in report.excluded}
    assert report.prepared == 1
    assert set(reasons) == {"sub-00_T1w.nii.gz", "sub-00_T2w.nii.gz", "sub-01_T2w.nii.gz", "sub-02_PDw.nii.gz"}
    assert "no FLAIR" in reasons["sub-00_T1w.nii.gz"]
    assert "sub-01_FLAIR.nii.gz" in reasons["sub-01_T2w.nii.gz"]
    assert "7.0 mm" in reasons["sub-01_T2w.nii.gz"]
    assert "PD" in reasons["sub-02_PDw.nii.gz"]


def test_a_channel_that_a_list_names_takes_its_image_out_of_the_store(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("sub-01_FLAIR.nii.gz\nsub-02_PDw.nii.gz\n")
    write(scans, 2, "PDw")
    for exclude, count in (([], 3), ([str(tmp_path / "list.txt")], 2)):
        done = viewalign.prepare(scans, tmp_path / "s", channels=list(ORDER), workers=0, exclude=exclude)
        assert (done.prepared, done.others) == (count, 0)


def test_a_damaged_channel_leaves_the_stored_image(scans: Path, tmp_path: Path) -> None:
    viewalign.prepare(scans, tmp_path / "s", channels=list(ORDER), workers=0)
    (scans / "sub-01" / "anat" / "sub-01_T2w.nii.gz").write_bytes(b"damaged")
    report = viewalign.prepare(
        scans, tmp_path / "s", channels=list(ORDER), workers=0, prune=lambda _: pytest.fail("nothing left the source")
    )
    assert (report.prepared, report.skipped, report.kept, report.others) == (3, 2, 1, 0)


def test_two_images_of_a_channel_are_ambiguous(scans: Path) -> None:
    records = records_of(scans)
    twice = [*records, *(each for each in records if each.modality == "T1w" and each.subject.endswith("01"))]
    found, excluded = stacked(twice, ORDER)
    assert len(found) == 2
    assert all("several t1w" in each.reason for each in excluded)


def test_an_unknown_modality_is_an_error_that_lists_those_there_are(scans: Path) -> None:
    with pytest.raises(UserError, match=r"T1post.*T1w.*3 images"):
        stacked(records_of(scans), ("T1w", "T1post"))


def test_frames_and_channels_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="channels"):
        PrepareSettings(channels=("T1w",), frames="channels")


def test_settings_without_channels_have_the_fingerprint_of_earlier_stores() -> None:
    assert PrepareSettings().fingerprint() == PrepareSettings(channels=()).fingerprint()
    assert "channels" not in PrepareSettings().essence()
    assert PrepareSettings(channels=("A", "B")).fingerprint() != PrepareSettings(channels=("B", "A")).fingerprint()


@pytest.mark.slow
def test_an_encoder_of_several_channels_comes_back_whole(scans: Path, tmp_path: Path) -> None:
    viewalign.prepare(scans, tmp_path / "s", channels=list(ORDER), workers=0)
    small = {"views.patch_size": (16, 16, 16), "heads.width": 16, "heads.predictor_width": 8, "batch": 2, "steps": 1}
    small |= {"network.name": "resenc-xxs", "network.channels": 3, "validate.every": 0, "runtime.workers": 0}
    run = viewalign.pretrain("cva-resenc-xs", tmp_path / "s", tmp_path / "run", **small)
    encoder = viewalign.load_encoder(viewalign.export_run(run.folder.root))
    weights = [value for value in encoder.state_dict().values() if value.ndim == 5]
    assert weights[0].shape[1] == 3
