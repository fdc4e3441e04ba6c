"""What pages claim of other libraries holds."""

import numpy as np
import pytest
from doc_commands import programs

import viewalign
from viewalign.data.readers.itk import sitk
from viewalign.data.store import Store
from viewalign.errors import UserError


def test_monai_s_transforms_give_the_store_s_voxels(tmp_path):
    pytest.importorskip("monai")
    rng = np.random.default_rng(0)
    array = np.zeros((14, 16, 18), np.float32)
    array[2:12, 3:14, 1:15] = rng.uniform(50, 100, (10, 11, 14))
    image = sitk.GetImageFromArray(array)
    image.SetDirection((0, 0, 1, -1, 0, 0, 0, -1, 0))
    (tmp_path / "scans").mkdir()
    file = tmp_path / "scans" / "one.nii.gz"
    sitk.WriteImage(image, str(file))
    viewalign.prepare(tmp_path / "scans", tmp_path / "store", workers=0)
    store = Store.open(tmp_path / "store")
    ours = store.read(0)
    (code,) = [one for one in programs("docs/from-monai.md") if "prepare = Compose" in one]
    scope = {}
    exec(compile(code, "docs/from-monai.md", "exec"), scope)
    theirs = np.asarray(scope["prepare"]({"image": str(file)})["image"])
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    turned = np.asarray(theirs)[:, ::-1]
    assert not np.allclose(ours, turned, atol=1e-2), "the image is not symmetrical, so that a wrong axis would show"


@pytest.mark.slow
def test_monai_s_own_networks_are_left_alone(tmp_path):
    nets = pytest.importorskip("monai.networks.nets")
    from doc_world import TINY, head

    from viewalign.data.store import store_from_arrays
    from viewalign.recipes.loading import load

    store_from_arrays(tmp_path / "store", {f"case{k}": head(k) for k in range(3)})
    viewalign.pretrain(
        load("cva-resenc-xs", [f"data={tmp_path / 'store'}", f"out={tmp_path / 'run'}", *TINY, "batch=2"])
    )
    made = [
        nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=12),
        nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2),
        nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2]),
    ]
    for network in made:
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with pytest.raises(UserError, match=r"ResEnc.*Primus"):
            viewalign.transfer_encoder(network, tmp_path / "run")
        assert all((before[name] == value).all() for name, value in network.state_dict().items())
