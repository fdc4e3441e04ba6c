"""`nnssl_train`: nnssl's training command with nnssl's flags, on data that nnssl has preprocessed.

The published command lines run as they stand; `--set`, `--network` and `--token-order` are ours.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import UserError

if TYPE_CHECKING:
    from viewalign.config import Recipe
    from viewalign.training.run import Outcome

_IDLE = {
    "npz": "--npz does nothing here: there are no predictions to save.",
    "val_best": "--val_best does nothing here: pretraining has no validation of its own to run afterwards.",
}
_EXAMPLES = """examples:
  nnssl_train 745 onemmiso -tr AlignedMAEFTTrainer -p nnsslPlans -num_gpus 1 -pretrained_weights FILE
  nnssl_train 745 onemmiso -tr AlignedMAEFTLR3EvaTrainer -p nnsslPlans --c
  nnssl_train 745 onemmiso -tr MAETrainer --set steps=10 --set 'views.size=[32,32,32]' --set network=resenc-xs

It reads $nnssl_preprocessed/DatasetXXX_NAME and writes
$nnssl_results/DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/fold_all.
"""


class _Parser(argparse.ArgumentParser):
    """Refuses flags it does not know; argparse would take `-pre x` for `-p re` and a stray `x`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.flags: list[str] = ["-h", "--help"]

    def flag(self, *names: str, **settings: Any) -> None:
        """Add a flag and remember its names."""
        self.flags += names
        self.add_argument(*names, **settings)

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """End with a sentence where an argument looks like a flag and is none."""
        for argument in arguments:
            word = argument.partition("=")[0]
            if word.startswith("-") and word not in self.flags:
                close = difflib.get_close_matches(word, self.flags, n=1, cutoff=0.5)
                self.error(f"there is no flag {word}" + (f" (did you mean {close[0]}?)" if close else ""))


def _parser() -> _Parser:
    parser = _Parser(
        prog="nnssl_train",
        description="Pretrain by Consistent View Alignment on data that nnssl has preprocessed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", help="id or name, such as 745 or Dataset745_OpenMind")
    parser.add_argument("configuration", choices=("onemmiso", "median", "noresample"))
    flag = parser.flag
    flag("-tr", required=True, metavar="TRAINER", help="a class of LatentCampus or nnssl, such as AlignedMAEFTTrainer")
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


def run(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in a sentence and exit code 1, never in a traceback."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    given = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    parser.refuse_unknown(given)
    try:
        code = train(parser.parse_args(given))
    except UserError as problem:
        print(f"nnssl_train: {problem}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if code:
        sys.exit(code)


def train(options: argparse.Namespace) -> int:
    """Do what the flags ask for and return the exit code.

    Raises:
        UserError: an unset variable, an unknown trainer or dataset, or settings that do not fit.
    """
    if options.val:
        _say("--val does nothing here: pretraining has no validation to repeat. Nothing was trained.")
        return 0
    from viewalign.recipes.trainers import resolve_trainer
    from viewalign.volumes.nnssl_layout import find_dataset, open_preprocessed

    trainer = resolve_trainer(options.tr, options.network)
    folder = find_dataset(_variable("nnssl_preprocessed"), options.dataset)
    out = _variable("nnssl_results", make=True) / folder.name / f"{options.tr}__{options.p}__{options.configuration}"
    for name, sentence in _IDLE.items():
        if getattr(options, name):
            _say(sentence)
    recipe = _recipe(options, trainer.recipe, trainer.overrides, folder, out / "fold_all")
    store = open_preprocessed(folder, options.p, options.configuration)
    for note in store.notes:
        _say(note)
    _refuse_second_start(out / "fold_all", options.c)
    from viewalign.training.run import pretrain

    return _finish(pretrain(recipe, resume="auto" if options.c else False, store=store))


def _recipe(options: argparse.Namespace, name: str, changes: Sequence[str], data: Path, out: Path) -> Recipe:
    """Lay the flags and the user's own settings over a trainer's recipe."""
    from viewalign.recipes.loading import load

    for setting in options.set:
        if setting.partition("=")[0] in {"data", "out"}:
            raise UserError(f"--set {setting}: nnssl's folders say where data and results lie; leave it out.")
    machine = [f"runtime.accelerator={_accelerator(options)}", f"runtime.devices={options.num_gpus}"]
    order = [f"init.token_order={options.token_order}"] if options.token_order else []
    recipe = load(name, [*changes, *machine, *order, *options.set])
    paths: dict[str, object] = {"data": str(data), "out": str(out)}
    if options.pretrained_weights:
        weights = _weights(options.pretrained_weights, recipe.network.name)
        paths["init"] = recipe.init.model_copy(update={"weights": weights})
    if options.disable_checkpointing:
        _say("--disable_checkpointing: the run is saved at its end, or when it is stopped, and not in between.")
        paths["checkpoint"] = recipe.checkpoint.model_copy(update={"every": recipe.steps})
    return recipe.model_copy(update=paths)


def _weights(asked: str, network: str) -> str:
    from viewalign.formats.resolving import resolve_checkpoint

    path, note = resolve_checkpoint(asked, network)
    if note:
        _say(note)
    return str(path)


def _accelerator(options: argparse.Namespace) -> str:
    """Return the device asked for, or the CPU in place of the one GPU that is not there."""
    import torch

    if options.device != "cuda" or torch.cuda.is_available():
        return str(options.device)
    if options.num_gpus > 1:
        raise UserError(
            f"-num_gpus {options.num_gpus}: there is no GPU here. -device cpu trains in {options.num_gpus} processes "
            "on the CPU."
        )
    _say("There is no GPU here; the run trains on the CPU.")
    return "cpu"


def _variable(name: str, make: bool = False) -> Path:
    """Return the folder that an environment variable names.

    Raises:
        UserError: it is not set, or there is no such folder.
    """
    written = os.environ.get(name, "")
    if not written:
        raise UserError(f"The environment variable {name} is not set; set it to nnssl's folder: export {name}=FOLDER.")
    folder = Path(written)
    if not make and not folder.is_dir():
        raise UserError(f"The environment variable {name} is {folder}, and there is no such folder.")
    return folder


def _refuse_second_start(fold: Path, resume: bool) -> None:
    begun = (fold / "config.yaml").is_file()
    if begun and not resume:
        raise UserError(f"{fold} holds a run already. Continue it with --c, or move it away.")
    if resume and not begun:
        _say(f"--c: there is no run in {fold} yet; a new one begins.")


def _finish(outcome: Outcome) -> int:
    """Write the weights of a finished run where nnssl's users look for them."""
    from viewalign.processes import rank

    if not outcome.finished:
        _say(f"Stopped and saved at step {outcome.step} of {outcome.steps}. The same command with --c goes on.")
    elif rank() == 0:
        _say(f"Done: {outcome.step} steps. The encoder is in {_export(outcome.folder.root)}")
    return outcome.exit_code


def _export(fold: Path) -> Path:
    """Write `checkpoint_final.pth` into a run's folder and `adaptation_plan.json` beside it; return the former."""
    from viewalign.transfer.export import export_run

    with tempfile.TemporaryDirectory(dir=fold.parent, prefix=".export-") as scratch:
        export = export_run(fold, Path(scratch) / "export")
        (export / "adaptation_plan.json").replace(fold.parent / "adaptation_plan.json")
        (export / "checkpoint_final.pth").replace(fold / "checkpoint_final.pth")
    return fold / "checkpoint_final.pth"


def _say(text: str) -> None:
    """Print a line, once where one machine runs several processes."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, flush=True)
