"""A model folder of Hugging Face: config.json, and safetensors in one file or in shards with an index."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from synthe_core.data.tokenizer_config import GENERATION
from synthe_core.data.tokenizer_limits import MAX_BYTES, MAX_VALUES
from synthe_core.interop.huggingface.published import (
    CONFIG,
    INDEX,
    PICKLES,
    WEIGHTS,
    Published,
    check_depth,
    check_widths,
)
from synthe_core.merging.hashed_file import HashedFile, TensorInfo
from synthe_core.merging.inputs.model import Changes, Model, Outcome, write_json
from synthe_core.merging.inputs.quantized import require_plain_weights
from synthe_core.merging.inputs.tied import find_copies, find_ties
from synthe_core.merging.inputs.token_ids import with_new_ids
from synthe_core.storage.hub.snapshot import model_name
from synthe_core.storage.json_reader import read_json

MERGE = "merge.json"
COPIED = ("generation_config.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
OLD_TOKENIZER = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
IGNORED = (
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Keys of config.json that do not change what a model computes."""


class HuggingFaceModel(Model):
    """Any architecture: tensors are merged by name, and config.json is the base's."""

    kind = "huggingface"

    def __init__(self, path: Path, named: str) -> None:
        super().__init__(path, named)
        self.name = model_name(path)
        self._published = Published(path)
        self._config = self._published.config.values

    @classmethod
    def claims(cls, path: Path) -> bool:
        weights = (INDEX, WEIGHTS, *PICKLES)
        return (path / CONFIG).is_file() and any(next(path.glob(name), None) for name in weights)

    def locate_tensors(self) -> Mapping[str, HashedFile]:
        return {name: file for name, file in self._stored.items() if name not in self.copies}

    @cached_property
    def _stored(self) -> dict[str, HashedFile]:
        """The file of every stored tensor, tied ones included. InputError for quantised weights, and for a config of
        more or wider layers than there are."""
        files = {name: HashedFile(self.path / name) for name in sorted(set(self._published.files.values()))}
        stored = {tensor: files[file] for tensor, file in self._published.files.items()}
        infos = {name: file.tensors[name] for name, file in stored.items()}
        require_plain_weights(self.path, self._config, infos)
        check_depth(self._published.config, len(infos))
        check_widths(self._published.config, max((side for info in infos.values() for side in info.shape), default=0))
        return stored

    @cached_property
    def copies(self) -> Mapping[str, str]:
        def equal(one: str, other: str) -> bool:
            return self._stored[one].equal(one, self._stored[other], other)

        return find_copies(self._config, self._infos, equal)

    @cached_property
    def tied(self) -> Mapping[str, str]:
        return find_ties(self._config, self._infos, self.copies)

    @cached_property
    def _infos(self) -> dict[str, TensorInfo]:
        return {name: file.tensors[name] for name, file in self._stored.items()}

    @property
    def config(self) -> dict[str, Any]:
        return {key: value for key, value in self._config.items() if key not in IGNORED}

    @property
    def vocab(self) -> int | None:
        return self._config.get("vocab_size")

    @cached_property
    def tokenizer(self) -> dict[str, Any] | None:
        path = self.path / "tokenizer.json"
        return read_json(path, MAX_BYTES, MAX_VALUES) if path.is_file() else None

    def write_files(self, folder: Path, changes: Changes, outcome: Outcome) -> None:
        config = {key: value for key, value in self._config.items() if key not in ("_name_or_path", "torch_dtype")}
        config["dtype"] = changes.dtype
        if changes.vocab is not None:
            config["vocab_size"] = changes.vocab
        if changes.layers is not None:
            depth = config.get("num_hidden_layers")
            config["num_hidden_layers"] = len(changes.layers)
            for key, value in config.items():
                if isinstance(value, list) and len(value) == depth:  # one entry for each layer, as layer_types
                    config[key] = [value[layer] for layer in changes.layers]
        if changes.tokenizer is not None and self.tokenizer is not None:
            config = with_new_ids(config, self.tokenizer, changes.tokenizer)
        write_json(folder / CONFIG, config)
        copied = (*COPIED, *TOKENIZER, *(OLD_TOKENIZER if changes.tokenizer is None else ()))
        for name in copied:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, folder / name)
        if changes.tokenizer is not None:
            write_json(folder / "tokenizer.json", changes.tokenizer)
            if self.tokenizer is not None and (settings := folder / GENERATION).is_file():
                write_json(settings, with_new_ids(read_json(settings), self.tokenizer, changes.tokenizer))
        digests = {name: digest.model_dump() for name, digest in outcome.files.items()}
        write_json(folder / MERGE, {"parents": outcome.parents, **outcome.merge, "files": digests})
