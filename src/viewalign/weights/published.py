"""Public 3D encoders that can be loaded by name: source, pretraining, and what is known about the files.

None of these files was downloaded for this package, as no hub was reachable. Layouts, token orders and preparations
are those of the programs that wrote them, addresses and licences those of their model cards (read in 2026), and
checksums were recorded by others. `tried` describes what was tested instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from viewalign.errors import UserError
from viewalign.utils.overrides import similar
from viewalign.utils.shapes import Size
from viewalign.weights.token_order import Order


@dataclass(frozen=True)
class PublishedEncoder:
    """A public encoder.

    Attributes:
        source: `hf:OWNER/NAME[/FILE]` or `zenodo:RECORD[/FILE]`.
        network: a name of `networks.registry`; empty if the source has several files; one of them must be named.
        method: how it was pretrained.
        data: what it was pretrained on.
        spacing: voxel size of its images in mm; None if each image kept its own.
        preparation: normalisation and orientation of its images; they have one channel.
        licence: as the Hugging Face Hub abbreviates it; empty if unknown.
        cite: papers.
        sha256: of the file, recorded by others; empty if unknown.
        order: token order of a Primus, if its trainer's name does not determine it.
        size: view size (D, H, W), if it is not in the file.
        tried: what was tested in place of the file itself.
    """

    source: str
    network: str
    method: str
    data: str
    spacing: tuple[float, float, float] | None
    preparation: str
    licence: str
    cite: str
    sha256: str = ""
    order: Order | None = None
    size: Size | None = None
    tried: str = "a file created in this layout"


_OPENMIND = "OpenMind (114,570 brain MRI volumes)"
_ZSCORE = "z-score over the non-zero crop, axes as in the files"
_MILLIMETRE = (1.0, 1.0, 1.0)
_OPENMIND_PAPER = "arXiv:2412.17041"


def _openmind(
    suffix: str, network: str, method: str, paper: str, sha256: str = "", order: Order | None = None
) -> PublishedEncoder:
    folder = {"resenc-l": "ResEncL", "primus-m": "PrimusM"}[network]
    source, papers = f"hf:MIC-DKFZ/{folder}-OpenMind-{suffix}", f"{_OPENMIND_PAPER}, {paper}"
    return PublishedEncoder(
        source, network, method, _OPENMIND, _MILLIMETRE, _ZSCORE, "cc-by-4.0", papers, sha256, order
    )


def _fomo(data: str) -> PublishedEncoder:
    return PublishedEncoder(
        f"hf:FOMO-MRI/AMAES_resenc_b_{data.lower()}/resenc_unet_b.ckpt",
        "resenc-l",
        "Masked autoencoder with augmentation (AMAES), without skip connections",
        f"{data} (brain MRI)",
        None,
        "z-score of the volume, RAS",
        "",
        "arXiv:2408.00640",
        size=(160, 160, 160),
        tried="a file created in this layout with the networks of gardening_tools 0.3.5",
    )


# In nnssl all Primus variants except SimMIM are based on its masked autoencoder, with tokens ordered (H, D, W).
ENCODERS: dict[str, PublishedEncoder] = {
    "openmind-mae-resenc-l": _openmind(
        *("MAE", "resenc-l", "Masked autoencoder", "arXiv:2410.23132"),
        sha256="7a847af785635335c00e711d16ff4d225d86ecd5992b14c059df2b520e3ee933",
    ),
    "openmind-voco-resenc-l": _openmind("VoCo", "resenc-l", "VoCo", "arXiv:2402.17300"),
    "openmind-simclr-resenc-l": _openmind("SimCLR", "resenc-l", "SimCLR", "arXiv:2002.05709"),
    "openmind-fusion-resenc-l": _openmind("VF", "resenc-l", "Volume Fusion", "arXiv:2306.16925"),
    "openmind-swinunetr-resenc-l": _openmind("SwinUNETR", "resenc-l", "SwinUNETR's three tasks", "arXiv:2111.14791"),
    "openmind-mae-primus-m": _openmind(
        *("MAE", "primus-m", "Masked autoencoder", "arXiv:2503.01835"),
        sha256="b866ac5f61d7e90d3a6cbb00a759ffc9d73beb5e63baa6b3cd654671ebc9a552",
        order="hdw",
    ),
    "openmind-simmim-primus-m": _openmind("SimMIM", "primus-m", "SimMIM", "arXiv:2111.09886", order="dhw"),
    "openmind-simclr-primus-m": _openmind("SimCLR", "primus-m", "SimCLR", "arXiv:2002.05709", order="hdw"),
    "openmind-fusion-primus-m": _openmind("VF", "primus-m", "Volume Fusion", "arXiv:2306.16925", order="hdw"),
    "openmind-mae": PublishedEncoder(
        "zenodo:15235730", "", "Masked autoencoder", _OPENMIND, _MILLIMETRE, _ZSCORE, "", _OPENMIND_PAPER
    ),
    "ssl3d": PublishedEncoder(
        "hf:MIC-DKFZ/SSL3D-checkpoints",
        "",
        "entries of the SSL3D challenge, by track and team",
        _OPENMIND,
        _MILLIMETRE,
        _ZSCORE,
        "",
        _OPENMIND_PAPER,
    ),
    "fomo300k-amaes-resenc-l": _fomo("FOMO300K"),
    "fomo260k-amaes-resenc-l": _fomo("FOMO260K"),
}
"""Every encoder by name."""


def published(name: str) -> PublishedEncoder:
    """Return a public encoder.

    Raises:
        UserError: there is none of this name.
    """
    if name not in ENCODERS:
        raise UserError(f"There is no encoder '{name}'{similar(name, ENCODERS)}. `viewalign encoders` lists them.")
    return ENCODERS[name]


def list_encoders() -> dict[str, PublishedEncoder]:
    """Return the public encoders that `load_encoder` and all commands accept by name.

    Example:
        ```python
        print(viewalign.list_encoders()["openmind-mae-resenc-l"].preparation)
        ```
    """
    return dict(ENCODERS)
