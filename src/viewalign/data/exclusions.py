"""Lists of images that are left out: `exclude=FILE` of `index` and `prepare`.

A list is a table with a column `file`, such as the edited `catalogue.audit.tsv`, a `catalogue.excluded.json`, or a text
with a file per line. A file is an absolute path, the end of a path (`sub-01/anat/T1.nii.gz`, for another machine), or
the id of an image in a store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from viewalign.data.layout import frame_name, frame_of, read_json
from viewalign.data.sources.table import decoded, read_table, unquoted
from viewalign.errors import UserError, os_reason


class ExclusionList:
    """The images that lists name."""

    def __init__(self, files: Iterable[tuple[str, str]] = ()) -> None:
        self._reasons = dict(files)
        self._matched: set[str] = set()
        self._by_name: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self._frames: dict[str, dict[int, str]] = defaultdict(dict)
        for file, reason in self._reasons.items():
            parts = Path(file).parts
            if parts:
                self._by_name[parts[-1]].append(parts)
            image, number = frame_of(file)
            if number is not None:
                self._frames[image][number] = reason

    @classmethod
    def read(cls, paths: Iterable[Path]) -> ExclusionList:
        """Read lists.

        Raises:
            UserError: one cannot be read, or has no column `file`.
        """
        return cls(entry for path in paths for entry in _entries(path))

    def reason(self, path: Path, image_id: str = "") -> str | None:
        """Return why an image is left out, None if it is in no list."""
        matches = [image_id] if image_id in self._reasons else []
        own = self._by_name.get(path.name, ())
        matches += [str(Path(*parts)) for parts in own if path.parts[-len(parts) :] == parts]
        self._matched.update(matches)
        return self._reasons[matches[0]] if matches else None

    def frames(self, image_id: str) -> dict[int, str]:
        """Return the frames of a 4-D image that are left out by their ids, with the reasons."""
        found = self._frames.get(image_id, {})
        self._matched.update(frame_name(image_id, number) for number in found)
        return found

    def unmatched(self) -> str:
        """Return a sentence on entries that have matched no image, perhaps misspelt; empty if there are none."""
        left = [file for file in self._reasons if file not in self._matched]
        if not left:
            return ""
        return (
            f"Entries of the exclusion lists that match no image: {len(left):,} of {len(self._reasons):,}, such as "
            f"{left[0]}. An entry is a path, the end of a path or an image id; folders and patterns are not supported"
        )


def _entries(path: Path) -> Iterable[tuple[str, str]]:
    default = f"it is listed in {path.name}"
    try:
        if path.suffix.lower() == ".json":
            rows = [{key: str(value) for key, value in row.items()} for row in read_json(path)]
        elif path.suffix.lower() in (".csv", ".tsv"):
            rows = read_table(path)[1]
        else:
            lines = decoded(path.read_bytes()).splitlines()
            rows = [{"file": unquoted(line)} for line in lines if line.strip() and not line.startswith("#")]
        found = [(str(Path(row["file"])), _reason(row.get("reason"), default)) for row in rows]
    except OSError as error:
        raise UserError(f"The exclusion list {path} cannot be read: {os_reason(error)}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is no exclusion list. It needs a column `file`, as in catalogue.audit.tsv, or a file per line."
        ) from None
    return found


def _reason(stated: str | None, default: str) -> str:
    return f"{default}: {stated}" if stated else default
