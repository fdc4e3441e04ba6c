"""The study of `viewalign gain`: one pretraining against training from scratch, with few and all labels."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation import environment
from viewalign.finetuning.segmentation.splits import patients_of
from viewalign.studies.external import read_external
from viewalign.studies.labelled import in_dataset
from viewalign.studies.loading import check, finetuning_evaluations, flatten
from viewalign.studies.settings import GainSettings, Study, digest_of
from viewalign.tasks.copies import CACHE, copies_among, read_fingerprints, report_divided
from viewalign.tasks.folds import join_copies, make_folds
from viewalign.tasks.manifest import TaskCase, read_manifest, write_manifest
from viewalign.tasks.spec import FILE as TASK_FILE
from viewalign.tasks.spec import TaskSpec, read_spec, write_spec
from viewalign.utils.rng import make_rng
from viewalign.utils.settings import merged
from viewalign.utils.text import counted

_log = logging.getLogger(__name__)

SCRATCH, PRETRAINED, PUBLIC = "scratch", "pretrained", "public"
FEWEST_TEST = 5
"""Test cases without which no interval over cases is computed."""
_TEST_SHARE = 0.2
_TASK_FOLDS = 5
_DRAWS = 100
"""Bootstrap samples of a single fine-tuning, whose own intervals are not used."""


def gain_study(store: Path, labelled: str, out: Path, wanted: GainSettings) -> Study:
    """Return the study that measures what pretraining gains on labelled data.

    Its arms are `scratch`, `pretrained` and, if one is named, `public`; its evaluations are `tuned-N`, `tuned-all` and
    `frozen-N`.

    Args:
        store: a prepared store.
        labelled: a dataset in nnU-Net's raw layout (folder, name or number), or the folder of a task.
        out: the study's folder.
        wanted: the settings.

    Raises:
        UserError: no usable data, too few cases, or invalid settings.
    """
    preparation = Store.open(store).recipe
    arms, network = _arms(wanted)
    data: dict[str, Any] = {"store": str(store.absolute())}
    if (Path(labelled) / TASK_FILE).is_file():
        if wanted.patient is not None:
            raise UserError("patient is for segmentation; the manifest of a task has the column `subject` instead.")
        evaluations = _task_evaluations(Path(labelled), out, network, wanted)
    else:
        data["labelled"], evaluations = _segmentation(labelled, network, preparation, out, wanted)
    tree: dict[str, Any] = {"name": "gain", "data": data, "arms": arms, "evaluations": evaluations}
    tree |= {"seeds": wanted.seeds, "reference": SCRATCH, "precision": "auto", "threads": wanted.threads}
    return check({**tree, "device": wanted.device}, "gain")


def _arms(wanted: GainSettings) -> tuple[dict[str, Any], str]:
    """Return the arms, and the network that is pretrained."""
    from viewalign.recipes import loading as recipes

    own: dict[str, Any] = {"recipe": wanted.recipe, "settings": wanted.pretrain}
    if wanted.encoder is None:
        network = recipes.load(wanted.recipe, list(flatten(wanted.pretrain))).network.name
        trained = {**own, "once": True, "settings": merged({"steps": wanted.steps}, wanted.pretrain)}
    else:
        found = read_external(wanted.encoder, Path.cwd())
        network, size = found.network, found.plan.get("pretrain_patch_size")
        own = {"recipe": f"mae-{network}", "settings": {"views": {"patch_size": list(size)}} if size else {}}
        trained = {**own, "encoder": found.path}
    arms = {SCRATCH: {**own, "untrained": True}, PRETRAINED: trained}
    if wanted.public is not None:
        arms[PUBLIC] = {**own, "encoder": read_external(wanted.public, Path.cwd()).path}
    return arms, network


def _segmentation(
    labelled: str, network: str, preparation: Mapping[str, Any], out: Path, wanted: GainSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `data.labelled` and the evaluations of a segmentation dataset."""
    environment.check_installed()
    root = datasets.find(labelled, Path(os.environ.get("nnUNet_raw", "."))).root  # noqa: SIM112
    cases = in_dataset(root)[0]
    learn, test = split_segmentation({case.name: case.image for case in cases}, out, wanted.test, wanted.patient)
    patients = set(patients_of(learn, wanted.patient).values())
    _check_counts(len(patients), len(set(patients_of(test, wanted.patient).values())), str(root), wanted.patient)
    # One plan for all arms: the voxel size must not depend on the encoder.
    shared: dict[str, Any] = {"spacing": preparation.get("spacing") or "dataset"}
    few = _few(wanted.shots, len(patients))
    evaluations = finetuning_evaluations(network, [*few, None], merged(shared, wanted.finetune))
    if wanted.frozen:
        shots = few[0] if few else len(patients)
        evaluations[f"frozen-{shots}"] = {"kind": "voxel_probe", "shots": shots, "draw": "seed"}
    data = {"dataset": str(root.absolute()), **exact_patterns(learn, test)}
    return data | ({"patient": wanted.patient} if wanted.patient is not None else {}), evaluations


def split_segmentation(
    images: Mapping[str, Path], out: Path, patterns: Sequence[str], patient: str | None = None
) -> tuple[list[str], list[str]]:
    """Return training and test cases; no patient is in both.

    Args:
        images: of all cases.
        out: folder of the fingerprints.
        patterns: of test cases, without which a fifth of the patients is drawn, with copies of their images.
        patient: regular expression that finds the patient in a case's name; None: each case is one.

    Raises:
        UserError: a pattern that fits no case, or a name in which no patient is found.
    """
    patients = patients_of(list(images), patient)
    copies = copies_among(patients, read_fingerprints(images, out / CACHE))
    if patterns:
        test = set(datasets.names_matching(list(images), ",".join(patterns)))
        subject_of: Mapping[str, str] = patients
    else:
        drawn = set(_draw_test(list(dict.fromkeys(patients.values()))))
        subject_of = copies.subject_of
        subjects = {subject_of[name] for name in images if patients[name] in drawn}
        test = {name for name in images if subject_of[name] in subjects}
    held_out = {subject_of[name] for name in test}
    learn = [name for name in images if subject_of[name] not in held_out]
    report_divided(copies, learn, test, "test")
    if patient is None:
        _report_patients(learn, test)
    return learn, sorted(test)


def _report_patients(learn: Sequence[str], test: Collection[str]) -> None:
    """Log a warning if names such as patient001_frame12 suggest that a patient is in both parts."""
    starts = {name: name.rpartition("_")[0] or name.rpartition("-")[0] for name in (*learn, *test)}
    patients = {start for start in starts.values() if any(letter.isdigit() for letter in start)}
    both = sorted(patients & {starts[name] for name in learn} & {starts[name] for name in test})
    if both and len(patients) >= FEWEST_TEST:  # fewer are rather names of datasets
        _log.warning(
            "Names of training and of test cases start with %s. If that is a patient, keep it together by "
            "patient='(REGEX)', whose first group is the patient.",
            ", ".join(both[:3]) + (" …" if len(both) > 3 else ""),
        )


def _draw_test(names: Sequence[str]) -> list[str]:
    """Return a fifth of the cases or patients, at least five, sampled with a fixed seed."""
    count = max(FEWEST_TEST, round(_TEST_SHARE * len(names)))
    order = make_rng(0, "test cases").permutation(len(names))
    return sorted(names[k] for k in order[:count])


def _few(shots: Sequence[int], available: int) -> list[int]:
    """Return the numbers of cases that are smaller than all."""
    few = sorted({count for count in shots if count < available})
    for count in sorted(set(shots) - set(few)):
        _log.warning("shots=%d is left out: there are only %s.", count, counted(available, "training case"))
    return few


def exact_patterns(learn: Sequence[str], test: Sequence[str]) -> dict[str, list[str]]:
    """Return `learn` and `test` of `data.labelled` that match just these cases."""
    return {"learn": [glob.escape(name) for name in learn], "test": [glob.escape(name) for name in test]}


def most_shots(training: Sequence[TaskCase], spec: TaskSpec) -> int:
    """Return the largest number that `shots` can sample: of cases of each class, or of all cases."""
    if spec.kind not in ("binary", "multiclass"):
        return len(training)
    targets = [case.target for case in training]
    return min(targets.count(k) for k in range(len(spec.classes)))


def _check_counts(learn: int, test: int, where: str, patient: str | None = None) -> None:
    if learn < 2 or test < FEWEST_TEST:
        what = "cases" if patient is None else "patients"
        raise UserError(
            f"{where} has {learn} training and {test} test {what}; a comparison needs at least 2 and {FEWEST_TEST}."
        )


def _task_evaluations(source: Path, out: Path, network: str, wanted: GainSettings) -> dict[str, Any]:
    """Return the evaluations of a task, which is written below `out` with one split into training and test cases."""
    spec = read_spec(source)
    cases = split_task(read_manifest(source, spec), spec, wanted.test, out / CACHE)
    train = [case for case in cases if case.split == "train"]
    _check_counts(len(train), len(cases) - len(train), str(source))
    folder = write_task(cases, spec, out, "task")
    few = _few(wanted.shots, most_shots(train, spec))
    rate = 3e-4 if network.startswith("primus") else 1e-3
    settings = merged({"epochs": 30, "folds": 1, "lr": rate, "draws": _DRAWS}, wanted.finetune)
    task = {"task": str(folder.absolute())}
    evaluations: dict[str, Any] = {}
    for shots in (*few, None):
        name = shots or "all"
        evaluations[f"tuned-{name}"] = {"kind": "finetune", **task, "shots": shots, "settings": settings}
    if wanted.frozen:
        for shots in few or (None,):
            evaluations[f"frozen-{shots or 'all'}"] = {"kind": "feature_probe", **task, "shots": shots}
    return evaluations


def write_task(cases: Sequence[TaskCase], spec: TaskSpec, out: Path, name: str) -> Path:
    """Write a task below `out` and return its folder, whose name has a digest: other cases never replace it."""
    folder = out / f"{name}-{digest_of([spec.model_dump(mode='json'), [repr(case) for case in cases]])}"
    if not (folder / TASK_FILE).is_file():
        write_manifest(cases, spec, folder)
        write_spec(spec, folder)
    return folder


def split_task(cases: Sequence[TaskCase], spec: TaskSpec, patterns: Sequence[str], cache: Path) -> list[TaskCase]:
    """Return cases with test cases: those of patterns or manifest, else a fifth of the subjects, at least five."""
    if patterns:
        test = set(datasets.names_matching([case.case for case in cases], ",".join(patterns)))
    elif any(case.split == "test" for case in cases):
        test = {case.case for case in cases if case.split == "test"}
    else:
        images = {case.case: next(iter(case.images.values())) for case in cases}
        cases = join_copies([replace(case, fold=None) for case in cases], read_fingerprints(images, cache))
        folds = min(_TASK_FOLDS, len({case.subject for case in cases}) // FEWEST_TEST)
        test = set(make_folds(cases, spec, max(2, folds)).folds[0].held_out)
    subjects = {case.subject for case in cases if case.case in test}
    return [replace(case, fold=None, split="test" if case.subject in subjects else "train") for case in cases]
