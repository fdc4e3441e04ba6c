"""For each image, the most similar other ones by an encoder's vectors.

python examples/find_similar_images.py RUN IMAGE IMAGE IMAGE...
"""

from __future__ import annotations

import sys

import numpy as np

import viewalign


def main(encoder: str, images: list[str], shown: int = 3) -> None:
    """Print the nearest neighbours of each image, by the cosine of standardised vectors."""
    found = viewalign.embed(encoder, images)
    for name, reason in found.excluded:
        print(f"left out: {name}: {reason}")
    rows = found.features - found.features.mean(0)
    rows = rows / (found.features.std(0) + 1e-6)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    for name, likeness in zip(found.cases, rows @ rows.T, strict=True):
        others = [k for k in np.argsort(-likeness) if found.cases[k] != name][:shown]
        print(name, "->", ", ".join(f"{found.cases[k]} ({likeness[k]:.2f})" for k in others))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
