"""Several files of a session as the channels of one image, such as the four sequences of BraTS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from viewalign.data.catalogue import Record
from viewalign.data.sources import Exclusion
from viewalign.errors import UserError
from viewalign.utils.overrides import similar
from viewalign.utils.text import counted


def stacked(records: Sequence[Record], channels: Sequence[str]) -> tuple[list[Record], list[Exclusion]]:
    """Return one record per session with all channels, and why the other images are not used.

    Args:
        records: the images of a catalogue.
        channels: modalities in the order of the channels; case does not matter. Without any, every image is its own.

    Raises:
        UserError: no image has one of these modalities.
    """
    if not channels:
        return list(records), []
    _check_modalities(records, channels)
    sessions: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        sessions.setdefault((record.dataset, record.subject, record.session), []).append(record)
    found, excluded = [], []
    for images in sessions.values():
        stack, rest = _stack(images, channels)
        found += [] if stack is None else [stack]
        excluded += rest
    return found, excluded


def _check_modalities(records: Sequence[Record], channels: Sequence[str]) -> None:
    known = Counter(record.modality for record in records)
    folded = {name.casefold() for name in known}
    for name in channels:
        if name.casefold() not in folded:
            listed = ", ".join(f"{modality} ({counted(count, 'image')})" for modality, count in known.most_common())
            raise UserError(f"channels: no image has the modality '{name}'{similar(name, known)}. There are: {listed}.")


def _stack(images: Sequence[Record], channels: Sequence[str]) -> tuple[Record | None, list[Exclusion]]:
    """Stack the images of a session; returns None if it does not have exactly one of each channel."""
    of = {name: [image for image in images if image.modality.casefold() == name.casefold()] for name in channels}
    chosen = [image for found in of.values() for image in found]
    others = [
        Exclusion(str(image.path), f"its modality {image.modality} is not in channels={','.join(channels)}")
        for image in images
        if image not in chosen
    ]
    absent = [name for name, found in of.items() if not found]
    several = [name for name, found in of.items() if len(found) > 1]
    if absent or several:
        reason = f"its session has no {' and no '.join(absent)}" if absent else f"its session has several {several[0]}"
        reason += f", and channels={','.join(channels)} needs one image of each"
        return None, [*others, *(Exclusion(str(image.path), reason) for image in chosen)]
    first = chosen[0]
    name = "-".join(channels)
    return replace(first, name=name, modality=name, channels=tuple(chosen)), others
