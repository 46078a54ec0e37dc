"""Recognising quantised weights of other libraries, whose stored integers, scales and codes have no mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError
from synthe_core.merging.hashed_file import TensorInfo
from synthe_core.storage.tensor_file import NAMES

PARTS = re.compile(
    r"\.(qweight|qzeros|g_idx"  # GPTQ, AWQ
    r"|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+|SCB|weight_format"  # bitsandbytes
    r"|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|weight_shape|weight_g_idx|weight_global_scale"
    r"|W_q)$"  # compressed-tensors, FP8; HQQ
)
"""Names that only quantised modules have."""
HINT = "dequantise it first and save it without quantization_config, or use the original model"


def require_plain_weights(path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """InputError for a model whose config or tensors say that its weights are quantised."""
    settings = config.get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise InputError(
            f"{path} has weights quantised by {method or 'an unnamed method'} (quantization_config in config.json), "
            "which cannot be merged",
            HINT,
        )
    for name, info in tensors.items():
        if PARTS.search(name):
            raise InputError(f"{path} has quantised weights ({name}), which cannot be merged", HINT)
        if name.endswith("weight") and not info.floats and len(info.shape) > 1:
            kind = NAMES[info.dtype]
            raise InputError(f"{path} has quantised weights ({name} is {kind}), which cannot be merged", HINT)
