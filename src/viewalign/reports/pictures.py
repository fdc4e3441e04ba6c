"""Slices of views, reconstructions and features as PNG data, with outlines drawn over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from viewalign.reports.page import data_url
from viewalign.reports.planes import PLANES, Bool, Grey, Plane, Points, Scene, Size, around, cut, flat, scene, section
from viewalign.reports.run_data import Array

Window = tuple[float, float]
_BACKGROUND = 0.05


@dataclass(frozen=True)
class Slice:
    """One picture: pixels, overlay and alternative text.

    Attributes:
        url: the pixels as a data URL.
        alt: the alternative text.
        ratio: width over height in millimetres.
        width, height: in voxels; drawings use them as their units.
        overlay: lines, points and hatched areas.
    """

    url: str
    alt: str
    ratio: float
    width: int
    height: int
    overlay: Markup


@dataclass(frozen=True)
class Strip:
    """A named row of slices, one per plane."""

    name: str
    slices: list[Slice]


@dataclass(frozen=True)
class Panel:
    """A picture of several strips.

    Attributes:
        title, caption: its text.
        legend: (kind of mark, meaning) of what is drawn over the slices.
        strips: its rows.
    """

    title: str
    caption: str
    legend: list[tuple[str, str]] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)


_VIEW_NEEDS = {"views", "valid", "to_volume"}


def panels(arrays: dict[str, Array]) -> list[Panel]:
    """Draw the panels that the arrays allow; some methods have no mask or no reconstruction."""
    if not set(arrays) >= _VIEW_NEEDS:
        return []
    gallery = Gallery(arrays)
    drawn = [gallery.views() if "points" in arrays else gallery.view()]
    if {"targets", "mask", "reconstruction"} <= set(arrays):
        drawn.append(gallery.reconstruction())
    elif {"targets", "input", "reconstruction"} <= set(arrays):
        drawn.append(gallery.restoration())
    if "features" in arrays:
        drawn.append(gallery.features())
    return drawn


class Gallery:
    """Draws the panels of a pair of views, or of a single view, which has no correspondences.

    Args:
        arrays: from `training.pictures.snapshot`, and optionally `spacing` (3,) of the volume in mm.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays
        self._views, self._valid = arrays["views"].astype(np.float32), arrays["valid"].astype(bool)
        d, h, w = self._views.shape[1:]
        count = self._views.shape[0]
        places = arrays["points"].astype(np.float64) if "points" in arrays else np.zeros((count, 0, 3))
        self._scene: Scene = scene(arrays["to_volume"].astype(np.float64), (d, h, w), places)
        self._numbers = range(count)
        self._spacing = np.asarray(arrays.get("spacing", np.ones(3)), dtype=float)
        seen = [self._views, arrays["targets"].astype(np.float32)] if "targets" in arrays else [self._views]
        self._window = window(np.concatenate([image[self._valid] for image in seen]))

    def views(self) -> Panel:
        """Draw both views in the volume, and each with its overlap and correspondences."""
        strips = [self._volume()] if {"crop", "start"} <= set(self._arrays) else []
        strips += [Strip(self._name(view), [self._view(view, plane) for plane in PLANES]) for view in self._numbers]
        return Panel(
            "Two views of one volume",
            "Above, the position of both views in the volume; below, each view after flips, rotation and scaling, "
            "without intensity augmentation. The dots are the locations at which features are compared: the same dot "
            "of the grid in view 1 and in view 2 is one location of the body.",
            [
                ("box-a", "view 1"),
                ("box-b", "view 2"),
                ("box-common", "shared region"),
                ("dots", "compared locations near the plane"),
                *self._hatched(),
            ],
            strips,
        )

    def view(self) -> Panel:
        """Draw one view in the volume, and the view itself."""
        strips = [self._volume()] if {"crop", "start"} <= set(self._arrays) else []
        strips.append(Strip("View", [self._view(0, plane, dots=False) for plane in PLANES]))
        return Panel(
            "A view of a volume",
            "Above, the position of the view in the volume; below, the view after flips, rotation and scaling, without "
            "intensity augmentation.",
            [("box-a", "view"), *self._hatched()],
            strips,
        )

    def restoration(self) -> Panel:
        """Draw input, output and target of the network."""
        rows = [("Input", "input", "input of the network"), ("Output", "reconstruction", "output of the network")]
        rows.append(("Target", "targets", "target"))
        strips = []
        for name, key, words in rows:
            image = self._arrays[key][0].astype(np.float32)
            strips.append(Strip(name, [self._plain(image, None, words, plane) for plane in PLANES]))
        return Panel(
            "Restoration",
            "The network receives a corrupted view and reconstructs the original. All rows share one grey window.",
            self._hatched(),
            strips,
        )

    def _name(self, view: int) -> str:
        return f"View {view + 1}" if len(self._numbers) > 1 else "View"

    def reconstruction(self) -> Panel:
        """Draw masked input, reconstruction and target of the student."""
        hidden = self._arrays["mask"][0].astype(bool)
        target = self._arrays["targets"][0].astype(np.float32)
        # The decoder's output in visible blocks is in no loss and has no meaning, so the input is shown there.
        made = np.where(hidden if hidden.any() else True, self._arrays["reconstruction"][0].astype(np.float32), target)
        share = f"{hidden.mean():.0%}".replace("%", " %")
        rows: list[tuple[str, Grey, Bool | None, str]] = [
            ("Input of the student", self._views[0], hidden, f"view 1 with {share} of its blocks masked"),
            ("Reconstruction", made, None, "masked blocks as reconstructed, others as the input"),
            ("Target", target, None, "view 1"),
        ]
        strips = [
            Strip(name, [self._plain(image, mask, words, plane) for plane in PLANES])
            for name, image, mask, words in rows
        ]
        return Panel(
            "Reconstruction",
            (
                f"The student receives view 1 with {share} of its blocks masked and reconstructs them; the loss covers "
                "only these, and visible blocks are shown as in the input. "
                if hidden.any()
                else "The student receives all of view 1 and reconstructs it through its bottleneck. "
            )
            + "All rows share one grey window.",
            [*([("masked", "masked")] if hidden.any() else []), *self._hatched()],
            strips,
        )

    def features(self) -> Panel:
        """Draw the views and the principal components of their features as colours."""
        strips = []
        for view in self._numbers:
            name = self._name(view)
            strips.append(Strip(name, [self._view(view, plane, dots=False) for plane in PLANES]))
            strips.append(
                Strip(f"Features of {name[:1].lower()}{name[1:]}", [self._colours(view, plane) for plane in PLANES])
            )
        if len(self._numbers) == 1:
            words = "The first three principal components of the encoder's features, as red, green and blue."
            return Panel("Features as colours", words, self._hatched(), strips)
        return Panel(
            "Features as colours",
            "The first three principal components of the teacher's dense features of both views, as red, green and "
            "blue; their sign and order are arbitrary. Within the shared region, the same anatomy should have the same "
            "colour in both views.",
            [("box-common", "shared region"), *self._hatched()],
            strips,
        )

    def _hatched(self) -> list[tuple[str, str]]:
        return [] if self._valid.all() else [("invalid", "padding or anonymised: excluded from all losses")]

    def _volume(self) -> Strip:
        """Draw the volume around the views; parts of boxes outside of the volume are hatched."""
        crop, start = self._arrays["crop"].astype(np.float32), self._arrays["start"].astype(np.float64)
        views = [self._scene.box_in_volume(view) - start for view in self._numbers]
        shades = window(crop[crop > crop.min()] if np.ptp(crop) > 0 else crop)
        crop, outside, moved = around(crop, np.concatenate(views))
        common = self._scene.common_in_volume() - start
        boxes = list(zip(("box-a", "box-b"), views, strict=False))
        boxes += [("box-common", common)] if len(views) > 1 else []
        size: Size = (crop.shape[0], crop.shape[1], crop.shape[2])
        middle = common.mean(0) + moved
        slices = []
        for plane in PLANES:
            at = int(np.clip(round(float(middle[plane.axis])), 0, size[plane.axis] - 1))
            lines = [area("invalid", cut(outside, plane, at))]
            lines += [polygon(kind, flat(section(box + moved, plane.axis, at), plane, size)) for kind, box in boxes]
            whose = "boxes of both views and of the region they share" if len(views) > 1 else "view's box"
            words = f"{plane.name} slice of the volume with the {whose}."
            slices.append(self._slice(shaded(cut(crop, plane, at), shades), words, plane, Markup("").join(lines)))
        return Strip("Volume", slices)

    def _view(self, view: int, plane: Plane, dots: bool = True) -> Slice:
        at = self._scene.centre_in(view)[plane.axis]
        outline = section(self._scene.common_in(view), plane.axis, at)
        alone = len(self._numbers) == 1
        lines = [area("invalid", cut(~self._valid[view], plane, at))]
        if not alone:
            lines.append(polygon("box-common", flat(outline, plane, self._scene.size)))
        if dots:
            lines.append(points(flat(self._scene.near(view, plane, at), plane, self._scene.size)))
        shared = "" if alone else " with the shared region" + (" and its lattice" if dots else "")
        words = f"{plane.name} slice of view {view + 1}{shared}."
        pixels = shaded(cut(self._views[view], plane, at), self._window)
        return self._slice(pixels, words, plane, Markup("").join(lines))

    def _plain(self, image: Grey, mask: Bool | None, words: str, plane: Plane) -> Slice:
        at = self._scene.centre_in(0)[plane.axis]
        over = [area("invalid", cut(~self._valid[0], plane, at))]
        if mask is not None:
            over.insert(0, area("masked", cut(mask, plane, at)))
        pixels = shaded(cut(image, plane, at), self._window)
        return self._slice(pixels, f"{plane.name} slice: {words}.", plane, Markup("").join(over))

    def _colours(self, view: int, plane: Plane) -> Slice:
        maps = np.moveaxis(self._arrays["features"][view].astype(np.float32), 0, -1)
        at = self._scene.centre_in(view)[plane.axis]
        cells, voxels = maps.shape[plane.axis], self._scene.size[plane.axis]
        # A cell of a grid of G cells covers S/G voxels, and its centre is their centre.
        cell = int(np.clip(round((at + 0.5) * cells / voxels - 0.5), 0, cells - 1))
        size = self._scene.size
        rows, columns = size[plane.rows], size[plane.columns]
        pixels = np.clip(cut(maps, plane, cell) * 255, 0, 255).astype(np.uint8)
        over = [area("invalid", cut(~self._valid[view], plane, at))]
        if len(self._numbers) > 1:
            shared = section(self._scene.common_in(view), plane.axis, at)
            over.append(polygon("box-common", flat(shared, plane, size)))
        words = f"{plane.name} slice of the features of view {view + 1} as colours."
        return self._slice(pixels, words, plane, Markup("").join(over), (rows, columns))

    def _slice(
        self,
        pixels: NDArray[np.uint8],
        alt: str,
        plane: Plane,
        overlay: Markup,
        voxels: tuple[int, int] | None = None,
    ) -> Slice:
        rows, columns = voxels or (pixels.shape[0], pixels.shape[1])
        ratio = columns * self._spacing[plane.columns] / (rows * self._spacing[plane.rows])
        return Slice(data_url(pixels), alt, round(float(ratio), 4), columns, rows, overlay)


def window(values: NDArray[np.floating]) -> Window:
    """Return the grey window of an image: its range without outliers, so that bright fat or bone hides no tissue.

    The range is from the 1st to the 99.5th percentile. Within it, voxels above the lowest twentieth are the body; the
    window ends six lower quartile distances above their median, which is four deviations of a normal distribution and
    holds while less than half of the body is brighter than the rest.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (1, 99.5)))
    body = finite[finite > low + _BACKGROUND * (high - low)]
    if body.size:
        lower, median = (float(v) for v in np.percentile(body, (25, 50)))
        high = min(high, median + 6 * (median - lower)) if median > lower else high
    return low, high if high > low else low + 1.0


def shaded(image: Array, limits: Window) -> NDArray[np.uint8]:
    """Return an image in 256 greys; what is not finite is black."""
    low, high = limits
    share = np.nan_to_num((image.astype(np.float32) - low) / (high - low), nan=0.0)
    grey: NDArray[np.uint8] = (np.clip(share, 0, 1) * 255).round().astype(np.uint8)
    return grey


def hatchings(drawn: list[Panel]) -> list[int]:
    """Return the widths of the pictures, each of which may refer to a hatching of that name."""
    return sorted({piece.width for panel in drawn for strip in panel.strips for piece in strip.slices})


def _path(kind: str, commands: Iterable[str]) -> Markup:
    """Draw a line twice, with a dark rim beneath, so that it is visible on any tissue."""
    d = "".join(commands)
    return Markup('<path class="rim" d="{0}"/><path class="{1}" d="{0}"/>').format(d, kind) if d else Markup("")


def polygon(kind: str, corners: Points) -> Markup:
    """Draw a closed line through (N, 2) pixels; empty for no pixels."""
    return _path(kind, ["M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in corners) + "Z"] if len(corners) else [])


def points(where: Points) -> Markup:
    """Draw dots at (N, 2) pixels; dots that coincide are drawn once."""
    once = sorted({(round(float(x), 2), round(float(y), 2)) for x, y in where})
    return _path("dots", [f"M{x} {y}h0" for x, y in once])


def area(kind: str, mask: Array) -> Markup:
    """Cover the true pixels of a mask (rows, columns) by rectangles of one look; runs that rows repeat are joined."""
    open_runs: dict[tuple[int, int], int] = {}
    done = []
    for y, row in enumerate([*np.asarray(mask, dtype=np.int8), np.zeros(mask.shape[1], dtype=np.int8)]):
        steps = np.flatnonzero(np.diff(row, prepend=0, append=0)).tolist()
        runs = set(zip(steps[::2], steps[1::2], strict=True))
        ended = [run for run in open_runs if run not in runs]
        done += [f"M{a} {open_runs.pop((a, b))}H{b}V{y}H{a}Z" for a, b in ended]
        open_runs |= {run: y for run in runs if run not in open_runs}
    # A pattern is as large as its voxels, so that each picture's hatching is named after its width.
    look = Markup(' fill="url(#hatch-{})"').format(mask.shape[1]) if kind == "invalid" else ""
    return Markup('<path class="{}" d="{}"{}/>').format(kind, "".join(done), look) if done else Markup("")
