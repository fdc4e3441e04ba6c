"""Evaluation: `embed`, `probe` and `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.api.data import stage
from viewalign.errors import UserError, report_os_errors
from viewalign.utils.outputs import check_file, has_keys
from viewalign.utils.settings import checked

if TYPE_CHECKING:
    from viewalign.api.data import Listener
    from viewalign.evaluation.comparison import Comparison, TaskComparison
    from viewalign.evaluation.embedding import Embeddings
    from viewalign.evaluation.results import Evaluation
    from viewalign.tasks.manifest import TaskCase
    from viewalign.tasks.spec import TaskSpec


@report_os_errors()
def embed(
    encoder: str | Path,
    cases: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    on_progress: Listener | None = None,
    **settings: Any,
) -> Embeddings:
    """Compute one embedding per case, deterministically.

    Args:
        encoder: what `load_encoder` takes, or `untrained:NAME`.
        cases: image files of one channel (named by their file names), or a task's folder or manifest.
        out: .npz or .parquet file to write.
        on_progress: called after each case.
        **settings: those of `viewalign settings embed`, such as `patch_size=96`.

    Returns:
        `cases` (N names), `features` (N, C) float32, optionally `maps`, and `excluded`: name and reason.

    Raises:
        UserError: no encoder, an invalid setting, or no usable case.

    Example:
        ```python
        found = viewalign.embed("run", ["a.nii.gz", "b.nii.gz"], patch_size=96)
        print(found.cases, found.features.shape)
        ```
    """
    from viewalign.evaluation.embedding import Embeddings
    from viewalign.evaluation.embedding import embed as embed_cases
    from viewalign.evaluation.encoders import encoder_and_preprocessor
    from viewalign.evaluation.settings import EmbedSettings

    wanted = checked(EmbedSettings, settings)
    if out is not None:
        check_file(
            Path(out), "file of embeddings", (".npz", ".parquet"), lambda file: bool(Embeddings.read(file).cases)
        )
    spec, listed = _cases_of(cases)
    network, preprocessor = encoder_and_preprocessor(
        str(encoder), spec, wanted.patch_size, wanted.spacing, wanted.pool, channels=wanted.channels
    )
    found = embed_cases(
        network,
        preprocessor,
        listed,
        wanted.pool,
        wanted.maps,
        wanted.device,
        stage(on_progress, "Embedding"),
        None if wanted.cache is None else Path(wanted.cache),
        wanted.workers,
    )
    if out is not None:
        found.write(Path(out))
    return found


def _cases_of(cases: str | Path | Sequence[str | Path]) -> tuple[TaskSpec, list[TaskCase]]:
    from viewalign.tasks.manifest import TABLES, TaskCase, read_manifest
    from viewalign.tasks.spec import TaskSpec, read_spec

    if isinstance(cases, str | Path):
        # A manifest lies beside its task.yaml; other files are for `read_spec`.
        spec = read_spec(Path(cases).parent if Path(cases).suffix.lower() in TABLES else cases)
        return spec, read_manifest(cases, spec, targets=False)
    if not cases:
        raise UserError("The list of cases is empty.")
    spec = TaskSpec.model_validate({"name": "images", "kind": "regression", "channels": [{"name": "image"}]})
    return spec, [TaskCase(str(one), str(one), {"image": Path(one)}) for one in cases]


@report_os_errors()
def probe(
    task: str | Path,
    encoders: str | Path | Sequence[str | Path],
    out: str | Path = "probe.json",
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate frozen features with a linear probe or nearest neighbours.

    The same networks without training and simple intensity statistics are evaluated on the same cases.

    Args:
        task: the folder of task.yaml and its manifest.
        encoders: each what `load_encoder` takes, or `untrained:NAME`.
        out: JSON file to write.
        **settings: those of `viewalign settings probe`.

    Returns:
        The content of the file: `features` (metrics by encoder and learner), `curves`, `differences`, and `excluded`
        with name and reason of each unusable case.

    Raises:
        UserError: a missing extra, an invalid setting, or no usable case.

    Example:
        ```python
        found = viewalign.probe("task", ["run"], "probe.json", shots=[5, 10])
        print(found["excluded"])
        ```
    """
    from viewalign.evaluation.probe import run_probe
    from viewalign.evaluation.settings import ProbeSettings

    paths = [encoders] if isinstance(encoders, str | Path) else encoders
    wanted = checked(ProbeSettings, settings)
    check_file(Path(out), "result of a probe", (".json",), has_keys("features", "differences", "encoders"))
    return run_probe([str(one) for one in paths], task, Path(out), wanted)


@report_os_errors()
def evaluate(
    predictions: str | Path,
    references: str | Path,
    out: str | Path | None = None,
    *,
    on_progress: Listener | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate segmentations: Dice and normalised surface distance per class, with bootstrap intervals.

    Args:
        predictions: folder of label maps.
        references: folder of label maps of the same names.
        out: folder for evaluation.json and cases.csv; default `evaluation` in the predictions.
        on_progress: called after each case.
        **settings: those of `viewalign settings evaluate`.

    Returns:
        Scores of each case, `missing` predictions, `excluded` cases; `table()` is a table in text.

    Raises:
        UserError: no such folder, an invalid setting, or no case that can be evaluated.

    Example:
        ```python
        scores = viewalign.evaluate("predictions", "labelsTs", tolerance="tumour=2,oedema=1")
        print(scores.table())
        ```
    """
    from viewalign.evaluation import folders
    from viewalign.evaluation.results import CSV_FILE, JSON_FILE
    from viewalign.evaluation.segmentation_metrics import Rules
    from viewalign.evaluation.settings import EvaluateSettings
    from viewalign.finetuning.segmentation.dataset import names_matching

    wanted = checked(EvaluateSettings, settings)
    places = Path(predictions), Path(references)
    folder = places[0] / "evaluation" if out is None else Path(out)
    summary = folder / JSON_FILE
    check_file(summary, "evaluation", ours=has_keys("format", "rules"))
    check_file(folder / CSV_FILE, "evaluation", ours=lambda _: summary.is_file())
    description = None if wanted.dataset_json is None else Path(wanted.dataset_json)
    classes = folders.classes_of(*places, description)
    value = folders.ignore_of(*places, description) if wanted.ignore is None else wanted.ignore
    classes = {name: values for name, values in classes.items() if values != (value,)}
    rules = Rules(classes, folders.tolerances_of(wanted.tolerance, classes), value, wanted.empty)
    names = names_matching(list(folders.label_files(places[1])), wanted.cases) if wanted.cases else None
    result = folders.evaluate_folder(*places, rules, names, wanted.workers, stage(on_progress, "Evaluating"))
    result.write(folder)
    return result


@report_os_errors()
def compare(a: str | Path, b: str | Path, out: str | Path | None = None) -> Comparison | TaskComparison:
    """Compare two results on the same cases: difference of B and A, 95 % interval, p-value.

    Args:
        a: folder of a fine-tuning, or of a segmentation's evaluation.
        b: another, of the same cases.
        out: a folder for `comparison.json` and `comparison.html`; default none.

    Returns:
        The comparison; `table()` is its text.

    Raises:
        UserError: the folders hold no results, or results of different kinds or of no common cases.

    Example:
        ```python
        print(viewalign.compare("scratch/evaluation/fold-0-of-5", "pretrained/evaluation/fold-0-of-5").table())
        ```
    """
    from viewalign.evaluation.comparison import compare_any
    from viewalign.reports.comparison import write_page
    from viewalign.utils.io import write_json

    file = None if out is None else Path(out) / "comparison.json"
    if file is not None:
        check_file(file, "comparison", ours=has_keys("a", "b", "cases", "left_out"))
    result = compare_any(Path(a), Path(b))
    if file is not None:
        write_page(result, file.parent)
        write_json(file, result.as_json())
    return result
