"""`nnssl_plan_experiment`: the plans of a dataset, from its fingerprint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from viewalign.cli.nnssl_flags import Parser, add_datasets, add_planner, execute, preprocessed_root, say

_EXAMPLES = """examples:
  nnssl_plan_experiment -d 745

It reads $nnssl_preprocessed/DatasetXXX_NAME/dataset_fingerprint.json and writes nnsslPlans.json beside it.
"""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser("nnssl_plan_experiment", "Plan the three configurations of a dataset.", _EXAMPLES)
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
    from viewalign.formats.nnssl import fingerprint, plans
    from viewalign.formats.nnssl.folders import find_dataset

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


if __name__ == "__main__":
    run()
