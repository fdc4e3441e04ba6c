"""`nnssl_convert_openmind`: list the downloaded OpenMind dataset as a raw dataset of nnssl."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from viewalign.compat.nnssl.flags import Parser, execute, report_excluded, say
from viewalign.errors import UserError
from viewalign.utils.text import counted

_NAME = "Dataset745_OpenMind"
_EXAMPLES = """examples:
  nnssl_convert_openmind --openmind_root_dir ~/OpenMind

It reads OpenMind, whole or in part, and writes $nnssl_raw/Dataset745_OpenMind/pretrain_data.json. No file is copied or
renamed. Exit code: 0 all files included, 3 some files excluded, 1 no image found.
"""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_convert_openmind", "List OpenMind's images for nnssl.", _EXAMPLES)
    parser.flag("--openmind_root_dir", required=True, metavar="PATH", help="folder of the downloaded dataset")
    execute(parser, _convert, arguments)


def _convert(options: argparse.Namespace) -> int:
    from viewalign.compat.nnssl.folders import variable_folder, write_raw_dataset
    from viewalign.data.indexing import index_sources
    from viewalign.data.inputs import nothing_found
    from viewalign.utils.progress import progress_bar

    root = variable_folder("nnssl_raw", make=True)
    with progress_bar("Reading headers") as bar:
        found = index_sources([options.openmind_root_dir], collection_name=_NAME, on_file=bar)
    for note in found.notes:
        say(note)
    report_excluded(found.excluded)
    if found.images == 0:
        raise UserError(nothing_found([options.openmind_root_dir], found))
    path = write_raw_dataset(root, _NAME, found.collection)
    excluded = f", {len(found.excluded)} excluded" if found.excluded else ""
    say(f"{counted(found.images, 'image')} of {counted(found.subjects(), 'subject')}{excluded}: {path}")
    say("Next: nnssl_plan_and_preprocess -d 745")
    return 3 if found.excluded else 0
