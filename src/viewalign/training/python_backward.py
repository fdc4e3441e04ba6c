"""A backward pass in Python, where torch's own engine cannot run: it asks the driver of a GPU that may be absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

Slots = dict[Any, list[Tensor | None]]
"""For each node the gradients of its outputs, as far as they are known."""


class Engine:
    """Runs the nodes of a graph one after the other, and lets go of what a node saved once it has run."""

    def __init__(self) -> None:
        self._read: list[list[Tensor]] = []

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Let every backward pass in this context run here; graphs must be built in it too."""
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda saved: [saved], self._unpack),
            mock.patch("torch.autograd.backward", self.backward),
            # What `checkpoint` recomputes is kept for the backward pass of this number.
            mock.patch("torch._C._current_graph_task_id", return_value=0),
        ):
            yield

    @torch.no_grad()
    def backward(self, tensors: Tensor | Sequence[Tensor], grad_tensors: Any = None, *_: Any, **__: Any) -> None:
        """Add gradients to leaves; called as `torch.autograd.backward` is."""
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        given = [None] * len(roots) if grad_tensors is None else grad_tensors
        uses, slots = _uses([root.grad_fn for root in roots]), Slots()
        for root, gradient in zip(roots, [given] if isinstance(given, Tensor) else given, strict=True):
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
        """Run a node; returns the nodes that follow, each with the number of the output and its gradient."""
        if hasattr(node, "variable"):
            leaf = node.variable
            if gradients:
                leaf.grad = gradients[0] if leaf.grad is None else leaf.grad + gradients[0]
            return []
        gradients += [None] * (len(node._input_metadata) - len(gradients))
        made = node.apply(*gradients) if hasattr(node, "_forward_cls") else node(*gradients)
        for saved in self._read:
            saved.clear()
        self._read.clear()
        made = made if isinstance(made, tuple) else (made,)
        edges = zip(node.next_functions, made, strict=False)
        return [(follower, number, one) for (follower, number), one in edges if follower is not None]

    def _unpack(self, saved: list[Tensor]) -> Tensor:
        self._read.append(saved)
        return saved[0]


def _uses(roots: Sequence[Any]) -> Counter[Any]:
    """Count for each node how many nodes before it hand it a gradient."""
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
    """Add a gradient to what a node has been handed, in the shape and type of the node's output."""
    wanted = node.variable if hasattr(node, "variable") else node._input_metadata[number]
    if gradient.shape != wanted.shape:
        gradient = gradient.sum_to_size(wanted.shape)
    gradient = gradient.to(wanted.dtype)
    mine = slots.setdefault(node, [])
    mine += [None] * (number + 1 - len(mine))
    before = mine[number]
    mine[number] = gradient if before is None else before + gradient
