"""A backbone, a pooling and a linear head that starts at chance, or at the mean target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.errors import UserError
from viewalign.evaluation.embedding import Pool, Pooling
from viewalign.networks.backbone import Backbone
from viewalign.networks.resenc import ResEncBackbone
from viewalign.tasks.manifest import Target
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.rng import derive_seed

_LEAST_SPREAD = 0.1
"""Of the mean spread of a vector's parts: what hardly varies among training cases is not blown up."""


class GlobalNetwork(nn.Module):
    """One row of outputs an image: logits of classes, or a standardised value.

    The head's weights begin at 0 and its bias at `bias`, so that the first loss is that of the bias alone: ln K for K
    equally frequent classes, the variance of the targets (1) for a regression. It sees vectors less `centre`, divided
    by `spread`: pooled features differ between cases by a small part of their size, and a linear head on them as they
    are learns slowly (the reason for the batch norm before the head in linear probing, He et al., arXiv:2111.06377).
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, backbone: Backbone, outputs: int, pool: Pool, dropout: float, bias: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = Pooling(backbone, pool)
        self.register_buffer("centre", torch.zeros(self.pooling.width))
        self.register_buffer("spread", torch.ones(self.pooling.width))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.pooling.width, outputs)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor(list(bias), dtype=torch.float32))

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """Map images (N, C, D, H, W) and their valid voxels (N, 1, D, H, W) to float32 (N, outputs)."""
        vector = (self.vectors(images, valid) - self.centre) / self.spread
        out: Tensor = self.head(self.dropout(vector))
        return out.float()

    def vectors(self, images: Tensor, valid: Tensor) -> Tensor:
        """Return pooled features (N, width), float32, as they come out of the encoder."""
        return self.pooling(self.backbone, images, valid)  # type: ignore[no-any-return]

    @torch.no_grad()
    def standardise(self, vectors: Tensor) -> None:
        """Let the head see features of mean 0 and spread 1 over training cases' vectors (N, width)."""
        spread = vectors.float().std(0, correction=0)
        least = _LEAST_SPREAD * spread.mean()
        self.centre.copy_(vectors.float().mean(0))
        self.spread.copy_(spread.clamp(min=least) if least > 0 else torch.ones_like(spread))

    @torch.no_grad()
    def fold_in(self) -> None:
        """Put `centre` and `spread` into the head, which then takes features as they come; outputs stay the same."""
        self.head.weight.div_(self.spread)
        self.head.bias.sub_(self.head.weight @ self.centre)
        self.centre.zero_()
        self.spread.fill_(1.0)


def first_bias(targets: Sequence[Target], spec: TaskSpec, even: bool) -> list[float]:
    """Return the log-odds or log-shares of classes among training targets; zeros where classes are made even."""
    if spec.kind == "regression" or even:
        return [0.0] * spec.outputs
    truth = np.array(targets)
    if spec.kind == "multilabel":
        share = (truth.sum(0) + 0.5) / (len(truth) + 1.0)
        return [float(value) for value in np.log(share / (1 - share))]
    counts = np.bincount(truth.astype(np.int64), minlength=spec.outputs) + 0.5
    return [float(value) for value in np.log(counts / counts.sum())]


def class_weights(targets: Sequence[Target], spec: TaskSpec) -> Tensor | None:
    """Return a weight a class, inverse to its frequency, of mean 1 over cases; None for other kinds of tasks."""
    if spec.kind not in ("binary", "multiclass"):
        return None
    counts = np.bincount(np.array(targets).astype(np.int64), minlength=spec.outputs)
    return torch.tensor(len(targets) / (spec.outputs * np.maximum(counts, 1)), dtype=torch.float32)


def case_losses(outputs: Tensor, targets: Tensor, spec: TaskSpec, smoothing: float) -> Tensor:
    """Return the loss of each case (N,): cross-entropy, its mean over labels, or the squared standardised error."""
    if spec.kind == "regression":
        return (outputs[:, 0] - targets).square()
    if spec.kind == "multilabel":
        soft = targets * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs, soft, reduction="none").mean(1)
    return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="none")


def answer_tensor(outputs: Tensor, spec: TaskSpec, centre: float = 0.0, spread: float = 1.0) -> Tensor:
    """Turn outputs into probabilities (N, K), or values (N, 1) in the target's unit, held within the task's range."""
    if spec.kind == "regression":
        values = outputs * spread + centre
        return values if spec.range is None else values.clamp(*spec.range)
    return outputs.sigmoid() if spec.kind == "multilabel" else outputs.softmax(1)


def answers(outputs: Tensor, spec: TaskSpec, centre: float = 0.0, spread: float = 1.0) -> np.ndarray:
    """Return probabilities (N, K), or values (N,), worked out in float64."""
    told = answer_tensor(outputs.detach().double().cpu(), spec, centre, spread).numpy()
    return told[:, 0] if spec.kind == "regression" else told


_PRIMUS = r"net\.eva\.blocks\.\d+\.attn\.(q_proj|k_proj|v_proj|proj)"
_RESENC = r"net\.encoder\.stages\..*\.conv[12]\.conv"
_MARK = ".lora_"


def attach(backbone: Backbone, rank: int, alpha: float, dropout: float, seed: int) -> None:
    """Put adapters into an encoder, which still answers as before, and freeze everything else in it.

    Args:
        backbone: freshly built.
        rank: of each adapter.
        alpha: adapters are scaled by `alpha / rank`.
        dropout: before each adapter, in training.
        seed: of the adapters' first halves; their second ones begin at 0.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("mode=lora needs one more package: pip install 'viewalign[lora]'.") from None
    places = _RESENC if isinstance(backbone, ResEncBackbone) else _PRIMUS
    # peft's annotation wants a whole number; it divides by the rank and takes any.
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=places)  # type: ignore[arg-type]
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(config, backbone)
    _replace(backbone, {layer.get_base_layer(): layer for layer in _layers(backbone)})
    only_adapters(backbone)


def only_adapters(backbone: Backbone) -> None:
    """Let adapters alone learn."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(_MARK in name)


def merge(backbone: Backbone) -> None:
    """Add what adapters learnt to the weights they are beside, and take them out: a plain network is left."""
    layers = _layers(backbone)
    for layer in layers:
        layer.merge()
    _replace(backbone, {layer: layer.get_base_layer() for layer in layers})


def _layers(backbone: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in backbone.modules() if isinstance(module, LoraLayer)]


def _replace(backbone: nn.Module, new: dict[Any, nn.Module]) -> None:
    """Exchange modules under every name that they have, but not inside what takes their place."""
    inside = set(new.values())
    for parent in list(backbone.modules()):
        if parent not in inside:
            for name, child in parent._modules.items():
                if child in new:
                    parent._modules[name] = new[child]
