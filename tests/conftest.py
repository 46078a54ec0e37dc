"""One thread a test process: tiny tensors gain nothing from more, and CI machines are shared."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start; read when torch is loaded

import pytest
import torch

from synthe_core.hardware.probe import probe

torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would every program that tests start from there.
signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW_LIMIT = 1800  # seconds; any other test has the `timeout` of pyproject.toml

needs_compiler = pytest.mark.skipif(probe().compiler is None, reason="no C compiler on this machine")


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No workers for a single file, which one of them would run alone; else what xdist decides."""
    files = {argument.partition("::")[0] for argument in config.args}
    return 0 if len(files) == 1 and files.pop().endswith(".py") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The commands of README and guide take minutes: with several workers their tests come first, not last."""
    long = ("test_guide.py", "test_readme.py")
    items.sort(key=lambda item: item.path.name not in long)
    for item in items:
        if item.get_closest_marker("slow") or item.path.name in long:
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT))
