"""How the learners of a block are added to the stream, as the C of `FusedDecoder` is given it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from synthe_core.model.block import Block, LayerNorm, RMSNorm
from synthe_core.ops.fused_decode import LAYER_NORM, NO_NORM, RMS_NORM, Norm, Residual
from synthe_core.ops.native import pointer


def residual_refusal(block: Block) -> str | None:
    """Why a block's residuals cannot be run in C, or None."""
    norms = [*block.norms.values(), *block.post_norms.values()]
    if not all(type(each) in (RMSNorm, LayerNorm) for each in norms):
        return "a block has a norm of another kind"
    if any(each.dtype != torch.float32 for norm in norms for each in norm.parameters()):
        return "a norm's parameters are not float32"
    return None


def fill_residuals(residuals: Sequence[Residual], block: Block) -> None:
    """Of a block for which `residual_refusal` has no reason. The block holds the norms' parameters."""
    for number, (target, step) in enumerate(zip(residuals, block.steps, strict=True)):
        own = step.residual
        is_read_again = number + 1 < len(residuals) and block.steps[number + 1].parallel
        shares = own.norm == "shared"
        _fill_norm(target.before, None if step.norm is None or shares else block.norms[step.norm])
        _fill_norm(target.after, block.post_norms[step.place] if step.normed_after else None)
        target.saves, target.reads_same, target.shares_norm = is_read_again and not step.parallel, step.parallel, shares
        target.onto_normed = own.norm == "stream"
        target.input_scale, target.scale, target.skip = own.input_scale, own.scale, own.skip


def _fill_norm(target: Norm, norm: nn.Module | None) -> None:
    target.kind = NO_NORM
    if isinstance(norm, RMSNorm):
        target.kind, target.weight, target.eps = RMS_NORM, norm.weight.data_ptr(), norm.eps
    elif isinstance(norm, LayerNorm):
        target.kind, target.weight, target.bias = LAYER_NORM, pointer(norm.weight), pointer(norm.bias)
        target.eps = norm.eps
