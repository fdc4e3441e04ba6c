"""`nnssl_train`: nnssl's training command with nnssl's flags, on data preprocessed by nnssl or by viewalign.

Published command lines run unchanged; `--set`, `--network` and `--token-order` are additions.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from viewalign.compat.nnssl.flags import CONFIGURATIONS, Parser, execute, preprocessed_root, say
from viewalign.errors import UserError
from viewalign.utils.text import counted

if TYPE_CHECKING:
    from viewalign.compat.nnssl.store import PreprocessedStore
    from viewalign.config import Recipe
    from viewalign.training.run import RunResult

_TRAINER = "AlignedMAEFTTrainer"
"""Default trainer; that of nnssl is a class that does not exist."""

_WORKERS, _COMPILE = "nnUNet_n_proc_DA", "nnUNet_compile"
_NO_EFFECT = {
    "npz": "--npz does nothing here: there are no predictions to save.",
    "val_best": "--val_best does nothing here: pretraining has no validation of its own to run afterwards.",
}
_EXAMPLES = """examples:
  nnssl_train 745 onemmiso -tr AlignedMAEFTTrainer -p nnsslPlans -num_gpus 1 -pretrained_weights FILE
  nnssl_train 745 onemmiso -tr AlignedMAEFTLR3EvaTrainer -p nnsslPlans --c
  nnssl_train 745 onemmiso -tr MAETrainer --set steps=10 --set 'views.patch_size=[32,32,32]' --set network=resenc-xs

It reads $nnssl_preprocessed/DatasetXXX_NAME and writes
$nnssl_results/DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/fold_all.
"""


def make_parser(prog: str = "nnssl_train", examples: str = _EXAMPLES) -> Parser:
    """Return the parser of `nnssl_train`, to which `nnssl_train_wandb` adds one flag."""
    parser = Parser(prog, "Pretrain by Consistent View Alignment on data in nnssl's layout.", examples)
    parser.add_argument("dataset", help="id or name, such as 745 or Dataset745_OpenMind")
    parser.add_argument("configuration", choices=CONFIGURATIONS)
    flag = parser.flag
    flag("-tr", metavar="TRAINER", help=f"a class of LatentCampus or nnssl; default {_TRAINER}")
    flag("-p", default="nnsslPlans", metavar="PLANS", help="name of the plans; default nnsslPlans")
    flag("-pretrained_weights", metavar="FILE", help="initial weights")
    flag("-num_gpus", type=int, default=1, metavar="N", help="GPUs, or processes of -device cpu; default 1")
    flag("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default cuda; the CPU if there is no GPU")
    flag("--c", action="store_true", help="resume from the newest checkpoint")
    flag("--disable_checkpointing", action="store_true", help="save only at the end")
    flag("--npz", action="store_true", help="does nothing here")
    flag("--val", action="store_true", help="does not train")
    flag("--val_best", action="store_true", help="does nothing here")
    flag("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of a recipe; repeatable")
    flag("--network", choices=("resenc-l", "primus-m"), help="network, if two trainers have the same name")
    flag("--token-order", choices=("dhw", "hdw"), help="token order of Primus weights of an unknown trainer")
    return parser


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    execute(make_parser(), train, arguments)


def train(options: argparse.Namespace, settings: Sequence[str] = ()) -> int:
    """Train, and return the exit code.

    Args:
        options: the flags.
        settings: further `key=value` settings of the recipe.

    Raises:
        UserError: an unset variable, an unknown trainer or dataset, or invalid settings.
    """
    if options.val:
        say("--val does nothing here: pretraining has no validation to repeat. Nothing was trained.")
        return 0
    from viewalign.compat.nnssl.folders import find_dataset, variable_folder
    from viewalign.compat.nnssl.store import open_preprocessed
    from viewalign.compat.nnssl.trainers import resolve_trainer

    name = options.tr or _TRAINER
    if options.tr is None:
        say(f"-tr is not set; {name} is used.")
    trainer = resolve_trainer(name, options.network)
    folder = find_dataset(preprocessed_root(), options.dataset)
    results = variable_folder("nnssl_results", make=True)
    out = results / folder.name / f"{name}__{options.p}__{options.configuration}"
    for flag, sentence in _NO_EFFECT.items():
        if getattr(options, flag):
            say(sentence)
    recipe = _recipe(options, trainer.recipe, [*trainer.overrides, *settings], folder, out / "fold_all")
    store = open_preprocessed(folder, options.p, options.configuration)
    for note in store.notes:
        say(note)
    _check_resume(out / "fold_all", options.c)
    _keep_split(store, recipe)
    from viewalign.reports.run import LivePage
    from viewalign.training.run import pretrain

    outcome = pretrain(recipe, resume="auto" if options.c else False, store=store, page=LivePage())
    return _finish(outcome, folder / f"{options.p}.json")


def _recipe(options: argparse.Namespace, name: str, changes: Sequence[str], data: Path, out: Path) -> Recipe:
    """Apply the flags and the user's settings to a trainer's recipe."""
    from viewalign.recipes.loading import load

    for setting in options.set:
        if setting.partition("=")[0] in {"data", "out"}:
            raise UserError(f"--set {setting}: data and results are in nnssl's folders; leave it out.")
    machine = [f"runtime.device={_accelerator(options)}", f"runtime.gpus={options.num_gpus}", *_environment()]
    order = [f"init.token_order={options.token_order}"] if options.token_order else []
    recipe = load(name, [*changes, *machine, *order, *options.set])
    paths: dict[str, object] = {"data": str(data), "out": str(out)}
    if options.pretrained_weights:
        weights = _weights(options.pretrained_weights, recipe.network.name)
        paths["init"] = recipe.init.model_copy(update={"weights": weights})
    if options.disable_checkpointing:
        say("--disable_checkpointing: the run is saved only at its end, or when it is stopped.")
        paths["checkpoint"] = recipe.checkpoint.model_copy(update={"every": recipe.steps})
    return recipe.model_copy(update=paths)


def _environment() -> list[str]:
    """Return the settings of nnssl's environment variables: data loading processes and compilation."""
    workers = os.environ.get(_WORKERS, "")
    if workers and not workers.isdecimal():
        raise UserError(f"The environment variable {_WORKERS} is {workers!r}; it must be a number of processes.")
    compiled = os.environ.get(_COMPILE, "").lower() in ("true", "1", "t")
    return [*([f"runtime.workers={workers}"] if workers else []), *(["runtime.compile=true"] if compiled else [])]


def _keep_split(store: PreprocessedStore, recipe: Recipe) -> None:
    """Choose validation subjects if the dataset has no `splits_final.json`, and write one."""
    from viewalign.compat.nnssl.lists import Split, write_split
    from viewalign.training.data import number_subjects, split_by_subject

    if store.held_out is not None:
        return
    split = split_by_subject(number_subjects(store.subjects), recipe.validate_.share, recipe.seed)
    if not len(split.validation):
        return  # nnssl fails with an empty validation set
    names = [frozenset(store.subjects[int(k)] for k in part) for part in (split.train, split.validation)]
    store.held_out = names[1]
    if os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0":
        try:
            write_split(store.path, Split(*names))
        except OSError as problem:
            say(f"splits_final.json cannot be written ({problem.strerror}); the next run holds out the same subjects.")


def _weights(requested: str, network: str) -> str:
    from viewalign.weights.nnssl_runs import resolve_checkpoint

    path, note = resolve_checkpoint(requested, network)
    if note:
        say(note)
    return str(path)


def _accelerator(options: argparse.Namespace) -> str:
    """Return the requested device, or the CPU if there is no GPU."""
    import torch

    if options.device == "mps":
        say("Apple's GPUs do not support float64; the run trains on the CPU.")
        return "cpu"
    if options.device != "cuda" or torch.cuda.is_available():
        return str(options.device)
    if options.num_gpus > 1:
        raise UserError(
            f"-num_gpus {options.num_gpus}: there is no GPU. Use -device cpu to train in {options.num_gpus} processes "
            "on the CPU."
        )
    say("There is no GPU; the run trains on the CPU.")
    return "cpu"


def _check_resume(fold: Path, resume: bool) -> None:
    begun = (fold / "config.yaml").is_file()
    if begun and not resume:
        raise UserError(f"{fold} already contains a run. Resume it with --c, or move it.")
    if resume and not begun:
        say(f"--c: there is no run in {fold}; a new one is started.")


def _finish(outcome: RunResult, plans: Path) -> int:
    """Write the weights and plans of a completed run to the files of nnssl."""
    if not outcome.first:
        return outcome.exit_code
    if not outcome.finished:
        say(f"Stopped and saved at step {outcome.step} of {outcome.steps}. Resume with the same command and --c.")
    else:
        say(f"Done: {counted(outcome.step, 'step')}. The encoder is in {_export(outcome.folder.root, plans)}")
    return outcome.exit_code


def _export(fold: Path, plans: Path) -> Path:
    """Write `checkpoint_final.pth` into a run's folder, and `adaptation_plan.json` and `plans.json` next to it."""
    from viewalign.weights.export import export_run

    with tempfile.TemporaryDirectory(dir=fold.parent, prefix=".export-") as scratch:
        export = export_run(fold, Path(scratch) / "export")
        shutil.copyfile(plans, export / "plans.json")
        (export / "plans.json").replace(fold.parent / "plans.json")
        (export / "adaptation_plan.json").replace(fold.parent / "adaptation_plan.json")
        (export / "checkpoint_final.pth").replace(fold / "checkpoint_final.pth")
    return fold / "checkpoint_final.pth"


_WANDB_EXAMPLES = """examples:
  nnssl_train_wandb 745 onemmiso -tr AlignedMAEFTTrainer -p nnsslPlans -num_gpus 1
  WANDB_MODE=offline nnssl_train_wandb 745 onemmiso -tr MAETrainer --c

The variables WANDB_ENTITY, WANDB_PROJECT (default nnssl), WANDB_RUN_ID and WANDB_MODE are W&B's own.
Everything else is as in nnssl_train.
"""


def run_with_wandb(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("nnssl_train_wandb", _WANDB_EXAMPLES)
    parser.flag("-fold", default="all", choices=("all",), help="only `all`: every subject")
    execute(parser, _train, arguments)


def _train(options: argparse.Namespace) -> int:
    os.environ.setdefault("WANDB_PROJECT", "nnssl")
    return train(options, ["log.wandb=true"])
