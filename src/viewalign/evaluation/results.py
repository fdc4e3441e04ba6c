"""Results of a segmentation evaluation: means with intervals, a JSON file with all settings, and a CSV of cases."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from viewalign import __version__
from viewalign.errors import UserError
from viewalign.evaluation.segmentation_metrics import CaseScore, ClassScore, Rules
from viewalign.evaluation.statistics import Interval, align_columns, bootstrap_interval
from viewalign.utils.io import atomic_write, plain_values, write_json
from viewalign.utils.tables import cell_text

Metric = Literal["dice", "nsd"]
METRICS: tuple[Metric, ...] = ("dice", "nsd")
FORMAT, VERSION = "viewalign-evaluation", 1
JSON_FILE, CSV_FILE = "evaluation.json", "cases.csv"
MEAN = "mean"
"""Key of the mean over classes, beside the classes."""


@dataclass(frozen=True)
class Summary:
    """A mean over cases.

    Attributes:
        mean: NaN if no case counts.
        interval: 95 % bootstrap interval over cases; None below five.
        cases: number of cases that count.
    """

    mean: float
    interval: Interval | None
    cases: int

    def text(self) -> str:
        """Format as `0.812 (0.790–0.833)`."""
        if not math.isfinite(self.mean):
            return "-"
        ends = "" if self.interval is None else f" ({self.interval[0]:.3f}–{self.interval[1]:.3f})"
        return f"{self.mean:.3f}{ends}"


@dataclass(frozen=True)
class Evaluation:
    """Scores of predicted segmentations.

    Attributes:
        rules: how they were computed.
        cases: scores, sorted by name.
        missing: expected cases without a prediction, which are not in any mean.
        excluded: reasons of cases that could not be evaluated, by name.
        extra: predictions without a reference.
    """

    rules: Rules
    cases: tuple[CaseScore, ...]
    missing: tuple[str, ...] = ()
    excluded: Mapping[str, str] | None = None
    extra: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every expected case was evaluated."""
        return not self.missing and not self.excluded

    def select(self, names: Sequence[str]) -> Evaluation:
        """Return the evaluation of some cases."""
        by_name = {case.name: case for case in self.cases}
        return Evaluation(self.rules, tuple(by_name[name] for name in names))

    def values(self, metric: Metric, label: str = MEAN) -> NDArray[np.float64]:
        """Return a class's values, or the mean over classes, of each case; NaN where it does not count."""
        if label == MEAN:
            return np.array([case.mean(metric) for case in self.cases])
        return np.array([getattr(case.classes[label], metric) for case in self.cases])

    def summary(self, metric: Metric, label: str = MEAN) -> Summary:
        """Return the mean over cases and its interval."""
        values = self.values(metric, label)
        counted = values[np.isfinite(values)]
        mean = float(counted.mean()) if len(counted) else float("nan")
        return Summary(mean, bootstrap_interval(values, 0), len(counted))

    def table(self) -> str:
        """Format Dice, surface distance and its tolerance of each class as a table for a terminal."""
        rows = [("class", "Dice", "NSD", "tolerance")]
        for label in [*self.rules.classes, MEAN]:
            tolerance = "" if label == MEAN else f"{self.rules.tolerances[label]:g} mm"
            rows.append((label, self.summary("dice", label).text(), self.summary("nsd", label).text(), tolerance))
        return align_columns(rows)

    def write(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write `evaluation.json` and `cases.csv`.

        Args:
            folder: created if necessary.
            facts: further entries of the JSON file.

        Raises:
            UserError: the files cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / CSV_FILE) as rows:
                self._write_csv(rows)
            write_json(folder / JSON_FILE, self.as_json(facts))
        except OSError as problem:
            raise UserError(f"The evaluation cannot be written to {folder}: {problem.strerror}.") from None

    def as_json(self, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return plain values with versions, hashes and rules; NaN becomes None."""
        labels = [*self.rules.classes, MEAN]
        tree = {
            "format": FORMAT,
            "version": VERSION,
            "versions": _versions(),
            "rules": {
                "classes": {name: list(values) for name, values in self.rules.classes.items()},
                "tolerance_mm": dict(self.rules.tolerances),
                "ignore_label": self.rules.ignore,
                "class_in_neither_map": self.rules.empty,
                "mean": "over cases of the mean over classes that count",
                "interval": "95 % percentile bootstrap over cases",
            },
            "summary": {m: {label: asdict(self.summary(m, label)) for label in labels} for m in METRICS},
            "cases": [asdict(case) for case in self.cases],
            "missing": list(self.missing),
            "excluded": dict(self.excluded or {}),
            "without_reference": list(self.extra),
            **(facts or {}),
        }
        plain: dict[str, Any] = plain_values(tree)
        return plain

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "class", "dice", "nsd", "tolerance_mm", "reference_voxels", "prediction_voxels"])
            for case in self.cases:
                for label, score in case.classes.items():
                    values = ["" if math.isnan(value) else f"{value:.6f}" for value in (score.dice, score.nsd)]
                    counts = [score.reference_voxels, score.prediction_voxels]
                    writer.writerow(
                        [cell_text(case.name), cell_text(label), *values, self.rules.tolerances[label], *counts]
                    )


def _versions() -> dict[str, str]:
    versions = {"viewalign": __version__}
    for name in ("monai", "numpy", "scipy", "SimpleITK"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_evaluation(path: Path) -> Evaluation:
    """Read `evaluation.json`, from its path or its folder.

    Raises:
        UserError: there is none, or it has another format or a newer version.
    """
    file = path / JSON_FILE if path.is_dir() else path
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        below = sorted(one.parent for one in path.glob(f"evaluation/**/{JSON_FILE}"))
        hint = f"it has {', '.join(map(str, below))}" if below else "create one with `viewalign evaluate`"
        raise UserError(f"There is no evaluation at {path}; {hint}.") from None
    except ValueError as problem:
        raise UserError(f"{file} is not valid JSON: {problem}.") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or tree.get("version", 0) > VERSION:
        raise UserError(f"{file} is not an evaluation that this viewalign can read.")
    saved = tree["rules"]
    classes = {name: tuple(values) for name, values in saved["classes"].items()}
    rules = Rules(classes, saved["tolerance_mm"], saved["ignore_label"], saved["class_in_neither_map"])
    cases = tuple(_read_case(case) for case in tree["cases"])
    return Evaluation(rules, cases, tuple(tree["missing"]), tree["excluded"], tuple(tree["without_reference"]))


def _read_case(tree: dict[str, Any]) -> CaseScore:
    nan = float("nan")
    classes = {
        name: ClassScore(**{key: nan if value is None else value for key, value in score.items()})  # type: ignore[arg-type]
        for name, score in tree["classes"].items()
    }
    return CaseScore(**{**tree, "classes": classes})
