"""A simulated second device: its tensors compute on the CPU, and cannot be combined with those of the CPU.

Code that has never seen a GPU mixes devices without noticing. Here it notices: a tensor moved to `DEVICE` keeps its
values in ordinary memory, each operation is done there, and an operation whose tensors lie on both sides is the error
that a GPU would give. Numbers (tensors without axes) of the CPU may join, and CPU indices may index, as on a GPU.

The device is called "meta", the one name beside "cpu" that torch needs no driver for. What this cannot show: autocast,
kernels, streams, speed and memory of a GPU.

`count_waits` counts what would make the program wait for a GPU: reads of values or of sizes that depend on values, and
copies between the devices, except `non_blocking` ones whose CPU side is page-locked. A tensor without axes that
`torch.where` takes from the CPU counts too: torch copies it to the GPU, and waits.
"""

import traceback
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
import torch._dynamo  # what it loads asks for the true names that are changed below
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_GENERATORS = set()
_ACROSS = {_aten.copy_.default, _aten._to_copy.default, _aten.copy.default}
_READS = {
    _aten._local_scalar_dense.default,
    _aten.is_nonzero.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._unique2.default,
    _aten.bincount.default,
    _aten.repeat_interleave.Tensor,
}
_PINNED = {}
"""Page-locked memory by address; it holds the tensors, so that no address is used twice."""
_LISTENERS = []
_BY_INDEX = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class Elsewhere(torch.Tensor):
    """A tensor that reports the second device."""

    @staticmethod
    def __new__(cls, held):
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        out.held = held
        return out

    def tolist(self):
        _report("tolist")
        return self.held.tolist()

    def numpy(self, **_):
        raise TypeError("A tensor of another device is no NumPy array; use .cpu() first.")

    __array__ = numpy

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    def __repr__(self):
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Catch(TorchDispatchMode):
    """Catches what makes a tensor there out of nothing, or moves one there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextmanager
def count_waits():
    """Collect what would wait for a GPU, as (operation, the lines of viewalign that led to it)."""
    found = []
    _LISTENERS.append(found)
    try:
        yield found
    finally:
        _LISTENERS.remove(found)


def _report(operation):
    for found in _LISTENERS:
        frames = [one for one in traceback.extract_stack() if "/viewalign/" in one.filename]
        found.append((operation, [f"{one.filename.rpartition('/')[2]}:{one.lineno}" for one in frames[-3:]]))


def _is_pinned(tensor):
    return tensor.untyped_storage().data_ptr() in _PINNED


def _pin(tensor):
    if not _is_pinned(tensor):
        tensor = tensor.clone()
        _PINNED[tensor.untyped_storage().data_ptr()] = tensor
    return tensor


def _waits(func, args, kwargs, there, here):
    """Say whether a GPU's driver or torch would wait in this operation."""
    if func in _ACROSS:
        copies = func is not _aten._to_copy.default
        source = args[1] if copies else args[0]
        target = (
            isinstance(args[0], Elsewhere) if copies else torch.device(kwargs.get("device") or source.device) == DEVICE
        )
        if isinstance(source, Elsewhere) == target:
            return False
        asynchronous = kwargs.get("non_blocking") or (copies and len(args) > 2 and args[2])
        # What a copy to the CPU goes to is page-locked only where the caller made it so.
        locked = _is_pinned(source) if target else copies and _is_pinned(args[0])
        return not (asynchronous and locked)
    if not there:
        return False
    if func in _BY_INDEX:
        return bool(here) or any(one is not None and one.dtype == torch.bool for one in args[1])
    return func in _READS or (func is _aten.where.self and len(there) < 3)


def run(func, args, kwargs):
    """Do an operation on the CPU, and report the device of its tensors."""
    given = list(_tensors((args, kwargs)))
    there = [one for one in given if isinstance(one, Elsewhere)]
    here = [one for one in given if not isinstance(one, Elsewhere) and one.dim() > 0]
    if there and here and func not in _ACROSS and not (func in _BY_INDEX and isinstance(args[0], Elsewhere)):
        shapes = [tuple(one.shape) for one in here]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got tensors of the CPU, {shapes}")
    if func in {_aten.cat.default, _aten.stack.default} and 0 < len(there) < len(given):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
    if _LISTENERS and _waits(func, args, kwargs, there, here):
        _report(str(func))
    asked = kwargs.get("device")
    goes_there = torch.device(asked).type == "meta" if asked is not None else bool(there)
    if func is _aten.copy_.default:
        goes_there = isinstance(args[0], Elsewhere)
    if func is _aten._fused_sdp_choice.default:
        return 0  # the plain formula: others are chosen by the device
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in _GENERATORS) != goes_there:
        raise RuntimeError(f"Expected a generator of the tensors' device: {func}")
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    locks = kwargs.get("pin_memory")
    kwargs = {**kwargs, **({"pin_memory": False} if locks else {})}
    plain_args, plain_kwargs = _mapped(lambda one: one.held if isinstance(one, Elsewhere) else one, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor) and func._schema.returns:
        return args[0]
    if not goes_there:
        return _pin(out) if locks else out
    return _mapped(lambda one: one if isinstance(one, Elsewhere) else Elsewhere(one), out)


def _tensors(values):
    """Yield the tensors in nested lists, tuples and dictionaries; torch's own functions take half of a test's time."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple | dict):
        for one in values.values() if isinstance(values, dict) else values:
            yield from _tensors(one)


def _mapped(change, values):
    """Change the tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, torch.Tensor):
        return change(values)
    if isinstance(values, dict):
        return {name: _mapped(change, one) for name, one in values.items()}
    if isinstance(values, list | tuple):
        return type(values)([_mapped(change, one) for one in values])
    return values


class _Generator(torch.Generator):
    """A generator that reports the second device."""

    device = DEVICE


@contextmanager
def second_device():
    """Let `.to(DEVICE)`, and tensors and generators made on it, be there."""
    plain = {name: getattr(torch, name) for name in ("Generator", "autocast", "tensor", "as_tensor")}

    def generator(device="cpu"):
        if torch.device(device) != DEVICE:
            return plain["Generator"](device)
        made = _Generator()
        _GENERATORS.add(made._cdata)
        return made

    def autocast(device_type, *given, **settings):
        return nullcontext() if device_type == DEVICE.type else plain["autocast"](device_type, *given, **settings)

    def made_of(name):
        def make(data, *given, device=None, **settings):
            made = plain[name](data, *given, **settings)
            return made if device is None else made.to(device)

        return make

    changed = {
        "Generator": generator,
        "autocast": autocast,
        "tensor": made_of("tensor"),
        "as_tensor": made_of("as_tensor"),
    }
    memory = {"pin_memory": lambda tensor, *_: _pin(tensor), "is_pinned": lambda tensor, *_: _is_pinned(tensor)}
    several = "torch.utils._foreach_utils._get_foreach_kernels_supported_devices"
    fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with (
        _Catch(),
        mock.patch.multiple(torch, **changed),
        mock.patch.multiple(torch.Tensor, **memory),
        mock.patch(several, return_value=["cpu", DEVICE.type]),
        mock.patch(fused, return_value=["cpu", DEVICE.type]),
    ):
        try:
            yield DEVICE
        finally:
            _PINNED.clear()
