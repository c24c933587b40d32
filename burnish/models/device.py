"""What depends on the kind of a device: work at once, waits of the host, and the price of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch.nn.functional import linear

FEW_ROWS = 32  # up to this many rows, a float32 product on a CPU is faster the other way round


@dataclass(frozen=True)
class Traits:
    """How work is divided on a kind of device.

    `rows` is the number of rows of a forward pass without gradient. `logits` is the number of
    logits in memory at once. A sampler reads its tokens on the host every `look` tokens, and reads
    its cache in multiples of `bucket` tokens. `pass_price` is the cost of one more forward pass, in
    tokens; None if it must be measured.
    """

    rows: int
    logits: int
    look: int
    bucket: int
    pass_price: int | None


# 2**21 float32 logits are 8 MiB, which fits in a processor's caches.
ON_CPU = Traits(rows=64, logits=1 << 21, look=1, bucket=1, pass_price=64)
ELSEWHERE = Traits(rows=256, logits=1 << 26, look=16, bucket=64, pass_price=None)
UNMEASURED_PRICE = 1024  # of a device whose price is not in the table and was not measured

PRICE_RANGE = (16, 1 << 14)  # tokens
SIZES = (64, 2048)  # tokens of the two passes that are timed
REPEATS = 5


def traits(device: torch.device) -> Traits:
    """Return the traits of a kind of device."""
    return ON_CPU if device.type == "cpu" else ELSEWHERE


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished; kernels run asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def pass_price(forward: Callable[[int], object], device: torch.device) -> int:
    """Measure the price of one more forward pass on a device, in tokens.

    `forward(n)` runs a forward pass on n tokens. The price is the intercept of the least-squares
    line through the times of two sizes, divided by its slope. It is rounded to a power of two, so
    that two runs on one machine divide their work in the same way.
    """
    seconds = []
    for size in SIZES:
        forward(size)  # warms the device up
        times = []
        for _ in range(REPEATS):
            synchronize(device)
            began = perf_counter()
            forward(size)
            synchronize(device)
            times.append(perf_counter() - began)
        seconds.append(median(times))
    slope, intercept = np.polyfit(SIZES, seconds, 1)
    return rounded_price(float(intercept), float(slope))


def rounded_price(intercept: float, slope: float) -> int:
    """Return intercept / slope rounded to a power of two within `PRICE_RANGE`."""
    least, most = PRICE_RANGE
    if slope <= 0:  # a longer pass costs nothing more
        return most
    price = max(intercept, 0.0) / slope
    return int(2 ** round(np.log2(min(max(price, least), most))))


def captured(
    step: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor, undo: Callable[[], None]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `step` as a CUDA graph, which launches all its kernels at once.

    `step` must read and write the same memory in every call. It is run once to warm up, after which
    `undo` restores what it changed. The result of a call is overwritten by the next one.
    """
    given = example.clone()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step(given)
        undo()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(given)

    def replay(x: torch.Tensor) -> torch.Tensor:
        given.copy_(x)
        graph.replay()
        return out

    return replay


@cache
def sums_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Check whether a product of two `dtype` matrices can return its float32 sums on a device."""
    if device.type == "cpu" or not hasattr(torch.ops.aten.mm, "dtype"):  # torch before 2.8
        return False
    if device.type == "cuda":  # also for `burnish plan` on a machine without one
        return True
    one = torch.ones(8, 8, dtype=dtype, device=device)
    try:
        return torch.mm(one, one, out_dtype=torch.float32).dtype == torch.float32
    except NotImplementedError:  # the device has no such product
        return False


def held(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight in the precision in which `product` takes it, a copy only if it must be cast."""
    return weight.to(dtype) if weight.dtype == torch.float32 and _casts(weight.device, dtype) else weight


def _casts(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype != torch.float32 and sums_in_float32(device, dtype)


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a (n, k) @ b (k, m) with factors rounded to `dtype` and float32 sums.

    Where a device returns no float32 sums, its library multiplies float32 matrices in `dtype` (with
    oneDNN on processors that have bfloat16 instructions), or in float32. Double precision is kept.
    """
    if a.dtype == torch.float64:
        return a @ b
    if _casts(a.device, dtype):
        return torch.mm(a.to(dtype), b.to(dtype), out_dtype=torch.float32)
    with _rounded_products(dtype):
        return a.float() @ b.float()


@contextmanager
def _rounded_products(dtype: torch.dtype) -> Iterator[None]:
    """Let oneDNN round the factors of float32 products to `dtype`; the setting is global."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # not in torch before 2.9
    if dtype != torch.bfloat16 or matmul is None:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def linear_of_few(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return linear(x, weight, bias) of rows x (..., k); by W x^T for few float32 rows on a CPU.

    With MKL on an AMD EPYC this takes .5 to .95 of the time for 4 to 32 rows (docs/decisions.md).
    """
    rows = x.numel() // x.shape[-1]
    if not (x.device.type == "cpu" and x.dtype == torch.float32 and rows <= FEW_ROWS):
        return linear(x, weight, bias)
    out = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    return out if bias is None else out.add_(bias)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Check whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Private, and there is no public name (torch 2.13); AMX implies the other.
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return known is not None and bool(known())
