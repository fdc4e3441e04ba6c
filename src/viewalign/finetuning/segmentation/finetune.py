"""A fine-tuning from beginning to end: check, plan, preprocess, train, validate, predict, evaluate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.evaluation import folders as judging
from viewalign.evaluation.segmentation_metrics import Rules
from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation import environment, planning, plans, splits
from viewalign.finetuning.segmentation import nnunet as running
from viewalign.finetuning.segmentation import settings as asked
from viewalign.finetuning.segmentation.dataset import Dataset
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.nnunet import Machine, Model
from viewalign.finetuning.segmentation.planning import Planned
from viewalign.finetuning.segmentation.record import (
    EVALUATIONS,
    LOG,
    PREDICTIONS,
    EvaluatedFold,
    Finetuning,
    Teller,
    slug,
    summary,
    write_commands,
    write_results,
)
from viewalign.finetuning.segmentation.settings import FinetuneSettings
from viewalign.utils.locks import lock_folder, locked
from viewalign.utils.memory import reported_out_of_memory
from viewalign.weights import loading
from viewalign.weights.initial import read_weight_source


@reported_out_of_memory(
    "nnU-Net was fine-tuned or predicted",
    "Use a smaller patch_size or batch in another folder (the plan changes with it), or fewer workers where the CPU's "
    "memory ran out. Finished epochs stay.",
)
def finetune(settings: FinetuneSettings, out: Path, machine: Machine, teller: Teller) -> Finetuning:
    """Fine-tune an encoder for segmentation, or go on with a fine-tuning that was stopped.

    Args:
        settings: what to do.
        out: the run's folder; nnU-Net's folders lie in it where the environment names none.
        machine: what to compute on.
        teller: takes what a person should see.

    Returns:
        Everything that came out; it also stands in `results.json`.

    Raises:
        UserError: anything a user can mend. All of it that can be known before training is told before training.
    """
    run = _open(settings, out, machine, teller)
    with lock_folder(out):
        _go(run, teller)
    return run


def _go(run: Finetuning, teller: Teller) -> None:
    """Do what is not done yet."""
    divided = _splits(run)
    # The plan is made, and the encoder tried on it, before anything is preprocessed or trained.
    with running.quietly(run.out / LOG) as say, _dataset_alone(run, say):
        say(f"Planning {run.dataset.name} with nnU-Net. Its own words go to {run.out / LOG}")
        planned = _plan(run)
        model = Model(run.dataset.name, planned.name, run.folders)
        numbers = _number(run, planned, divided)
        with teller.bar("Preprocessing") as bar:
            bar(0, 1)
            planning.preprocess(run.dataset, planned, run.machine.processes)
        say(summary(run, planned, model))
        write_commands(run, planned, numbers)
    for split, number in numbers:
        run.judged.append(_train_and_judge(run, model, split, number, teller))
        write_results(run, planned)
    _predict(run, model, [number for _, number in numbers], teller)
    _cross_validate(run, model, numbers, teller)
    write_results(run, planned)


@contextmanager
def _dataset_alone(run: Finetuning, say: Callable[[str], None]) -> Iterator[None]:
    """Wait for others, such as those of other folds, who plan and preprocess the same dataset; they do it for all."""
    file = run.folders.preprocessed / f".{run.dataset.name}.lock"
    with locked(file, math.inf, lambda other: say(f"Waiting for {other}, which prepares {run.dataset.name}.")):
        yield


def prepare(settings: FinetuneSettings, out: Path, machine: Machine, teller: Teller) -> Finetuning:
    """Check, plan and preprocess alone, so that fine-tunings on the same voxels find that done.

    Args, raises: as `finetune`.
    """
    run = _open(settings, out, machine, teller)
    with running.quietly(out / LOG) as say, _dataset_alone(run, say):
        planning.preprocess(run.dataset, _plan(run), machine.processes)
    return run


def _open(settings: FinetuneSettings, out: Path, machine: Machine, teller: Teller) -> Finetuning:
    """Read and check everything that was named."""
    environment.check_installed()
    folders = Folders.of(out / "nnunet")
    dataset = datasets.find(settings.dataset, folders.raw)
    source = read_weight_source(settings.encoder, None if settings.token_order == "auto" else settings.token_order)
    plans.architecture_of(source.plan, Path(settings.encoder).name)
    schedule = asked.schedule_of(settings, source.family)
    labels = dataset.labels
    rules = Rules(labels, judging.tolerances_of(settings.tolerance, labels), dataset.ignore)
    if settings.predict is not None and not _images_of(settings.predict, dataset).is_dir():
        raise UserError(f"There is no folder {_images_of(settings.predict, dataset)} to predict.")
    asked.keep(settings, out)
    folders.make()
    environment.enter(folders, machine.processes, machine.device)
    with teller.bar("Checking labels") as bar:
        datasets.check(dataset, bar)
    datasets.link(dataset, folders.raw)
    return Finetuning(settings, out, machine, folders, dataset, source, schedule, rules)


def _images_of(asked_for: str, dataset: Dataset) -> Path:
    return dataset.root / "imagesTs" if asked_for == "imagesTs" else Path(asked_for)


def _splits(run: Finetuning) -> list[splits.Split]:
    """Return the splits asked for, except those that nnU-Net numbers itself."""
    settings, names = run.settings, [case.name for case in run.dataset.cases]
    held = datasets.names_matching(names, settings.validation) if settings.validation else None
    taught = datasets.names_matching(names, settings.training) if settings.training else None
    if taught is not None and settings.shots:
        raise UserError("training names the cases to train on, shots draws them; use one of the two.")
    if not settings.shots:
        if held is None and taught is None:
            return []
        return [splits.given(names, taught, held)]
    if held is None:
        held = list(splits.cross_validation(names, settings.patient)[0].validation)
    pool = [name for name in names if name not in set(held)]
    return [
        splits.few_shot(pool, held, shots, seed, settings.patient)
        for shots in settings.shots
        for seed in range(settings.seeds)
    ]


def _plan(run: Finetuning) -> Planned:
    settings, name = run.settings, asked.plan_name(run.settings, run.schedule)
    base = planning.base_plan(run.dataset, run.folders, run.machine.processes, settings.base_plans)
    choices = asked.choices_of(settings, name)
    _try_encoder(run, plans.make_plan(base, run.source.plan, choices, run.source.file, run.dataset.channels))
    return planning.write_plan(
        run.dataset,
        run.folders,
        base,
        run.source,
        choices,
        run.schedule,
        settings.min_share,
        settings.from_scratch,
    )


def _try_encoder(run: Finetuning, plan: dict[str, Any]) -> None:
    """Put the encoder into the plan's network once, so that what does not fit is told now."""
    configuration = plan["configurations"][plans.CONFIGURATION]
    d, h, w = configuration["patch_size"]
    network = plans.build_network(configuration["architecture"], run.dataset.channels, 2, (d, h, w))
    if not run.settings.from_scratch:
        loading.load_encoder_weights(network, run.source, (d, h, w), run.settings.min_share, "min_share")


def _number(
    run: Finetuning, planned: Planned, divided: Sequence[splits.Split]
) -> list[tuple[splits.Split | None, int | str]]:
    """Give every split nnU-Net's number for it; the dataset's own folds are written first where there are none."""
    settings, names = run.settings, [case.name for case in run.dataset.cases]
    if settings.fold == "all" and not divided:
        return [(None, "all")]
    own = splits.read(planned.folder)
    base = [] if own else _base_folds(names, settings.patient, needed=not divided)
    numbers = splits.add(planned.folder, divided, base)
    if divided:
        return list(zip(divided, numbers, strict=True))
    present = splits.read(planned.folder)
    told = splits.read_names(planned.folder)
    wanted = range(min(settings.folds, len(present))) if settings.fold is None else [int(k) for k in settings.fold]
    missing = [fold for fold in wanted if not 0 <= fold < len(present)]
    if missing:
        raise UserError(f"There is no fold {missing[0]}: {planned.folder / splits.FILE} has {len(present)}, from 0.")
    return [
        (splits.Split(told.get(str(k), f"fold {k}"), tuple(present[k]["train"]), tuple(present[k]["val"])), k)
        for k in wanted
    ]


def _base_folds(names: Sequence[str], patient: str | None, needed: bool) -> list[splits.Split]:
    """Return nnU-Net's own five folds; few cases are no fault where folds are not what was asked for."""
    try:
        return splits.cross_validation(names, patient)
    except UserError:
        if needed:
            raise
        return []


def _train_and_judge(
    run: Finetuning, model: Model, split: splits.Split | None, number: int | str, teller: Teller
) -> EvaluatedFold:
    name = split.name if split else "all cases"
    if model.is_validated(number):
        teller.say(f"{name}: trained already.")
    else:
        with lock_folder(model.fold(number)):
            _train(run, model, name, number, teller)
    predictions = model.fold(number) / "validation"
    references = run.folders.preprocessed / run.dataset.name / "gt_segmentations"
    cases = list(split.validation) if split else [case.name for case in run.dataset.cases]
    return _judge(run, name, number, predictions, references, run.dataset.root / "imagesTr", cases, teller)


def _train(run: Finetuning, model: Model, name: str, number: int | str, teller: Teller) -> None:
    from viewalign.finetuning.segmentation.trainer import EpochFacts, ViewalignTrainer

    if run.machine.gpus > 1:
        teller.say(f"{name}: training on {run.machine.gpus} GPUs.")
        running.train(model, number, run.machine)
        return
    with teller.bar(f"Training, {name}") as bar, running.quietly(run.out / LOG):

        def listen(facts: EpochFacts) -> None:
            bar(facts.done, facts.epochs)

        ViewalignTrainer.listener = listen
        try:
            running.train(model, number, run.machine)
        finally:
            ViewalignTrainer.listener = None


def _judge(
    run: Finetuning,
    name: str,
    number: int | str | None,
    predictions: Path,
    references: Path,
    images: Path,
    cases: Sequence[str] | None,
    teller: Teller,
) -> EvaluatedFold:
    folder = run.out / EVALUATIONS / slug(name)
    with teller.bar(f"Evaluating, {name}") as bar:
        evaluation = judging.evaluate_folder(predictions, references, run.rules, cases, 1, bar)
    evaluation.write(folder, {"split": name, "fold": number})
    dice, nsd = evaluation.summary("dice"), evaluation.summary("nsd")
    teller.say(f"{name}: Dice {dice.text()}, NSD {nsd.text()} over {dice.cases} cases.")
    return EvaluatedFold(name, number, predictions, references, images, evaluation, folder)


def _predict(run: Finetuning, model: Model, numbers: Sequence[int | str], teller: Teller) -> None:
    """Predict the images asked for with the mean of all folds, and judge them where labels lie beside them."""
    if run.settings.predict is None:
        return
    images = _images_of(run.settings.predict, run.dataset)
    out = run.out / PREDICTIONS
    with teller.bar("Predicting") as bar, running.quietly(run.out / LOG):
        bar(0, 1)
        mirror = run.settings.mirror and run.settings.tta
        running.predict(model.folder, images, out, numbers, run.machine, mirror)
    teller.say(f"Predictions: {out}")
    references = images.parent / "labelsTs"
    if references.is_dir() and any(references.iterdir()):
        run.judged.append(_judge(run, "test images", None, out, references, images, None, teller))


def _cross_validate(
    run: Finetuning, model: Model, numbers: Sequence[tuple[splits.Split | None, int | str]], teller: Teller
) -> None:
    """Judge a whole cross-validation as one, and postprocess where asked for and where it helps."""
    settings = run.settings
    if settings.folds < 5 or settings.fold is not None or settings.shots or settings.training or settings.validation:
        return
    folds = [int(number) for _, number in numbers]
    with running.quietly(run.out / LOG):
        merged, functions, arguments = running.accumulate(model, folds, run.machine.processes)
    references = run.folders.preprocessed / run.dataset.name / "gt_segmentations"
    images = run.dataset.root / "imagesTr"
    run.judged.append(_judge(run, "cross-validation", None, merged, references, images, None, teller))
    if not run.settings.postprocess:
        return
    if not functions:
        teller.say("Postprocessing would not help: keeping the largest component raises no class's Dice.")
        return
    raw, out = run.out / PREDICTIONS, run.out / f"{PREDICTIONS}_postprocessed"
    if raw.is_dir():
        with running.quietly(run.out / LOG):
            running.postprocess(raw, out, functions, arguments, run.machine.processes)
        teller.say(f"Postprocessed predictions: {out}")
