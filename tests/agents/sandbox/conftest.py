"""A sandbox, where the kernel allows one."""

from __future__ import annotations

import pytest

from synthe_core.agents.sandbox.sandbox import Sandbox
from synthe_core.errors import InputError


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    try:
        return Sandbox.open()
    except InputError as error:
        pytest.skip(error.message)
