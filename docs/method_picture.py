"""The picture of the method, drawn from a real volume: views, their overlap, the compared positions, and the losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from viewalign.reports.pictures import shaded, window
from viewalign.reports.planes import PLANES, Points, Scene, cut, flat, scene, section
from viewalign.views import affines, alignment, lattice
from viewalign.views.batch import ViewBatch

ONE, TWO, SHARED, INK, SOFT = "#e07b00", "#1677c8", "#12a150", "#1d2126", "#5b636d"
HIDDEN = "#d5dbe3"
_AXIAL = PLANES[0]
_CELLS = 7
_BLOCK, _HIDDEN_SHARE = 16, 0.75
_WIDTH, _HEIGHT = 11.6, 5.6
_TOP, _LOW = 3.7, 1.55
"""Heights of the student's and the teacher's row."""


def method_picture(volume: ArrayLike, batch: ViewBatch, out_path: Path, dpi: int = 150) -> Path:
    """Draw an overview of Consistent View Alignment.

    Args:
        volume: (D, H, W) in an LPS frame, from which the views were drawn.
        batch: two views of it, as `views.array.sample_views` gives them.
        out_path: a PNG file.
        dpi: dots per inch of a picture 12 inches wide.
    """
    board = Board(Figure(figsize=(_WIDTH, _HEIGHT), dpi=dpi, facecolor="white"), np.asarray(volume), batch)
    board.draw()
    out_path.parent.mkdir(parents=True, exist_ok=True)
    board.figure.savefig(out_path, pil_kwargs={"optimize": True})
    return out_path


class Board:
    """The drawing board; places are in inches from the lower left.

    Args:
        figure: what is drawn on.
        volume: (D, H, W).
        batch: two views of it.
    """

    def __init__(self, figure: Figure, volume: NDArray[Any], batch: ViewBatch) -> None:
        self.figure, self._volume = figure, volume
        self._views = batch.views[:, 0, 0].numpy()
        maps = batch.to_volume[:, 0]
        cells = (_CELLS, _CELLS, _CELLS)
        places = lattice.lattice_points(maps[:1], maps[1:2], batch.size, cells, 1)[0]
        points = np.stack([affines.apply(affines.invert(one), places).numpy() for one in maps])
        self._scene: Scene = scene(maps.numpy(), batch.size, points)
        self._window = window(self._views[self._views > self._views.min()])
        a, b, _ = alignment.align(
            batch.views[0], batch.views[1], batch.to_volume[0], batch.to_volume[1], batch.size, batch.valid
        )
        self._read = [one[0, :, 0].numpy().reshape(cells) for one in (a, b)]
        self._paper: Any = figure.add_axes((0, 0, 1, 1))
        self._paper.set(xlim=(0, _WIDTH), ylim=(0, _HEIGHT))
        self._paper.axis("off")

    def draw(self) -> None:
        """Draw all of it, from left to right."""
        self._draw_volume((0.2, 1.15, 2.35, 2.9))
        self._draw_view(0, (3.15, _TOP - 0.875, 1.75, 1.75), "View 1", ONE)
        self._draw_view(1, (3.15, _LOW - 0.875, 1.75, 1.75), "View 2", TWO)
        self._draw_masked((5.45, _TOP - 0.875, 1.75, 1.75))
        self._network((7.65, _TOP - 0.375, 1.3, 0.75), "Student", "learns", ONE)
        self._network((7.65, _LOW - 0.375, 1.3, 0.75), "Teacher", "no gradient", TWO)
        self._draw_read(0, (9.65, _TOP - 0.65, 1.3, 1.3), ONE)
        self._draw_read(1, (9.65, _LOW - 0.65, 1.3, 1.3), TWO)
        self._arrows()
        self._headings()
        self._losses()

    def _axes(self, box: tuple[float, float, float, float]) -> Axes:
        x, y, w, h = box
        axes = self.figure.add_axes((x / _WIDTH, y / _HEIGHT, w / _WIDTH, h / _HEIGHT))
        axes.axis("off")
        return axes

    def _show(self, axes: Axes, picture: NDArray[np.uint8]) -> None:
        rows, columns = picture.shape[:2]
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, columns, rows, 0), interpolation="bilinear")
        axes.set(xlim=(0, columns), ylim=(rows, 0))

    def _draw_volume(self, box: tuple[float, float, float, float]) -> None:
        axes = self._axes(box)
        middle = self._scene.common_in_volume().mean(0)
        at, size = round(float(middle[0])), (self._volume.shape[0], self._volume.shape[1], self._volume.shape[2])
        self._show(axes, shaded(cut(self._volume, _AXIAL, at), self._window))
        boxes = [(self._scene.common_in_volume(), SHARED, "-", 0.35)]
        boxes += [(self._scene.box_in_volume(view), colour, "-", 0.0) for view, colour in ((0, ONE), (1, TWO))]
        for corners, colour, style, fill in boxes:
            self._outline(axes, flat(section(corners, 0, at), _AXIAL, size), colour, style, fill)
        for view, colour in ((0, ONE), (1, TWO)):
            outline = flat(section(self._scene.box_in_volume(view), 0, at), _AXIAL, size)
            x, y = outline[np.argmin(outline.sum(1) if view == 0 else -outline.sum(1))]
            self._tag(axes, str(view + 1), x, y, colour)

    def _tag(self, axes: Axes, text: str, x: float, y: float, colour: str) -> None:
        look = {"boxstyle": "circle,pad=0.25", "fc": colour, "ec": "white", "lw": 1.2}
        axes.text(x, y, text, color="white", size=10, weight="bold", ha="center", va="center", bbox=look, clip_on=False)

    def _outline(self, axes: Axes, corners: Points, colour: str, style: str = "-", fill: float = 0.0) -> None:
        closed = np.concatenate([corners, corners[:1]])
        if fill:
            axes.fill(closed[:, 0], closed[:, 1], color=colour, alpha=fill, lw=0)
        axes.plot(closed[:, 0], closed[:, 1], color=colour, ls=style, lw=2.2, clip_on=False, solid_joinstyle="miter")

    def _draw_view(self, view: int, box: tuple[float, float, float, float], name: str, colour: str) -> None:
        axes = self._axes(box)
        at = self._scene.centre_in(view)[0]
        size = self._scene.size
        self._show(axes, shaded(cut(self._views[view], _AXIAL, at), self._window))
        shared = flat(section(self._scene.common_in(view), 0, at), _AXIAL, size)
        self._outline(axes, shared, SHARED)
        dots = flat(self._scene.near(view, _AXIAL, at), _AXIAL, size)
        axes.scatter(dots[:, 0], dots[:, 1], s=7, color="#7dffab", edgecolors="#08361c", linewidths=0.4, zorder=3)
        self._frame(axes, colour)
        self._paper.text(box[0], box[1] + box[3] + 0.09, name, color=colour, size=12, weight="bold")

    def _frame(self, axes: Axes, colour: str) -> None:
        (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, lw=2.4, clip_on=False, zorder=1)

    def _draw_masked(self, box: tuple[float, float, float, float]) -> None:
        axes = self._axes(box)
        at = self._scene.centre_in(0)[0]
        grey = shaded(cut(self._views[0], _AXIAL, at), self._window)
        picture = np.repeat(grey[..., None], 3, axis=2)
        rows, columns = (-(-n // _BLOCK) for n in grey.shape)
        hidden = np.zeros(rows * columns, dtype=bool)
        hidden[np.random.default_rng(2).permutation(rows * columns)[: round(_HIDDEN_SHARE * rows * columns)]] = True
        mask = np.kron(hidden.reshape(rows, columns), np.ones((_BLOCK, _BLOCK), dtype=bool))
        picture[mask[: grey.shape[0], : grey.shape[1]]] = [int(HIDDEN[k : k + 2], 16) for k in (1, 3, 5)]
        self._show(axes, picture)
        self._frame(axes, ONE)
        self._paper.text(box[0], box[1] + box[3] + 0.09, "75 % hidden", color=INK, size=11)

    def _draw_read(self, view: int, box: tuple[float, float, float, float], colour: str) -> None:
        """Show what `align` reads of a view: the view's own intensities stand for its features."""
        axes = self._axes(box)
        values = cut(self._read[view], _AXIAL, _CELLS // 2)
        axes.imshow(values, cmap="viridis", vmin=self._window[0], vmax=self._window[1], extent=(0, 7, 7, 0))
        for k in range(_CELLS + 1):
            axes.plot([0, _CELLS], [k, k], color="white", lw=0.9)
            axes.plot([k, k], [0, _CELLS], color="white", lw=0.9)
        axes.set(xlim=(0, _CELLS), ylim=(_CELLS, 0))
        self._frame(axes, colour)

    def _network(self, box: tuple[float, float, float, float], name: str, words: str, colour: str) -> None:
        from matplotlib.patches import FancyBboxPatch

        x, y, w, h = box
        style = "round,pad=0.02,rounding_size=0.12"
        self._paper.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc="white", ec=colour, lw=2.2))
        self._paper.text(x + w / 2, y + h / 2, name, color=colour, size=13, weight="bold", ha="center", va="center")
        self._paper.text(x + w / 2, y - 0.1, words, color=SOFT, size=9.5, ha="center", va="top")

    def _arrow(self, a: tuple[float, float], b: tuple[float, float], colour: str = SOFT, style: str = "-|>") -> None:
        look = {"arrowstyle": style, "color": colour, "lw": 1.8, "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0}
        self._paper.annotate("", xy=b, xytext=a, arrowprops=look)

    def _arrows(self) -> None:
        self._arrow((2.5, 3.15), (3.02, 3.45), ONE)
        self._arrow((2.5, 2.05), (3.02, 1.75), TWO)
        self._arrow((4.98, _TOP), (5.37, _TOP), ONE)
        self._arrow((7.28, _TOP), (7.57, _TOP), ONE)
        self._arrow((4.98, _LOW), (7.57, _LOW), TWO)
        self._paper.text(6.25, _LOW + 0.1, "nothing hidden", color=INK, size=11, ha="center")
        self._arrow((8.3, _TOP - 0.75), (8.3, _LOW + 0.47), SOFT)
        self._paper.text(8.2, (_TOP + _LOW) / 2, "moving\naverage", color=SOFT, size=10, va="center", ha="right")
        self._arrow((9.02, _TOP), (9.55, _TOP), ONE)
        self._arrow((9.02, _LOW), (9.55, _LOW), TWO)
        self._arrow((10.3, _TOP - 0.72), (10.3, _LOW + 0.72), SHARED, "<|-|>")
        self._paper.text(10.3, _LOW - 0.75, "(drawn with intensities)", color=SOFT, size=9, ha="center", va="top")
        self._paper.text(10.42, (_TOP + _LOW) / 2, "made alike", color=SHARED, size=12, weight="bold", va="center")

    def _headings(self) -> None:
        for x, number, text in (
            (0.2, "1", "An unlabelled volume,\ntwo overlapping views"),
            (3.1, "2", "Places that both\nviews show"),
            (5.45, "3", "The student sees little,\nthe teacher all"),
            (9.05, "4", "Features read at those\nplaces, whatever the flip,\nturn or scale"),
        ):
            self._tag(self._paper, number, x + 0.12, 5.31, INK)
            self._paper.text(x + 0.36, 5.41, text, color=INK, size=11, va="top", linespacing=1.25)

    def _losses(self) -> None:
        """Write the loss under the picture, each term in the colour of what it compares."""
        parts = [
            ("loss  =  ", INK, "normal"),
            ("5 × reconstruction", ONE, "bold"),
            (" of what was hidden   +   ", SOFT, "normal"),
            ("1 × consistency", SHARED, "bold"),
            (" at shared places   +   ", SOFT, "normal"),
            ("0.1 × contrast", INK, "bold"),
            (" with other subjects", SOFT, "normal"),
        ]
        left: Any = None
        for text, colour, weight in parts:
            look = {"color": colour, "weight": weight, "size": 12, "va": "baseline"}
            if left is None:
                left = self._paper.text(0.35, 0.12, text, **look)
            else:
                left = self._paper.annotate(
                    text, (1, 0), xycoords=left, va="bottom", color=colour, weight=weight, size=12
                )
