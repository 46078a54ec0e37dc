"""A model folder of Hugging Face: config.json and safetensors files, read tensor by tensor."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.interop.stored_rows import Stored, StoredRows
from synthe_core.storage.hub.snapshot import mend_hint
from synthe_core.storage.json_reader import read_json
from synthe_core.storage.tensor_file import Extent, TensorFile

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DEPTH = re.compile(r"(?:num|n)_(?:\w+_)?layers?")
"""Keys of config.json that say how many modules a model has, each of them with tensors."""
WIDTHS = {
    "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "state_size", "conv_kernel", "time_step_rank", "num_heads", "n_groups", "expand",
    "mamba_n_heads", "mamba_d_state", "mamba_d_ssm", "mamba_n_groups", "mamba_d_conv", "mamba_expand", "mamba_dt_rank",
    "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "shared_intermediate_size",
    "num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size", "moe_latent_size",
    "moe_shared_expert_intermediate_size", "shared_expert_intermediate_size",
    "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim",
    "n_shared_experts", "num_shared_experts", "lru_width", "n_embd", "n_head", "n_inner",
    "linear_head_dim", "linear_num_heads",
}  # fmt: skip
"""Keys of config.json that are no larger than the longest side of a tensor, if the model has such modules at all."""
HARMLESS = 1 << 15
"""A width of modules that a model need not have."""
BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""The stored types that float32 represents exactly, and their sizes in bytes."""


class Shapes(Protocol):
    """The names of tensors, and their shapes without reading them."""

    def __iter__(self) -> Iterator[str]: ...
    def shape(self, name: str) -> list[int]: ...


class UnsupportedModel(InputError):
    """A model that our learners do not express. transformers may run it."""


class Config:
    """The keys of a config.json, or of a mapping in it. InputError names a key with a missing or wrong value."""

    def __init__(self, path: Path, values: dict[str, Any], within: str = "") -> None:
        self.path, self.values, self._within = path, values, within

    @classmethod
    def read(cls, path: Path) -> Config:
        if not path.is_file():
            raise InputError(
                f"{path.parent} has no {path.name}", "a model folder has config.json and safetensors files"
            )
        return cls(path, read_json(path))

    def inner(self, key: str) -> Config:
        """The mapping under a key; empty if the key is absent."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "a mapping")
        return Config(self.path, value, f"{self._within}{key}.")

    def language(self) -> Config:
        """The keys of the language model: those of `text_config` in a model of several modalities."""
        inner = self.inner("text_config")
        return inner if inner.values else self

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` if the key is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, value, f"a whole number from {least} up")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise self._wrong(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def items(self, key: str, default: list[Any] | None = None, count: int | None = None) -> list[Any]:
        """A list, of `count` items if that is given."""
        value = self.get(key, default)
        if not isinstance(value, list) or (count is not None and len(value) != count):
            raise self._wrong(key, value, "a list" if count is None else f"a list of {count}")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """InputError for a value that is not `allowed`; the first is the default of an absent key."""
        if (value := self.get(key, allowed[0])) not in allowed:
            raise self.unsupported(key, value, allowed)

    def unsupported(self, key: str, value: Any, allowed: Iterable[Any]) -> InputError:
        known = ", ".join(map(str, allowed))
        name = f"{self.path}: {self._within}{key}"
        return UnsupportedModel(f"{name} is {shown(value)}, which synthe cannot express", f"it can be: {known}")

    def _wrong(self, key: str, value: Any, expected: str) -> InputError:
        problem = "is missing" if value is None else f"is {shown(value)}"
        return InputError(
            f"{self.path}: {self._within}{key} {problem}, and should be {expected}", "copy the folder again"
        )


def check_depth(config: Config, tensors: int) -> None:
    """InputError if a config asks, at any depth of it, for more layers than the model has tensors."""
    pending: list[Any] = [config.values]
    while pending:
        for key, value in pending.pop().items():
            if isinstance(value, dict):
                pending.append(value)
            elif DEPTH.fullmatch(key) and isinstance(value, int) and value > tensors:
                raise InputError(
                    f"{config.path}: {key} is {shown(value)}, and the model has {tensors} tensors",
                    "config and weights are of two models: copy it again",
                )


def check_widths(config: Config, longest: int) -> None:
    """InputError for great widths, at any depth, beyond the longest side of a tensor: their products may overflow."""
    pending: list[Any] = [config.values]
    while pending:
        for key, value in pending.pop().items():
            if isinstance(value, dict):
                pending.append(value)
            elif key in WIDTHS and isinstance(value, int | float) and value > max(longest, HARMLESS):
                raise InputError(
                    f"{config.path}: {key} is {shown(value)}, and the longest side of its tensors is {longest}",
                    "config and weights are of two models: copy it again",
                )


def longest_side(published: Shapes) -> int:
    """The longest side of any tensor."""
    return max((side for name in published for side in published.shape(name)), default=0)


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


class Published(Mapping[str, Tensor]):
    """The tensors of a folder under their published names, each read when it is accessed."""

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise InputError(f"no such folder: {folder}", "fetch the model first; synthe import reads it from disk")
        if not folder.is_dir():
            raise InputError(f"{folder} is a file", "name the folder that holds it and its config.json")
        self.path = folder
        self.config = Config.read(folder / CONFIG)
        self._open: dict[str, Any] = {}
        self._headers: dict[str, TensorFile] = {}

    @cached_property
    def files(self) -> dict[str, str]:
        """tensor name -> file name. Opens every file, so that a damaged one is detected before any work."""
        if (self.path / INDEX).is_file():
            weight_map = read_json(self.path / INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise InputError(f"{self.path / INDEX} has no weight_map", "the folder is damaged: copy it again")
            for name, file in weight_map.items():
                if name not in self._reader(file).keys():  # noqa: SIM118 (not a mapping)
                    raise InputError(f"{self.path / file} has no tensor {name}, which {INDEX} places there")
            return weight_map
        if (self.path / WEIGHTS).is_file():
            return dict.fromkeys(self._reader(WEIGHTS).keys(), WEIGHTS)
        pickles = sorted(path.name for pattern in PICKLES for path in self.path.glob(pattern))
        if pickles:
            raise InputError(
                f"{self.path} has its weights as pickle ({pickles[0]}), which can run any code when it is loaded",
                "save them as safetensors first: transformers' save_pretrained does",
            )
        raise InputError(f"{self.path} has neither {WEIGHTS} nor {INDEX}", self._hint_for_weights())

    def _hint_for_weights(self) -> str:
        """What to do where neither the usual file of weights nor an index is there."""
        others = sorted(path.name for path in self.path.glob("*.safetensors"))
        if len(others) == 1:
            return f"if {others[0]} has all its weights, rename it to {WEIGHTS}"
        if others:
            return f"fetch {INDEX}, which says what its {len(others)} safetensors files hold"
        return "fetch the safetensors files as well"

    def __getitem__(self, name: str) -> Tensor:
        return self._reader(self.files[name]).get_tensor(name)

    def extents(self, name: str) -> list[Extent]:
        """Where the numbers of a tensor stand in the folder's files."""
        file = self.files[name]
        if file not in self._headers:
            self._headers[file] = TensorFile(self.path / file)
        return self._headers[file].extents(name)

    def stored(self, name: str) -> Stored | None:
        """A matrix of numbers with a fraction, in its own type; None for another tensor."""
        value = self[name]
        return Stored([StoredRows(value)]) if value.dim() == 2 and value.is_floating_point() else None

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def shape(self, name: str) -> list[int]:
        return list(self._slice(name).get_shape())

    def kind(self, name: str) -> str:
        """The name of the type that a tensor is stored in, such as BF16."""
        return str(self._slice(name).get_dtype())

    def stored_as(self, name: str) -> str:
        """F32, BF16 or F16. InputError for a type that float32 does not represent exactly."""
        kind = self.kind(name)
        if kind not in BYTES:
            raise InputError(
                f"{name} is stored as {kind}, and synthe imports {', '.join(BYTES)}",
                "download the original model, or save it as float32",
            )
        return kind

    def json(self, name: str) -> dict[str, Any]:
        """Another JSON file of the folder; empty if there is none."""
        return read_json(self.path / name) if (self.path / name).is_file() else {}

    def _slice(self, name: str) -> Any:
        return self._reader(self.files[name]).get_slice(name)

    def _reader(self, file: str) -> Any:
        if file not in self._open:
            path = self.path / file
            if path.parent != self.path or path.suffix != ".safetensors":
                raise InputError(f"{self.path / INDEX} names {file}, which is not a safetensors file of its folder")
            if not path.is_file():
                raise InputError(f"{path} is missing, and {INDEX} names it", "fetch every file of the model")
            try:
                self._open[file] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged: {error}", mend_hint(path)) from None
        return self._open[file]
