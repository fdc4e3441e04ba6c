"""The example data of the tutorials are valid for every step."""

import numpy as np

from viewalign.data.readers.itk import sitk
from viewalign.demo.example import DATASET, write_example
from viewalign.finetuning.segmentation import dataset
from viewalign.tasks.manifest import read_manifest
from viewalign.tasks.spec import read_spec


def test_the_example_is_a_dataset_and_a_task(tmp_path):
    root = write_example(tmp_path / "example", subjects=4)
    found = dataset.find(str(root / DATASET), root)
    dataset.check(found)
    assert (len(found.cases), found.labels) == (4, {"ventricle": (1,), "nucleus": (2,)})
    cases = read_manifest(root / "task", read_spec(root / "task"))
    assert [case.target for case in cases] == [0, 1, 0, 1]
    labels = [sitk.GetArrayFromImage(sitk.ReadImage(str(case.labels))) for case in found.cases]
    sizes = [int((one == 1).sum()) for one in labels]
    assert min(sizes[1::2]) > max(sizes[::2]), "the classes differ by the size of the ventricles"
    again = write_example(tmp_path / "again", subjects=4)
    images = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(one / "images" / "sub-01_T1w.nii.gz"))) for one in (root, again)
    ]
    assert np.array_equal(*images)
