"""A fingerprint of 344 bytes that copies of an image share: re-encoded, shifted, defaced or resampled ones.

It is made of an image's voxels and their positions in mm. Intensities are mapped to [0, 1] between background and
bright tissue, and summed on a torus of 16³ cells: a cell holds all voxels whose positions agree modulo the torus'
length. Of the spectrum of these sums the frequencies −3 to 3 per axis are kept, without the lowest, and multiplied by
their radius, which whitens it. Sums and spectrum do not depend on voxel size, number type, order of axes or file
format. Shifting an image shifts its torus, so that the largest circular cross-correlation of two fingerprints is their
similarity under the best shift. Measured values: docs/decisions.md.

A fingerprint is int8 (344,): the length of the torus in mm, and 7³ values that were transformed back from the kept
frequencies. Fingerprints of other lengths cannot be compared.
"""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

from viewalign.data.content import lattice, otsu_threshold

Fingerprint = NDArray[np.int8]
CELLS, SIDE = 16, 7
"""Cells of the torus and frequencies that are kept, per axis."""
_LENGTHS = ((128.0, 96), (64.0, 48), (0.0, 24))
"""Length of the torus in mm for images whose longest side is at least the first number."""
_STEP = 0.75
"""Largest distance of voxels that are used, in cells. The grid of used voxels has then no frequency near those kept."""
_AT_A_TIME = 1 << 18  # voxels
_DARK = 0.02  # brightness of voxels that are not summed
_LOWEST = 1.5  # radius of the lowest frequency that is kept
_UPSAMPLED = 28  # shifts that are tried per axis


def fingerprint_of(array: NDArray[np.float32], matrix: NDArray[np.float64]) -> Fingerprint:
    """Make the fingerprint of an image from one voxel per 4 mm and axis: 1/64 of an image of 1 mm.

    Args:
        array: (D, H, W).
        matrix: 4×4, from an index (d, h, w, 1) to a position in mm.
    """
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    longest = float(max(sizes * array.shape))
    length = next(length for least, length in _LENGTHS if longest >= least)
    cell = length / CELLS
    steps = [max(1, int(_STEP * cell / size)) for size in sizes]
    bright = _brightness(array[tuple(slice(None, None, step) for step in steps)])
    scaled = matrix[:3] / cell * np.array([*steps, 1.0])
    torus = np.zeros(CELLS**3)
    planes = max(1, _AT_A_TIME // max(1, bright[0].size))
    for start in range(0, len(bright), planes):
        part = bright[start : start + planes]
        index = np.nonzero(part > _DARK)
        places = np.repeat(scaled[:, 3:] + start * scaled[:, :1], len(index[0]), axis=1)
        for axis in range(3):
            places += scaled[:, axis, None] * index[axis]
        torus += _sum_on_torus(part[index].astype(np.float64), places)
    values = _kept_frequencies(torus.reshape(CELLS, CELLS, CELLS)).ravel()
    largest = float(np.abs(values).max())
    scale = 127 / largest if largest else 0.0
    return np.concatenate([[length], np.rint(values * scale)]).astype(np.int8)


def fingerprint_text(fingerprint: Fingerprint) -> str:
    """Return a fingerprint as text for JSON (base64)."""
    return base64.b64encode(fingerprint.tobytes()).decode()


def parse_fingerprint(text: str) -> Fingerprint:
    """Return the fingerprint that `fingerprint_text` wrote; an empty one for any other text."""
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.int8)
    except ValueError:
        return np.zeros(0, dtype=np.int8)
    return values if values.size == 1 + SIDE**3 else values[:0]


def _brightness(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map the median of the background to 0 and the 95th percentile of the foreground to 1; clip."""
    sample = lattice(array, 64)
    threshold = otsu_threshold(sample)
    foreground = sample > threshold
    if not foreground.any() or foreground.all():
        return np.zeros(array.shape, dtype=np.float32)
    low, high = np.median(sample[~foreground]), np.percentile(sample[foreground], 95)
    bright = array - np.float32(low)
    bright /= np.float32(max(float(high - low), 1e-30))
    return np.clip(bright, 0, 1, out=bright)


def _sum_on_torus(values: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum values (N,) at places (3, N) in cells (4096,), each shared linearly among the eight cells around it."""
    lower = np.floor(places)
    upper_share = places - lower
    cells = lower.astype(np.int64) % CELLS
    parts = [(np.zeros(values.shape, dtype=np.int64), values)]
    for axis in range(3):
        share, below = upper_share[axis], cells[axis]
        corners = ((below, 1 - share), ((below + 1) % CELLS, share))
        parts = [(number * CELLS + cell, weight * part) for number, weight in parts for cell, part in corners]
    torus = np.zeros(CELLS**3)
    for number, weight in parts:
        torus += np.bincount(number, weight, minlength=CELLS**3)
    return torus


def _kept_frequencies(torus: NDArray[np.float64]) -> NDArray[np.float64]:
    frequency = np.fft.fftfreq(CELLS) * CELLS
    kept = np.abs(frequency) <= SIDE // 2
    spectrum = np.fft.fftn(torus)[np.ix_(kept, kept, kept)]
    squares = frequency[kept] ** 2
    radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
    return np.fft.ifftn(spectrum * np.where(radius >= _LOWEST, radius, 0)).real


def cubes(fingerprints: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the values of fingerprints (N, 344) as (N, 7, 7, 7)."""
    return fingerprints[:, 1:].astype(np.float32).reshape(-1, SIDE, SIDE, SIDE)


def similarity(first: Fingerprint, second: Fingerprint) -> float:
    """Return the largest circular cross-correlation over all shifts: 1 for copies; 0 for tori of other lengths."""
    if first[0] != second[0]:
        return 0.0
    a, b = np.fft.fftn(cubes(np.stack([first, second])).astype(np.float64), axes=(1, 2, 3))
    norm = np.sqrt(np.mean(np.abs(a) ** 2) * np.mean(np.abs(b) ** 2))
    if norm == 0:
        return 0.0
    before = _UPSAMPLED // 2 - SIDE // 2
    wide = np.pad(np.fft.fftshift(a * np.conj(b)), [(before, _UPSAMPLED - SIDE - before)] * 3)
    correlation = np.fft.ifftn(np.fft.ifftshift(wide)).real * (_UPSAMPLED / SIDE) ** 3
    return float(correlation.max() / norm)
