"""Our Triton kernels and our calls of fla's, in Triton's interpreter, against the references."""

from __future__ import annotations

import pytest

from tests.gpu.interpreter.run import check, checks, needs_triton


@needs_triton
@pytest.mark.parametrize("name", checks())
def test_kernels_equal_their_references(name: str) -> None:
    check(name)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", checks())
def test_more_shapes_and_types(name: str) -> None:
    check(name, "slow")
