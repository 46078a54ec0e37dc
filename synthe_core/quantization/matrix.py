"""Matrices that stay quantised in memory, as modules: any rows of them can be dequantised at any time.

    W = m.dequantize()          float32 [rows, columns], exactly the numbers that a file reader makes of the same codes
    m.rows(slice(0, 256))       a part of it
    m.rows(tokens)              rows by index: an embedding

Codes and scales are buffers that no state dict has: a checkpoint names the base of an adapter and does not copy it.
`model.to(device)` moves them; a change of dtype leaves them as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthe_core.quantization import codes as scaled_codes
from synthe_core.quantization import int4_asymmetric, nf4
from synthe_core.quantization.formats import QuantizationFormat
from synthe_core.quantization.ggml import BlockFormat, Groups

CHUNK = 1 << 19  # numbers that are dequantised at a time: the memory of a product beside its result


class QuantizedMatrix(nn.Module, ABC):
    """A frozen matrix [rows, columns]."""

    def __init__(self, rows: int, columns: int, **tensors: Tensor) -> None:
        super().__init__()
        self.shape = torch.Size((rows, columns))
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    @abstractmethod
    def rows(self, index: slice | Tensor) -> Tensor:
        """Some rows, float32 [r, columns]; index: a slice without a step, or int64 [r]."""

    @property
    @abstractmethod
    def format(self) -> str:
        """The name of its format."""

    def dequantize(self) -> Tensor:
        """float32 [rows, columns]."""
        whole = torch.empty(self.shape, device=self.device)
        for part in self.parts():
            whole[part] = self.rows(part)
        return whole

    def parts(self, selected: slice | None = None, multiple: int = 1) -> Iterator[slice]:
        """The rows, or the `selected` ones, in parts of at most CHUNK numbers; all but the last one of a `multiple`."""
        start, stop, _ = (selected or slice(None)).indices(self.shape[0])
        step = max(1, CHUNK // self.shape[1] // multiple) * multiple
        for first in range(start, stop, step):
            yield slice(first, min(first + step, stop))

    def numel(self) -> int:
        return self.shape.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedMatrix:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer.new_empty(0)).device)
        for child in self.children():
            child._apply(fn)
        return self

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, {self.format}"


class CodedMatrix(QuantizedMatrix):
    """Codes with a scale for each group of columns (see `formats`)."""

    def __init__(self, name: str, form: QuantizationFormat, codes: Tensor, scale: Tensor, columns: int) -> None:
        super().__init__(codes.shape[0], columns, codes=codes, scale=scale)
        self._name, self.form = name, form

    @property
    def format(self) -> str:
        return self._name

    def rows(self, index: slice | Tensor) -> Tensor:
        codes, scale = self._buffers["codes"], self._buffers["scale"]
        assert codes is not None and scale is not None
        return scaled_codes.decode(codes[index], scale[index], self.form, self.shape[1])

    def groups(self, index: slice) -> Groups:
        """Codes int8 [r, G, group] and scales [r, G, 1] of some rows, the last group filled up with zeros."""
        codes, scale = self._buffers["codes"], self._buffers["scale"]
        assert codes is not None and scale is not None
        whole = scaled_codes.unpacked(codes[index], self.form, self.shape[1])
        whole = F.pad(whole, (0, -self.shape[1] % self.form.group)).unflatten(1, (-1, self.form.group))
        return Groups(whole, scale[index][..., None])


class AsymmetricMatrix(QuantizedMatrix):
    """Four-bit codes with a scale and an offset for each group of columns (see `int4_asymmetric`)."""

    def __init__(self, codes: Tensor, scales: Tensor, offsets: Tensor, columns: int) -> None:
        super().__init__(codes.shape[0], columns, codes=codes, scales=scales, offsets=offsets)

    @property
    def format(self) -> str:
        return "int4_asymmetric"

    def rows(self, index: slice | Tensor) -> Tensor:
        own: Any = self._buffers
        return int4_asymmetric.decode(own["codes"][index], own["scales"][index], own["offsets"][index], self.shape[1])

    def groups(self, index: slice) -> Groups:
        """Codes uint8 [r, G, 32], scales and offsets [r, G, 1] of some rows, the last group filled up with zeros."""
        own: Any = self._buffers
        whole = int4_asymmetric.unpacked(own["codes"][index], self.shape[1])
        whole = F.pad(whole, (0, -self.shape[1] % int4_asymmetric.GROUP)).unflatten(1, (-1, int4_asymmetric.GROUP))
        return Groups(whole, own["scales"][index][..., None], own["offsets"][index][..., None])


class Nf4Matrix(QuantizedMatrix):
    """NF4 codes with the magnitude of each block, float32 or quantised (see `nf4`)."""

    def __init__(self, codes: Tensor, magnitudes: Tensor | nf4.Magnitudes, columns: int) -> None:
        double = isinstance(magnitudes, nf4.Magnitudes)
        parts = dict(zip(("m_codes", "m_scales", "m_mean"), magnitudes, strict=True)) if double else {}
        tensors = parts or {"magnitudes": magnitudes}
        super().__init__(codes.shape[0], columns, codes=codes, **tensors)

    @property
    def format(self) -> str:
        return "nf4" if "magnitudes" in self._buffers else "nf4, double_quant"

    def rows(self, index: slice | Tensor) -> Tensor:
        own: Any = self._buffers
        if "magnitudes" in own:
            magnitudes = own["magnitudes"][index]
        else:
            magnitudes = nf4.Magnitudes(own["m_codes"], own["m_scales"], own["m_mean"]).rows(index)
        return nf4.decode(own["codes"][index], magnitudes, self.shape[1])


class BlockMatrix(QuantizedMatrix):
    """The blocks of a GGUF file as they are (see `ggml`): uint8 [rows, bytes of a row]."""

    def __init__(self, form: BlockFormat, blocks: Tensor) -> None:
        super().__init__(len(blocks), blocks.shape[1] // form.nbytes * form.size, blocks=blocks)
        self.form = form

    @property
    def format(self) -> str:
        return self.form.name

    def rows(self, index: slice | Tensor) -> Tensor:
        blocks: Any = self._buffers["blocks"]
        return self.form.dequantize(part := blocks[index], (len(part), self.shape[1]))

    def groups(self, index: slice) -> Groups:
        """Codes [r, G, S], scales and offsets [r, G, 1] of some rows."""
        blocks: Any = self._buffers["blocks"]
        part = blocks[index]
        codes, scales, offsets = self.form.unpack(part.reshape(-1, self.form.nbytes))
        count, size = len(part), codes.shape[2]
        codes, scales = codes.reshape(count, -1, size), scales.reshape(count, -1, 1)
        return Groups(codes, scales, None if offsets is None else offsets.reshape(count, -1, 1))


class FloatMatrix(QuantizedMatrix):
    """Numbers in the float type in which a file has them, such as bfloat16."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(*values.shape)
        self.register_buffer("_values", values, persistent=False)

    @property
    def format(self) -> str:
        return str(self.values.dtype).removeprefix("torch.")

    @property
    def values(self) -> Tensor:
        """All of them, in that type."""
        values = self._buffers["_values"]
        assert values is not None
        return values

    def rows(self, index: slice | Tensor) -> Tensor:
        return self.values[index].float()


class StackedMatrix(QuantizedMatrix):
    """Matrices of several formats, one below the other."""

    def __init__(self, matrices: Sequence[QuantizedMatrix]) -> None:
        super().__init__(sum(each.shape[0] for each in matrices), matrices[0].shape[1])
        self.matrices = nn.ModuleList(matrices)

    @property
    def format(self) -> str:
        return ", ".join(sorted({each.format for each in self.each}))

    @property
    def each(self) -> list[QuantizedMatrix]:
        """The matrices, from the first row on."""
        return list(self.matrices)  # type: ignore[arg-type]

    def rows(self, index: slice | Tensor) -> Tensor:
        ends = torch.tensor([each.shape[0] for each in self.each]).cumsum(0).tolist()
        spans = zip([0, *ends], ends, self.each, strict=False)
        if isinstance(index, slice):
            start, stop, _ = index.indices(self.shape[0])
            parts = ((max(start, a) - a, min(stop, b) - a, each) for a, b, each in spans)
            return torch.cat([each.rows(slice(a, b)) for a, b, each in parts if a < b])
        gathered = torch.empty(len(index), self.shape[1], device=self.device)
        for a, b, each in spans:
            inside = ((index >= a) & (index < b)).nonzero()[:, 0]
            gathered[inside] = each.rows(index[inside] - a)
        return gathered


def quantized_size(module: nn.Module) -> int:
    """How many numbers the quantised matrices inside a module have; those that it has twice count once."""
    inside = (each for each in module.modules() if isinstance(each, QuantizedMatrix))
    return sum(each.numel() for each in inside if not isinstance(each, StackedMatrix))


def count_parameters(module: nn.Module) -> int:
    """The numbers in a module's parameters and quantised matrices."""
    return sum(p.numel() for p in module.parameters()) + quantized_size(module)


def quantized_bytes(module: nn.Module) -> int:
    """The bytes of the quantised matrices inside a module."""
    return sum(each.nbytes for each in module.modules() if isinstance(each, QuantizedMatrix) and each._buffers)
