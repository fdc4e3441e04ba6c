"""Fine-tune an encoder for segmentation with nnU-Net: check, plan, preprocess, train, predict, evaluate."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.evaluation.folders import evaluate_folder, tolerances_of
from viewalign.evaluation.segmentation_metrics import Rules
from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation import environment, nnunet, planning, plans, record, splits
from viewalign.finetuning.segmentation import settings as configuration
from viewalign.finetuning.segmentation.dataset import Dataset
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.nnunet import Machine, Model
from viewalign.finetuning.segmentation.planning import Planned
from viewalign.finetuning.segmentation.record import LOG, PREDICTIONS, EvaluatedFold, Finetuning
from viewalign.finetuning.segmentation.settings import FinetuneSettings
from viewalign.finetuning.segmentation.splits import Split
from viewalign.tasks.copies import CACHE, CaseCopies, copies_among, read_fingerprints, report_divided
from viewalign.utils.locks import lock_folder, locked
from viewalign.utils.memory import reported_out_of_memory
from viewalign.utils.progress import progress_bar
from viewalign.utils.text import counted
from viewalign.weights import loading
from viewalign.weights.reading import read_source

_log = logging.getLogger(__name__)
_MAX_REPORTED = 10

NumberedSplits = Sequence[tuple[Split | None, int | str]]
"""Splits with nnU-Net's fold numbers; `(None, "all")` trains on all cases."""


@reported_out_of_memory(
    "nnU-Net was fine-tuned or predicted",
    "Use a smaller patch_size or batch in another folder (the plan changes with it), or fewer workers if the CPU's "
    "memory ran out. Completed epochs are kept.",
)
def finetune(settings: FinetuneSettings, out: Path, machine: Machine) -> Finetuning:
    """Fine-tune an encoder for segmentation, or resume an interrupted fine-tuning.

    Args:
        settings: of the fine-tuning.
        out: the output folder; nnU-Net's folders are created in it unless the environment names them.
        machine: devices and processes.
        progress: shows messages and progress bars.

    Returns:
        The fine-tuning with its results, which are also written to `results.json`.

    Raises:
        UserError: invalid settings, data or encoder, as far as possible before training.
    """
    run = _open(settings, out, machine)
    with lock_folder(out):
        _run(run)
    return run


def prepare(settings: FinetuneSettings, out: Path, machine: Machine) -> Finetuning:
    """Check, plan and preprocess, for other fine-tunings on the same data. Arguments and errors: see `finetune`."""
    run = _open(settings, out, machine)
    with nnunet.quietly(out / LOG), _dataset_lock(run):
        planning.preprocess(run.dataset, _plan(run), machine.processes)
    return run


def _open(settings: FinetuneSettings, out: Path, machine: Machine) -> Finetuning:
    """Read and check data, encoder and settings."""
    environment.check_installed()
    configuration.check_splits(settings)
    folders = Folders.of(out / "nnunet")
    places = (folders.raw, folders.preprocessed, folders.results)
    dataset = datasets.find(settings.dataset, *places)
    datasets.check_number(dataset, *places)
    source = read_source(settings.encoder, None if settings.token_order == "auto" else settings.token_order)
    plans.architecture_of(source.plan, Path(settings.encoder).name)
    schedule = configuration.schedule_of(settings, source.family)
    rules = Rules(dataset.labels, tolerances_of(settings.tolerance, dataset.labels), dataset.ignore)
    if settings.predict is not None and not _images_of(settings.predict, dataset).is_dir():
        raise UserError(f"There is no folder {_images_of(settings.predict, dataset)} to predict.")
    configuration.keep(settings, out)
    folders.make()
    environment.enter(folders, machine.processes, machine.device)
    with progress_bar("Checking labels") as bar:
        datasets.check(dataset, bar)
    datasets.link(dataset, *places)
    return Finetuning(settings, out, machine, folders, dataset, source, schedule, rules)


def _images_of(requested: str, dataset: Dataset) -> Path:
    return dataset.root / "imagesTs" if requested == "imagesTs" else Path(requested)


def _run(run: Finetuning) -> None:
    """Run all steps that are not complete."""
    # The encoder is loaded into the planned network before anything is preprocessed or trained.
    with nnunet.quietly(run.out / LOG), _dataset_lock(run):
        copies = _copies(run)
        requested = _requested_splits(run, copies.subject_of)
        _log.info("Planning %s with nnU-Net, whose output is written to %s", run.dataset.name, run.out / LOG)
        planned = _plan(run)
        model = Model(run.dataset.name, planned.name, run.folders)
        numbered = _number_splits(run, planned, requested, copies.subject_of)
        for each, _ in numbered:
            if each is not None:
                report_divided(copies, each.train, each.validation, "validation")
        with progress_bar("Preprocessing") as bar:
            bar(0, 1)
            changed = planning.preprocess(run.dataset, planned, run.machine.processes)
        if changed:
            _report_changed(model, changed, [number for _, number in numbered])
        _log.info("%s", record.summary(run, planned, model))
        record.write_commands(run, planned, [number for _, number in numbered])
    for split, number in numbered:
        run.results.append(_train_and_evaluate(run, model, split, number))
        record.write_results(run, planned)
    _predict(run, model, [number for _, number in numbered])
    _cross_validate(run, model, [number for _, number in numbered])
    record.write_results(run, planned)


def _report_changed(model: Model, cases: Sequence[str], numbers: Sequence[int | str]) -> None:
    """Report cases that were preprocessed again, and folds that were trained on their earlier version."""
    shown = _listed(cases)
    _log.warning("All cases were preprocessed again, since images, labels or classes have changed: %s.", shown)
    before = [str(model.fold(number)) for number in numbers if model.is_trained(number)]
    if before:
        _log.warning("Trained before this change and not again; remove to train again: %s.", ", ".join(before))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_REPORTED]) + (", …" if len(names) > _MAX_REPORTED else "")


@contextmanager
def _dataset_lock(run: Finetuning) -> Iterator[None]:
    """Wait for other processes, such as those of other folds, that prepare the same dataset."""
    file = run.folders.preprocessed / f".{run.dataset.name}.lock"

    def announce(other: str) -> None:
        _log.info("Waiting for %s, which prepares %s.", other, run.dataset.name)

    with locked(file, math.inf, announce):
        yield


def _copies(run: Finetuning) -> CaseCopies:
    """Find copies of images among the cases, by their first channels; patients that share copies count as one."""
    images = {case.name: case.images[0] for case in run.dataset.cases}
    patients = splits.patients_of(list(images), run.settings.patient)
    folder = run.folders.preprocessed / run.dataset.name
    folder.mkdir(exist_ok=True)
    with progress_bar("Looking for copies") as bar:
        return copies_among(patients, read_fingerprints(images, folder / CACHE, on_image=bar))


def _requested_splits(run: Finetuning, patients: Mapping[str, str]) -> list[Split]:
    """Return few-shot splits and splits of named cases; empty if nnU-Net's folds are used."""
    settings, names = run.settings, list(patients)
    validation = datasets.names_matching(names, settings.validation) if settings.validation else None
    training = datasets.names_matching(names, settings.training) if settings.training else None
    if not settings.shots:
        return [] if validation is None and training is None else [_named_split(run, patients, training, validation)]
    if validation is None:
        validation = list(splits.cross_validation(patients)[0].validation)
    draws = [(shots, seed) for shots in settings.shots for seed in range(settings.seeds)]
    drawn = [splits.few_shot(patients, validation, shots, seed) for shots, seed in draws]
    once = splits.distinct(drawn)
    if len(once) < len(drawn):
        kept = ", ".join(split.name for split in once)
        _log.warning("Some samples of shots= have the same cases, and each is trained once: %s.", kept)
    return once


def _named_split(
    run: Finetuning, patients: Mapping[str, str], training: Sequence[str] | None, validation: Sequence[str] | None
) -> Split:
    """Return the split of named cases, reporting cases that are on neither side because of their patient."""
    split = splits.given(patients, training, validation)
    own = splits.patients_of(list(patients), run.settings.patient)
    if divided := splits.divided(own, split):
        raise UserError(
            f"training and validation name cases of the same patient {divided[0]} (patient={run.settings.patient}). "
            "Name all of its cases for one of them, or omit patient."
        )
    left_out = sorted(set(patients) - {*split.train, *split.validation})
    if left_out and None in (training, validation):
        _log.warning("Left out, since a named case is of the same patient or a copy: %s.", _listed(left_out))
    return split


def _plan(run: Finetuning) -> Planned:
    settings, name = run.settings, configuration.plan_name(run.settings, run.schedule)
    base = planning.base_plan(run.dataset, run.folders, run.machine.processes, settings.base_plans)
    choices = configuration.choices_of(settings, name)
    plan = plans.make_plan(base, run.source.plan, choices, run.source.file, run.dataset.channels)
    _check_encoder(run, plan["configurations"][plans.CONFIGURATION])
    planning.check_start(Model(run.dataset.name, name, run.folders), run.source, settings.from_scratch)
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


def _check_encoder(run: Finetuning, planned: dict[str, Any]) -> None:
    """Build the planned network and load the encoder, so that a mismatch is reported before preprocessing."""
    d, h, w = planned["patch_size"]
    network = plans.build_network(planned["architecture"], run.dataset.channels, 2, (d, h, w))
    if not run.settings.from_scratch:
        loading.load_encoder_weights(network, run.source, (d, h, w), run.settings.min_share, "min_share")


def _number_splits(
    run: Finetuning, planned: Planned, requested: Sequence[Split], patients: Mapping[str, str]
) -> NumberedSplits:
    """Return nnU-Net's fold number of every split; nnU-Net's own folds are written first if there are none.

    Existing folds that divide a patient are replaced by folds that do not, behind them. Few-shot samples and other
    added splits are no folds, unless `fold` names them.
    """
    settings, file = run.settings, planned.folder / splits.FILE
    if settings.fold == "all" and not requested:
        return [(None, "all")]
    base = [] if splits.read(planned.folder) else _default_folds(patients, needed=not requested)
    numbers = splits.add(planned.folder, requested, base)
    if requested:
        return list(zip(requested, numbers, strict=True))
    present, names = splits.read(planned.folder), splits.read_names(planned.folder)
    first = splits.first_folds(planned.folder)
    if settings.fold is None and not first:
        return _add_folds(planned, patients, settings.folds)
    wanted = first[: settings.folds] if settings.fold is None else [int(k) for k in settings.fold]
    missing = [fold for fold in wanted if not 0 <= fold < len(present)]
    if missing:
        raise UserError(f"There is no fold {missing[0]}: {file} has {len(present)}, from 0.")
    there = [
        (Split(names.get(str(k), f"fold {k}"), tuple(present[k]["train"]), tuple(present[k]["val"])), k) for k in wanted
    ]
    own = splits.patients_of(list(patients), settings.patient)
    divided = [(k, found[0]) for split, k in there if (found := splits.divided(own, split))]
    if not divided or settings.patient is None:
        _check_cases(there, [present[k] for k in first], patients, file)
        return there
    what = f"Fold {divided[0][0]} of {file} divides the patient {divided[0][1]} (patient={settings.patient})"
    if settings.fold is not None:
        raise UserError(f"{what}. Omit fold, and folds by patient are added and trained; or omit patient.")
    added = _add_folds(planned, patients, settings.folds)
    numbered = ", ".join(str(number) for _, number in added)
    _log.warning("%s. Folds by patient are added to the file and trained: %s.", what, numbered)
    return added


def _add_folds(planned: Planned, patients: Mapping[str, str], count: int) -> NumberedSplits:
    """Add the first folds of a cross-validation to the file, unless they are there."""
    added = splits.cross_validation(patients)[:count]
    return list(zip(added, splits.add(planned.folder, added, []), strict=True))


def _check_cases(
    used: Sequence[tuple[Split, int]], others: Sequence[Mapping[str, Any]], cases: Collection[str], file: Path
) -> None:
    """Compare folds with the dataset's cases, and report cases that are neither in them nor in the file's others."""
    for split, number in used:
        if gone := sorted({*split.train, *split.validation}.difference(cases)):
            raise UserError(
                f"Fold {number} of {file} has cases that are not in the dataset: {_listed(gone)}. Put them back into "
                "the dataset, or remove their names from the file."
            )
    known = {case for split, _ in used for case in (*split.train, *split.validation)}
    known |= {case for fold in others for case in (*fold["train"], *fold["val"])}
    if new := [case for case in cases if case not in known]:
        _log.warning("Neither trained nor validated on, since no fold of %s has them: %s.", file, _listed(new))


def _default_folds(patients: Mapping[str, str], needed: bool) -> list[Split]:
    """Return nnU-Net's five folds; none if there are too few cases and the folds are not needed."""
    try:
        return splits.cross_validation(patients)
    except UserError:
        if needed:
            raise
        return []


def _train_and_evaluate(run: Finetuning, model: Model, split: Split | None, number: int | str) -> EvaluatedFold:
    name = split.name if split else "all cases"
    if model.is_validated(number):
        _log.info("%s: already trained.", name)
    else:
        with lock_folder(model.fold(number)):
            _train(run, model, name, number)
    cases = list(split.validation) if split else [case.name for case in run.dataset.cases]
    return _evaluate_training_cases(run, name, number, model.fold(number) / "validation", cases)


def _train(run: Finetuning, model: Model, name: str, number: int | str) -> None:
    from viewalign.finetuning.segmentation.trainer import EpochFacts, ViewalignTrainer

    if run.machine.gpus > 1:
        _log.info("%s: training on %d GPUs.", name, run.machine.gpus)
        nnunet.train(model, number, run.machine)
        return
    with progress_bar(f"Training, {name}") as bar, nnunet.quietly(run.out / LOG):

        def report(facts: EpochFacts) -> None:
            bar(facts.done, facts.epochs)

        ViewalignTrainer.listener = report
        try:
            nnunet.train(model, number, run.machine)
        finally:
            ViewalignTrainer.listener = None


def _evaluate_training_cases(
    run: Finetuning, name: str, number: int | str | None, predictions: Path, cases: Sequence[str] | None
) -> EvaluatedFold:
    references = run.folders.preprocessed / run.dataset.name / "gt_segmentations"
    return _evaluate(run, name, number, predictions, references, run.dataset.images, cases)


def _evaluate(
    run: Finetuning,
    name: str,
    number: int | str | None,
    predictions: Path,
    references: Path,
    images: Path,
    cases: Sequence[str] | None,
) -> EvaluatedFold:
    folder = run.out / record.EVALUATIONS / record.slug(name)
    with progress_bar(f"Evaluating, {name}") as bar:
        evaluation = evaluate_folder(predictions, references, run.rules, cases, 1, bar)
    evaluation.write(folder, {"split": name, "fold": number})
    dice, nsd = evaluation.summary("dice"), evaluation.summary("nsd")
    _log.info("%s: Dice %s, NSD %s over %s.", name, dice.text(), nsd.text(), counted(dice.cases, "case"))
    return EvaluatedFold(name, number, predictions, references, images, evaluation, folder)


def _predict(run: Finetuning, model: Model, numbers: Sequence[int | str]) -> None:
    """Predict further images with the mean of all folds, and evaluate them if there are labels next to them."""
    if run.settings.predict is None:
        return
    images, out = _images_of(run.settings.predict, run.dataset), run.out / PREDICTIONS
    with progress_bar("Predicting") as bar, nnunet.quietly(run.out / LOG):
        bar(0, 1)
        mirror = run.settings.mirror and run.settings.tta
        nnunet.predict(model.folder, images, out, numbers, run.machine, mirror)
    _log.info("Predictions: %s", out)
    references = images.parent / "labelsTs"
    if references.is_dir() and any(references.iterdir()):
        run.results.append(_evaluate(run, "test images", None, out, references, images, None))


def _cross_validate(run: Finetuning, model: Model, numbers: Sequence[int | str]) -> None:
    """Evaluate a complete cross-validation, and apply nnU-Net's postprocessing if requested and if it helps."""
    settings = run.settings
    if settings.folds < 5 or settings.fold is not None or settings.shots or settings.training or settings.validation:
        return
    with nnunet.quietly(run.out / LOG):
        merged, functions, arguments = nnunet.accumulate(model, [int(k) for k in numbers], run.machine.processes)
    run.results.append(_evaluate_training_cases(run, "cross-validation", None, merged, None))
    if not run.settings.postprocess:
        return
    if not functions:
        _log.info("Postprocessing is not applied: keeping the largest component does not improve any class.")
        return
    raw, out = run.out / PREDICTIONS, run.out / f"{PREDICTIONS}_postprocessed"
    if raw.is_dir():
        with nnunet.quietly(run.out / LOG):
            nnunet.postprocess(raw, out, functions, arguments, run.machine.processes)
        _log.info("Postprocessed predictions: %s", out)
