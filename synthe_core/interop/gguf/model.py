"""A GGUF file as the model folder of transformers that it was made from: its config.json, and its tensors by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Notice
from synthe_core.interop.gguf.architectures import (
    architecture_of,
    file_config,
    number_of_experts,
    tensor_names,
)
from synthe_core.interop.gguf.families.architecture import transform_of
from synthe_core.interop.gguf.file import GgufFile
from synthe_core.interop.gguf.metadata import Metadata
from synthe_core.interop.gguf.tokenizer import tokenizer_of, tokens_of
from synthe_core.interop.huggingface.published import Config, check_depth
from synthe_core.interop.stored_rows import Stored
from synthe_core.quantization.ggml import BLOCK_FORMATS, PLAIN_FORMATS
from synthe_core.storage.tensor_file import Extent

PLAIN_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


class GgufModel(Mapping[str, Tensor]):
    """The tensors under the names of transformers, each dequantised when it is read."""

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = GgufFile(path)
        data = Metadata(self.file)
        architecture = architecture_of(data)
        vocab = self.file.shape("token_embd.weight")[0] if "token_embd.weight" in self.file else 0
        values = file_config(architecture, data, vocab)
        check_depth(Config(path, values), len(self.file))
        experts = _experts(self.file, number_of_experts(values), path)
        self._places = tensor_names(architecture, data, experts)
        self._transforms = architecture.transforms(values)
        self.config = Config(path, values)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, without reading it."""
        place = self._places[name]
        shapes = [self.file.shape(each) for each in place.names]
        try:
            parts = shapes if place.part is None else [each[1:] for each in shapes]
            return list(self._made(name, *(torch.empty(each, device="meta") for each in parts)).shape)
        except (RuntimeError, IndexError):
            stored = ", ".join(f"{each} {list(shape)}" for each, shape in zip(place.names, shapes, strict=True))
            raise InputError(
                f"{self.path} has {stored}, which is not the shape that its metadata give it",
                "fetch it again",
            ) from None

    def stored_as(self, name: str) -> str:
        """The name of a tensor's type in the file; of several that it is made of, the first one's."""
        kind = self.file.tensors[self._places[name].names[0]].kind
        return PLAIN_NAMES[PLAIN_FORMATS[kind]] if kind in PLAIN_FORMATS else BLOCK_FORMATS[kind].name

    def stored(self, name: str) -> Stored | None:
        """The stored rows of a matrix, and how it is made of them; None for another tensor."""
        place = self._places[name]
        parts = [self.file.rows(each, place.part) for each in place.names]
        if any(part is None for part in parts):
            return None
        make = None if transform_of(self._transforms, name) is None else partial(self._made, name)
        return Stored([part for part in parts if part is not None], make)

    def extents(self, name: str) -> list[Extent] | None:
        """Where the numbers of a tensor stand in the file; None for one that is quantised or transformed."""
        place = self._places[name]
        if transform_of(self._transforms, name) is not None:
            return None
        return self.file.extents(place.names[0], place.part)

    def release(self) -> None:
        """Gives back the memory of what was read of the file."""
        self.file.release()

    def digest(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def tokenizer(self, vocab: int, notices: list[Notice]) -> Tokenizer | None:
        """The file's tokenizer, None where it has none."""
        if "tokenizer.ggml.tokens" not in self.file.metadata:
            return None
        if (count := len(tokens_of(self.file))) > vocab:
            raise InputError(f"{self.path} has {count} tokens, and the model {vocab}", "fetch it again")
        return tokenizer_of(self.file)

    def _made(self, name: str, *stored: Tensor) -> Tensor:
        transform = transform_of(self._transforms, name)
        return stored[0] if transform is None else transform(*stored)

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        part = place.part
        stored = (self.file[each] if part is None else self.file.part(each, part) for each in place.names)
        return self._made(name, *stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _experts(file: GgufFile, count: int, path: Path) -> int:
    """How many experts every layer has. InputError if a tensor of theirs has another number."""
    stacked = [name for name in file if name.endswith("_exps.weight")]
    for name in stacked:
        if file.shape(name)[0] != count:
            raise InputError(
                f"{path} has {name[:80]} {list(file.shape(name))}, and {count} experts by its metadata",
                "fetch it again",
            )
    return count if stacked else 0
