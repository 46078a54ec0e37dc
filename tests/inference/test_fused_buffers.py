"""Memory of states is used again when nobody holds it, and never before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from synthe_core.inference.fused_buffers import MOST, StateBuffers

LEAF = torch.zeros(4, 16384)


def test_memory_is_used_again_when_it_is_free() -> None:
    buffers = StateBuffers()
    first = buffers.empty_like(LEAF)
    other = buffers.empty_like(LEAF)
    assert first.shape == LEAF.shape and first.is_contiguous() and first.data_ptr() != other.data_ptr()
    address = first.data_ptr()
    del first
    assert buffers.empty_like(LEAF).data_ptr() == address


def test_memory_that_a_view_holds_is_not() -> None:
    buffers = StateBuffers()
    view = buffers.empty_like(LEAF)[1:2, :7]
    view.fill_(3.0)
    others = [buffers.empty_like(LEAF).zero_() for _ in range(3 * MOST)]
    assert view.eq(3.0).all() and len({each.data_ptr() for each in others}) <= len(others)


def test_all_that_are_held_are_different() -> None:
    buffers = StateBuffers()
    held = [buffers.empty_like(LEAF) for _ in range(2 * MOST)]
    assert len({each.data_ptr() for each in held}) == len(held)


def test_of_another_number_of_rows_or_small() -> None:
    buffers = StateBuffers()
    assert buffers.empty_like(LEAF).shape == LEAF.shape
    assert buffers.empty_like(torch.zeros(9, 16384)).shape == (9, 16384)
    assert buffers.empty_like(torch.zeros(2, 3)).shape == (2, 3)
    assert buffers.empty_like(torch.zeros(4, 16384, dtype=torch.float64)).dtype == torch.float64


def test_threads_get_different_memory() -> None:
    buffers = StateBuffers()

    def use(number: int) -> bool:
        for _ in range(200):
            mine = buffers.empty_like(LEAF)
            mine[0, 0] = number
            if mine[0, 0] != number:
                return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(use, range(3)))
