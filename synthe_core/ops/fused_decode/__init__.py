"""One token of every row through all steps of a model in one call of C: what is between two products costs next to
nothing. A step is a norm, a map, what the learner does with it, a map, and the residual.

    x += W_out attention(rotary(W_qkv norm(x)))        x += W_out (act(g) ⊙ u),  [g, u] = W_in norm(x)
    x += W_out f(W_in norm(x), state)                  f of a recurrent learner: see the files *.h

Numbers: those of the operators, up to rounding; of packed matrices as `packed_linear` has them. Each row is computed
alone. No gradient.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from synthe_core.hardware.probe import probe
from synthe_core.ops.float_linear import STORED
from synthe_core.ops.low_rank import Change
from synthe_core.ops.native import library, pointer, refusal
from synthe_core.quantization.packed import BLOCK, PackedMatrix

SOURCE = "fused_decode/fused_decode.c"
MOST_PARTS = 4
ATTENTION, MLP, MOMENTUM, KALMAN, DELTA, GLA, MLSTM, MAMBA2, GATED_CONV, EXPERTS, MAMBA, KDA, RG_LRU, RWKV7 = range(14)
NO_NORM, RMS_NORM, LAYER_NORM = range(3)
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
NO_GATE, SILU_GATE, SIGMOID_GATE = range(3)

_address, _int, _double, _float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_float


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("codes", _address), ("scales", _address), ("offsets", _address), ("factor", _float),
        ("outputs", _int), ("blocks", _int), ("bits", _int), ("parts", _int), ("apart", _int),
    )  # fmt: skip


class _Part(ctypes.Structure):
    _fields_ = (("packed", _Matrix), ("weight", _address), ("stored", _int))


class LinearMap(ctypes.Structure):
    """y = W x + b, W in parts one below the other, plus the change of each row's adapter."""

    _fields_ = (
        ("parts", _Part * MOST_PARTS), ("count", _int), ("inputs", _int), ("outputs", _int), ("bias", _address),
        ("changes", ctypes.POINTER(Change)),
    )  # fmt: skip

    @classmethod
    def of(
        cls, parts: Sequence[Tensor | PackedMatrix], bias: Tensor | None, changes: ctypes.Array[Change] | None = None
    ) -> LinearMap:
        """Of packed matrices or floats in one of `STORED`, [O, I], at most MOST_PARTS, whose memory the caller keeps.
        changes: of all adapters, in the order of their numbers."""
        made = cls(count=len(parts), inputs=parts[0].shape[1], outputs=sum(each.shape[0] for each in parts))
        made.bias = pointer(bias)
        if changes is not None:
            made.changes = changes
        for target, each in zip(made.parts, parts, strict=False):
            target.packed.outputs = each.shape[0]
            if isinstance(each, PackedMatrix):
                codes, scales, offsets = each.tensors
                own = target.packed
                own.codes, own.scales, own.offsets = map(pointer, (codes, scales, offsets))
                own.factor, own.blocks, own.bits, own.parts = each.factor, codes.shape[1], each.bits, scales.shape[2]
                own.apart = own.blocks
                assert own.blocks == -(-made.inputs // BLOCK)
            else:
                target.weight, target.stored = pointer(each), STORED[each.dtype]
                target.packed.apart = made.inputs
        return made


class Norm(ctypes.Structure):
    """A norm of the stream's width; weight and bias may be missing."""

    _fields_ = (("weight", _address), ("bias", _address), ("eps", _double), ("kind", _int))


class Residual(ctypes.Structure):
    """How a learner is added to the stream; see residual.h."""

    _fields_ = (
        ("before", Norm), ("after", Norm), ("saves", _int), ("reads_same", _int), ("shares_norm", _int),
        ("onto_normed", _int), ("input_scale", _double), ("scale", _double), ("skip", _double),
    )  # fmt: skip


class Filter(ctypes.Structure):
    """A Kalman filter's parameters, [n] each: a, q and what is added to the noise before its softplus."""

    _fields_ = (("transition", _address), ("process", _address), ("noise_bias", _address))


class Convolution(ctypes.Structure):
    """A causal convolution with silu: weight [taps, channels], bias [channels] or none."""

    _fields_ = (("weight", _address), ("bias", _address), ("taps", _int))


class MemoryRule(ctypes.Structure):
    """What a delta memory does between its maps; see `memory_rule` in recurrent.h."""

    _fields_ = (
        ("conv", Convolution), ("unit", _address), ("rate", _address), ("rate_bias", _address),
        ("norm", _address), ("low", _double), ("high", _double), ("key_eps", _double), ("norm_eps", _double),
        ("heads", _int), ("value_heads", _int), ("key", _int), ("value", _int), ("gate", _int), ("overwrites", _int),
    )  # fmt: skip


class GLARule(ctypes.Structure):
    """What a gla does between its maps; see linear_memory.h, as for the two below."""

    _fields_ = (
        ("conv", Convolution), ("norm", _address), ("temperature", _double), ("floor", _double), ("norm_eps", _double),
        ("heads", _int), ("groups", _int), ("key", _int), ("value", _int), ("is_gated", _int),
    )  # fmt: skip


class MLSTMRule(ctypes.Structure):
    _fields_ = (
        ("conv", Convolution), ("norm", _address), ("input_bias", _address), ("forget_bias", _address),
        ("cap", _double), ("norm_eps", _double), ("heads", _int), ("key", _int), ("value", _int),
        ("is_exponential", _int), ("is_layer_norm", _int), ("gate", _int),
    )  # fmt: skip


class Mamba2Rule(ctypes.Structure):
    _fields_ = (
        ("conv", Convolution), ("scale", _address), ("dt_bias", _address), ("rate", _address), ("skip", _address),
        ("norm", _address), ("low", _double), ("high", _double), ("norm_eps", _double),
        ("heads", _int), ("groups", _int), ("size", _int), ("head_size", _int), ("norm_groups", _int),
        ("is_normed_first", _int),
    )  # fmt: skip


class MambaRule(ctypes.Structure):
    """What a mamba does between its maps; see mamba.h, and the files of the same names for the three below."""

    _fields_ = (
        ("conv", Convolution), ("rate", _address), ("skip", _address),
        ("dt_norm", _address), ("b_norm", _address), ("c_norm", _address), ("norm_eps", _double),
        ("channels", _int), ("size", _int), ("rank", _int), ("is_normed", _int),
    )  # fmt: skip


class KDARule(ctypes.Structure):
    _fields_ = (
        ("conv", Convolution), ("unit", _address), ("norm", _address), ("rate", _address), ("dt_bias", _address),
        ("gate_bias", _address), ("low", _double), ("high", _double), ("floor", _double), ("key_eps", _double),
        ("norm_eps", _double), ("heads", _int), ("groups", _int), ("key", _int), ("value", _int), ("rank", _int),
    )  # fmt: skip


class RGLRURule(ctypes.Structure):
    _fields_ = (
        ("conv", Convolution), ("write", _address), ("write_bias", _address), ("keep", _address),
        ("keep_bias", _address), ("rate", _address), ("positions", _address), ("channels", _int), ("heads", _int),
        ("activation", _int),
    )  # fmt: skip


class RWKV7Rule(ctypes.Structure):
    _fields_ = (
        ("mix", _address), ("decay_bias", _address), ("rate_bias", _address), ("value_bias", _address),
        ("unit", _address), ("k_k", _address), ("k_a", _address), ("r_k", _address), ("norm", _address),
        ("norm_bias", _address), ("key_eps", _double), ("norm_eps", _double), ("heads", _int), ("size", _int),
        ("shares", _int), ("mixes", _int),
    )  # fmt: skip


class SharedExpert(ctypes.Structure):
    """The maps of an expert that every token uses, and of its output's gate, which may be missing."""

    _fields_ = (("input", LinearMap), ("output", LinearMap), ("gate", LinearMap))


class ExpertRule(ctypes.Structure):
    """The choice among experts and what one of them is; see experts.h."""

    _fields_ = (
        ("bias", _address), ("scale", _double), ("experts", _int), ("top", _int), ("groups", _int),
        ("top_groups", _int), ("hidden", _int), ("activation", _int), ("is_gated", _int), ("is_sigmoid", _int),
        ("is_normalized", _int), ("shared", ctypes.POINTER(SharedExpert)), ("room", _int),
    )  # fmt: skip


class Step(ctypes.Structure):
    """One learner and how it is added to the stream; see the C file."""

    _fields_ = (
        ("kind", _int), ("residual", Residual), ("input", LinearMap), ("output", LinearMap),
        ("activation", _int), ("is_gated", _int), ("gate_scale", _double),
        ("heads", _int), ("groups", _int), ("size", _int), ("turned", _int), ("norms_jointly", _int),
        ("norm_eps", _double), ("scale", _double), ("cap", _double), ("clip", _double),
        ("q_norm", _address), ("k_norm", _address), ("cos", _address), ("sin", _address),
        ("keys", _address), ("values", _address), ("filled", _address),
        ("capacity", _int), ("start", _int), ("past", _int), ("window", _int),
        ("more", LinearMap), ("more_from", _int), ("before", _address * 3), ("after", _address * 3),
        ("bias", _address), ("kalman", Filter), ("delta", MemoryRule), ("gla", GLARule), ("mlstm", MLSTMRule),
        ("mamba2", Mamba2Rule), ("conv", Convolution), ("experts", ExpertRule), ("signals", _address),
        ("in_order", _int), ("maps", ctypes.POINTER(LinearMap)), ("room", _int), ("most", _int),
        ("mamba", MambaRule), ("kda", KDARule), ("rg_lru", RGLRURule), ("rwkv7", RWKV7Rule),
    )  # fmt: skip


def unavailable(device: str) -> str | None:
    """Why steps cannot be fused on a type of device, or None."""
    if (reason := refusal(probe(), device, SOURCE)) is not None:
        return reason
    if library(SOURCE).step_bytes() != ctypes.sizeof(Step):
        return "the C compiler lays structures out in another way than ctypes"
    return None


def decode(
    steps: ctypes.Array[Step],
    x: Tensor,
    adapters: Sequence[int],
    rank: int,
    threads: int = 0,
    shared: Tensor | None = None,
) -> None:
    """Runs `steps` on x float32 [B, D], in place. adapters: the number of each row's adapter, -1 for none; rank: the
    largest of theirs. threads: how many, 0 for torch's number; the numbers are the same. shared: float32 [3, B, D] for
    the calls of a pass, where learners that share something are in several of them."""
    if len(adapters) != len(x):
        raise ValueError(f"the pass has {len(adapters)} rows with adapters, and {len(x)} rows")
    features = max(step.input.outputs + max(step.more.outputs, step.experts.room, step.room) for step in steps)
    inner = max(step.experts.room or max(step.output.inputs, step.more.inputs, step.most) for step in steps)
    native = library(SOURCE)
    native.decode.restype = _int
    rows = (_int * len(adapters))(*adapters)
    sizes = map(_int, (*x.shape, features, inner, rank, threads))
    if native.decode(steps, _int(len(steps)), pointer(x), rows, *sizes, pointer(shared)):
        raise MemoryError("no memory for a pass of one token")
