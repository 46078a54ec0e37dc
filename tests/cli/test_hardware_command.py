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
    said = json.loads(shown.stdout)
    assert said["found"]["processor"] == probe().processor
    assert set(said["found"]["features"]) == probe().features
    assert said["device"] == {"value": "cpu", "reason": "asked for"}
    assert said["precision"]["value"] in ("float32", "bfloat16")
    assert all(rate > 0 for rate in said["rates_per_second"].values())
    served = {each["operator"]: each for each in said["operators"]}
    assert served.keys() == OPS.keys()
    assert served["delta_rule"]["training"]["kernel"] in [kernel.name for kernel in OPS["delta_rule"].kernels]


def test_people_read_the_same(synthe: Run) -> None:
    shown = synthe("hardware", "--device", "cpu").stdout
    assert probe().processor in shown
    for name in OPS:
        assert f"  {name}  " in shown
    assert "\x1b" not in shown


def test_a_device_that_is_not_there(synthe: Run) -> None:
    missing = "mps" if probe().device != "mps" else "cuda"
    said = synthe("hardware", "--device", missing)
    assert said.exit_code == 2
    assert said.stderr.startswith(f"error: no {missing} device: torch finds none on this machine\nhint: ")
