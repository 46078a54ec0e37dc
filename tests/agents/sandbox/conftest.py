"""A sandbox of each kind, where the kernel allows one and bubblewrap is installed."""

from __future__ import annotations

import shutil

import pytest

from synthe_core.agents.sandbox.sandbox import Sandbox, _failure


@pytest.fixture(scope="session", params=["namespaces", "bubblewrap"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    path = shutil.which("bwrap") if request.param == "bubblewrap" else None
    if request.param == "bubblewrap" and path is None:
        pytest.skip("bubblewrap is not installed")
    made = Sandbox(bwrap=path)
    if reason := _failure(made):
        pytest.skip(f"programs cannot be isolated here: {reason}")
    return made
