"""Label maps, recognised by the names of files and folders."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from viewalign.data.sources.naming import words_of

_LABEL_FOLDER = re.compile(
    r"labels?(tr|ts|va|val)?|lbls?|segs?|segmentations?|masks?|msks?|gt|(ground|gold|silver)[-_ ]?(truth|standard).*"
    r"|annotations?|rois|contours",
    re.IGNORECASE,
)
_LABEL_FOLDER_WORD = re.compile(r"masks?|labels|labell?ed|segmentations|delineations|annotations")
"""Mark a folder of label maps at the start or end of its name: `lungMasks`, `lesion_delineations`, `LABELLED_DICOM`."""
_IMAGE_FOLDER = re.compile(r"images?|imgs?", re.IGNORECASE)
_LABEL_WORD = re.compile(
    r"(?:.*(?:mask|masks|msk|msks|seg|segs|segmentation|segmentations|label|labels|labelmap|parcellation)"
    r"|lbl|gt|groundtruth|lesion|lesions|wmh|aparc|wmparc|ribbon|filled|roi|rois|delineation|pve|wm|gm|csf|laendo)\d*"
)
"""The last word of a label map's name; `aseg`, `dseg`, `probseg`, `lesionmask`, `label0001` match too."""
_LABEL_ANYWHERE = re.compile(r"masks?|msk|seg|segmentations?|labels?|labelmap|groundtruth|aseg|aparc")
"""Words that mark a label map anywhere in its name."""


def in_label_folder(relative: PurePosixPath) -> bool:
    """Return whether a file is in a folder of label maps, such as `segmentations`, but not in `images` below it."""
    for part in reversed(relative.parts[:-1]):
        words = words_of(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part))
        if _LABEL_FOLDER.fullmatch(part) or any(map(_LABEL_FOLDER_WORD.fullmatch, (words[0], words[-1]))):
            return True
        if _IMAGE_FOLDER.match(part):
            return False
    return False


def is_label(relative: PurePosixPath, stem: str) -> bool:
    """Return whether a path is like a label map: `…_seg`, `labels-0`, `…_gt`, or a folder such as `segmentations`."""
    words = words_of(stem)
    last = next((word for word in reversed(words) if not word.isdigit()), "")
    return (
        _LABEL_WORD.fullmatch(last) is not None
        or any(map(_LABEL_ANYWHERE.fullmatch, words))
        or in_label_folder(relative)
    )
