"""adapter_config.json of the library PEFT: a table of every key of its LoraConfig, and ranks and scales by module."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from synthe_core.errors import InputError

CONFIG = "adapter_config.json"
PLAIN = "only plain LoRA is read: W + s B A"
MERGED = "merge it into the model first: synthe merge linear MODEL+ADAPTER"
CONVERT = (
    "convert it to plain LoRA with PEFT; if the base has been changed on disk already, set init_lora_weights to true"
)
LONGEST = 500  # letters of a pattern
EMPTY: tuple[Any, ...] = (None, False, "", (), [], {})

Rule = Literal["read", "merged", "inert", "refused"]


class Key(NamedTuple):
    """What is done with a key whose value is not the `default`.

    rule: "read" is applied everywhere; "merged" only where the adapter is merged into its base; "inert" changes nothing
    of what the tensors mean; "refused" makes the adapter another function than any that is known here.
    """

    rule: Rule
    default: Any = None


KEYS: Mapping[str, Key] = {
    # of every kind of adapter
    "peft_type": Key("read"),
    "base_model_name_or_path": Key("read"),
    "task_type": Key("inert"),
    "auto_mapping": Key("inert"),
    "peft_version": Key("inert"),
    "revision": Key("inert"),
    "inference_mode": Key("inert", False),
    # the scale and the rank
    "r": Key("read", 8),
    "lora_alpha": Key("read", 8),
    "use_rslora": Key("read", False),
    "rank_pattern": Key("read", {}),
    "alpha_pattern": Key("read", {}),
    "lora_dropout": Key("read", 0.0),
    # where: the tensors' names say it
    "target_modules": Key("inert"),
    "exclude_modules": Key("inert"),
    "layers_to_transform": Key("inert"),
    "layers_pattern": Key("inert"),
    "ensure_weight_tying": Key("merged", False),
    # more than W + s B A
    "fan_in_fan_out": Key("merged", False),
    "bias": Key("merged", "none"),
    "lora_bias": Key("merged", False),
    "modules_to_save": Key("merged"),
    "trainable_token_indices": Key("merged"),
    "use_dora": Key("merged", False),
    "init_lora_weights": Key("merged", True),  # see INITIAL
    "target_parameters": Key("refused"),
    "layer_replication": Key("refused"),
    "alora_invocation_tokens": Key("refused"),
    "use_qalora": Key("refused", False),
    "use_bdlora": Key("refused"),
    "kasa_config": Key("refused"),
    "arrow_config": Key("refused"),
    "velora_config": Key("refused"),
    "monteclora_config": Key("refused"),
    "megatron_config": Key("refused"),
    "enable_lora": Key("refused"),  # of PEFT before 0.3
    # parts of settings above, or of training
    "qalora_group_size": Key("inert", 16),
    "megatron_core": Key("inert", "megatron.core"),
    "loftq_config": Key("inert", {}),
    "eva_config": Key("inert"),
    "corda_config": Key("inert"),
    "lora_ga_config": Key("inert"),
    "runtime_config": Key("inert"),
    "merge_weights": Key("inert", False),  # of PEFT before 0.3
}

INITIAL: Mapping[str, Rule] = {
    "gaussian": "inert",
    "orthogonal": "inert",
    "eva": "inert",
    "mica": "inert",
    "pissa": "merged",
    "olora": "merged",
}
"""Values of init_lora_weights. The last two move a part of the base's weights into the adapter, which can be computed
from the base. Others move a part that depends on data or chance ("corda", "lora_ga", "pissa_niter_4") or on a quantised
base ("loftq"), and are refused."""


@dataclass(frozen=True)
class PeftConfig:
    """The values of a config whose every key is understood."""

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value, or PEFT's default."""
        value = self.values.get(key)
        return KEYS[key].default if value is None else value

    @property
    def moved(self) -> str | None:
        """The initialisation that took a part of the base's weights away: "pissa" or "olora"."""
        initial = self.get("init_lora_weights")
        name = initial.lower() if isinstance(initial, str) else ""
        return name if INITIAL.get(name) == "merged" else None

    @property
    def dropout(self) -> float:
        """Of the input of A, in training."""
        dropout = self.get("lora_dropout")
        return float(dropout) if isinstance(dropout, int | float) and 0 <= dropout < 1 else 0.0

    def scaling(self, module: str, rank: int) -> float:
        """s of a module whose factors have this rank: alpha / r, or alpha / √r with use_rslora."""
        return self._number("alpha", module, "lora_alpha") / (rank**0.5 if self.get("use_rslora") else rank)

    def rank(self, module: str) -> float:
        """The rank of a module's factors."""
        return self._number("rank", module, "r")

    def _number(self, kind: str, module: str, default: str) -> float:
        """A module's rank or alpha: of the first pattern that its name ends in, else the adapter's."""
        patterns = self.get(f"{kind}_pattern")
        if not isinstance(patterns, dict):
            raise InputError(f"{self.path}: {kind}_pattern is no mapping", "it is damaged")
        number = self.get(default)
        for pattern, value in patterns.items():
            if _compiled(pattern, f"{self.path}: the {kind}_pattern").match(module):
                number = value
                break
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise InputError(
                f"{self.path}: {default} of {module} is {number}, which is no positive number", "it is damaged"
            )
        return number


def read_config(path: Path, *, merging: bool = False) -> PeftConfig:
    """Reads adapter_config.json. InputError where it is damaged, or where a key that is not applied says something.

    merging: the adapter will be merged into its base, which more keys are applied for.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}", "the adapter is damaged") from None
    kind = values.get("peft_type", "LORA" if merging else None) if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind.upper() != "LORA":
        raise InputError(
            f"{path} is of {kind or 'no adapter'}, and only LORA is read", "convert it, or train one with --lora"
        )
    for key, value in values.items():
        if value not in EMPTY and (key not in KEYS or value != KEYS[key].default):
            _check(path, key, value, merging)
    return PeftConfig(path, values)


def _check(path: Path, key: str, value: Any, merging: bool) -> None:
    """InputError for a key whose value is not applied."""
    rule: Rule = KEYS[key].rule if key in KEYS else "refused"
    shown = f"{path}: {key}" + (f" '{value}'" if isinstance(value, str) else "") + " is not read"
    if key not in KEYS:
        raise InputError(shown, "PEFT's LoRA has no such key that is known here; remove it if it changes nothing")
    if key == "init_lora_weights":
        name = value.lower() if isinstance(value, str) else repr(value)
        if name not in INITIAL:
            raise InputError(f"{shown}: it changes the base's weights", CONVERT)
        rule = INITIAL[name]
    if rule == "refused" or (rule == "merged" and not merging):
        raise InputError(shown, PLAIN if rule == "refused" else f"{PLAIN}; {MERGED}")


def _compiled(pattern: Any, where: str) -> re.Pattern[str]:
    """PEFT's regular expression for names that end in `pattern`. InputError for one that may take forever."""
    text = str(pattern)
    plain = re.sub(r"\\.|\[[^]]*\]", "x", text).replace("(?:", "(")  # without what cannot repeat
    quiet = not re.search(r"\)[*+?{]|\(\?", plain) and not re.search(r"\\\d", text)
    if quiet and len(text) <= LONGEST and plain.count("(") <= 2 and len(re.findall(r"[*+?{]", plain)) <= 2:
        try:
            return re.compile(rf"(.*\.)?({text})$")
        except re.error:
            pass
    raise InputError(f"{where} '{text[:80]}' is not read", "write out the modules' names")
