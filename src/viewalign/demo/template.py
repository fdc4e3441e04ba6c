"""The one real brain in the demo: nilearn's MNI152 T1 template with its tissue maps, shipped inside nilearn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError

_NEEDED = {"nilearn": "nilearn", "sklearn": "scikit-learn", "scipy": "scipy"}


@dataclass(frozen=True)
class Template:
    """MNI152 on a 1 mm grid with an empty frame; array axes are x, y, z towards right, front and top.

    Attributes:
        t1: intensity in [0, 1], 0 outside the brain.
        tissues: (3, X, Y, Z) probabilities of fluid and all other, grey matter, white matter; they sum to `brain`.
        brain: 1 inside the brain mask, else 0.
        origin: centre of voxel (0, 0, 0) in mm.
    """

    t1: NDArray[np.float32]
    tissues: NDArray[np.float32]
    brain: NDArray[np.float32]
    origin: NDArray[np.float64]


def require_extras() -> None:
    """Make sure that what the demo needs beyond pretraining is installed.

    Raises:
        UserError: something is missing; the sentence says how to install it.
    """
    missing = [name for module, name in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"The demo needs {', '.join(missing)}: pip install 'viewalign[demo]'.")


@cache
def load_template() -> Template:
    """Load the template; no network is used.

    Raises:
        UserError: nilearn is not installed.
    """
    require_extras()
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    brain = _framed(datasets.load_mni152_brain_mask(resolution=1))
    grey = _framed(datasets.load_mni152_gm_template(resolution=1)) * brain
    white = _framed(datasets.load_mni152_wm_template(resolution=1)) * brain
    solid = np.maximum(grey + white, 1.0)
    grey, white = grey / solid, white / solid
    tissues = np.stack([brain - grey - white, grey, white])
    return Template(_framed(image) * brain, tissues, brain, np.asarray(image.affine[:3, 3] - 1.0))


def _framed(image: Any) -> NDArray[np.float32]:
    """Return the voxels with an empty frame of one: the brain stem ends at the template's border."""
    return np.pad(np.asarray(image.dataobj, dtype=np.float32), 1)
