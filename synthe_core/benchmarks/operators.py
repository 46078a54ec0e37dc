"""Operators against their references and against public peers: forward and backward, paired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.benchmarks.paired import paired
from synthe_core.errors import unknown
from synthe_core.events import Event, Measurement, Notice, Progress
from synthe_core.hardware.probe import probe
from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.dispatch import Call, Op
from synthe_core.ops.gated_average import gated_average
from synthe_core.ops.kalman_filter import kalman_filter

Run = Callable[[], object]
PEERS = ("reference", "transformers", "fla", "sdpa")


def check(ops: Iterable[str], against: Iterable[str]) -> None:
    """InputError for an operator or a peer that is not known."""
    for name in ops:
        if name not in CASES:
            raise unknown("operator", name, CASES)
    for name in against:
        if name not in PEERS:
            raise unknown("peer", name, PEERS)


def measure(op: str, against: tuple[str, ...], device: str, turns: int) -> Iterator[Event]:
    """Every kernel of the learner `op`'s operator that serves here, and the peers of `against`, there and back, paired.

    Shapes: delta B=4, T=1024, H=8, K=V=64; momentum and kalman B=4, T=1024, D=512; float32.
    Ratios are (its time / the dispatched kernel's time).
    """
    check([op], against)
    operator, arguments, flops, moved = CASES[op](device)
    candidates: dict[str, Run] = {}
    for kernel in operator.kernels:
        reason = kernel.refusal(probe(), Call.of(arguments))
        if reason is None:
            candidates[kernel.name] = _both_ways(kernel, arguments)
        else:
            yield Notice(f"{op}: {kernel.name} does not serve here: {reason}")
    if "reference" in against:
        candidates["reference"] = _both_ways(operator.reference, arguments)
    if op == "delta":
        yield from _delta_peers(arguments, against, candidates)
    yield Progress(f"{op} against {', '.join(list(candidates)[1:]) or 'nothing'}", 0)
    result = paired(candidates, turns, device)
    for name, timing in result.timings.items():
        rates = {"gflops": flops / timing.median / 1e9, "gigabytes_per_s": moved / timing.median / 1e9}
        figures = {"ms": timing.median * 1e3, "ratio": result.ratios[name], **rates}
        yield Measurement(f"{op} forward+backward", {"candidate": name, **figures})


def _leaf(*shape: int, device: str, low: float | None = None, high: float = 1.0) -> Tensor:
    values = torch.randn(*shape) if low is None else torch.empty(*shape).uniform_(low, high)
    return values.to(device).requires_grad_()


def _both_ways(fn: Callable[..., Any], arguments: dict[str, Any]) -> Run:
    tensors = [value for value in arguments.values() if isinstance(value, Tensor) and value.requires_grad]
    upstream = torch.randn_like(fn(**arguments)[0])

    def run() -> None:
        torch.autograd.grad(fn(**arguments)[0], tensors, upstream, allow_unused=True)

    return run


def _delta(device: str) -> tuple[Op, dict[str, Any], float, float]:
    torch.manual_seed(0)
    batch, time, heads, size = 4, 1024, 8, 64
    q, k, v = (_leaf(batch, time, heads, size, device=device) for _ in range(3))
    with torch.no_grad():
        for x in (q, k):
            x.copy_(F.normalize(x, dim=-1))
    beta = _leaf(batch, time, heads, device=device, low=0.0)
    decay = _leaf(batch, time, heads, device=device, low=-0.1, high=0.0)
    arguments = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": decay, "state": None}
    tokens = batch * time * heads
    # The recurrence: recall, write and read forward (7 K V), about 2.5 times that back, once more to recompute.
    return delta_rule, arguments, tokens * 31.5 * size * size, tokens * size * 4.0 * 12


def _momentum(device: str) -> tuple[Op, dict[str, Any], float, float]:
    torch.manual_seed(0)
    shape = (4, 1024, 512)
    arguments = {name: _leaf(*shape, device=device) for name in ("gate", "value")} | {"state": None}
    elements = 4 * 1024 * 512
    # Forward reads two and writes one; backward reads gate, value, average and gradient, and writes two gradients.
    return gated_average, arguments, elements * 20.0, elements * 4.0 * 9


def _kalman(device: str) -> tuple[Op, dict[str, Any], float, float]:
    torch.manual_seed(0)
    shape = (4, 1024, 512)
    arguments = {
        "observation": _leaf(*shape, device=device),
        "transition": _leaf(512, device=device, low=0.5),
        "process_noise": _leaf(512, device=device, low=0.01),
        "observation_noise": _leaf(*shape, device=device, low=0.1),
        "mean": _leaf(4, 512, device=device),
        "variance": _leaf(4, 512, device=device, low=0.5),
    }
    elements = 4 * 1024 * 512
    return kalman_filter, arguments, elements * 30.0, elements * 4.0 * 12


def _delta_peers(arguments: dict[str, Any], against: tuple[str, ...], candidates: dict[str, Run]) -> Iterator[Event]:
    q, k, v, beta, decay = (arguments[name] for name in ("q", "k", "v", "beta", "log_decay"))
    if "transformers" in against:
        try:
            from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule as peer
        except ImportError as error:
            yield Notice(f"transformers is left out: {error}", "warning")
        else:
            peer_arguments = {"query": q, "key": k, "value": v, "g": decay, "beta": beta}
            candidates["transformers"] = _both_ways(peer, peer_arguments)
    if "fla" in against:
        yield from _fla(arguments, candidates)
    if "sdpa" in against:
        heads_first = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
        names = dict(zip(("query", "key", "value"), heads_first, strict=True))
        candidates["sdpa"] = _both_ways(lambda **kw: (F.scaled_dot_product_attention(**kw, is_causal=True),), names)


def _fla(arguments: dict[str, Any], candidates: dict[str, Run]) -> Iterator[Event]:
    """flash-linear-attention's own call in the 16 bits that it is written for, without our kernel around it."""
    if arguments["q"].device.type != "cuda":
        yield Notice("fla is left out: its kernels are written for CUDA", "warning")
        return
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule as peer
    except ImportError as error:
        yield Notice(f"fla is left out: {error}", "warning")
        return
    names = {"q": "q", "k": "k", "v": "v", "beta": "beta", "log_decay": "g"}
    halves = {theirs: arguments[ours].detach().bfloat16().requires_grad_() for ours, theirs in names.items()}
    halves["g"] = arguments["log_decay"].detach().requires_grad_()  # decays are float32 there too
    candidates["fla"] = _both_ways(peer, halves)


CASES = {"delta": _delta, "momentum": _momentum, "kalman": _kalman}
"""By learner: its operator, arguments, and the operations and bytes that one forward and backward pass needs."""
