"""A device that is not there: tensors that say they lie on it and hold their numbers on the CPU.

They refuse to mix with CPU tensors as CUDA does. A `Meter` counts operations (kernel launches), waits (the host reads
a value of the device) and uploads (the device reads memory of the host). It is a privateuse1 backend of torch in
Python, so importing this file is enough to make the device; nothing else in a process changes.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

CPU = torch.device("cpu")
WAITS = {
    *("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2"),
    "repeat_interleave",
}
"""Operations whose result, or its shape, is a value on the device."""
COPIES = {"_to_copy", "copy_", "_copy_from", "_copy_from_and_resize"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
FREE = {
    "view",
    "as_strided",
    "slice",
    "select",
    "transpose",
    "t",
    "permute",
    "expand",
    "unsqueeze",
    "squeeze",
}
FREE |= {"detach", "alias", "split", "split_with_sizes", "_unsafe_view", "unbind", "_reshape_alias", "unfold"}
FREE |= {"lift_fresh", "is_same_size", "empty", "empty_strided", "empty_like", "diagonal", "narrow"}


class _Module(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1


_setup_privateuseone_for_python_backend("pretend", backend_module=_Module())
DEVICE = torch.device("pretend:0")


@dataclass
class Meter:
    """Counts since the last `take`."""

    operations: int = 0
    waits: int = 0
    uploads: int = 0
    where: Counter[tuple[str, str]] = field(default_factory=Counter)

    def take(self) -> Meter:
        """Return the counts, and begin at zero."""
        taken = Meter(self.operations, self.waits, self.uploads, self.where)
        self.operations = self.waits = self.uploads = 0
        self.where = Counter()
        return taken

    def wait(self, what: str) -> None:
        """Count one wait of the host, with the line that caused it."""
        self.waits += 1
        self.where["waits", f"{what} at {_line()}"] += 1

    def upload(self) -> None:
        """Count one upload, with the line that caused it."""
        self.uploads += 1
        self.where["uploads", _line()] += 1

    def lines(self, kind: str) -> str:
        """Return the places that caused the waits or uploads, the most frequent first."""
        return "\n".join(f"  {n} {where}" for (of, where), n in self.where.most_common() if of == kind)


METER = Meter()


def _line() -> str:
    """Return the innermost line of the package, or of a library if none of the package is on the stack."""
    stack = traceback.extract_stack(limit=80)[::-1]
    for part in ("/burnish/", "site-packages/transformers/", "site-packages/peft/", "/tests/"):
        for frame in stack:
            if part in frame.filename and not frame.filename.endswith("tests/pretend.py"):
                return f"{frame.filename.rpartition(part)[2]}:{frame.lineno}"
    return "?"


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device; `elem` holds its numbers."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor, requires_grad: bool = False) -> PretendTensor:
        made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            elem.shape,
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.elem = elem.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.elem})"

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        if id(self) not in memo:
            copied: Any = PretendTensor(self.elem.clone(), self.requires_grad)
            memo[id(self)] = (
                torch.nn.Parameter(copied, self.requires_grad)
                if isinstance(self, torch.nn.Parameter)
                else copied
            )
        found: PretendTensor = memo[id(self)]
        return found

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        assert isinstance(value, PretendTensor), f"a CPU tensor becomes the data of one on {DEVICE}"
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.elem = value.elem

    def untyped_storage(self) -> Any:
        return self.elem.untyped_storage()

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def tolist(self) -> Any:
        METER.wait("tolist")
        return self.elem.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert a {DEVICE} tensor to numpy; use .cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _elem(x: Any) -> Any:
    return x.elem if isinstance(x, PretendTensor) else x


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry out an operation on the CPU, and count it."""
    name = func._schema.name.split("::")[1]
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, PretendTensor)]
    theirs = [x for x in tensors if not isinstance(x, PretendTensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    on_cpu = kwargs if device is None else {**kwargs, "device": CPU}
    METER.operations += name not in FREE
    if name in COPIES:
        return _copy(func, name, args, kwargs, on_cpu, device)
    mixed = [x for x in theirs if x.dim() > 0]
    if ours and mixed:
        # CUDA takes CPU indices of a tensor, and uploads them.
        indices = name in INDEXING and all(x.dtype in (torch.long, torch.int32, torch.bool) for x in mixed)
        if not indices:
            raise RuntimeError(f"{name}: tensors on {DEVICE} and on the CPU at {_line()}")
        METER.upload()
    if name in INDEXING and any(
        isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1] or ()
    ):
        METER.wait(f"{name} by a mask")
    elif name in WAITS and ours:
        METER.wait(name)
    if func is torch.ops.aten.mm.dtype:  # bfloat16 factors with float32 sums, which only CUDA has
        out = torch.mm(args[0].elem.float(), args[1].elem.float())
    else:
        out = func(*tree_map(_elem, args), **tree_map(_elem, on_cpu))
    if device == CPU or not (ours or device is not None):
        return out
    wrapped = tree_map(lambda x: PretendTensor(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _copy(
    func: Any, name: str, args: Any, kwargs: Any, on_cpu: dict[str, Any], device: torch.device | None
) -> Any:
    """Carry out a copy, which may cross between the devices."""
    if name == "_to_copy":
        source = args[0]
        target = source.device if device is None else device
        out = func(*tree_map(_elem, args), **tree_map(_elem, on_cpu))
        if target.type != DEVICE.type:
            if isinstance(source, PretendTensor):
                METER.wait("copy to the CPU")
            return out
        if not isinstance(source, PretendTensor):
            METER.upload()
        return PretendTensor(out)
    into, source = args[:2]
    _crossed(into, source)
    func(*tree_map(_elem, args), **tree_map(_elem, kwargs))
    return into


def _crossed(into: torch.Tensor, source: torch.Tensor) -> None:
    if isinstance(into, PretendTensor) and not isinstance(source, PretendTensor):
        METER.upload()
    if isinstance(source, PretendTensor) and not isinstance(into, PretendTensor):
        METER.wait("copy to the CPU")


class _Mode(TorchDispatchMode):
    """Sees operations without a pretend tensor among their inputs, such as factories."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if any(isinstance(x, PretendTensor) for x in tree_iter((args, kwargs))) or (
            device is not None and torch.device(device).type == DEVICE.type
        ):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def pretended() -> Iterator[Meter]:
    """Count what happens on the device; the meter is at zero at the start."""
    METER.take()
    with _Mode():
        yield METER


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> PretendTensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, dtype: Any = None, **_: Any) -> PretendTensor:
    return PretendTensor(torch.empty(size, dtype=dtype))


def _copy_from(source: torch.Tensor, into: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _crossed(into, source)
    _elem(into).copy_(_elem(source))
    return into


_library = torch.library.Library("aten", "IMPL")  # holds the registrations while this module lives
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")


def _autocast(name: str) -> None:
    """Register a product that casts its inputs under autocast, as CUDA's does."""
    product = getattr(torch.ops.aten, name)

    def cast(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(DEVICE.type)
        args, kwargs = tree_map(
            lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x,
            (args, kwargs),
        )
        with torch.autocast(DEVICE.type, enabled=False):
            return product(*args, **kwargs)

    _library.impl(name, cast, "AutocastPrivateUse1")


_others = torch.library.Library("_", "IMPL")
_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _name in ("linear", "mm", "bmm", "addmm", "baddbmm", "matmul", "scaled_dot_product_attention"):
    _autocast(_name)
