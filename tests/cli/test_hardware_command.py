"""`synthe hardware`: the same facts for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from synthe_core.hardware.probe import probe
from synthe_core.ops.dispatch import OPS

Run = Callable[..., Any]


def test_json_has_the_hardware_and_the_selected_kernels(synthe: Run) -> None:
    shown = synthe("hardware", "--device", "cpu", "--json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    result = json.loads(shown.stdout)
    assert result["found"]["processor"] == probe().processor
    assert set(result["found"]["features"]) == probe().features
    assert result["device"] == {"value": "cpu", "reason": "asked for"}
    assert result["precision"]["value"] in ("float32", "bfloat16")
    assert all(rate > 0 for rate in result["rates_per_second"].values())
    served = {each["operator"]: each for each in result["operators"]}
    assert served.keys() == OPS.keys()
    assert served["delta_rule"]["training"]["kernel"] in [kernel.name for kernel in OPS["delta_rule"].kernels]


def test_the_text_output_has_the_same_values(synthe: Run) -> None:
    shown = synthe("hardware", "--device", "cpu").stdout
    assert probe().processor in shown
    for name in OPS:
        assert f"  {name}  " in shown
    assert "\x1b" not in shown


def test_a_missing_device(synthe: Run) -> None:
    missing = "mps" if probe().device != "mps" else "cuda"
    result = synthe("hardware", "--device", missing)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: no {missing} device: torch finds none on this machine\nhint: ")
