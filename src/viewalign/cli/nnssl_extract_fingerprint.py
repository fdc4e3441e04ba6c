"""`nnssl_extract_fingerprint`: the voxel size of every image of a raw dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from viewalign.cli.nnssl_flags import (
    Parser,
    add_datasets,
    at_least,
    default_processes,
    execute,
    preprocessed_root,
    raw_dataset,
    say,
    shown,
    tell_refused,
)

_EXAMPLES = """examples:
  nnssl_extract_fingerprint -d 745
  nnssl_extract_fingerprint -d Dataset745_OpenMind -np 16 --clean

It reads the headers of what $nnssl_raw/DatasetXXX_NAME/pretrain_data.json names and writes
$nnssl_preprocessed/DatasetXXX_NAME/dataset_fingerprint.json.
"""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_extract_fingerprint", "Read the voxel sizes of a raw dataset.", _EXAMPLES)
    add_datasets(parser, several=False)
    parser.flag("-np", type=at_least(0), metavar="N", help="processes; default one per core, at most 8")
    parser.flag("--clean", action="store_true", help="read them anew where there is a fingerprint already")
    parser.flag("--verbose", action="store_true", help="print a line for each file")
    execute(parser, _extract, arguments)


def _extract(options: argparse.Namespace) -> int:
    return extract(options.d, options.np, options.clean, options.verbose)


def extract(dataset: str, processes: int | None, clean: bool, verbose: bool) -> int:
    """Write a dataset's fingerprint and return the exit code: 3 where files were set aside.

    Raises:
        UserError: an unset variable, no such dataset, or no image in it.
    """
    from viewalign.formats.nnssl import fingerprint, folders

    raw, catalogue = raw_dataset(dataset)
    folder = preprocessed_root(make=True) / raw.name
    if (folder / folders.FINGERPRINT).is_file() and not clean:
        count = len(fingerprint.read_fingerprint(folder))
        say(f"{raw.name} has a fingerprint of {count} images already; --clean reads them anew.")
        return 0
    with shown("Reading headers", verbose) as listen:
        workers = default_processes() if processes is None else processes
        spacings, refused = fingerprint.measure(list(catalogue.records(raw)), workers, listen)
    tell_refused(refused)
    path = fingerprint.write_fingerprint(folder, spacings)
    say(f"{len(spacings)} images measured" + (f", {len(refused)} set aside" if refused else "") + f": {path}")
    return 3 if refused else 0


if __name__ == "__main__":
    run()
