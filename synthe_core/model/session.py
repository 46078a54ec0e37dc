"""A session: the state of a model after a text, in a file, so that generation continues exactly where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.layers.adapter_batch import slots_of
from synthe_core.layers.quantized import quantized_matrix
from synthe_core.model.language_model import Backbone, LanguageModel, ModelState
from synthe_core.storage.atomic import WAIT, new_file
from synthe_core.storage.tensor_file import TensorFile

FORMAT = "synthe-session-1"
DAMAGED = "the session is damaged: begin another"
MAX_POSITION = 1 << 53


class Session(NamedTuple):
    """The state after reading everything but `pending` int64 [B], the newest token of each row."""

    state: ModelState
    pending: Tensor

    def spread(self, count: int) -> Session:
        """The session for `count` prompts: its own rows, or its only row for all of them."""
        have = self.pending.shape[0]
        if have == count:
            return self
        if have != 1:
            raise InputError(f"the session has {have} rows, and there are {count} prompts", "give as many prompts")
        index = torch.zeros(count, dtype=torch.int64)
        return Session(states.take(self.state, index), self.pending.expand(count))

    def save(self, path: Path, model: LanguageModel) -> None:
        """Writes the session to one safetensors file, atomically and synced."""
        self.check_target(path)
        tensors = states.to_tensors(self.state, "state") | {"pending": self.pending.contiguous()}
        write_session(path, tensors, {"model": fingerprint(model)})

    @staticmethod
    def check_target(path: Path) -> None:
        """InputError if no file can be written at `path`, to be raised before the work."""
        if not path.parent.is_dir():
            raise InputError(f"no such folder: {path.parent}", "make it first; a session is one file in it")
        if path.is_dir():
            raise InputError(f"{path} is a folder", "a session is a file: name one")

    @classmethod
    def load(cls, path: Path, model: LanguageModel) -> Session:
        """Reads a session that `model` (or one of the same shape) wrote."""
        if not path.is_file():
            raise InputError(f"no such session: {path}", "--state-out writes one")
        try:
            file = TensorFile(path)
        except InputError as error:
            raise InputError(f"{path} is no session: {error.message}", "--state-out writes one") from None
        return cls.of(file, model)

    @classmethod
    def of(cls, file: TensorFile, model: LanguageModel) -> Session:
        """The session in a file. InputError if it belongs to another model, or is damaged."""
        if not is_session(file):
            raise InputError(f"{file.name} is a safetensors file, but no session", "--state-out writes one")
        if file.metadata.get("model") != fingerprint(model):
            raise InputError(
                f"{file.name} belongs to another model", "a session goes on only with the model that made it"
            )
        template = model.init_state(1)
        check_entries(file, template)
        state, pending = states.from_tensors(template, dict(file), "state"), file["pending"]
        if bool(((pending < 0) | (pending >= model.vocab)).any()):
            raise InputError(f"{file.name} ends in a token that the model does not know", DAMAGED)
        _check_values(file.name, state)
        return cls(state, pending.to(next(model.parameters()).device))


def check_entries(file: TensorFile, template: ModelState) -> None:
    """InputError if the tensors of a session's file are not those of the model's state, by name, type and shape."""
    rows = file.shape("pending")[0]
    leaves = dict(states.named_leaves(template, "state"))
    if foreign := sorted(file.keys() - leaves.keys() - {"pending"}):
        raise InputError(f"{file.name} has {foreign[0][:80]!r}, which the model has not", DAMAGED)
    if rows == 0:
        raise InputError(f"{file.name} has no row", DAMAGED)
    grown: dict[str, int] = {}
    for name, leaf in leaves.items():
        entry = file.entries.get(name)
        shape = () if entry is None else entry.shape
        expected = (rows, *leaf.shape[1:])
        if leaf.shape[1:2] == (0,) and len(shape) == leaf.dim():  # a window grows, and all of it in the same way
            expected = (rows, grown.setdefault(name.rpartition(".")[0], shape[1]), *leaf.shape[2:])
        if entry is None or shape != expected or entry.dtype != leaf.dtype:
            raise InputError(f"{file.name} has no {name} as the model has it", DAMAGED)


def _check_values(name: str, state: ModelState) -> None:
    """InputError for numbers that no model leaves behind."""
    for leaf_name, leaf in states.named_leaves(state, "state"):
        if leaf.is_floating_point():
            if not bool(leaf.isfinite().all()):
                raise InputError(f"{name}: {leaf_name} has values that are not finite", DAMAGED)
        elif leaf.dtype == torch.int64 and bool(((leaf < 0) | (leaf >= MAX_POSITION)).any()):
            raise InputError(f"{name}: {leaf_name} is no number of tokens", DAMAGED)


def write_session(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a session's file; it is on disk, whole, when this returns."""
    with new_file(path, wait=WAIT) as partial:
        on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, partial, {"format": FORMAT, **metadata})


def is_session(file: TensorFile) -> bool:
    """Whether a safetensors file is a session, of whatever model."""
    pending = file.entries.get("pending")
    is_format = file.metadata.get("format") == FORMAT
    return is_format and pending is not None and (pending.dtype, len(pending.shape)) == (torch.int64, 1)


ROWS = 8
"""Rows and columns of each matrix that the fingerprint reads."""
FACTOR = re.compile(r"\.lora_[AB]\.")
"""In the name of a factor of an attached adapter. The matrix of its map has it merged where the adapter is used; others
that are attached change nothing."""


def fingerprint(model: Backbone, tensors: Mapping[str, Tensor] | None = None, weights: str | None = None) -> str:
    """A digest of the model's shape and weights, by which sessions of another model are refused. With an adapter it is
    another model.

    tensors, weights: the weights by name and their digest, if the model is on `meta`.
    """
    weights = weights or weights_digest(model)
    text = json.dumps([model.spec.model_dump(mode="json"), model.vocab, weights], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    maps = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))}
    for name, module in maps.items():
        if name == "embedding" or (name.startswith("blocks.") and not FACTOR.search(name)):
            weight = _first_rows(module) if tensors is None else tensors[f"{name}.weight"]
            digest.update(weight.detach()[:ROWS, :ROWS].to(torch.float32).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _first_rows(module: nn.Linear | nn.Embedding) -> Tensor:
    """The first rows of a matrix as it is used, without dequantising the others."""
    if slots_of(module):
        return module.first_rows(ROWS)  # type: ignore[operator]
    matrix = quantized_matrix(module)
    return module.weight if matrix is None else matrix.rows(slice(0, ROWS))


def weights_digest(model: Backbone) -> str:
    """A digest of all weights but those of attached adapters: as its checkpoint states it, else computed once, and
    again after a weight has changed in place."""
    digest, versions = getattr(model, "_weights_digest", ("", []))
    if not versions or any(_version(tensor) != version for tensor, version in versions):
        digest = tensors_digest(model.state_dict())
        set_weights_digest(model, digest)
    return digest


def set_weights_digest(model: nn.Module, digest: str) -> None:
    """States the digest of the weights that the model has now."""
    versions = [(tensor, _version(tensor)) for tensor in model.state_dict(keep_vars=True).values()]
    object.__setattr__(model, "_weights_digest", (digest, versions))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of the names, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
