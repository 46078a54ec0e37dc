"""Many feed-forward networks, of which every token runs through a few."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from synthe_core.hardware.probe import Hardware
from synthe_core.ops.activations import ACTIVATIONS, Activation
from synthe_core.ops.dispatch import Call, Slower, op
from synthe_core.ops.eager import eager
from synthe_core.ops.frames import may_read_sizes
from synthe_core.ops.linear import grouped_mm, linear
from synthe_core.ops.swiglu import swiglu

GroupedLinear = Callable[[Tensor, Tensor, Tensor], Tensor]
Inner = Callable[[Tensor], Tensor]
MOST_VISITS = 64  # of tokens to experts, for which matrices are copied
OLDEST_CUDA = (8, 0)  # the compute capability from which torch multiplies groups on the device


@op
def expert_mlp(
    x: Tensor,
    chosen: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    out: Tensor,
    activation: Activation = "silu",
    gated: bool = True,
) -> Tensor:
    """y_t = Σ_k w_tk O_e (f(G_e x_t) ⊙ U_e x_t) with e = chosen_tk: each chosen expert's output times its weight.

    x           [B, T, D]
    chosen      int64 [B, T, K]: indices of experts, each in [0, N).
    weight      [B, T, K]
    gate_up     [N, 2H, D]: every expert's G and U, one above the other.
    out         [N, D, H]: every expert's O.
    activation  f.
    gated       False: an expert is O_e f(U_e x_t), and gate_up [N, H, D] has every expert's U.

    Returns y [B, T, D]. All but `chosen` of one floating dtype. No expert has a capacity, none turns a token away: what
    becomes of a token depends on nothing but itself. The reference computes every expert on every token and picks; the
    kernels sort the tokens by expert and compute what was chosen only.
    """
    y = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        hidden, f = linear(x, gate_up[expert]), ACTIVATIONS[activation]
        if gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = f(gate) * up
        else:
            hidden = f(hidden)
        share = (weight * (chosen == expert)).sum(-1, keepdim=True)
        y = y + share * linear(hidden, out[expert])
    return y


@expert_mlp.kernel("gathered", rank=30, tolerance=1e-5)
def gathered(
    x: Tensor,
    chosen: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    out: Tensor,
    activation: Activation = "silu",
    gated: bool = True,
) -> Tensor:
    """Torch: the matrices of each visit, copied side by side, for a few visits of which no size may be read."""
    experts, visits = chosen.flatten(), x.flatten(0, 1).repeat_interleave(chosen.shape[-1], 0)
    hidden = torch.bmm(gate_up.index_select(0, experts), visits[..., None])[..., 0]
    hidden = _inner(activation, gated)(hidden)
    outputs = torch.bmm(out.index_select(0, experts), hidden[..., None])[..., 0]
    return (outputs.unflatten(0, chosen.shape) * weight[..., None]).sum(2)


@gathered.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if call.arguments["chosen"].numel() > MOST_VISITS:
        return f"more than {MOST_VISITS} visits: each copies its expert's matrices"
    if call.grad:
        return "gradients of copied matrices would be added up one by one"
    if may_read_sizes(call.arguments["chosen"]):
        return Slower("sizes may be read here: tokens are sorted by expert")
    return None


@expert_mlp.kernel("grouped", rank=20, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def grouped(
    x: Tensor,
    chosen: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    out: Tensor,
    activation: Activation = "silu",
    gated: bool = True,
) -> Tensor:
    """torch's grouped matrix product: all experts in one call, no round trip between GPU and CPU."""
    return _sorted_by_expert(x, chosen, weight, gate_up, out, _Grouped.apply, _inner(activation, gated))


@grouped.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    if not hasattr(F, "grouped_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.grouped_mm (2.10 is the first)"
    allowed = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}.get(call.device, ())
    if call.dtype not in allowed:
        return f"torch multiplies no groups of {call.dtype} on {call.device}"
    if call.device == "cuda" and torch.cuda.get_device_capability() < OLDEST_CUDA:
        return "torch multiplies groups on GPUs of compute capability 8.0 and later"
    weights = call.arguments["gate_up"], call.arguments["out"]
    unit = 16 // call.dtype.itemsize
    if any(size % unit for weight in weights for size in weight.shape[1:]):
        return f"the sizes of an expert must be multiples of {unit} in {call.dtype}"
    if any(weight.data_ptr() % 16 for weight in weights):
        return "the weights do not begin at a multiple of 16 bytes"
    return None


@expert_mlp.kernel("sorted", rank=10, tolerance=1e-5, batch_invariant=("cpu",))
@eager
def sorted_(
    x: Tensor,
    chosen: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    out: Tensor,
    activation: Activation = "silu",
    gated: bool = True,
) -> Tensor:
    """Torch: one matrix product per expert that has tokens."""
    return _sorted_by_expert(x, chosen, weight, gate_up, out, _GroupLoop.apply, _inner(activation, gated))


@sorted_.refuses
def _(hardware: Hardware, call: Call) -> str | None:
    return None if call.device in ("cpu", "cuda") else f"not tried on {call.device}"


def _inner(activation: Activation, gated: bool) -> Inner:
    """What the output maps read, of what the maps before give."""
    if not gated:
        return ACTIVATIONS[activation]
    return swiglu if activation == "silu" else partial(_gate, ACTIVATIONS[activation])


def _gate(activation: Inner, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate) * up


def _sorted_by_expert(
    x: Tensor, chosen: Tensor, weight: Tensor, gate_up: Tensor, out: Tensor, product: GroupedLinear, inner: Inner
) -> Tensor:
    """Every token visits its K experts: M = B T K visits, sorted by expert and computed group by group."""
    experts = chosen.flatten()
    order = experts.argsort(stable=True)  # order[i]: which visit stands at place i; visit t K + k is of token t
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    labels = torch.arange(len(gate_up), device=order.device)
    ends = torch.searchsorted(experts[order], labels, right=True, out_int32=True)
    token, place = order // chosen.shape[-1], place.view(-1, chosen.shape[-1])
    visits = _GatherVisits.apply(x.flatten(0, 1), token, place)
    outputs = product(inner(product(visits, gate_up, ends)), out, ends)
    return _CombineOutputs.apply(outputs, weight.flatten(0, 1), order, token, place).view_as(x)


class _GatherVisits(torch.autograd.Function):
    """visits [M, D], whose row i is x [B T, D] at token[i]. The gradient is a gather, where that of an indexing would
    add rows in an order that varies on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, token)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return F.embedding_bag(ctx.saved_tensors[0], grad, mode="sum"), None, None


class _CombineOutputs(torch.autograd.Function):
    """y_t = Σ_k weight_tk outputs[place_tk]: [B T, D] of outputs [M, D], in one pass."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, weight: Tensor, order: Tensor, token: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(outputs, weight, order, token, place)
        return F.embedding_bag(place, outputs, mode="sum", per_sample_weights=weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        outputs, weight, order, token, place = ctx.saved_tensors
        slope = grad.index_select(0, token)
        weight_grad = (slope * outputs).sum(-1)[place]
        return slope.mul_(weight.flatten()[order][:, None]), weight_grad, None, None, None


class _Grouped(torch.autograd.Function):
    """y_i = W_e x_i for the rows of group e, which ends before row `ends[e]`; x [M, I], W [N, O, I], y [M, O].

    By hand: torch's own gradient fails on one that is not contiguous, and on a GPU the weights of an empty group may
    get whatever the memory held.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return grouped_mm(x, weight.transpose(1, 2), offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends = ctx.saved_tensors
        grad = grad.contiguous()
        x_grad = F.grouped_mm(grad, weight, offs=ends)
        weight_grad = F.grouped_mm(grad.t(), x, offs=ends)
        if grad.is_cuda:
            weight_grad.masked_fill_((ends.diff(prepend=ends.new_zeros(1)) == 0)[:, None, None], 0)
        return x_grad, weight_grad, None


class _GroupLoop(torch.autograd.Function):
    """The same as `_Grouped`, one matrix product after another, for what torch cannot group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups = _groups(ends)
        y = x.new_empty(len(x), weight.shape[1])
        for expert, rows in groups:
            y[rows] = linear(x[rows], weight[expert])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_grad, weight_grad = torch.empty_like(x), torch.zeros_like(weight)
        for expert, rows in ctx.groups:
            torch.mm(grad[rows], weight[expert], out=x_grad[rows])
            torch.mm(grad[rows].t(), x[rows], out=weight_grad[expert])
        return x_grad, weight_grad, None


def _groups(ends: Tensor) -> list[tuple[int, slice]]:
    """The experts that have rows, and which."""
    bounds = [0, *ends.tolist()]
    return [
        (expert, slice(*bounds[expert : expert + 2]))
        for expert in range(len(ends))
        if bounds[expert + 1] > bounds[expert]
    ]
