"""`nnssl_train_wandb`: `nnssl_train`, its figures shown on Weights & Biases."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from viewalign.cli.nnssl_flags import execute
from viewalign.cli.nnssl_train import make_parser, train

_EXAMPLES = """examples:
  nnssl_train_wandb 745 onemmiso -tr AlignedMAEFTTrainer -p nnsslPlans -num_gpus 1
  WANDB_MODE=offline nnssl_train_wandb 745 onemmiso -tr MAETrainer --c

The variables WANDB_ENTITY, WANDB_PROJECT (default nnssl), WANDB_RUN_ID and WANDB_MODE are W&B's own.
Everything else is as in nnssl_train, and so are the results.
"""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("nnssl_train_wandb", _EXAMPLES)
    parser.flag("-fold", default="all", choices=("all",), help="there is this one: every subject")
    execute(parser, _train, arguments)


def _train(options: argparse.Namespace) -> int:
    os.environ.setdefault("WANDB_PROJECT", "nnssl")
    return train(options, ["log.wandb=true"])


if __name__ == "__main__":
    run()
