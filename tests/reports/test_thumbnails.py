from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from viewalign.data.readers.itk import sitk
from viewalign.data.store import store_from_arrays
from viewalign.reports.thumbnails import file_thumbnails, picture, store_thumbnails


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def marked() -> np.ndarray:
    """An image whose middle axial slice is bright in front on the patient's right, in LPS order."""
    array = np.zeros((9, 40, 60), dtype=np.float32)
    array[4, :10, :15] = 1
    array[:4] = array[5:] = 0.5
    return array


def test_a_picture_has_the_shape_of_the_slice_in_mm() -> None:
    plane = np.zeros((20, 40), dtype=np.float32)
    plane[:10] = 1
    grey = pixels(picture(plane, 3.0))  # 60 by 40 mm
    assert grey.shape == (128, 85)
    assert (grey[:64] == 255).all()
    assert (grey[64:] == 0).all()
    assert pixels(picture(np.ones((4, 4), dtype=np.float32), 1.0)).max() == 0


def test_files_are_shown_in_radiological_convention_whatever_their_axes(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(marked())
    sitk.WriteImage(image, str(tmp_path / "lps.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, "RAI"), str(tmp_path / "rai.nrrd"))
    (tmp_path / "bad.nii").write_text("no image")
    files = [str(tmp_path / name) for name in ("bad.nii", "lps.nii.gz", "none.mha", "rai.nrrd")]
    found = dict(file_thumbnails(files, {}))
    assert list(found) == [files[1], files[3]]
    for url in found.values():
        grey = pixels(url)
        assert grey.shape == (85, 128)
        assert grey[10, 10] == 255
        assert grey[10, -10] == grey[-10, 10] == 0


def test_a_label_map_shows_the_slice_with_most_labels(tmp_path: Path) -> None:
    array = np.zeros((9, 40, 60), dtype=np.uint8)
    array[1, :2, :2] = array[7, :2, :1] = 3
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "label.nii.gz"))
    ((_, url),) = file_thumbnails([str(tmp_path / "label.nii.gz")], {})
    grey = pixels(url)
    assert (grey[:4, :4] == 255).all()
    assert (grey[5:] == 0).all()


def test_images_of_a_store(tmp_path: Path) -> None:
    store = store_from_arrays(tmp_path / "store", {"a": marked(), "b": marked() * 0 + 1})
    (name, url), *rest = store_thumbnails(store, [store.ids[0], "unknown"])
    assert (name, rest) == (store.ids[0], [])
    assert pixels(url)[10, 10] == 255
