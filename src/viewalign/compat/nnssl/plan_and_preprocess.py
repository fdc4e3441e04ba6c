"""`nnssl_extract_fingerprint`: the voxel size of every image of a raw dataset."""

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
    say,
    shown,
    tell_refused,
)
from viewalign.errors import UserError

_EXTRACT_EXAMPLES = """examples:
  nnssl_extract_fingerprint -d 745
  nnssl_extract_fingerprint -d Dataset745_OpenMind -np 16 --clean

It reads the headers of what $nnssl_raw/DatasetXXX_NAME/pretrain_data.json names and writes
$nnssl_preprocessed/DatasetXXX_NAME/dataset_fingerprint.json.
"""


def run_extract_fingerprint(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_extract_fingerprint", "Read the voxel sizes of a raw dataset.", _EXTRACT_EXAMPLES)
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
    from viewalign.compat.nnssl import folders, plans

    raw, catalogue = raw_dataset(dataset)
    folder = preprocessed_root(make=True) / raw.name
    if (folder / folders.FINGERPRINT).is_file() and not clean:
        count = len(plans.read_fingerprint(folder))
        say(f"{raw.name} has a fingerprint of {count} images already; --clean reads them anew.")
        return 0
    with shown("Reading headers", verbose) as listen:
        workers = default_processes() if processes is None else processes
        spacings, excluded = plans.measure(list(catalogue.records(raw)), workers, listen)
    tell_refused(excluded)
    path = plans.write_fingerprint(folder, spacings)
    say(f"{len(spacings)} images measured" + (f", {len(excluded)} set aside" if excluded else "") + f": {path}")
    return 3 if excluded else 0


_PLAN_EXAMPLES = """examples:
  nnssl_plan_experiment -d 745

It reads $nnssl_preprocessed/DatasetXXX_NAME/dataset_fingerprint.json and writes nnsslPlans.json beside it.
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
    from viewalign.compat.nnssl import plans as fingerprint
    from viewalign.compat.nnssl.folders import find_dataset

    folder = find_dataset(preprocessed_root(), dataset)
    made = plans.plan(folder.name, fingerprint.read_fingerprint(folder))
    path = plans.write_plans(folder, made)
    say(f"Planned: {path}")
    for name, how in made.configurations.items():
        size = (
            "each image's own voxel size" if how.spacing is None else " × ".join(f"{s:g}" for s in how.spacing) + " mm"
        )
        say(f"  {name}: {size}")
    say(f"  axes of the files, in the order stored: {list(made.transpose_forward)}")


if TYPE_CHECKING:
    from viewalign.compat.nnssl.preprocess import Report
    from viewalign.data.settings import Limits

_PREPROCESS_EXAMPLES = """examples:
  nnssl_preprocess -d 745
  nnssl_preprocess -d 745 -c onemmiso noresample -np 8 4
  nnssl_preprocess -d 745 -part 0 -total_parts 4        one of four jobs, on as many machines as you like

It reads what $nnssl_raw/DatasetXXX_NAME/pretrain_data.json names and writes
$nnssl_preprocessed/DatasetXXX_NAME/PLANS_CONFIGURATION. Images that are there already are left alone.
Exit code: 0 all went in, 3 some were set aside, 1 nothing could be done.
"""


def run_preprocess(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_preprocess", "Prepare the images of a dataset as its plans say.", _PREPROCESS_EXAMPLES)
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
    from viewalign.compat.nnssl import plans, preprocess
    from viewalign.compat.nnssl.folders import find_dataset

    raw, catalogue = raw_dataset(dataset)
    folder = find_dataset(preprocessed_root(), raw.name)
    excluded = 0
    for configuration, count in processes.items():
        made = plans.read_plans(folder, plans_name, configuration)
        with shown(f"Preparing {configuration}", verbose) as listen:
            report = preprocess.preprocess(
                catalogue, raw, folder, made, configuration, count, part, parts, listen, limits
            )
        _tell(report, folder / made.images_folder(configuration), part, parts)
        excluded += len(report.excluded)
    return 3 if excluded else 0


def _tell(report: Report, images: Path, part: int, parts: int) -> None:
    tell_refused(report.excluded)
    counts = [
        f"{report.prepared} images prepared",
        f"{report.made} of them now" if report.made < report.prepared else "",
        f"{report.skipped} were there already" if report.skipped else "",
        f"{len(report.excluded)} set aside" if report.excluded else "",
    ]
    say("; ".join(filter(None, counts)) + f": {images}")
    if parts > 1:
        rest = "all parts are done" if report.complete else "the lists are written when all parts are done"
        say(f"Part {part} of {parts} is done; {rest}.")
    if report.prepared == 0:
        raise UserError(f"None of the {len(report.excluded)} images could be used.")


_EXAMPLES = """examples:
  nnssl_plan_and_preprocess -d 745
  nnssl_plan_and_preprocess -d 745 -c onemmiso median noresample -np 8 4 8 --clean

The same as nnssl_extract_fingerprint, nnssl_plan_experiment and nnssl_preprocess, one after the other.
Exit code: 0 all went in, 3 some files were set aside, 1 nothing could be done.
"""


def run_plan_and_preprocess(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_plan_and_preprocess", "Measure, plan and prepare a raw dataset.", _EXAMPLES)
    add_datasets(parser)
    add_configurations(parser)
    parser.flag(
        "-npfp", type=at_least(0), metavar="N", help="processes that read headers; default one per core, at most 8"
    )
    parser.flag("--no_pp", action="store_true", help="measure and plan alone")
    parser.flag("--clean", action="store_true", help="measure anew where there is a fingerprint already")
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
