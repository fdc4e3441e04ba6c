"""Head-sized volumes for benchmarks: real ones where they lie beside the project, the others made of MNI152."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import map_coordinates

from viewalign.demo.cohort import displacement, load_template, random_affine
from viewalign.utils.rng import make_rng

SHARED = Path(os.environ.get("VIEWALIGN_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


def real_heads() -> list[Path]:
    """Return the whole heads beside the project, without label maps; none where the folder is not there."""
    files = [path for name in ("ms_raw", "heads", "ms_mni") for path in sorted((SHARED / name).glob("*"))]
    words = ("label", "lesion", "readme", "license")
    return [path for path in files if path.is_file() and not any(word in path.name.lower() for word in words)]


def heads(folder: Path, count: int) -> tuple[list[Path], int]:
    """Return `count` files, the first of them real as far as there are any, and how many are real."""
    files = real_heads()[:count]
    real = len(files)
    files += [make_head(folder / f"head{number:02d}.nii.gz", number) for number in range(count - real)]
    return files, real


def make_head(path: Path, number: int) -> Path:
    """Write a deformed MNI152 with noise, as thick slices: 0.5 to 0.9 mm by 3 to 4 mm, int16."""
    template = load_template()
    rng = make_rng(7, number, "head")
    x, z = float(rng.uniform(0.5, 0.9)), float(rng.uniform(3.0, 4.0))
    extent = np.array(template.t1.shape) - 8.0
    shape = tuple(int(n) for n in np.round(extent / (x, x, z)))
    coarse = tuple(int(n) for n in np.ceil(extent / 4))
    field = displacement(rng, coarse, 4.0)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    mm = index * np.array([x, x, z])[:, None, None, None]
    moved = np.stack([map_coordinates(part, mm / 4.0, order=1, mode="nearest") for part in field])
    middle = (extent / 2)[:, None, None, None]
    points = np.tensordot(random_affine(rng), mm - middle, axes=1) + middle + moved + 4.0
    image = map_coordinates(template.t1, points, order=1, cval=0.0) * 800
    image = np.hypot(image + rng.normal(0, 12, shape), rng.normal(0, 12, shape))
    nibabel.save(nibabel.Nifti1Image(np.rint(image).astype(np.int16), np.diag([-x, -x, z, 1.0])), path)
    return path
