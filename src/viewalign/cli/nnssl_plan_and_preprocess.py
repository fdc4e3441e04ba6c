"""`nnssl_plan_and_preprocess`: fingerprint, plans and images of a raw dataset in one go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from viewalign.cli.nnssl_extract_fingerprint import extract
from viewalign.cli.nnssl_flags import (
    Parser,
    add_configurations,
    add_datasets,
    add_limits,
    add_planner,
    at_least,
    execute,
    limits_of,
    say,
)
from viewalign.cli.nnssl_plan_experiment import plan
from viewalign.cli.nnssl_preprocess import preprocess, processes_for

_EXAMPLES = """examples:
  nnssl_plan_and_preprocess -d 745
  nnssl_plan_and_preprocess -d 745 -c onemmiso median noresample -np 8 4 8 --clean

The same as nnssl_extract_fingerprint, nnssl_plan_experiment and nnssl_preprocess, one after the other.
Exit code: 0 all went in, 3 some files were set aside, 1 nothing could be done.
"""


def run(arguments: Sequence[str] | None = None) -> None:
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


if __name__ == "__main__":
    run()
