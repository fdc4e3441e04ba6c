"""Peak memory of a training step on a simulated GPU: its tensors are counted, nothing is computed.

torch's fake tensors have shape, type and device but no values, and follow CUDA's autocast rules. The peak of all
tensors of a step is counted, but not CUDA's context, cuDNN's workspaces, or fragmentation.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_iter, tree_map

from viewalign.config import Recipe
from viewalign.methods.base import Method
from viewalign.methods.registry import build_method, requirements_of
from viewalign.networks.backbone import backbones
from viewalign.training import accumulate
from viewalign.training.throughput import artificial_samples
from viewalign.utils.precision import autocast
from viewalign.views.batch import ViewBatch, build_views

_GRANULE = 512
"""Bytes to which CUDA's allocator rounds sizes up."""

_aten = torch.ops.aten
_ATTENTION = torch.nn.functional.scaled_dot_product_attention

RESERVED = 1_500_000_000
"""Bytes that are not counted, for CUDA's context and cuDNN's workspaces: assumed, not measured."""


def simulated_peak(recipe: Recipe, precision: str, processes: int = 1) -> int:
    """Return the peak bytes of one step of a recipe: parameters, optimizer state, batch and activations.

    It takes ten to twenty seconds on a CPU for the large networks, for any batch.

    Args:
        recipe: with its `runtime.accumulate` and `runtime.recompute`.
        precision: fp32, bf16, fp16 or fp64.
        processes: over which the batch is divided.
    """
    if precision == "fp64":
        return 2 * simulated_peak(recipe, "fp32", processes)
    if recipe.masking.whole > 0:  # a step in which all views happen to be whole needs the most
        recipe = recipe.model_copy(update={"masking": recipe.masking.model_copy(update={"whole": 1.0})})
    group, forward = requirements_of(recipe).group, partial(autocast, "cuda", precision)
    small = build_views(artificial_samples(recipe, group), recipe.views.patch_size, None, torch.device("cpu"))
    with _without_driver(), _Counted() as counted:
        with torch.device("cuda"):
            method = build_method(recipe)
        for network in backbones(method):
            network.recompute = recipe.runtime.recompute
        batch = _enlarged(small, recipe.batch // processes)
        # The optimizer's state, and the next batch, which is built during the step.
        alive = (_moments(method, recipe), _enlarged(small, recipe.batch // processes))
        _step(method, batch, recipe.runtime.accumulate, forward)
        del alive
    return counted.peak


def _step(method: Method, batch: ViewBatch, parts: int, forward: accumulate.Autocast) -> None:
    """Run a step as the training loop does."""
    if parts > 1:
        accumulate.step_in_parts(method, batch, parts, forward)
        return
    with forward():
        loss = method(batch).loss
    loss.backward()


def _moments(method: Method, recipe: Recipe) -> list[Tensor]:
    """Return the optimizer's state of the trainable parameters."""
    count = 2 if recipe.optim.name == "adamw" else 1
    return [torch.empty_like(p) for p in method.parameters() if p.requires_grad for _ in range(count)]


def _enlarged(batch: ViewBatch, volumes: int) -> ViewBatch:
    """Return a batch of `volumes`: images on the GPU, affines and numbers on the CPU as in training."""
    times, changed = volumes // batch.count[1], dict[str, Any]()
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, ViewBatch):
            changed[field.name] = _enlarged(value, volumes)
        elif field.name in ("views", "targets", "valid"):
            shape = (value.shape[0], volumes, *value.shape[2:])
            changed[field.name] = torch.empty(shape, dtype=value.dtype, device="cuda")
        elif field.name in ("to_volume", "claimed_boxes") and value is not None:
            changed[field.name] = torch.cat([value] * times, 1)
        elif value is not None:
            changed[field.name] = torch.arange(volumes)
    return replace(batch, **changed)


class _Counted(FakeTensorMode):
    """Counts the bytes of tensors on the GPU; operations on the CPU run as usual."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.now = self.peak = 0
        self._seen = set[int]()
        self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten._pin_memory.default:
            return args[0]
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type == "cuda"
        if not there and not any(isinstance(value, FakeTensor) for value in tree_iter((args, kwargs))):
            return func(*args, **kwargs)
        args, kwargs = tree_map(
            _own_storage, (args, {**kwargs, "generator": None} if "generator" in kwargs else kwargs)
        )
        if func is _aten._local_scalar_dense.default:
            return _number(args[0])
        outer, self._inside = not self._inside, True
        try:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._inside = not outer
        if outer:
            for value in tree_iter(out):
                self._note(value)
        if isinstance(out, Tensor) and out.device.type == "cpu":
            return torch.zeros(out.shape, dtype=out.dtype)  # a value read from the GPU: any value will do
        return out

    def _note(self, tensor: Any) -> None:
        """Count a tensor's storage once, until it is freed."""
        if not isinstance(tensor, Tensor) or tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._seen:
            size = -(-storage.nbytes() // _GRANULE) * _GRANULE
            self._seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _own_storage(value: Any) -> Any:
    """Copy a CPU tensor that is a view, which torch does not convert to a fake tensor in this mode."""
    views = isinstance(value, Tensor) and not isinstance(value, FakeTensor) and value._is_view()
    return value.detach().clone() if views else value


def _number(tensor: Tensor) -> float | int | bool:
    """Return a placeholder for a number that is read from the GPU."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any) -> Tensor:
    """Run the fused attention of a GPU, without the matrix of all pairs; torch would query the GPU for it."""
    if args or settings.get("attn_mask") is not None:
        return _ATTENTION(query, key, value, *args, **settings)
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    if query.dtype == torch.float32:
        out = _aten._scaled_dot_product_efficient_attention(query, key, value, None, torch.is_grad_enabled())
    else:
        out = _aten._scaled_dot_product_flash_attention(query, key, value)
    fused: Tensor = out[0]
    return fused


@contextmanager
def _without_driver() -> Iterator[None]:
    """Enable autocast for CUDA and backward passes on a machine without a GPU."""
    with (
        warnings.catch_warnings(action="ignore"),  # about fake tensors, when a teacher is copied
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused_attention),
        mock.patch("torch.Generator", return_value=torch.Generator()),
        Engine().replace_autograd(),
    ):
        yield


Slots = dict[Any, list[Tensor | None]]
"""For each node the gradients of its outputs that are known so far."""


class Engine:
    """A backward pass node by node, which frees the tensors that a node saved once it has run."""

    def __init__(self) -> None:
        self._read: list[list[Tensor]] = []

    @contextmanager
    def replace_autograd(self) -> Iterator[None]:
        """Run every backward pass in this context with this engine; graphs must be built in it too."""
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda saved: [saved], self._unpack),
            mock.patch("torch.autograd.backward", self.backward),
            # `checkpoint` stores recomputed tensors under the number of the backward pass.
            mock.patch("torch._C._current_graph_task_id", return_value=0),
        ):
            yield

    @torch.no_grad()
    def backward(self, tensors: Tensor | Sequence[Tensor], grad_tensors: Any = None, *_: Any, **__: Any) -> None:
        """Accumulate gradients in the leaves, as `torch.autograd.backward` does."""
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        gradients = [None] * len(roots) if grad_tensors is None else grad_tensors
        uses, slots = _uses([root.grad_fn for root in roots]), Slots()
        for root, gradient in zip(roots, [gradients] if isinstance(gradients, Tensor) else gradients, strict=True):
            _add(slots, root.grad_fn, root.output_nr, torch.ones_like(root) if gradient is None else gradient)
        ready = [node for node in slots if not uses[node]]
        while ready:
            node = ready.pop()
            for follower, number, gradient in self._run(node, slots.pop(node, [])):
                if gradient is not None:
                    _add(slots, follower, number, gradient)
                uses[follower] -= 1
                if not uses[follower]:
                    ready.append(follower)

    def _run(self, node: Any, gradients: list[Tensor | None]) -> list[tuple[Any, int, Tensor | None]]:
        """Run a node; returns the next nodes, each with the number of its output and the gradient."""
        if hasattr(node, "variable"):
            leaf = node.variable
            if gradients:
                leaf.grad = gradients[0] if leaf.grad is None else leaf.grad + gradients[0]
            return []
        gradients += [None] * (len(node._input_metadata) - len(gradients))
        made = node.apply(*gradients) if hasattr(node, "_forward_cls") else node(*gradients)
        while self._read:
            self._read.pop().clear()
        made = made if isinstance(made, tuple) else (made,)
        edges = zip(node.next_functions, made, strict=False)
        return [(follower, number, one) for (follower, number), one in edges if follower is not None]

    def _unpack(self, saved: list[Tensor]) -> Tensor:
        self._read.append(saved)
        return saved[0]


def _uses(roots: Sequence[Any]) -> Counter[Any]:
    """Count for each node how many nodes pass it a gradient."""
    found, todo, seen = Counter[Any](), list(roots), set(roots)
    while todo:
        for follower, _ in todo.pop().next_functions:
            if follower is not None:
                found[follower] += 1
                if follower not in seen:
                    seen.add(follower)
                    todo.append(follower)
    return found


def _add(slots: Slots, node: Any, number: int, gradient: Tensor) -> None:
    """Add a gradient to those of a node, in the shape and type of the node's output."""
    wanted = node._input_metadata[number]
    gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
    mine = slots.setdefault(node, [])
    mine += [None] * (number + 1 - len(mine))
    before = mine[number]
    mine[number] = gradient if before is None else before + gradient
