"""Every key of PEFT's LoraConfig is applied, known to change nothing, or refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from synthe_core.adapters.peft_config import CONFIG, INITIAL, KEYS, read_config
from synthe_core.errors import InputError

REFUSED: dict[str, Any] = {
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "layer_replication": [[0, 2], [1, 3]],
    "alora_invocation_tokens": [1, 2],
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 1e-4},
    "arrow_config": {"top_k": 3},
    "velora_config": {"num_groups": 32},
    "monteclora_config": {"num_samples": 4},
    "megatron_config": {"hidden_size": 64},
    "enable_lora": [True, False, True],
    "init_lora_weights": "corda",
    "a_key_of_tomorrow": 3,
}
MERGED: dict[str, Any] = {
    "fan_in_fan_out": True,
    "bias": "lora_only",
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1, 2],
    "use_dora": True,
    "init_lora_weights": "pissa",
    "ensure_weight_tying": True,
}
INERT: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM"},
    "peft_version": "0.21.2",
    "revision": "main",
    "inference_mode": True,
    "target_modules": ["q_proj"],
    "exclude_modules": ["lm_head"],
    "layers_to_transform": [0, 1],
    "layers_pattern": "layers",
    "qalora_group_size": 32,
    "megatron_core": "another.core",
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {"corda_method": "ipm"},
    "lora_ga_config": {"scale": "stable"},
    "runtime_config": {"ephemeral_gpu_offload": True},
    "merge_weights": True,
}


def written(folder: Path, **values: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | values))
    return path


def test_the_table_has_every_key_of_peft_with_its_default() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig().to_dict()
    assert config.keys() - KEYS.keys() == set()
    for key in config.keys() - {"peft_type", "peft_version", "task_type"}:
        assert KEYS[key].default == config[key], key
    samples = {"target_parameters", "peft_type", "base_model_name_or_path"}
    assert KEYS.keys() - samples - REFUSED.keys() - MERGED.keys() - INERT.keys() == {
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout")
    }


@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("merging", [True, False])
def test_keys_of_another_function_are_refused_by_name(tmp_path: Path, key: str, merging: bool) -> None:
    with pytest.raises(InputError, match=f"{CONFIG}: {key}.* is not read") as refused:
        read_config(written(tmp_path, **{key: REFUSED[key]}), merging=merging)
    assert "\n" not in refused.value.message and refused.value.hint


@pytest.mark.parametrize("key", MERGED)
def test_keys_that_need_the_base_are_applied_when_it_is_merged(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, **{key: MERGED[key]})
    assert read_config(path, merging=True).get(key) == MERGED[key]
    with pytest.raises(InputError, match=f"{CONFIG}: {key}.* is not read") as refused:
        read_config(path)
    assert "merge" in (refused.value.hint or "")


@pytest.mark.parametrize("key", INERT)
@pytest.mark.parametrize("merging", [True, False])
def test_keys_that_change_nothing_are_accepted(tmp_path: Path, key: str, merging: bool) -> None:
    assert read_config(written(tmp_path, **{key: INERT[key]}), merging=merging).values[key] == INERT[key]


@pytest.mark.parametrize("empty", [None, False, [], {}, ""])
def test_an_empty_value_says_nothing(tmp_path: Path, empty: Any) -> None:
    values = dict.fromkeys([*REFUSED, *MERGED], empty)
    assert read_config(written(tmp_path, **values)).moved is None


@pytest.mark.parametrize(
    "initial,moved",
    [(True, None), (False, None), ("gaussian", None), ("mica", None), ("PiSSA", "pissa"), ("olora", "olora")],
)
def test_initialisations(tmp_path: Path, initial: Any, moved: str | None) -> None:
    assert read_config(written(tmp_path, init_lora_weights=initial), merging=True).moved == moved


@pytest.mark.parametrize("initial", ["pissa_niter_4", "corda", "loftq", "lora_ga", "tomorrow", 3])
def test_initialisations_that_changed_the_base_are_refused(tmp_path: Path, initial: Any) -> None:
    assert initial not in INITIAL
    with pytest.raises(InputError, match=r"init_lora_weights.* is not read: it changes the base's weights") as refused:
        read_config(written(tmp_path, init_lora_weights=initial), merging=True)
    assert "plain LoRA" in (refused.value.hint or "")


@pytest.mark.parametrize(
    "pattern,name,matches",
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("proj", "model.layers.0.self_attn.q_proj", False),
        (r"layers\.0\.self_attn\.q_proj", "model.layers.0.self_attn.q_proj", True),
        ("^model.layers.0.self_attn.q_proj$", "model.layers.0.self_attn.q_proj", True),
        (r"model\.layers\.(0|1)\..*q_proj", "model.layers.1.self_attn.q_proj", True),
        (r"model\.layers\.(?:0|1)\..*q_proj", "model.layers.2.self_attn.q_proj", False),
        (r"layers\.[0-9]+\.mlp\.up_proj", "model.layers.17.mlp.up_proj", True),
    ],
)
def test_patterns_are_those_of_peft(tmp_path: Path, pattern: str, name: str, matches: bool) -> None:
    config = read_config(written(tmp_path, rank_pattern={pattern: 2}, alpha_pattern={pattern: 3}))
    assert config.rank(name) == (2 if matches else 4)
    assert config.scaling(name, 2) == (3 if matches else 8) / 2
    if (peft := pytest.importorskip("peft")) and hasattr(peft.utils.other, "get_pattern_key"):
        assert (peft.utils.other.get_pattern_key([pattern], name) == pattern) == matches


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)+", ".*.*.*a", "a?a?a?a", r"(a)\1", "(?=a)b", "(", "(a)(b)(c)", "a" * 600]
)
def test_patterns_that_may_take_forever_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"the alpha_pattern .* is not read"):
        read_config(written(tmp_path, alpha_pattern={pattern: 3})).scaling("a" * 60, 4)


def test_scales(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, use_rslora=True)).scaling("x", 4) == 8 / math.sqrt(4)
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA"}')
    assert read_config(tmp_path / CONFIG).scaling("x", 8) == 1.0  # PEFT's defaults
