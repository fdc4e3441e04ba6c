"""What an evaluation came to: means with intervals, a JSON that says how it was done, and a CSV of cases."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from viewalign import __version__
from viewalign.errors import UserError
from viewalign.evaluation.segmentation_metrics import CaseScore, ClassScore, Rules
from viewalign.evaluation.statistics import bootstrap_interval
from viewalign.utils.io import atomic_write

Metric = Literal["dice", "nsd"]
METRICS: tuple[Metric, ...] = ("dice", "nsd")
FORMAT, VERSION = "viewalign-evaluation", 1
JSON_FILE, CSV_FILE = "evaluation.json", "cases.csv"
MEAN = "mean"
"""The name of the mean over classes among the classes."""


@dataclass(frozen=True)
class Summary:
    """A mean over cases.

    Attributes:
        mean: NaN where no case counts.
        interval: 95 % bootstrap interval over cases; None below five.
        cases: how many count.
    """

    mean: float
    interval: tuple[float, float] | None
    cases: int

    def text(self) -> str:
        """Write it as `0.812 (0.790–0.833)`."""
        if not math.isfinite(self.mean):
            return "-"
        ends = "" if self.interval is None else f" ({self.interval[0]:.3f}–{self.interval[1]:.3f})"
        return f"{self.mean:.3f}{ends}"


@dataclass(frozen=True)
class Evaluation:
    """Predictions judged.

    Attributes:
        rules: how.
        cases: scores, in the order of names.
        missing: expected cases without a prediction. They count in no mean.
        refused: cases that could not be judged, and why.
        extra: predictions without a reference.
    """

    rules: Rules
    cases: tuple[CaseScore, ...]
    missing: tuple[str, ...] = ()
    excluded: Mapping[str, str] | None = None
    extra: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every expected case was judged."""
        return not self.missing and not self.excluded

    def values(self, metric: Metric, label: str = MEAN) -> NDArray[np.float64]:
        """Return a class's values over cases, or the mean over classes of each case; NaN where it does not count."""
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
        """Return a table for a terminal: classes, Dice, surface distance and its tolerance."""
        rows = [("class", "Dice", "NSD", "tolerance")]
        for label in [*self.rules.classes, MEAN]:
            limit = "" if label == MEAN else f"{self.rules.tolerances[label]:g} mm"
            rows.append((label, self.summary("dice", label).text(), self.summary("nsd", label).text(), limit))
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def write(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write `evaluation.json` and `cases.csv`.

        Args:
            folder: made where it is not there.
            facts: anything else to keep with it.

        Raises:
            UserError: it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / JSON_FILE) as partial:
                text = json.dumps(self.as_json(facts), indent=1, ensure_ascii=False)
                partial.write_text(text + "\n", encoding="utf-8")
                with atomic_write(folder / CSV_FILE) as rows:
                    self._write_csv(rows)
        except OSError as problem:
            raise UserError(f"The evaluation cannot be written to {folder}: {problem.strerror}.") from None

    def as_json(self, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return everything as plain values, with versions, hashes and rules; what does not count is null."""
        labels = [*self.rules.classes, MEAN]
        tree: dict[str, Any] = _plain(
            {
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
        )
        return tree

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "class", "dice", "nsd", "tolerance_mm", "reference_voxels", "prediction_voxels"])
            for case in self.cases:
                for label, score in case.classes.items():
                    values = ["" if math.isnan(value) else f"{value:.6f}" for value in (score.dice, score.nsd)]
                    counts = [score.reference_voxels, score.prediction_voxels]
                    writer.writerow([case.name, label, *values, self.rules.tolerances[label], *counts])


def _plain(tree: Any) -> Any:
    """Replace NaN by None, which JSON has a word for."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _versions() -> dict[str, str]:
    found = {"viewalign": __version__}
    for name in ("monai", "numpy", "scipy", "SimpleITK"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation that was written.

    Args:
        path: the JSON, or the folder that holds it.

    Raises:
        UserError: none there, or of another kind or a newer version.
    """
    file = path / JSON_FILE if path.is_dir() else path
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"There is no evaluation at {path}; make one with `viewalign evaluate`.") from None
    except ValueError as problem:
        raise UserError(f"{file} is no JSON: {problem}.") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or tree.get("version", 0) > VERSION:
        raise UserError(f"{file} is no evaluation that this viewalign reads.")
    told = tree["rules"]
    classes = {name: tuple(values) for name, values in told["classes"].items()}
    rules = Rules(classes, told["tolerance_mm"], told["ignore_label"], told["class_in_neither_map"])
    cases = tuple(_case(case) for case in tree["cases"])
    return Evaluation(rules, cases, tuple(tree["missing"]), tree["excluded"], tuple(tree["without_reference"]))


def _case(tree: dict[str, Any]) -> CaseScore:
    nan = float("nan")
    classes = {
        name: ClassScore(
            nan if score["dice"] is None else score["dice"],
            nan if score["nsd"] is None else score["nsd"],
            score["reference_voxels"],
            score["prediction_voxels"],
        )
        for name, score in tree["classes"].items()
    }
    return CaseScore(tree["name"], classes, tree["prediction_sha256"], tree["reference_sha256"], tree["note"])
