"""nnssl's commands that extract a fingerprint, plan and preprocess a raw dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from viewalign.compat.nnssl.flags import (
    Parser,
    add_configurations,
    add_datasets,
    add_limits,
    add_planner,
    at_least,
    default_processes,
    execute,
    limits_of,
    preprocessed_root,
    raw_dataset,
    report_excluded,
    say,
    shown,
)
from viewalign.errors import UserError
from viewalign.utils.text import counted

_EXTRACT_EXAMPLES = """examples:
  nnssl_extract_fingerprint -d 745
  nnssl_extract_fingerprint -d Dataset745_OpenMind -np 16 --clean

It reads the headers of the images in $nnssl_raw/DatasetXXX_NAME/pretrain_data.json and writes
$nnssl_preprocessed/DatasetXXX_NAME/dataset_fingerprint.json.
"""


def run_extract_fingerprint(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_extract_fingerprint", "Read the voxel sizes of a raw dataset.", _EXTRACT_EXAMPLES)
    add_datasets(parser, several=False)
    parser.flag("-np", type=at_least(0), metavar="N", help="processes; default one per core, at most 8")
    parser.flag("--clean", action="store_true", help="replace an existing fingerprint")
    parser.flag("--verbose", action="store_true", help="print a line for each file")
    execute(parser, _extract, arguments)


def _extract(options: argparse.Namespace) -> int:
    return extract(options.d, options.np, options.clean, options.verbose)


def extract(dataset: str, processes: int | None, clean: bool, verbose: bool) -> int:
    """Write a dataset's fingerprint and return the exit code: 3 if files were excluded.

    Raises:
        UserError: an unset variable, no such dataset, or no image in it.
    """
    from viewalign.compat.nnssl import folders, plans

    raw, catalogue = raw_dataset(dataset)
    folder = preprocessed_root(make=True) / raw.name
    if (folder / folders.FINGERPRINT).is_file() and not clean:
        count = len(plans.read_fingerprint(folder))
        say(f"{raw.name} already has a fingerprint of {counted(count, 'image')}; use --clean to replace it.")
        return 0
    with shown("Reading headers", verbose) as listen:
        workers = default_processes() if processes is None else processes
        spacings, excluded = plans.measure(catalogue.records(raw), workers, listen)
    report_excluded(excluded)
    path = plans.write_fingerprint(folder, spacings)
    also = f", {len(excluded):,} excluded" if excluded else ""
    say(f"{counted(len(spacings), 'image')} measured{also}: {path}")
    return 3 if excluded else 0


_PLAN_EXAMPLES = """examples:
  nnssl_plan_experiment -d 745

It reads $nnssl_preprocessed/DatasetXXX_NAME/dataset_fingerprint.json and writes nnsslPlans.json next to it.
"""


def run_plan_experiment(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_plan_experiment", "Plan the three configurations of a dataset.", _PLAN_EXAMPLES)
    add_datasets(parser)
    add_planner(parser)
    execute(parser, _plan, arguments)


def _plan(options: argparse.Namespace) -> int:
    for dataset in options.d:
        plan(dataset)
    return 0


def plan(dataset: str) -> None:
    """Write a dataset's plans.

    Raises:
        UserError: an unset variable, no such dataset, or no fingerprint.
    """
    from viewalign.compat.nnssl import plans
    from viewalign.compat.nnssl.folders import find_dataset

    folder = find_dataset(preprocessed_root(), dataset)
    planned = plans.plan(folder.name, plans.read_fingerprint(folder))
    say(f"Planned: {plans.write_plans(folder, planned)}")
    for name, configuration in planned.configurations.items():
        spacing = configuration.spacing
        size = "voxel size of each image" if spacing is None else " × ".join(f"{s:g}" for s in spacing) + " mm"
        say(f"  {name}: {size}")
    say(f"  axes of the files, in stored order: {list(planned.transpose_forward)}")


if TYPE_CHECKING:
    from viewalign.compat.nnssl.preprocess import Report
    from viewalign.data.settings import Limits

_PREPROCESS_EXAMPLES = """examples:
  nnssl_preprocess -d 745
  nnssl_preprocess -d 745 -c onemmiso noresample -np 8 4
  nnssl_preprocess -d 745 -part 0 -total_parts 4        one of four jobs, on any number of machines

It reads the images in $nnssl_raw/DatasetXXX_NAME/pretrain_data.json and writes
$nnssl_preprocessed/DatasetXXX_NAME/PLANS_CONFIGURATION. Complete images are skipped.
Exit code: 0 all images included, 3 some images excluded, 1 none could be used.
"""


def run_preprocess(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_preprocess", "Prepare the images of a dataset by its plans.", _PREPROCESS_EXAMPLES)
    add_datasets(parser)
    add_configurations(parser)
    parser.flag("-plans_name", default="nnsslPlans", metavar="NAME", help="name of the plans; default nnsslPlans")
    parser.flag("-part", type=at_least(0), default=0, metavar="K", help="number of this part, from 0; default 0")
    parser.flag("-total_parts", type=at_least(1), default=1, metavar="N", help="number of parts; default 1")
    add_limits(parser)
    parser.flag("--verbose", action="store_true", help="print a line for each file")
    execute(parser, _preprocess, arguments)


def _preprocess(options: argparse.Namespace) -> int:
    if options.part >= options.total_parts:
        raise UserError(f"-part {options.part} must be less than -total_parts {options.total_parts}.")
    processes, limits = processes_for(options.c, options.np), limits_of(options)
    part, parts, verbose = options.part, options.total_parts, options.verbose
    return max(preprocess(d, options.plans_name, processes, part, parts, verbose, limits) for d in options.d)


def processes_for(configurations: Sequence[str], numbers: Sequence[int] | None) -> dict[str, int]:
    """Return the number of processes for each configuration.

    Raises:
        UserError: neither one number nor one for each configuration.
    """
    numbers = [default_processes()] if numbers is None else list(numbers)
    if len(numbers) == 1:
        numbers *= len(configurations)
    if len(numbers) != len(configurations):
        raise UserError(
            f"-np has {counted(len(numbers), 'number')} for {counted(len(configurations), 'configuration')} "
            f"({', '.join(configurations)}); use one for all, or one for each."
        )
    return dict(zip(configurations, numbers, strict=True))


def preprocess(
    dataset: str,
    plans_name: str,
    processes: dict[str, int],
    part: int = 0,
    parts: int = 1,
    verbose: bool = False,
    limits: Limits | None = None,
) -> int:
    """Prepare a dataset and return the exit code: 3 if files were excluded.

    Args:
        dataset: id or name.
        plans_name: name of its plans.
        processes: by configuration to prepare.
        part: number of this part.
        parts: number of parts.
        verbose: whether to print a line for each file.
        limits: per file.

    Raises:
        UserError: an unset variable, no such dataset or plans, a full disk, or no usable image.
    """
    from viewalign.compat.nnssl import plans, preprocess
    from viewalign.compat.nnssl.folders import find_dataset

    raw, catalogue = raw_dataset(dataset)
    folder = find_dataset(preprocessed_root(), raw.name)
    excluded = 0
    for configuration, count in processes.items():
        planned = plans.read_plans(folder, plans_name, configuration)
        with shown(f"Preparing {configuration}", verbose) as listen:
            report = preprocess.preprocess(
                catalogue, raw, folder, planned, configuration, count, part, parts, listen, limits
            )
        _print_report(report, folder / planned.images_folder(configuration), part, parts)
        excluded += len(report.excluded)
    return 3 if excluded else 0


def _print_report(report: Report, images: Path, part: int, parts: int) -> None:
    report_excluded(report.excluded)
    counts = [
        f"{counted(report.prepared, 'image')} prepared",
        f"{report.made} of them now" if report.made < report.prepared else "",
        f"{report.skipped} already there" if report.skipped else "",
        f"{len(report.excluded)} excluded" if report.excluded else "",
    ]
    say("; ".join(filter(None, counts)) + f": {images}")
    if parts > 1:
        rest = "all parts are complete" if report.complete else "the lists are written when all parts are complete"
        say(f"Part {part} of {parts} is complete; {rest}.")
    if report.prepared == 0:
        raise UserError(f"No image could be used ({len(report.excluded):,} tried).")


_EXAMPLES = """examples:
  nnssl_plan_and_preprocess -d 745
  nnssl_plan_and_preprocess -d 745 -c onemmiso median noresample -np 8 4 8 --clean

The same as nnssl_extract_fingerprint, nnssl_plan_experiment and nnssl_preprocess, one after the other.
Exit code: 0 all images included, 3 some files excluded, 1 none could be used.
"""


def run_plan_and_preprocess(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_plan_and_preprocess", "Measure, plan and prepare a raw dataset.", _EXAMPLES)
    add_datasets(parser)
    add_configurations(parser)
    parser.flag(
        "-npfp", type=at_least(0), metavar="N", help="processes that read headers; default one per core, at most 8"
    )
    parser.flag("--no_pp", action="store_true", help="only extract the fingerprint and plan")
    parser.flag("--clean", action="store_true", help="replace an existing fingerprint")
    add_planner(parser)
    add_limits(parser)
    parser.flag("--verbose", action="store_true", help="print a line for each file")
    execute(parser, _all, arguments)


def _all(options: argparse.Namespace) -> int:
    processes = processes_for(options.c, options.np)
    codes = []
    for dataset in options.d:
        codes.append(extract(dataset, options.npfp, options.clean, options.verbose))
        plan(dataset)
        if not options.no_pp:
            codes.append(
                preprocess(dataset, "nnsslPlans", processes, verbose=options.verbose, limits=limits_of(options))
            )
    if not options.no_pp:
        say(f"Next: nnssl_train {options.d[0]} {options.c[0]} -tr MAETrainer")
    return max(codes)
