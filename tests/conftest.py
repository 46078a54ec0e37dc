"""One thread a test process: tiny tensors gain nothing from more, and CI machines are shared."""

from __future__ import annotations

import pytest
import torch

from synthe_core.hardware import probe

torch.set_num_threads(1)

needs_compiler = pytest.mark.skipif(probe().compiler is None, reason="no C compiler on this machine")


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
