"""What a recipe says of a low-rank adapter: `train.lora`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from synthe_core.layers.learner import Spec

ALL = "all-linear"
SCALE = 32.0


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class LoraSpec(Spec):
    """W + s B A in place of each matrix W [out, in] that is adapted; W stays as it is, A [rank, in] and B [out, rank]
    learn. B is zero at first, so that training begins at the model as it was.

    s = alpha / rank, or with `rslora` alpha / √rank. Without an alpha s = 32 / √rank, with which a step changes a
    matrix about as much as it would if the matrix itself were trained at that rate, whatever the rank. A matrix of
    fewer rows or columns than `rank` gets as much rank as it can have, and the same s.

    With `quantize` W stays quantised in memory and is dequantised, a part at a time, whenever it is used.

    Sources: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA: why √rank), Dettmers et al. 2023 (QLoRA, NF4).
    """

    rank: int = Field(16, ge=1, description="of the change of each matrix")
    alpha: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="the change is scaled by alpha / rank; by default by 32 / sqrt(rank)",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of the input of A, in training")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead")
    targets: Annotated[list[str], BeforeValidator(_listed)] = Field(
        [ALL],
        min_length=1,
        description="which matrices: all-linear (every linear map of the blocks), learners by type (delta), their maps "
        "by name (out, delta.project), or patterns over full names (blocks.0.*)",
    )

    quantize: Literal["int8", "int4", "int4_asymmetric", "nf4", "as_stored"] | None = Field(
        None,
        description="hold the model's matrices in memory in this format (QLoRA); as_stored: in that of its file, such "
        "as the blocks of a GGUF file; by default in float32",
    )
    double_quant: bool = Field(False, description="with nf4: quantise the magnitudes of its blocks too")

    @model_validator(mode="after")
    def _double_quant_is_of_nf4(self) -> LoraSpec:
        if self.double_quant and self.quantize != "nf4":
            raise PydanticCustomError("double_quant", "double_quant is an option of nf4: add quantize=nf4")
        return self

    @property
    def scaling(self) -> float:
        """s."""
        return SCALE / math.sqrt(self.rank) if self.alpha is None else self.alpha / self.divisor(self.rank)

    def divisor(self, rank: int) -> float:
        """What alpha is divided by at a rank."""
        return math.sqrt(rank) if self.rslora else rank
