"""The demo's probe: the run's encoder, the same network untrained, and intensities, on held-out labelled volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from viewalign.demo import cohort
from viewalign.demo.labelled import Holdout, Labelled, load_cases
from viewalign.device import choose_device
from viewalign.training.folder import RunFolder
from viewalign.transfer.encoder import build_untrained, load_encoder
from viewalign.transfer.probe import Case, ProbeSettings, compare
from viewalign.transfer.voxel_features import EncoderFeatures
from viewalign.volumes.recipe import PrepareSettings

_NAMES = {
    "pretrained": "features of the pretrained encoder",
    "untrained": "features of the same network untrained",
    "intensity": "plain intensities",
}


def probe_run(
    run: RunFolder, held: Holdout, preparation: PrepareSettings, synthetic: bool, say: Callable[[str], None]
) -> None:
    """Probe a run and write its `probe.json`.

    Args:
        run: a finished run.
        held: labelled images that the run has not seen.
        preparation: how the run's store was prepared.
        synthetic: whether the images are the demo's cohort.
        say: told what is being done.

    Raises:
        UserError: the labelled images cannot be used.
    """
    recipe = run.recipe()
    device = choose_device()
    train, test = (_cases(chosen, preparation, say) for chosen in (held.train, held.test))
    result = compare(
        EncoderFeatures(load_encoder(run.root), device),
        EncoderFeatures(build_untrained(recipe, recipe.seed), device),
        train,
        test,
        task=_task(synthetic, train),
        settings=ProbeSettings(seed=recipe.seed),
        note=cohort.NOTE if synthetic else "",
        on_part=lambda name: say(f"  {_NAMES[name]}"),
    )
    result.write(run.root / "probe.json")


def _cases(chosen: Sequence[Labelled], preparation: PrepareSettings, say: Callable[[str], None]) -> list[Case]:
    cases = []
    for case in load_cases(chosen, preparation):
        if isinstance(case, str):
            say(f"  {case}")
        else:
            cases.append(case)
    return cases


def _task(synthetic: bool, train: Sequence[Case]) -> str:
    if synthetic:
        return f"Tissue of a voxel ({', '.join(cohort.LABELS.values())}) on a synthetic cohort"
    labels = sorted({int(label) for case in train for label in set(case.labels.ravel().tolist())})
    return f"Label of a voxel ({', '.join(map(str, labels))})"
