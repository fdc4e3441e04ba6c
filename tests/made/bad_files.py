"""A corpus of files that are broken, odd, or odd but right, made by code.

`BAD` maps a name to (maker, words of the reason of its exclusion), `GOOD` to (maker, voxels that must be
read), `SERIES` to a maker of a DICOM folder and the expected message.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from dicom_files import write_enhanced, write_series, write_slice

from viewalign.data.readers.itk import sitk

DIM, DATATYPE, BITPIX, PIXDIM, OFFSET, SLOPE, FORM_CODES, ROWS, MAGIC = 40, 70, 72, 80, 108, 112, 252, 280, 344
"""Byte offsets in a NIfTI-1 header; `DIM` is the number of dimensions, sizes follow at `DIM + 2`."""
SIZES = DIM + 2
SHAPE = (12, 14, 16)


def array() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)


def whole() -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE) % 120


def save(path: Path, voxels: np.ndarray, compress: bool = False) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), compress)


def with_pixdim(path: Path, size: float) -> None:
    """Write a voxel size along x into a header without an sform, which would be used in its stead."""
    patched(path, PIXDIM, "f", size)
    content = bytearray(path.read_bytes())
    struct.pack_into("<h", content, FORM_CODES + 2, 0)
    path.write_bytes(content)


def patched(path: Path, offset: int, layout: str, *values: float | bytes) -> None:
    save(path, array())
    packed = path.name.endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    struct.pack_into("<" + layout, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)) if packed else content)


def cut(path: Path, keep: float) -> None:
    save(path, array())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def flipped(path: Path, compress: bool = False, at: float = 0.5) -> None:
    save(path, array(), compress)
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0xFF
    path.write_bytes(content)


def with_voxel(path: Path, value: float) -> None:
    voxels = array()
    voxels[3, 4, 5] = value
    save(path, voxels)


def nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, qform: np.ndarray | None = None) -> None:
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    image.set_qform(qform, 0 if qform is None else 1)
    nib.save(image, path)


def with_affine(path: Path, affine: np.ndarray) -> None:
    """Write a NIfTI with this sform and no qform, byte by byte: nibabel does not write a broken one."""
    patched(path, FORM_CODES, "2h", 0, 1)
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<12f", content, ROWS, *affine[:3].ravel())
    struct.pack_into("<3f", content, PIXDIM, 1.0, 1.0, 1.0)
    path.write_bytes(gzip.compress(bytes(content)))


def changed(**entries: float) -> np.ndarray:
    """Return the identity with entries such as `r0c1=0.5` changed."""
    affine = np.eye(4)
    for place, value in entries.items():
        affine[int(place[1]), int(place[3])] = value
    return affine


def text_header(path: Path, old: bytes, new: bytes) -> None:
    save(path, array())
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def kilobyte_of_ten_gigavoxels(path: Path) -> None:
    """Write a file of about 1 kB whose header claims 2,500 × 2,000 × 2,000 voxels."""
    header = nib.Nifti1Header()
    header.set_data_shape((2000, 2000, 2500))
    header.set_data_dtype(np.uint8)
    head = header.binaryblock[:MAGIC] + b"n+1\0" + bytes(4)
    if path.name.endswith(".nii.gz"):
        path.write_bytes(gzip.compress(head + bytes(700_000)))
    elif path.suffix == ".nii":
        path.write_bytes(head + bytes(700))
    elif path.suffix == ".nrrd":
        text = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2000 2000 2500\nencoding: gzip\n\n"
        path.write_bytes(text.encode() + gzip.compress(bytes(700_000)))
    else:
        text = "ObjectType = Image\nNDims = 3\nDimSize = 2000 2000 2500\nElementType = MET_UCHAR\n"
        path.write_bytes(text.encode() + b"ElementDataFile = LOCAL\n" + bytes(700))
    assert path.stat().st_size < 1500


def short_but_plausible(path: Path) -> None:
    """Write a NIfTI whose header claims 600 MB and whose gzip stream ends rightly after 2 MB."""
    header = nib.Nifti1Header()
    header.set_data_shape((500, 500, 600))
    header.set_data_dtype(np.float32)
    head = header.binaryblock[:MAGIC] + b"n+1\0" + bytes(4)
    rng = np.random.default_rng(0)
    path.write_bytes(gzip.compress(head + rng.integers(0, 256, 2_000_000, dtype=np.uint8).tobytes(), 1))


def bomb(path: Path) -> None:
    """Write 300 MB of zeros that are 0.3 MB on disk, with the header of an image of that size: 1.2 GB as float32."""
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 300))
    header.set_data_dtype(np.uint8)
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header.binaryblock[:MAGIC] + b"n+1\0" + bytes(4))
        for _ in range(300):
            file.write(bytes(1_000_000))
    assert path.stat().st_size < 330_000


def nrrd_bomb(path: Path) -> None:
    """Write 300 MB of zeros in 0.3 MB of NRRD."""
    packer = zlib.compressobj(9, wbits=31)
    data = b"".join(packer.compress(bytes(1_000_000)) for _ in range(300)) + packer.flush()
    nrrd(path, "type: uint8", "sizes: 1000 1000 300", "encoding: gzip", data=data)


def nrrd(path: Path, *lines: str, data: bytes | None = None, detached: str = "") -> None:
    fields = {"type": "float", "dimension": "3", "sizes": "16 14 12", "encoding": "raw", "endian": "little"}
    fields.update(dict(line.split(": ", 1) for line in lines))
    text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items() if value)
    path.write_bytes(text.encode() + b"\n" + (array().tobytes() if data is None else data))


def colour(path: Path, names: str = "RGB") -> None:
    nifti(path, np.zeros((5, 6, 7), [(name, "u1") for name in names]))


def components(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([array()] * 3, -1), isVector=True), str(path))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "flat.nii.gz": (lambda p: save(p, array()[0]), "2D"),
    "flat.mha": (lambda p: save(p, array()[0]), "2D"),
    "one_slice.nii.gz": (lambda p: save(p, array()[:1]), "one slice"),
    "one_voxel.nii.gz": (lambda p: save(p, array()[:1, :1, :1]), "one voxel"),
    "frames.nii.gz": (lambda p: nifti(p, np.stack([array()] * 3, -1)), "3 frames (4-D)"),
    "frames.nrrd": (
        lambda p: sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(array())] * 2), str(p)),
        "2 frames",
    ),
    "five_axes.nii": (lambda p: nifti(p, np.zeros((5, 6, 7, 2, 3), np.float32)), "3 components"),
    "truncated.nii.gz": (lambda p: cut(p, 0.5), "damaged or truncated: the compressed stream ends too early"),
    "truncated_tail.nii.gz": (lambda p: cut(p, 0.999), "the compressed stream ends too early"),
    "truncated_header.nii.gz": (lambda p: cut(p, 0.004), "its header cannot be read"),
    "truncated.nii": (lambda p: cut(p, 0.5), "too short"),
    "truncated.mha": (lambda p: cut(p, 0.5), "too short"),
    "truncated.nrrd": (lambda p: cut(p, 0.5), "too short"),
    "flipped.nii.gz": (flipped, "damaged"),
    "flipped_checksum.nii.gz": (lambda p: flipped(p, at=0.9999), "damaged"),
    "flipped_magic.nii.gz": (lambda p: flipped(p, at=0), "its header cannot be read"),
    "flipped.mha": (lambda p: flipped(p, compress=True), "damaged"),
    "flipped.nrrd": (lambda p: flipped(p, compress=True), "damaged"),
    "short_stream.nii.gz": (short_but_plausible, "the file is truncated"),
    "bomb.nii.gz": (bomb, "all voxels are zero"),
    "bomb.nrrd": (nrrd_bomb, "all voxels are zero"),
    "nan.nii.gz": (lambda p: with_voxel(p, np.nan), "1 of 2,688 voxels are NaN"),
    "infinite.nii.gz": (lambda p: with_voxel(p, np.inf), "1 of 2,688 voxels are infinite"),
    "nan.nrrd": (lambda p: with_voxel(p, np.nan), "1 of 2,688 voxels are NaN"),
    "constant.nii.gz": (lambda p: save(p, np.full((5, 6, 7), 3.0, np.float32)), "constant: all voxels are 3"),
    "zeros.nii.gz": (lambda p: save(p, np.zeros((5, 6, 7), np.float32)), "all voxels are zero"),
    "lonely.nii.gz": (lambda p: save(p, np.pad(np.ones((1, 3, 3)), ((3, 3), (3, 3), (3, 3)))), "are in one slice"),
    "spacing_zero.nii": (lambda p: with_pixdim(p, 0.0), "zero along an axis (1×1×0 mm)"),
    "spacing_negative.nii": (lambda p: with_pixdim(p, -1.0), "negative along an axis (1×1×-1 mm)"),
    "spacing_nan.nii": (lambda p: with_pixdim(p, float("nan")), "voxel size is not a number"),
    "spacing_huge.nii": (lambda p: with_pixdim(p, 1e6), "impossible (1×1×1e+06 mm)"),
    "spacing_tiny.nii": (lambda p: with_pixdim(p, 1e-9), "impossible (1×1×1e-09 mm)"),
    "spacing_zero.mha": (lambda p: text_header(p, b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1"), "zero along"),
    "spacing_negative.mha": (
        lambda p: text_header(p, b"ElementSpacing = 1 1 1", b"ElementSpacing = -1 1 1"),
        "negative along an axis",
    ),
    "lying.nii": (lambda p: patched(p, SIZES, "3h", 900, 900, 900), "too short"),
    "enormous.nii": (lambda p: patched(p, SIZES, "3h", 30000, 30000, 30000), "the limit is"),
    "negative_size.nii": (lambda p: patched(p, SIZES, "h", -5), "claims a size of -5×14×12"),
    "zero_size.nii": (lambda p: patched(p, SIZES, "h", 0), "claims a size of 0×14×12"),
    "no_axes.nii": (lambda p: patched(p, DIM, "h", 0), "its header cannot be read"),
    "eleven_axes.nii": (lambda p: patched(p, DIM, "h", 11), "its header cannot be read"),
    "kilobyte.nii": (kilobyte_of_ten_gigavoxels, "the limit is"),
    "kilobyte.nii.gz": (kilobyte_of_ten_gigavoxels, "the limit is"),
    "kilobyte.nrrd": (kilobyte_of_ten_gigavoxels, "the limit is"),
    "kilobyte.mha": (kilobyte_of_ten_gigavoxels, "the limit is"),
    "wrong_magic.nii": (lambda p: patched(p, MAGIC, "4s", b"nix\0"), "magic"),
    "unknown_type.nii": (lambda p: patched(p, DATATYPE, "h", 99), "number type has the unknown code 99"),
    "offset_far.nii": (lambda p: patched(p, OFFSET, "f", 1e6), "too short"),
    "offset_nan.nii": (lambda p: patched(p, OFFSET, "f", float("nan")), "its header cannot be read"),
    "complex.nii.gz": (lambda p: nifti(p, array().astype(np.complex64)), "complex"),
    "complex_double.nii.gz": (lambda p: nifti(p, array().astype(np.complex128)), "complex"),
    "colour.nii.gz": (colour, "3 components"),
    "colour_alpha.nii.gz": (lambda p: colour(p, "RGBA"), "4 components"),
    "vectors.nrrd": (components, "3 components"),
    "vectors.mha": (components, "3 components"),
    "sheared.nii.gz": (lambda p: with_affine(p, changed(r0c1=0.5)), "sheared"),
    "singular.nii.gz": (lambda p: with_affine(p, changed(r0c0=0.0, r1c0=1.0)), "singular"),
    "flat_affine.nii.gz": (lambda p: with_affine(p, changed(r2c2=0.0)), "zero along an axis"),
    "affine_nan.nii.gz": (lambda p: with_affine(p, changed(r0c3=np.nan)), "not a number"),
    "singular.nrrd": (
        lambda p: nrrd(p, "space: left-posterior-superior", "space directions: (1,0,0) (1,0,0) (0,0,1)"),
        "singular",
    ),
    "sizes_lie.nrrd": (lambda p: nrrd(p, "sizes: 16 14 1200"), "too short"),
    "sizes_missing.nrrd": (lambda p: nrrd(p, "sizes: "), "its header cannot be read"),
    "unknown_encoding.nrrd": (lambda p: nrrd(p, "encoding: lzma"), "its header cannot be read"),
    "no_gzip.nrrd": (lambda p: nrrd(p, "encoding: gzip"), "damaged"),
    "detached_missing.nhdr": (
        lambda p: nrrd(p, "data file: nowhere.raw", data=b""),
        "nowhere.raw with its voxels does not exist",
    ),
    "detached_missing.mhd": (
        lambda p: (save(p, array()), p.with_suffix(".raw").unlink()),
        "detached_missing.raw with its voxels does",
    ),
    "negative_size.mha": (
        lambda p: text_header(p, b"DimSize = 16", b"DimSize = -6"),
        "its header claims 12×14×4.29497e+09",
    ),
    "corrupting.mha": (
        lambda p: text_header(p, b"ElementDataFile = LOCAL\n", b"ElementDataFile = L"),
        "line 13 is not of the form",
    ),
    "axes.mha": (lambda p: text_header(p, b"NDims = 3", b"NDims = 9999"), "NDims is no number of axes"),
    "numbers.mha": (lambda p: text_header(p, b"DimSize = 16", b"DimSize = 1 2 3 4 16"), "DimSize has not 3 numbers"),
    "overflow.mha": (lambda p: text_header(p, b"DimSize = 16 14 12", b"DimSize = 99999999999 14 12"), "the limit is"),
    "empty.nii.gz": (lambda p: p.write_bytes(b""), "empty (0 bytes)"),
    "empty.nrrd": (lambda p: p.write_bytes(b""), "empty (0 bytes)"),
    "text.nii": (lambda p: p.write_text("no image at all " * 100), "header cannot be read"),
    "text.nii.gz": (lambda p: p.write_text("no image at all " * 100), "header cannot be read"),
    "text.mha": (lambda p: p.write_text("no image at all " * 100), "line 1 is not of the form"),
    "text.dcm": (lambda p: p.write_text("no image at all " * 100), "not a DICOM file"),
    "zlib.nii.gz": (lambda p: p.write_bytes(zlib.compress(bytes(5000))), "header cannot be read"),
    "short.nii": (lambda p: p.write_bytes(b"\x5c\x01\x00\x00"), "only 4 of 348 bytes"),
    "folder.nii.gz": (lambda p: p.mkdir(), "a folder with the name of an image"),
    "broken_link.nii.gz": (lambda p: p.symlink_to(p.parent / "nowhere.nii.gz"), "the link is broken"),
}


def of_type(code: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        header = nib.Nifti1Header(endianness=">" if code.startswith(">") else "<")
        header.set_data_dtype(np.dtype(code))
        nib.save(nib.Nifti1Image(whole().transpose(2, 1, 0).astype(code), np.eye(4), header), path)

    return make


def in_two_members(path: Path) -> None:
    buffer = io.BytesIO()
    image = nib.Nifti1Image(array().transpose(2, 1, 0), np.eye(4))
    image.to_file_map({"image": nib.FileHolder(fileobj=buffer), "header": nib.FileHolder(fileobj=buffer)})
    content = buffer.getvalue()
    path.write_bytes(gzip.compress(content[:4000]) + gzip.compress(content[4000:]))


def with_metadata(path: Path) -> None:
    """Write what NIfTI and DICOM leave in a MetaImage: keys with brackets and bars, long values."""
    image = sitk.GetImageFromArray(array())
    for key, value in (("dim[0]", "3"), ("0008|0008", "A\\B"), ("note", "x" * 9000), ("pixdim[1]", "1.0")):
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))


def with_its_voxels_beside(path: Path) -> None:
    (path.parent / "beside.raw").write_bytes(array().tobytes())
    nrrd(path, "data file: beside.raw", data=b"")


GOOD: dict[str, tuple[Callable[[Path], object], np.ndarray]] = {
    **{f"good{suffix}": (lambda p: save(p, array()), array()) for suffix in (".nii.gz", ".nii", ".mha", ".nrrd")},
    **{f"good{suffix}": (lambda p: save(p, array()), array()) for suffix in (".mhd", ".nhdr")},
    **{f"type_{code.strip('<>')}_{code[0] == '>'}.nii.gz": (of_type(code), whole()) for code in
       ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">i4", ">f4", ">f8")},
    "metadata.mha": (with_metadata, array()),
    "packed.mha": (lambda p: save(p, array(), True), array()),
    "detached.nrrd": (with_its_voxels_beside, array()),
    "packed.nrrd": (lambda p: save(p, array(), True), array()),
    "trailing_axis.nii.gz": (lambda p: nifti(p, array().transpose(2, 1, 0)[..., None]), array()),
    "big_endian.nii": (of_type(">i2"), whole()),
    "version_2.nii.gz": (lambda p: nib.save(nib.Nifti2Image(array().transpose(2, 1, 0), np.eye(4)), p), array()),
    "two_members.nii.gz": (in_two_members, array()),
    "slope_zero.nii": (lambda p: patched(p, SLOPE, "2f", 0.0, 5.0), array()),
    "slope_nan.nii": (lambda p: patched(p, SLOPE, "2f", float("nan"), float("nan")), array()),
    "slope_negative.nii": (lambda p: patched(p, SLOPE, "2f", -2.0, 1.0), array() * -2 + 1),
    "forms_disagree.nii.gz": (
        lambda p: nifti(p, array().transpose(2, 1, 0), changed(r0c3=5.0), changed(r0c3=9.0)),
        array(),
    ),
    "ünïcode 像.nii.gz": (lambda p: save(p, array()), array()),
    "new\nline.nii.gz": (lambda p: save(p, array()), array()),
    "<b>&amp;{{x}}.nii.gz": (lambda p: save(p, array()), array()),
}  # fmt: skip


def volume() -> np.ndarray:
    return (whole() * 30).astype(np.uint16)


def with_copy(folder: Path) -> None:
    paths = write_series(folder, volume())
    (folder / "copy.dcm").write_bytes(paths[2].read_bytes())


def with_scout(folder: Path) -> None:
    write_series(folder, volume())
    write_slice(folder / "scout.dcm", volume()[0], (0, 0, 0), (0, 1, 0, 0, 0, -1))


def with_contradiction(folder: Path) -> None:
    write_series(folder, volume())
    write_slice(folder / "twice.dcm", volume()[5], (-10.0, -20.0, 5.0))


def without_one(folder: Path) -> None:
    write_series(folder, volume())[4].unlink()


def with_short_slice(folder: Path) -> None:
    path = write_series(folder, volume())[4]
    path.write_bytes(path.read_bytes()[:300])


SERIES: dict[str, tuple[Callable[[Path], object], bool, str]] = {
    "plain": (lambda f: write_series(f, volume()), True, ""),
    "enhanced": (lambda f: write_enhanced(f / "e.dcm", volume()), True, ""),
    "copy": (with_copy, True, ""),
    "scout": (with_scout, True, "1 slice of 13 in planes or sizes of their own: no volume"),
    "uneven_a_little": (lambda f: write_series(f, volume(), [*range(11), 11.05]), True, ""),
    "missing": (without_one, False, "1 slice missing (1 between"),
    "uneven": (lambda f: write_series(f, volume(), [*range(11), 11.4]), False, "unequally spaced: 1 to 1.4 mm"),
    "contradiction": (with_contradiction, False, "nothing in their headers tells them apart"),
    "one_slice": (lambda f: write_slice(f / "s.dcm", volume()[0], (0, 0, 0)), False, "one slice"),
    "no_frames": (lambda f: write_enhanced(f / "e.dcm", volume(), [0] * 12), False, "at the place of another"),
    "short_slice": (with_short_slice, False, ""),
    "constant": (lambda f: write_series(f, volume() * 0 + 7), False, "constant: all voxels are 7"),
}
"""By folder: maker, whether a volume comes out, and words of what is refused (none where nothing is)."""
