"""Tables of subjects and images: CSV or TSV as spreadsheets and other programs write them."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from viewalign.data.catalogue import AssociatedMasks, resolve
from viewalign.data.file_types import suffix_of
from viewalign.data.sources.naming import NAME_SUBJECTS, alike_subjects, names_of, person_of
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.walk import absolute
from viewalign.errors import UserError, os_reason
from viewalign.utils.io import is_file
from viewalign.utils.settings import with_home
from viewalign.utils.tables import MISSING, identifier, known_columns, refuse_misspelt
from viewalign.utils.text import counted


def read_table(path: Path, missing: Collection[str] = MISSING) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and rows of a table in UTF-8 or UTF-16; rows without any value are dropped.

    See `numbered_rows`.
    """
    columns, rows = numbered_rows(path, missing)
    return columns, [row for _, row in rows]


def numbered_rows(path: Path, missing: Collection[str] = MISSING) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns of a table, and its rows with their last line in the file; see `read_table`.

    Values are separated by tabs, or, in a file that is not called `.tsv`, also by commas or semicolons.

    Args:
        path: the table.
        missing: values, in lower case, that are dropped from their rows.

    Raises:
        UserError: unreadable, of another encoding, two columns of one name, or a row with more values than columns.
    """
    try:
        text = decoded(path.read_bytes())
        text = re.sub(r"\Asep=.\r?\n", "", text)  # which spreadsheets write
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text))
        rows = [(reader.line_num, known) for row in reader if (known := _row(path, reader.line_num, row, missing))]
    except OSError as error:
        raise UserError(f"The table {path} cannot be read: {os_reason(error)}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table in UTF-8: {error}. Save it again as CSV UTF-8.") from None
    columns = [column.strip() for column in reader.fieldnames or []]
    for column, count in Counter(columns).items():
        if column and count > 1:
            raise UserError(f"{path} has {count} columns called '{column}'.")
    return columns, rows


def participants(folder: Path, notes: list[str]) -> dict[str, dict[str, str]]:
    """Return the rows of a folder's `participants.tsv` by participant, also by `sub-` and its number.

    Empty without such a file or column. This table only adds information, so that errors in it do not stop indexing:
    text that is neither UTF-8 nor UTF-16 is read as Latin-1, values beyond the last column are dropped, of several
    rows of a participant the last counts, and an unreadable file is ignored; each is added to `notes`.
    """
    path = folder / "participants.tsv"
    if not is_file(path):
        return {}
    shown = f"{folder.name}/{path.name}"
    try:
        content = path.read_bytes()
    except OSError as error:
        notes.append(f"{shown} cannot be read ({os_reason(error)}); its information on subjects is ignored")
        return {}
    try:
        text = decoded(content)
    except UnicodeDecodeError:
        text = content.decode("latin-1")
        notes.append(f"{shown} is not UTF-8; it was read as Latin-1")
    lines = [[unquoted(cell) for cell in line.split("\t")] for line in text.splitlines() if line.strip()]
    columns = lines[0] if lines else []
    longer = sum(len(line) > len(columns) for line in lines)
    if longer:
        notes.append(f"{shown}: values beyond the last column were dropped in {counted(longer, 'row')}")
    key = next((name for name in columns if name.lower() in ("participant_id", "subject_id", "subject")), None)
    if lines and key is None:
        notes.append(f"{shown} has no column `participant_id`; its information on subjects is ignored")
    rows = [_cleaned(dict(zip(columns, line, strict=False))) for line in lines[1:]]
    named = [(identifier(row.pop(key)), row) for row in rows if key in row] if key else []
    last = dict(named)
    different = sorted({name for name, row in named if row != last[name]})
    if different:
        some = f"{counted(len(different), 'participant')}, such as {different[0]}"
        notes.append(f"{shown} has several rows for {some}; the last row counts")
    return {f"sub-{name}": row for name, row in named} | last


def decoded(content: bytes) -> str:
    """Return text in UTF-8 or UTF-16, with or without a byte-order mark.

    Raises:
        UnicodeDecodeError: it has another encoding.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    if content[1:2] == b"\0" and content[0:1] != b"\0":
        return content.decode("utf-16-le")
    return content.decode("utf-8-sig")


def unquoted(cell: str) -> str:
    """Return text without blanks and quotation marks around it."""
    text = cell.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _delimiter(path: Path, text: str) -> str:
    """Return the most frequent separator of the first line."""
    first = text.partition("\n")[0]
    return "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)


def _row(path: Path, line: int, row: dict[str | None, str | None], missing: Collection[str]) -> dict[str, str]:
    if any((value or "").strip() for value in row.pop(None, None) or ()):
        raise UserError(f"{path}, line {line}: more values than columns.")
    return _cleaned({str(key).strip(): value or "" for key, value in row.items()}, missing)


def _cleaned(row: dict[str, str], missing: Collection[str] = MISSING) -> dict[str, str]:
    """Return values that are not missing."""
    return {key: text for key, value in row.items() if (text := value.strip()).lower() not in missing}


_MASKS = ("anonymization_mask", "anatomy_mask")
_KNOWN = ("path", "dataset", "subject", "session", "modality", "name", *_MASKS)
_ALIASES = {
    "imagepath": "path",
    "image": "path",
    "file": "path",
    "subjectid": "subject",
    "participantid": "subject",
    "sessionid": "session",
    "anonymisationmask": "anonymization_mask",
    "anonmaskpath": "anonymization_mask",
    "anatmaskpath": "anatomy_mask",
    **{name.replace("_", ""): name for name in _KNOWN},
}
"""Known columns by `column_key`."""


def can_read(text: str) -> bool:
    """Accept a file whose name ends in `.csv` or `.tsv`."""
    return Path(text).suffix.lower() in (".csv", ".tsv") and is_file(Path(text))


def find(text: str, options: FindOptions) -> SourceContents:
    """List the images of a table, in its order.

    Raises:
        UserError: no column `path`, a column that looks like a misspelt one, or a row without a path.
    """
    table = absolute(text)
    columns, rows = numbered_rows(table)
    names = _column_names(table, columns)
    findings = SourceContents()
    for number, row in rows:
        known = {names[key]: value for key, value in row.items() if key in names}
        if "path" not in known:
            raise UserError(f"{table}, line {number}: the path is empty.")
        if "\0" in known["path"]:
            raise UserError(f"{table}, line {number}: the path contains a NUL character.")
        others = {key: value for key, value in row.items() if key not in names}
        findings.found.append(_found(table, known, others, options))
    _note_repeated(table, findings)
    if "subject" not in names.values():
        findings.notes.extend(_unsure_subjects(table, findings.found) if options.subject_pattern is None else ())
    elif blank := [number for number, row in rows if not any(names.get(key) == "subject" for key in row)]:
        findings.notes.append(
            f"{table.name} names no subject in {counted(len(blank), 'row')}, the first in line {blank[0]}; there the "
            "subject is inferred from the path"
        )
    return findings


def _unsure_subjects(table: Path, found: Sequence[ImageRecord]) -> Iterator[str]:
    """Yield what should be checked about subjects that were inferred from paths."""
    start = f"{table.name} has no column `subject`."
    subjects = {one.subject for one in found}
    stems = ((one, one.path.name.partition(".")[0]) for one in found)
    unsure = {one.subject for one, stem in stems if not person_of(PurePosixPath(one.path), stem)}
    if note := alike_subjects(unsure):
        yield f"{start} {note}"
    elif 1 < len(subjects) == len(found):
        separate = f"Each of {len(found):,} images became a separate subject"
        yield f"{start} {separate}. If some show the same person, {NAME_SUBJECTS}"


def _note_repeated(table: Path, findings: SourceContents) -> None:
    """Report files that several rows name with different subjects or sessions, of which the first counts."""
    first: dict[Path, ImageRecord] = {}
    for found in findings.found:
        first.setdefault(found.path, found)
    names = [
        found.path.name
        for found in findings.found
        if (found.subject, found.session) != (first[found.path].subject, first[found.path].session)
    ]
    if names:
        findings.notes.append(
            f"{table.name} names {counted(len(names), 'file')} again with another subject or session, such as "
            f"{names[0]}; the first row of a file counts"
        )


def _found(table: Path, row: dict[str, str], others: dict[str, str], options: FindOptions) -> ImageRecord:
    written = with_home(row["path"])
    path = resolve(written, table.parent)
    relative = PurePosixPath(written).relative_to("/") if written.startswith("/") else PurePosixPath(written)
    stem = path.name[: -len(suffix_of(path.name) or path.suffix) or None]
    guess = names_of(relative, stem, options.subject_pattern)
    masks = [str(resolve(with_home(row[key]), table.parent)) if key in row else None for key in _MASKS]
    return ImageRecord(
        path,
        row.get("dataset") or table.stem,
        identifier(row.get("subject", "")) or guess.subject,
        identifier(row.get("session", "")) or guess.session,
        row.get("name") or stem,
        row.get("modality") or guess.modality,
        masks=AssociatedMasks(*masks) if any(masks) else None,
        infos=Infos(image=others or None),
        written=written if written.startswith("$") else None,
    )


def _column_names(table: Path, columns: list[str]) -> dict[str, str]:
    """Return the known columns of a table by their names in it."""
    known = known_columns(table, columns, _ALIASES)
    if "path" not in known.values():
        raise UserError(f"{table} has no column `path`. Its columns: {', '.join(columns) or 'none'}.")
    refuse_misspelt(table, columns, known, _KNOWN)
    return known
