"""What the views room hands over: a batch of views and the affines that say all about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class ViewBatch:
    """V views of each of B volumes.

    Attributes:
        views: (V, B, C, D, H, W) float32, what networks see; zero where no voxel of the volume is.
        targets: the same views before low resolution, blur and noise: what a reconstruction is compared with.
        to_volume: (V, B, 3, 4) float64 on the CPU, from a view's voxel index to the stored volume's voxel index.
        valid: (V, B, 1, D, H, W) bool, false outside the volume and inside an anonymisation mask.
        volume_id: (B,) int64, the volume's number in the store. Like affines and the other numbers it stays on the
            CPU, where it is read: asking a GPU for it would make every step wait.
        subject_id: (B,) int64, so that two volumes of one person are never taken for strangers.
        sample: (B,) int64, the sample's number in the run, from which its random numbers derive.
        claimed_boxes: (V, B, 2, 3) float64 on the CPU, where the released geometry believes that views overlap; only
            for views drawn by `released.draw_released`, and true of none of them.
        local: further views of the same volumes, of another size; None for most methods.
    """

    views: Tensor
    targets: Tensor
    to_volume: Tensor
    valid: Tensor
    volume_id: Tensor
    subject_id: Tensor
    sample: Tensor
    claimed_boxes: Tensor | None = None
    local: ViewBatch | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """The view's (D, H, W) in voxels."""
        d, h, w = self.views.shape[-3:]
        return (d, h, w)

    @property
    def count(self) -> tuple[int, int]:
        """Views per volume and volumes: (V, B)."""
        return (self.views.shape[0], self.views.shape[1])

    def part(self, start: int, stop: int) -> ViewBatch:
        """Return volumes [start, stop) of the batch."""
        return ViewBatch(
            views=self.views[:, start:stop],
            targets=self.targets[:, start:stop],
            to_volume=self.to_volume[:, start:stop],
            valid=self.valid[:, start:stop],
            volume_id=self.volume_id[start:stop],
            subject_id=self.subject_id[start:stop],
            sample=self.sample[start:stop],
            claimed_boxes=None if self.claimed_boxes is None else self.claimed_boxes[:, start:stop],
            local=None if self.local is None else self.local.part(start, stop),
        )

    def double(self) -> ViewBatch:
        """Return the batch with its images in float64, for proofs."""
        local = None if self.local is None else self.local.double()
        return replace(self, views=self.views.double(), targets=self.targets.double(), local=local)
