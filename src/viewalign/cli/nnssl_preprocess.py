"""`nnssl_preprocess`: images of a raw dataset in nnssl's layout, as its plans say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from viewalign.cli.nnssl_flags import (
    Parser,
    add_configurations,
    add_datasets,
    add_limits,
    at_least,
    default_processes,
    execute,
    limits_of,
    preprocessed_root,
    raw_dataset,
    say,
    shown,
    tell_refused,
)
from viewalign.errors import UserError

if TYPE_CHECKING:
    from viewalign.formats.nnssl.preprocess import Report
    from viewalign.volumes.limits import Limits

_EXAMPLES = """examples:
  nnssl_preprocess -d 745
  nnssl_preprocess -d 745 -c onemmiso noresample -np 8 4
  nnssl_preprocess -d 745 -part 0 -total_parts 4        one of four jobs, on as many machines as you like

It reads what $nnssl_raw/DatasetXXX_NAME/pretrain_data.json names and writes
$nnssl_preprocessed/DatasetXXX_NAME/PLANS_CONFIGURATION. Images that are there already are left alone.
Exit code: 0 all went in, 3 some were set aside, 1 nothing could be done.
"""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_preprocess", "Prepare the images of a dataset as its plans say.", _EXAMPLES)
    add_datasets(parser)
    add_configurations(parser)
    parser.flag("-plans_name", default="nnsslPlans", metavar="NAME", help="name of the plans; default nnsslPlans")
    parser.flag("-part", type=at_least(0), default=0, metavar="K", help="number of this part, from 0; default 0")
    parser.flag("-total_parts", type=at_least(1), default=1, metavar="N", help="of how many parts; default 1")
    add_limits(parser)
    parser.flag("--verbose", action="store_true", help="print a line for each file")
    execute(parser, _preprocess, arguments)


def _preprocess(options: argparse.Namespace) -> int:
    if options.part >= options.total_parts:
        raise UserError(f"-part {options.part}: with -total_parts {options.total_parts} parts go from 0 to "
                        f"{options.total_parts - 1}.")  # fmt: skip
    processes = processes_for(options.c, options.np)
    codes = [
        preprocess(
            dataset,
            options.plans_name,
            processes,
            options.part,
            options.total_parts,
            options.verbose,
            limits_of(options),
        )
        for dataset in options.d
    ]
    return max(codes)


def processes_for(configurations: Sequence[str], given: Sequence[int] | None) -> dict[str, int]:
    """Return the number of processes for each configuration.

    Raises:
        UserError: neither one number nor as many as configurations.
    """
    if given is None:
        given = [default_processes()]
    if len(given) == 1:
        given = list(given) * len(configurations)
    if len(given) != len(configurations):
        raise UserError(
            f"-np has {len(given)} numbers for {len(configurations)} configurations ({', '.join(configurations)}); "
            "give one for all, or one for each."
        )
    return dict(zip(configurations, given, strict=True))


def preprocess(
    dataset: str,
    plans_name: str,
    processes: dict[str, int],
    part: int = 0,
    parts: int = 1,
    verbose: bool = False,
    limits: Limits | None = None,
) -> int:
    """Prepare a dataset and return the exit code: 3 where files were set aside.

    Args:
        dataset: id or name.
        plans_name: name of its plans.
        processes: of each configuration to prepare.
        part: number of this part.
        parts: of how many.
        verbose: whether to print a line for each file.
        limits: time and size that one file may ask for.

    Raises:
        UserError: an unset variable, no such dataset or plans, a full disk, or no image that could be used.
    """
    from viewalign.formats.nnssl import plans, preprocess
    from viewalign.formats.nnssl.folders import find_dataset

    raw, catalogue = raw_dataset(dataset)
    folder = find_dataset(preprocessed_root(), raw.name)
    refused = 0
    for configuration, count in processes.items():
        made = plans.read_plans(folder, plans_name, configuration)
        with shown(f"Preparing {configuration}", verbose) as listen:
            report = preprocess.preprocess(
                catalogue, raw, folder, made, configuration, count, part, parts, listen, limits
            )
        _tell(report, folder / made.images_folder(configuration), part, parts)
        refused += len(report.refused)
    return 3 if refused else 0


def _tell(report: Report, images: Path, part: int, parts: int) -> None:
    tell_refused(report.refused)
    counts = [
        f"{report.prepared} images prepared",
        f"{report.made} of them now" if report.made < report.prepared else "",
        f"{report.skipped} were there already" if report.skipped else "",
        f"{len(report.refused)} set aside" if report.refused else "",
    ]
    say("; ".join(filter(None, counts)) + f": {images}")
    if parts > 1:
        rest = "all parts are done" if report.complete else "the lists are written when all parts are done"
        say(f"Part {part} of {parts} is done; {rest}.")
    if report.prepared == 0:
        raise UserError(f"None of the {len(report.refused)} images could be used.")


if __name__ == "__main__":
    run()
