"""Who judges a pretrained encoder, and how: every kind of judge, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from viewalign.config import Recipe
from viewalign.device import choose_device
from viewalign.errors import UserError
from viewalign.study.labelled import Labelled, LabelledCase, read_case
from viewalign.study.segmenting import Segmenting
from viewalign.study.settings import FeatureJudge, PlaceJudge, SegmentationJudge, Study, TunedJudge, VoxelJudge
from viewalign.study.taskjudges import TaskJudging
from viewalign.transfer.encoder import Encoder, build_untrained, load_encoder
from viewalign.transfer.probe import Case, ProbeSettings, probe
from viewalign.transfer.retrieval import find_places
from viewalign.transfer.voxel_features import EncoderFeatures
from viewalign.volumes.recipe import PrepareSettings


@dataclass(frozen=True)
class Bench:
    """All judges of a study.

    Attributes:
        study: its settings.
        labelled: labelled cases, where there are some.
        preparation: how the images of pretraining are prepared.
        out: the study's folder.
    """

    study: Study
    labelled: Labelled | None
    preparation: Mapping[str, Any]
    out: Path

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Check everything about judges that can be known before anything is trained.

        Args:
            recipes: one of every arm.

        Raises:
            UserError: what does not fit, with the judge's name.
        """
        for name, judge in self.study.judges.items():
            try:
                if isinstance(judge, VoxelJudge):
                    self._cases.shots(judge.shots, judge.draw, 0)
                elif isinstance(judge, SegmentationJudge):
                    self._segmenting(judge).check(recipes)
                elif isinstance(judge, FeatureJudge | TunedJudge):
                    self._on_task(judge).check(recipes)
            except UserError as problem:
                raise UserError(f"judges.{name}: {problem}") from None

    def depends_on(self, name: str) -> list[Any]:
        """Return plain values of all that a judge's verdict depends on beside the encoder."""
        judge = self.study.judges[name]
        told = judge.model_dump(mode="json", exclude={"keep"})
        if isinstance(judge, FeatureJudge | TunedJudge):
            return [{**told, "task": None}, self._on_task(judge).identity()]
        files = [[case.identity for case in group] for group in (self._cases.learn, self._cases.test)]
        classes = [self._cases.classes] if isinstance(judge, SegmentationJudge) else []
        return [told, files, *classes]

    def judge(self, name: str, folder: Path, run: Path | None, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Judge an encoder.

        Args:
            name: the judge's.
            folder: the cell's.
            run: of the pretraining; None for the untrained network.
            recipe: of the pretraining.
            seed: of the pretraining.

        Returns:
            `measures`, and where they are known `cases`: values of each case.

        Raises:
            UserError: it cannot be judged.
        """
        judge = self.study.judges[name]
        if self.study.threads:
            torch.set_num_threads(self.study.threads)
        if isinstance(judge, SegmentationJudge):
            return self._segmenting(judge).judge_cell(folder, run, recipe, seed)
        if isinstance(judge, FeatureJudge | TunedJudge):
            return self._on_task(judge).judge_cell(folder, run, recipe, seed)
        encoder = build_untrained(recipe, seed) if run is None else load_encoder(run)
        if isinstance(judge, VoxelJudge):
            return self._probe_voxels(judge, encoder, seed)
        return self._find_places(judge, encoder)

    @property
    def _cases(self) -> Labelled:
        if self.labelled is None:
            raise UserError("it needs labelled images: name them in data.labelled")
        return self.labelled

    def _segmenting(self, judge: SegmentationJudge) -> Segmenting:
        return Segmenting(judge, self._cases, self.preparation, self.out, self.study.threads)

    def _on_task(self, judge: FeatureJudge | TunedJudge) -> TaskJudging:
        return TaskJudging(judge, Path(self.study.data.root), self.preparation, self.out, self.study.device)

    def _probe_voxels(self, judge: VoxelJudge, encoder: Encoder, seed: int) -> dict[str, Any]:
        test = self._read(self._cases.test)
        learn = self._read(self._cases.shots(judge.shots, judge.draw, seed))
        settings = ProbeSettings(0, judge.per_class, judge.test_voxels)
        score = probe(EncoderFeatures(encoder, choose_device(self.study.device)), learn, test, settings)
        each = {case.name: {"dice": value} for case, value in zip(test, score.cases, strict=True)}
        return {"measures": {"dice": score.dice, "balanced_accuracy": score.balanced_accuracy}, "cases": each}

    def _find_places(self, judge: PlaceJudge, encoder: Encoder) -> dict[str, Any]:
        images = [case.image for case in self._read(self._cases.test)]
        places = find_places(encoder, images, seed=1, cells=judge.cells, device=choose_device(self.study.device))
        distance = mean(places.distances)
        # Smaller views have nearer places, so that arms with views of other sizes compare by the ratio alone.
        relative = distance / mean(places.chance)
        return {"measures": {"hit": mean(places.hits), "distance": distance, "relative_distance": relative}}

    def _read(self, cases: Sequence[LabelledCase]) -> list[Case]:
        settings = PrepareSettings.model_validate(self.preparation)
        return [read_case(case, settings, self.out / "data" / "cases") for case in cases]
