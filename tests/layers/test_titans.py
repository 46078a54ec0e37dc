"""Titans and TTT: the memory's gradient by autograd from any state, fla's TTT at one rate, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.titans import DeepMemory, DeepMemoryState, Titans
from synthe_core.layers.ttt import TTTNetwork
from synthe_core.ops.deep_memory import deep_memory
from synthe_core.ops.dispatch import use_kernels
from tests.layers.mixers import wide
from tests.peers import fla_naive

WIDTH = 12
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
each_kernel = pytest.mark.parametrize("kernel", ["reference", "chunked"])
CASES: list[tuple[type[DeepMemory], dict[str, Any]]] = [
    (Titans, {"heads": 3, "chunk": 4}),
    (Titans, {"heads": 2, "chunk": 5, "layers": 1, "momentum": False, "conv": 0}),
    (TTTNetwork, {"heads": 3, "chunk": 4}),
    (TTTNetwork, {"heads": 2, "chunk": 3, "layers": 2, "expand": 2}),
]


def make(kind: type[DeepMemory], **keys: Any) -> DeepMemory:
    torch.manual_seed(0)
    learner = kind(kind.Config(rate=20.0, **keys), WIDTH).double()  # type: ignore[call-arg]
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return learner


def network(learner: DeepMemory, head: int, W: list[Tensor], x: Tensor) -> Tensor:
    z = F.pad(x, (0, 1), value=1.0) @ W[0]
    if len(W) == 2:
        z = F.pad(F.silu(z), (0, 1), value=1.0) @ W[1]
    z = (z - z.mean()) / (z.var(correction=0) + 1e-6).sqrt()
    return x + learner.scale[head] * z + learner.shift[head]


def by_autograd(learner: DeepMemory, x: Tensor, state: DeepMemoryState, start: int) -> Tensor:
    """Row 0, head by head and token by token; the memory's gradient is autograd's."""
    config, heads, size = learner.config, learner.config.heads, learner.head
    qkv, gates, gate = learner.project(x[0]).split(learner.features, -1)
    if learner.conv1d is None:
        qkv = F.silu(qkv)
    else:
        past, taps = torch.cat([state.conv[0], qkv]), learner.conv1d.weight[:, 0]
        mixed = [(taps.T * past[t : t + taps.shape[1]]).sum(0) for t in range(len(qkv))]
        qkv = F.silu(torch.stack(mixed) + (0 if learner.conv1d.bias is None else learner.conv1d.bias))
    logits = (gates + learner.gate_bias).sigmoid().split(heads, -1)
    initial = [part for part in (learner.first, learner.second) if part is not None]
    outputs = []
    for head in range(heads):
        W, U, begun = ([state[2 * place + layer][0, head] for layer in range(len(initial))] for place in range(3))
        W, begun = ([w + part[head] for w, part in zip(each, initial, strict=True)] for each in (W, begun))
        read = []
        for t in range(len(qkv)):
            if (start + t) % config.chunk == 0:
                begun = W
            q, k, v = qkv[t].view(3, heads, size)[:, head]
            q, k = (part / (part.square().mean() + 1e-5).sqrt() for part in (q, k))
            leaves = [w.detach().requires_grad_() for w in begun]
            with torch.enable_grad():
                loss = 0.5 * (network(learner, head, leaves, k) - v).square().sum()
            slopes = torch.autograd.grad(loss, leaves)
            theta = logits[0][t, head] * config.rate / (config.chunk * size)
            eta = logits[1][t, head] if learner.momentum else 0.0
            keep = 1 - logits[-1][t, head] if learner.forget else 1.0
            before = U if learner.momentum else [torch.zeros_like(w) for w in W]
            U = [eta * u - theta * slope for u, slope in zip(before, slopes, strict=True)]
            W = [keep * w + u for w, u in zip(W, U, strict=True)]
            read.append(F.rms_norm(network(learner, head, W, q), (size,), learner.norm, config.norm_eps))
        outputs.append(torch.stack(read))
    return learner.out(torch.cat(outputs, -1) * F.silu(gate))


@each_kernel
@pytest.mark.parametrize(("kind", "keys"), CASES, ids=str)
def test_is_the_equation_of_its_docstring_from_any_state(
    kind: type[DeepMemory], keys: dict[str, Any], kernel: str
) -> None:
    learner, x = make(kind, **keys), torch.randn(1, 11, WIDTH, dtype=torch.float64)
    state = DeepMemoryState(*(0.3 * torch.randn_like(leaf) for leaf in learner.init_state(1)))
    with torch.no_grad(), use_kernels(deep_memory=kernel):
        ctx = Pass.over(x, start=torch.tensor([6]))
        y, _ = learner(x, state, ctx)
        torch.testing.assert_close(y[0], by_autograd(learner, x, state, 6), **CLOSE)


@each_kernel
def test_equals_flas_ttt_where_every_token_has_one_rate(kernel: str) -> None:
    naive = fla_naive("ops/ttt/naive.py").chunk_ttt_linear_ref
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 24, 3, 4, dtype=torch.float64)
    scale, shift = torch.randn(2, 3, 4, dtype=torch.float64)
    first = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    with wide():
        weights, bias = first[:, :, :4].clone(), first[:, :, 4:].clone()
        expected, h, b = naive(
            *(q.clone(), k, v, scale, shift, 0.3, 1.0), 1e-6, 8, weights, bias, output_final_state=True
        )
    rate, none = torch.full((2, 24, 3), 0.3, dtype=torch.float64), torch.zeros(2, 24, 3, dtype=torch.float64)
    positions, real = torch.arange(24).expand(2, -1), torch.ones(2, 24, dtype=torch.bool)
    with use_kernels(deep_memory=kernel):
        o, after, *_ = deep_memory(
            *(q, k, v, rate, none, none, scale, shift, positions, real),
            *(first, None, torch.zeros_like(first), None, first, None, 8),
        )
    # fla adds what the network gives to itself normalised; here the query is added, as in the paper.
    with wide():
        read = first_read(q, k, v, scale, shift, 0.3, first)
    torch.testing.assert_close(after, torch.cat([h, b], 2), **CLOSE)
    torch.testing.assert_close(read + normed(read) * scale + shift, expected, **CLOSE)
    torch.testing.assert_close(o, q + normed(read) * scale + shift, **CLOSE)


def normed(z: Tensor) -> Tensor:
    return (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()


def first_read(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, shift: Tensor, rate: float, W: Tensor) -> Tensor:
    """What the network gives before the norm, by the weights of every token."""
    read = []
    for t in range(q.shape[1]):
        if t % 8 == 0:
            begun = W.clone().requires_grad_()
        with torch.enable_grad():
            z = (F.pad(k[:, t], (0, 1), value=1.0)[:, :, None] @ begun)[:, :, 0]
            loss = 0.5 * (k[:, t] + normed(z) * scale + shift - v[:, t]).square().sum()
        W = W - rate * torch.autograd.grad(loss, begun)[0]
        read.append((F.pad(q[:, t], (0, 1), value=1.0)[:, :, None] @ W)[:, :, 0])
    return torch.stack(read, 1).detach()


def test_a_memory_learns_what_it_is_shown() -> None:
    """The same pairs again and again: their error falls."""
    torch.manual_seed(0)
    learner = Titans(Titans.Config(heads=1, head_size=8, conv=0, forget=False), 8)
    k, other = torch.randn(2, 1, 4, 1, 8)
    v = k + normed(other)
    W = [learner.first[None], learner.second[None]]  # type: ignore[index]
    none = torch.zeros(1, 400, 1)
    moves = (torch.full((1, 400, 1), 0.02), none, none, learner.scale, learner.shift)
    where = (torch.arange(400)[None], torch.ones(1, 400, dtype=torch.bool))
    zeros = [torch.zeros_like(w) for w in W]
    k, v = (part.repeat(1, 100, 1, 1) for part in (k, v))
    with torch.no_grad():
        o = deep_memory(k, k, v, *moves, *where, *W, *zeros, *W, 4)[0]
    error = (o - v).square().mean((-1, -2))[0]
    assert error[-4:].mean() < 0.1 * error[:4].mean()


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match="titans: width 12 is not divisible by heads 5"):
        make(Titans, heads=5)
