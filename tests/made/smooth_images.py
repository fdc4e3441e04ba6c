"""Images of smooth noise, which are alike only if they have one seed."""

import numpy as np

from viewalign.data.readers.itk import sitk


def smooth_image(seed):
    """Return a SimpleITK image of 24×28×20 voxels."""
    noise = np.random.default_rng(seed).normal(size=(24, 28, 20))
    smooth = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 2.0)
    image = sitk.GetImageFromArray((sitk.GetArrayFromImage(smooth) * 500 + 300).clip(1).astype(np.int16))
    image.SetSpacing((2.0, 2.0, 3.0))
    return image


def write_images(folder, copies=(), count=10):
    """Write `case_00.nii.gz` and so on; return the paths by name. `copies` are pairs of numbers of equal images."""
    folder.mkdir(parents=True, exist_ok=True)
    same = {second: first for first, second in copies}
    paths = {f"case_{k:02d}": folder / f"case_{k:02d}.nii.gz" for k in range(count)}
    for k, path in enumerate(paths.values()):
        sitk.WriteImage(smooth_image(same.get(k, k)), str(path))
    return paths
