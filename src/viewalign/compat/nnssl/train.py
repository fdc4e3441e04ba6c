"""`nnssl_train`: nnssl's training command with nnssl's flags, on data that nnssl has preprocessed.

The published command lines run as they stand; `--set`, `--network` and `--token-order` are ours.
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

if TYPE_CHECKING:
    from viewalign.compat.nnssl.store import PreprocessedStore
    from viewalign.config import Recipe
    from viewalign.training.run import RunResult

_TRAINER = "AlignedMAEFTTrainer"
"""What is trained where no trainer is named; nnssl's own default is a class that does not exist."""

_WORKERS, _COMPILE = "nnUNet_n_proc_DA", "nnUNet_compile"
_IDLE = {
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
    flag("-pretrained_weights", metavar="FILE", help="weights to start from")
    flag("-num_gpus", type=int, default=1, metavar="N", help="GPUs, or processes of -device cpu; default 1")
    flag("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default cuda; without a GPU the CPU is taken")
    flag("--c", action="store_true", help="go on from the newest checkpoint")
    flag("--disable_checkpointing", action="store_true", help="save at the end alone")
    flag("--npz", action="store_true", help="does nothing here")
    flag("--val", action="store_true", help="trains nothing and says so")
    flag("--val_best", action="store_true", help="does nothing here")
    flag("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of a recipe; repeatable")
    flag("--network", choices=("resenc-l", "primus-m"), help="which of two trainers of the same name")
    flag("--token-order", choices=("dhw", "hdw"), help="of Primus weights whose trainer is unknown")
    return parser


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    execute(make_parser(), train, arguments)


def train(options: argparse.Namespace, settings: Sequence[str] = ()) -> int:
    """Do what the flags ask for and return the exit code.

    Args:
        options: the flags.
        settings: `key=value` of the recipe that a command adds by itself.

    Raises:
        UserError: an unset variable, an unknown trainer or dataset, or settings that do not fit.
    """
    if options.val:
        say("--val does nothing here: pretraining has no validation to repeat. Nothing was trained.")
        return 0
    from viewalign.compat.nnssl.folders import find_dataset, variable_folder
    from viewalign.compat.nnssl.store import open_preprocessed
    from viewalign.compat.nnssl.trainers import resolve_trainer

    name = options.tr or _TRAINER
    if options.tr is None:
        say(f"No trainer is named with -tr; {name} is taken.")
    trainer = resolve_trainer(name, options.network)
    folder = find_dataset(preprocessed_root(), options.dataset)
    results = variable_folder("nnssl_results", make=True)
    out = results / folder.name / f"{name}__{options.p}__{options.configuration}"
    for flag, sentence in _IDLE.items():
        if getattr(options, flag):
            say(sentence)
    recipe = _recipe(options, trainer.recipe, [*trainer.overrides, *settings], folder, out / "fold_all")
    store = open_preprocessed(folder, options.p, options.configuration)
    for note in store.notes:
        say(note)
    _refuse_second_start(out / "fold_all", options.c)
    _keep_split(store, recipe)
    from viewalign.training.run import pretrain

    outcome = pretrain(recipe, resume="auto" if options.c else False, store=store)
    return _finish(outcome, folder / f"{options.p}.json")


def _recipe(options: argparse.Namespace, name: str, changes: Sequence[str], data: Path, out: Path) -> Recipe:
    """Lay the flags and the user's own settings over a trainer's recipe."""
    from viewalign.recipes.loading import load

    for setting in options.set:
        if setting.partition("=")[0] in {"data", "out"}:
            raise UserError(f"--set {setting}: nnssl's folders say where data and results lie; leave it out.")
    machine = [f"runtime.device={_accelerator(options)}", f"runtime.gpus={options.num_gpus}", *_environment()]
    order = [f"init.token_order={options.token_order}"] if options.token_order else []
    recipe = load(name, [*changes, *machine, *order, *options.set])
    paths: dict[str, object] = {"data": str(data), "out": str(out)}
    if options.pretrained_weights:
        weights = _weights(options.pretrained_weights, recipe.network.name)
        paths["init"] = recipe.init.model_copy(update={"weights": weights})
    if options.disable_checkpointing:
        say("--disable_checkpointing: the run is saved at its end, or when it is stopped, and not in between.")
        paths["checkpoint"] = recipe.checkpoint.model_copy(update={"every": recipe.steps})
    return recipe.model_copy(update=paths)


def _environment() -> list[str]:
    """Return the settings that nnssl's variables stand for: reading processes for a GPU, and compilation."""
    written = os.environ.get(_WORKERS, "")
    if written and not written.isdecimal():
        raise UserError(f"The environment variable {_WORKERS} is {written!r}; it must be a number of processes.")
    compiled = os.environ.get(_COMPILE, "").lower() in ("true", "1", "t")
    return [*([f"runtime.workers={written}"] if written else []), *(["runtime.compile=true"] if compiled else [])]


def _keep_split(store: PreprocessedStore, recipe: Recipe) -> None:
    """Choose who validates where the dataset has no `splits_final.json` yet, and write one that nnssl can use too."""
    from viewalign.compat.nnssl.lists import Split, write_split
    from viewalign.training.data import number_subjects, split_by_subject

    if store.held_out is not None:
        return
    split = split_by_subject(number_subjects(store.subjects), recipe.validate_.share, recipe.seed)
    if not len(split.validation):
        return  # nnssl fails at an empty validation set, so none is written
    names = [frozenset(store.subjects[int(k)] for k in part) for part in (split.train, split.validation)]
    store.held_out = names[1]
    if os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0":
        try:
            write_split(store.path, Split(*names))
        except OSError as problem:
            say(f"splits_final.json cannot be written ({problem.strerror}); the same subjects will be held out again.")


def _weights(asked: str, network: str) -> str:
    from viewalign.weights.remote import resolve_checkpoint

    path, note = resolve_checkpoint(asked, network)
    if note:
        say(note)
    return str(path)


def _accelerator(options: argparse.Namespace) -> str:
    """Return the device asked for, or the CPU in place of the one GPU that is not there."""
    import torch

    if options.device == "mps":
        say("Apple's GPUs have no float64, which geometry needs; the run trains on the CPU.")
        return "cpu"
    if options.device != "cuda" or torch.cuda.is_available():
        return str(options.device)
    if options.num_gpus > 1:
        raise UserError(
            f"-num_gpus {options.num_gpus}: there is no GPU here. -device cpu trains in {options.num_gpus} processes "
            "on the CPU."
        )
    say("There is no GPU here; the run trains on the CPU.")
    return "cpu"


def _refuse_second_start(fold: Path, resume: bool) -> None:
    begun = (fold / "config.yaml").is_file()
    if begun and not resume:
        raise UserError(f"{fold} holds a run already. Continue it with --c, or move it away.")
    if resume and not begun:
        say(f"--c: there is no run in {fold} yet; a new one begins.")


def _finish(outcome: RunResult, plans: Path) -> int:
    """Write the weights of a finished run, and the plans, where nnssl's users look for them."""
    if not outcome.first:
        return outcome.exit_code
    if not outcome.finished:
        say(f"Stopped and saved at step {outcome.step} of {outcome.steps}. The same command with --c goes on.")
    else:
        say(f"Done: {outcome.step} steps. The encoder is in {_export(outcome.folder.root, plans)}")
    return outcome.exit_code


def _export(fold: Path, plans: Path) -> Path:
    """Write `checkpoint_final.pth` into a run's folder, `adaptation_plan.json` and `plans.json` beside it."""
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
Everything else is as in nnssl_train, and so are the results.
"""


def run_with_wandb(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = make_parser("nnssl_train_wandb", _WANDB_EXAMPLES)
    parser.flag("-fold", default="all", choices=("all",), help="there is this one: every subject")
    execute(parser, _train, arguments)


def _train(options: argparse.Namespace) -> int:
    os.environ.setdefault("WANDB_PROJECT", "nnssl")
    return train(options, ["log.wandb=true"])
