"""Copies of one image: found through formats and shifts, kept between runs, reported where a split is fixed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from smooth_images import smooth_image

from viewalign.data.image_fingerprint import similarity
from viewalign.data.readers.itk import sitk
from viewalign.tasks import copies
from viewalign.tasks.copies import CaseCopies, copies_among, read_fingerprints, report_divided


@pytest.fixture
def images(tmp_path):
    """Return four smooth images: `b` is `a` in another format, padded, and moved; `broken` is no image."""
    paths = {}
    for k, name in enumerate("acd"):
        paths[name] = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(smooth_image(k), str(paths[name]))
    paths["b"] = tmp_path / "b.nrrd"
    moved = sitk.ConstantPad(sitk.Cast(smooth_image(0), sitk.sitkFloat64), (3, 0, 5), (0, 4, 0), 0.0)
    moved.SetOrigin((7.0, -3.0, 11.0))
    sitk.WriteImage(moved, str(paths["b"]))
    paths["broken"] = tmp_path / "broken.nii.gz"
    paths["broken"].write_bytes(b"no image")
    return paths


def test_copies_in_other_formats_are_one_subject(images, caplog):
    found = copies_among({name: f"s-{name}" for name in images}, read_fingerprints(images))
    assert {frozenset(group) for group in found.groups} == {frozenset("ab")}
    assert found.subject_of == {"a": "s-a", "b": "s-a", "c": "s-c", "d": "s-d", "broken": "s-broken"}
    assert "a, b" in caplog.text


def test_fingerprints_are_kept_until_a_file_changes(images, tmp_path, monkeypatch):
    cache, read = tmp_path / "kept.json", []
    original = copies.read_image
    monkeypatch.setattr(copies, "read_image", lambda path, **more: read.append(path.name) or original(path, **more))
    first = read_fingerprints(images, cache)
    assert sorted(read) == sorted(path.name for path in images.values())
    read.clear()
    again = read_fingerprints(images, cache)
    assert read == []
    assert all(np.array_equal(first[name], again[name]) for name in images)
    sitk.WriteImage(smooth_image(9), str(images["d"]))
    changed = read_fingerprints(images, cache)
    assert read == ["d.nii.gz"]
    assert similarity(changed["d"], first["d"]) < 0.9
    cache.write_text(json.dumps(["damaged"]))
    assert np.array_equal(read_fingerprints(images, cache)["a"], first["a"])


def test_a_fixed_split_with_copies_on_both_sides_is_reported(caplog):
    found = CaseCopies((("a", "b"), ("c", "d")), {})
    report_divided(found, ["a", "b", "c"], ["e"], "test")
    assert caplog.text == ""
    report_divided(found, ["a", "b", "c"], ["d"], "test")
    assert "Training and test cases contain copies: c, d." in caplog.text
