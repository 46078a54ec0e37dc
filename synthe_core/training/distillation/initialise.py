"""A student's first weights: everything but attention is the teacher's, and a learner in attention's place gets its
queries, keys, values and output.

A linear learner begins as linear attention without positions: its decays do not depend on the token and are slow, its
convolution passes the present token only, and its readings are about as large as those of the teacher.

Sources: Mercat et al. 2024, "Linearizing large language models" (SUPRA); Wang et al. 2024, "The Mamba in the Llama";
Bick et al. 2024 (MOHAWK: MLPs, norms and embeddings are copied).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synthe_core.layers.attention import Attention
from synthe_core.model.language_model import LanguageModel
from synthe_core.storage.checkpoint import weights
from synthe_core.training.distillation.layers import check_student, replaced_layers

FASTEST, SLOWEST = 32.0, 1024.0  # tokens after which a head's memory has decayed to 1/e: the first head's, the last's
UNIT_SILU = 1.278464542761074  # silu of it is 1


class AttentionMaps(NamedTuple):
    """The maps of attention, float32: q [H, K, D]; k, v [G, K, D]; out [D, H, K].

    For inputs of independent channels at unit scale, as a norm gives them, and a head's time constant n: rms [H] is the
    root mean square of the mean of n values, which is what a memory of n tokens reads; scale [H] that of n products
    q·k.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    rms: Tensor
    scale: Tensor

    @classmethod
    def of(cls, attention: Attention, gain: Tensor) -> AttentionMaps:
        """gain [D]: the weight of the norm before it, which is part of what the maps see."""
        rows = attention.qkv.weight.detach().float()
        q, k, v = (part.unflatten(0, (-1, attention.size)) for part in rows.split(attention.features)[:3])
        out = attention.out.weight.detach().float().unflatten(1, (attention.heads, -1))
        group = attention.heads // attention.groups
        seen = gain.float()
        rms = (v * seen).square().sum(-1).mean(-1).sqrt().repeat_interleave(group)
        keys = (k * seen).repeat_interleave(group, 0)
        score = ((q * seen) @ keys.transpose(1, 2)).square().sum((1, 2)).sqrt()  # rms of q·k for such inputs
        reach = time_constants(len(q)).to(q.device)
        return cls(q, k, v, out, rms / reach.sqrt(), (score * reach).clamp_min(1e-12))

    @property
    def scaled(self) -> AttentionMaps:
        """Queries and keys for a learner that does not normalise each head's reading: a mixing matrix whose rows sum to
        about one."""
        by = self.scale.rsqrt()
        groups = by.unflatten(0, (len(self.k), -1)).mean(1)
        return self._replace(q=self.q * by[:, None, None], k=self.k * groups[:, None, None])

    def heads(self, name: str, count: int, size: int) -> Tensor | None:
        """The rows [count · size, D] of a map for as many heads, those of groups repeated; None where they do not
        fit."""
        map = getattr(self, name)
        if map.shape[1] != size or count % len(map) or (name == "q" and count != len(map)):
            return None
        return map.repeat_interleave(count // len(map), 0).flatten(0, 1)

    def output(self, count: int, size: int, *, normalised: bool) -> Tensor | None:
        """The output map [D, count · size]; with `normalised` for heads whose readings a norm has brought to unit
        scale. None where it does not fit."""
        if tuple(self.out.shape[1:]) != (count, size):
            return None
        return (self.out * self.rms[:, None] if normalised else self.out).flatten(1)


def time_constants(heads: int) -> Tensor:
    """Tokens after which each head's memory has decayed to 1/e, [H], spread evenly in their logarithm."""
    return torch.logspace(math.log2(FASTEST), math.log2(SLOWEST), heads, base=2.0)


def inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


class _Rows:
    """Writes the parts of a projection [features, D], whose sizes are `sizes`, one after another."""

    def __init__(self, weight: Tensor, *sizes: int) -> None:
        self.parts = list(weight.split(sizes))

    def set(self, part: int, value: Tensor | None) -> None:
        if value is not None:
            self.parts[part].copy_(value)


def _set(target: Tensor, value: Tensor | None) -> None:
    if value is not None:
        target.copy_(value)


def _identity(conv: nn.Conv1d | Tensor | None) -> None:
    """A causal convolution that passes the present token only."""
    if conv is None:
        return
    taps = conv if isinstance(conv, Tensor) else conv.weight
    taps.zero_()
    taps[..., -1] = 1.0
    if isinstance(conv, nn.Conv1d) and conv.bias is not None:
        conv.bias.zero_()


def _gla(learner: Any, maps: AttentionMaps) -> None:
    heads, groups = learner.config.heads, learner.groups
    rows = _Rows(learner.project.weight, *learner.mixed, *learner.features[1:])
    rows.set(0, maps.heads("q", heads, learner.key))
    rows.set(1, maps.heads("k", groups, learner.key))
    rows.set(2, maps.heads("v", groups, learner.value))
    _set(learner.out.weight, maps.output(heads, learner.value, normalised=True))
    _identity(learner.conv1d)
    learner.decay.weight.zero_()
    rate = learner.config.temperature / time_constants(groups)  # -log σ(b)
    learner.decay.bias.copy_(-torch.log(torch.expm1(rate)).repeat_interleave(learner.key))


def _delta(learner: Any, maps: AttentionMaps) -> None:
    heads, values, steps = learner.config.heads, learner.value_heads, learner.config.householder
    keys = heads * learner.key
    rows = _Rows(
        learner.project.weight, keys, *[keys] * steps, *[values * learner.value] * steps, *learner.features[2:]
    )
    rows.set(0, maps.heads("q", heads, learner.key))
    for step in range(steps):
        rows.set(1 + step, maps.heads("k", heads, learner.key))
        rows.set(1 + steps + step, maps.heads("v", values, learner.value))
    for part in rows.parts[-2:]:  # of β and the decay: the same at every token
        part.zero_()
    _set(learner.out.weight, maps.output(values, learner.value, normalised=True))
    _identity(learner.conv if learner.taps > 1 else None)
    if learner.config.decay:
        _slow(learner, values)


def _slow(learner: Any, heads: int, channels: int = 1) -> None:
    """Decays exp(-A softplus(b)) with A = 1 and 1 / softplus(b) the time constants."""
    learner.A_log.zero_()
    learner.dt_bias.copy_(inverse_softplus(1 / time_constants(heads)).repeat_interleave(channels))


def _kda(learner: Any, maps: AttentionMaps) -> None:
    heads, values = learner.config.heads, learner.groups
    keys = heads * learner.key
    rows = _Rows(learner.project.weight, keys, keys, values * learner.value, *learner.features[1:])
    rows.set(0, maps.heads("q", heads, learner.key))
    rows.set(1, maps.heads("k", heads, learner.key))
    rows.set(2, maps.heads("v", values, learner.value))
    rows.parts[-1].zero_()
    _set(learner.out.weight, maps.output(values, learner.value, normalised=True))
    _identity(learner.conv1d)
    learner.decay.weight.zero_()
    if learner.config.decay_floor is None:
        _slow(learner, values, learner.key)


def _mamba2(learner: Any, maps: AttentionMaps) -> None:
    maps = maps.scaled
    channels, shared, groups = learner.channels, learner.shared, learner.config.groups
    size, state = learner.config.head_size, learner.config.state_size
    projection = learner.in_proj
    rows = _Rows(projection.weight, channels, channels, shared, shared, learner.heads)
    rows.set(1, maps.heads("v", learner.heads, size))
    rows.set(2, maps.heads("k", groups, state))
    rows.set(3, maps.heads("q", groups, state))
    rows.parts[4].zero_()
    if projection.bias is not None:  # an open gate
        rows.parts[0].zero_()
        projection.bias.zero_()
        projection.bias[:channels] = UNIT_SILU
    normalised = learner.config.norm != "none"
    _set(learner.out_proj.weight, maps.output(learner.heads, size, normalised=normalised))
    _identity(learner.conv1d)
    learner.D.zero_()
    learner.dt_bias.copy_(inverse_softplus(torch.ones(learner.heads)))
    learner.A_log.copy_(-time_constants(learner.heads).log())


def _lightning(learner: Any, maps: AttentionMaps) -> None:
    maps = maps.scaled
    heads, size = learner.config.heads, learner.size
    rows = learner.qkv_proj.weight.unflatten(0, (heads, 3, size))
    for part, name in enumerate("qkv"):
        if (map := maps.heads(name, heads, size)) is not None:
            rows[:, part].copy_(map.unflatten(0, (heads, size)))
    _set(learner.out_proj.weight, maps.output(heads, size, normalised=True))


def _mlstm(learner: Any, maps: AttentionMaps) -> None:
    heads = learner.config.heads
    keys = heads * learner.key
    rows = _Rows(learner.project.weight, keys, keys, *learner.features[1:])
    rows.set(0, maps.heads("q", heads, learner.key))
    rows.set(1, maps.heads("k", heads, learner.key))
    rows.set(2, maps.heads("v", heads, learner.value))
    _set(learner.out.weight, maps.output(heads, learner.value, normalised=True))
    _identity(learner.conv if learner.taps > 1 else None)
    if learner.config.forget == "sigmoid":
        logits, cap = -torch.log(torch.expm1(1 / time_constants(heads))), learner.config.cap
        learner.forget_bias.copy_(logits if cap is None else cap * torch.atanh((logits / cap).clamp(-0.99, 0.99)))


def _fast_weights(learner: Any, maps: AttentionMaps) -> None:
    maps = maps.scaled
    heads = learner.config.heads
    rows = _Rows(learner.project.weight, *learner.features)
    for part, (name, size) in enumerate((("q", learner.key), ("k", learner.key), ("v", learner.value))):
        rows.set(part, maps.heads(name, heads, size))
    _set(learner.out.weight, maps.output(heads, learner.value, normalised=False))


def _rwkv7(learner: Any, maps: AttentionMaps) -> None:
    size = learner.config.head_size
    for target, name in ((learner.receptance, "q"), (learner.key, "k"), (learner.value, "v")):
        _set(target.weight, maps.heads(name, learner.heads, size))
    _set(learner.out.weight, maps.output(learner.heads, size, normalised=True))


COPIES: dict[str, Callable[[Any, AttentionMaps], None]] = {
    "delta": _delta,
    "delta_memory": _delta,
    "fast_weights": _fast_weights,
    "gla": _gla,
    "kda": _kda,
    "lightning_attention": _lightning,
    "mamba2": _mamba2,
    "mlstm": _mlstm,
    "rwkv7": _rwkv7,
}
"""How a learner by its type takes over attention's maps; one that is not here begins from its own initial values."""


@torch.no_grad()
def initialise_from_teacher(student: LanguageModel, teacher: LanguageModel) -> None:
    """Sets the student's weights from the teacher's: equal learners, norms, embedding and head are copied, and the
    learners in the place of attention begin from its maps as `COPIES` says. InputError for a student of another shape.
    """
    check_student(student.spec, teacher.spec)
    layers = replaced_layers(student, teacher)
    inside = tuple(f"{name}." for name in (_learner_path(layer.name) for layer in layers))
    theirs = weights(teacher)
    for name, target in weights(student).items():
        if not name.startswith(inside) and name in theirs:
            target.copy_(theirs[name])
    for layer in layers:
        if isinstance(layer.student, Attention):
            _copy_equal(layer.student, layer.teacher)
        elif (copy := COPIES.get(layer.student.config.type)) is not None:
            copy(layer.student, AttentionMaps.of(layer.teacher, _gain(teacher, layer.name)))


def _copy_equal(student: Attention, teacher: Attention) -> None:
    """The teacher's tensors of the same names and sizes: all, where only a window differs."""
    theirs = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        if name in theirs and theirs[name].shape == parameter.shape:
            parameter.copy_(theirs[name])


def _learner_path(name: str) -> str:
    """`blocks.3.0` as its tensors are named: `blocks.3.learners.0`."""
    blocks, block, place = name.split(".")
    return f"{blocks}.{block}.learners.{place}"


def _gain(teacher: LanguageModel, name: str) -> Tensor:
    """The weight of the norm before a learner, [D]; ones without one."""
    _, block, place = name.split(".")
    norms: Any = teacher.blocks[int(block)].norms
    weight = norms[place].weight if place in norms else None
    return torch.ones(teacher.spec.width) if weight is None else weight.detach().cpu()
