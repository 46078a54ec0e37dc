"""Swarms on a small model with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.spec import SpecialistSpec
from tests.adapters.conftest import base, saved  # noqa: F401


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> SwarmFolder:  # noqa: F811
    """A swarm of three specialists, one of them with an adapter."""
    swarm = SwarmFolder.create(tmp_path / "team", str(base))
    adapter = saved(tmp_path / "adapter", base, {"rank": 4}).path
    swarm.add("python", SpecialistSpec(capabilities=["python", "debugging"], prompt="You write Python."), str(adapter))
    swarm.add("maths", SpecialistSpec(capabilities=["arithmetic", "algebra"], prompt="You count."))
    swarm.add("history", SpecialistSpec(capabilities=["wars", "kings"], prompt="You know the past."))
    return swarm
