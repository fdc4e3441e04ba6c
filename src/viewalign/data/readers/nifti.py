"""NIfTI files: headers by nibabel, voxels with their length and checksum verified.

ITK fills the missing part of a truncated `.nii` or `.nii.gz` with uninitialised memory, without an error, and neither
ITK nor nibabel verifies the gzip checksum. So voxels are read here, to the end of the stream.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from viewalign.errors import EmptyImageError, ExcludedImageError, os_reason

_PIECE = 1 << 22
_LARGE = 1 << 26
_PACKED_TOO_WELL = 200  # images compress 2 to 20 times, label maps 100 times, zeros 1,000 times
_START = {1: 352, 2: 544}
"""First byte after the header and the four bytes that say whether extensions follow, by version."""
_UNITS = {1: 1000.0, 2: 1.0, 3: 1e-3}  # xyzt_units: metre, millimetre, micrometre
nib: Any = nibabel  # few of its functions carry type hints


@dataclass(frozen=True)
class NiftiHeader:
    """A NIfTI header as written, uncorrected.

    Attributes:
        dims: all dimensions in file order (x, y, z, …), trailing ones included.
        pixdim: voxel size along x, y, z in mm as written.
        dtype: number type with byte order.
        offset: first byte of the voxels.
        slope: factor of the stored numbers, 1 if there is none.
        inter: offset added after the factor.
        affine: nibabel's choice of the two below, 4×4.
        unit: of lengths, in mm.
        intent: what the voxels mean, as a code of NIfTI.
        version: of NIfTI, 1 or 2.
        note: a problem that was accepted, as a sentence, or empty.
        qform: 4×4 from (x, y, z) index to RAS mm, or None if it is not set or cannot be computed; so `sform`.
    """

    dims: tuple[int, ...]
    pixdim: tuple[float, ...]
    dtype: np.dtype[np.generic]
    offset: int
    slope: float
    inter: float
    affine: NDArray[np.float64]
    unit: float = 1.0
    intent: int = 0
    version: int = 1
    note: str = ""
    qform: NDArray[np.float64] | None = None
    sform: NDArray[np.float64] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (D, H, W)."""
        return self.dims[2], self.dims[1], self.dims[0]

    @property
    def data_bytes(self) -> int:
        """Size of the voxels in the file, unpacked."""
        return int(np.prod(self.dims, dtype=object)) * self.dtype.itemsize


def is_packed(path: Path) -> bool:
    """Return whether a file is a gzip stream, by its first two bytes."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def open_stream(path: Path) -> BufferedIOBase:
    """Open a `.nii` or `.nii.gz` for reading; its content decides, not its name."""
    return gzip.GzipFile(path) if is_packed(path) else path.open("rb")


def read_header(path: Path) -> NiftiHeader:
    """Read the header.

    Raises:
        ExcludedImageError: damaged or not a NIfTI-1 or NIfTI-2 file.
    """
    try:
        with open_stream(path) as file:
            raw = file.read(540)
    except (OSError, EOFError, zlib.error) as error:
        raise ExcludedImageError(f"its header cannot be read: {_cause(error)}") from None
    if len(raw) < 348:
        raise ExcludedImageError(f"its header cannot be read: only {len(raw)} of 348 bytes exist")
    try:
        return _with_start(path, _parse(raw))
    except Exception as error:  # nibabel raises many kinds for a damaged header
        raise ExcludedImageError(f"its header cannot be read: {error}") from None


def read_voxels(path: Path, header: NiftiHeader) -> NDArray[np.float32]:
    """Read all voxels as float32 (D, H, W), factor and offset applied.

    Raises:
        ExcludedImageError: the stream ends early or fails its checksum.
    """
    if header.data_bytes > max(_LARGE, _PACKED_TOO_WELL * path.stat().st_size):
        _check_worth(path, header)
    buffer = np.empty(header.data_bytes, dtype=np.uint8)
    try:
        with open_stream(path) as file:
            _skip(file, header.offset)
            got = _fill(file, buffer)
            if got == buffer.size:
                _drain(file)
    except (OSError, EOFError, zlib.error) as error:
        raise ExcludedImageError(_fault(error)) from None
    if got < buffer.size:
        raise ExcludedImageError(f"the file is truncated: {got:,} of {buffer.size:,} bytes of voxels exist")
    voxels = buffer.view(header.dtype).reshape(header.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        if (header.slope, header.inter) == (1.0, 0.0):
            return as_float32(voxels)
        exact = header.dtype.itemsize <= 2  # such numbers are exact in float32
        scaled: NDArray[Any] = voxels.astype(np.float32 if exact else np.float64)
        scaled *= header.slope
        scaled += header.inter
        return as_float32(scaled)


def as_float32(voxels: NDArray[Any]) -> NDArray[np.float32]:
    """Return voxels as float32; finite values beyond its range become its largest number."""
    with np.errstate(over="ignore"):
        small: NDArray[np.float32] = voxels.astype(np.float32, copy=False)
    if voxels.dtype.kind == "f" and voxels.dtype.itemsize > 4:
        largest = np.finfo(np.float32).max
        beyond = np.isinf(small) & np.isfinite(voxels)
        small[beyond] = np.copysign(largest, small[beyond])
    return small


def _check_worth(path: Path, header: NiftiHeader) -> None:
    """Scan a file of suspiciously high compression, piece by piece, before memory for its voxels is allocated.

    Raises:
        ExcludedImageError: it ends early, or all its voxels are the same.
    """
    piece = np.empty(_PIECE, dtype=np.uint8)  # whole voxels: every number type divides it
    done, first = 0, None
    try:
        with open_stream(path) as file:
            _skip(file, header.offset)
            while done < header.data_bytes:
                got = _fill(file, piece[: min(_PIECE, header.data_bytes - done)])
                if got == 0:
                    raise ExcludedImageError(
                        f"the file is truncated: {done:,} of {header.data_bytes:,} bytes of voxels exist"
                    )
                values = piece[: got - got % header.dtype.itemsize].view(header.dtype)
                first = values[0] if first is None and values.size else first
                if (values != first).any():
                    return
                done += got
    except (OSError, EOFError, zlib.error) as error:
        raise ExcludedImageError(_fault(error)) from None
    value = float(first) * header.slope + header.inter if first is not None else 0.0
    if value == 0:
        raise EmptyImageError
    raise ExcludedImageError(f"the image is constant: all voxels are {value:g}")


def _with_start(path: Path, header: NiftiHeader) -> NiftiHeader:
    """Replace a first byte of voxels that is inside the header, such as 0, by the one that the file's length shows."""
    smallest = _START[header.version]
    if header.offset >= smallest:
        return header
    size = path.stat().st_size
    if is_packed(path):
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            size = int.from_bytes(file.read(4), "little")  # unpacked
    start = smallest if size >= smallest + header.data_bytes else smallest - 4  # without the flag of extensions
    note = f"its header says that voxels begin at byte {header.offset}, which is inside it; they are read from {start}"
    return replace(header, offset=start, note=note)


def _parse(raw: bytes) -> NiftiHeader:
    kind = nib.Nifti2Header if _is_nifti2(raw) else nib.Nifti1Header
    header = kind(raw[: kind.template_dtype.itemsize], check=False)
    magic = bytes(header["magic"])[:3]
    if magic not in (b"n+1", b"n+2"):
        raise ValueError("its magic bytes are not those of a single-file NIfTI")
    return header_of(header)


def header_of(header: Any) -> NiftiHeader:
    """Return the fields of a NIfTI header of nibabel, of a single file or of a pair.

    Raises:
        ValueError: it is damaged.
    """
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise ValueError(f"it claims {count} dimensions")
    dims = [int(n) for n in header["dim"][1 : count + 1]]
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as the standard says; nibabel rejects it
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):  # 0 means "no scaling"; some writers use NaN for it
        slope, inter = 1.0, 0.0
    if not np.isfinite(inter):
        inter = 0.0
    offset = int(header["vox_offset"])
    if offset < 0 or offset > 1 << 30:
        raise ValueError(f"it claims that voxels begin at byte {offset}")
    pixdim = tuple(float(size) for size in header["pixdim"][1:4])
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        raise ValueError(f"its number type has the unknown code {int(header['datatype'])}") from None
    return NiftiHeader(
        *(tuple(dims), pixdim, dtype, offset, slope, inter),
        affine=_affine(header),
        intent=int(header["intent_code"]),
        version=2 if isinstance(header, nib.Nifti2Header) else 1,
        unit=_UNITS.get(int(header["xyzt_units"]) & 7, 1.0),
        qform=_form(header.get_qform, header["qform_code"]),
        sform=_form(header.get_sform, header["sform_code"]),
    )


def _affine(header: Any) -> NDArray[np.float64]:
    try:
        best: NDArray[np.float64] = np.asarray(header.get_best_affine(), dtype=np.float64)
        if not np.isfinite(best).all() and header["qform_code"] > 0:
            best = np.asarray(header.get_qform(), dtype=np.float64)
        return best
    except Exception:  # a damaged quaternion is reported when the geometry is read
        return np.full((4, 4), np.nan)


def _form(read: Callable[[], Any], code: Any) -> NDArray[np.float64] | None:
    if int(code) <= 0:
        return None
    try:
        matrix = np.asarray(read(), dtype=np.float64)
    except Exception:  # a damaged quaternion is reported when the geometry is read
        return None
    return matrix if np.isfinite(matrix).all() else None


def _is_nifti2(raw: bytes) -> bool:
    return raw[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")


def _skip(file: BufferedIOBase, count: int) -> None:
    while count > 0:
        piece = file.read(min(count, _PIECE))
        if not piece:
            return
        count -= len(piece)


def _fill(file: BufferedIOBase, target: NDArray[np.uint8]) -> int:
    got = 0
    while got < len(target):
        count = file.readinto(target[got : got + _PIECE].data)
        if not count:
            break
        got += count
    return got


def _drain(file: BufferedIOBase) -> None:
    """Read to the end of the stream, where gzip verifies its checksum; bytes after it are ignored."""
    try:
        for _ in range(32):  # give up on absurdly long tails
            if not file.read(_PIECE):
                return
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):
            raise


def _fault(error: Exception) -> str:
    """Return why voxels could not be read; an error of the system does not mean that the file is damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"the file cannot be read: {_cause(error)}"
    return f"the file is damaged or truncated: {_cause(error)}"


def _cause(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the compressed stream ends too early"
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        return f"the compressed stream is damaged ({error})"
    return os_reason(error)
