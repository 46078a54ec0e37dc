"""One thread a test process: tiny tensors gain nothing from more, and CI machines are shared."""

from __future__ import annotations

import pytest
import torch

from synthe_core.hardware.probe import probe

torch.set_num_threads(1)

SLOW_LIMIT = 1800  # seconds; any other test has the `timeout` of pyproject.toml

needs_compiler = pytest.mark.skipif(probe().compiler is None, reason="no C compiler on this machine")


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's commands take minutes and are one test: with several workers it comes first, not last."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
    for item in items:
        if item.get_closest_marker("slow") or item.path.name == "test_readme.py":
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT))
