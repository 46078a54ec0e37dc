"""Native code: every C file of the operators compiles where there is a compiler, so that no test of it is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.hardware.probe import probe
from synthe_core.ops import native

SOURCES = sorted(str(path.relative_to(native.PARTS)) for path in native.PARTS.rglob("*.c"))


@pytest.mark.skipif(probe().compiler is None, reason="no C compiler on this machine")
@pytest.mark.parametrize("source", SOURCES)
def test_it_compiles(source: str) -> None:
    assert native.refusal(probe(), "cpu", source) is None


def test_there_are_files() -> None:
    assert {"fused_decode/fused_decode.c", "packed_linear/packed_linear.c"} <= set(SOURCES)
    assert all(Path(native.PARTS / source).is_file() for source in SOURCES)
