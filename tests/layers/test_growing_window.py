"""Windows that grow in place: values all the same."""

from __future__ import annotations

import torch

from synthe_core.layers.growing_window import ROOM, extended

Windows = tuple[torch.Tensor, torch.Tensor]


def appended(windows: Windows, value: float, limit: int = 1 << 20) -> Windows:
    place = extended(*windows, limit)
    place.keys[:, place.start + place.past] = value
    place.values[:, place.start + place.past] = -value
    return place.windows()


def numbers(windows: Windows) -> list[float]:
    keys, values = windows
    assert torch.equal(keys, -values) and (keys == keys[:, :, :1, :1]).all() and (keys == keys[:1]).all()
    return keys[0, :, 0, 0].tolist()


def fresh(count: int = 3) -> Windows:
    keys = torch.arange(float(count))[None, :, None, None].expand(2, count, 3, 5).contiguous()
    return keys, -keys


def test_entries_are_those_of_a_list() -> None:
    windows, expected = fresh(), [0.0, 1.0, 2.0]
    for value in range(3 * ROOM):
        windows, expected = appended(windows, float(value)), [*expected, float(value)]
        assert numbers(windows) == expected


def test_the_oldest_leaves_a_full_window() -> None:
    windows, expected = fresh(), [0.0, 1.0, 2.0]
    for value in range(3 * ROOM):
        windows, expected = appended(windows, float(value), 7), [*expected, float(value)][-7:]
        assert numbers(windows) == expected


def test_a_window_of_one() -> None:
    windows = fresh(1)
    for value in range(5):
        windows = appended(windows, float(value), 1)
        assert numbers(windows) == [float(value)]


def test_memory_is_written_in_place_and_copied_rarely() -> None:
    windows, buffers = fresh(0), set()
    for value in range(10 * ROOM):
        windows = appended(windows, float(value))
        buffers.add(windows[0].untyped_storage().data_ptr())
    assert len(buffers) <= 9


def test_two_that_go_on_from_one_window_do_not_see_each_other() -> None:
    before = appended(fresh(), 3.0)
    one = appended(before, 10.0)
    two = appended(before, 20.0)
    one, two = appended(one, 11.0), appended(two, 21.0)
    assert numbers(before) == [0.0, 1.0, 2.0, 3.0]
    assert numbers(one) == [0.0, 1.0, 2.0, 3.0, 10.0, 11.0]
    assert numbers(two) == [0.0, 1.0, 2.0, 3.0, 20.0, 21.0]
    assert numbers(appended(before, 30.0)) == [0.0, 1.0, 2.0, 3.0, 30.0]


def test_copies_and_parts_of_windows_begin_buffers_of_their_own() -> None:
    keys, values = appended(fresh(), 3.0)
    for part in (
        (keys.clone(), values.clone()),
        (keys[:1], values[:1]),
        (keys[1:], values[1:]),
        (keys[:, :-1], values[:, :-1]),
        (keys[:, 1:], values[:, 1:]),
        (keys, values.clone()),
    ):
        expected = part[0][0, :, 0, 0].tolist()
        assert numbers(appended(part, 9.0)) == [*expected, 9.0]
    assert numbers((keys, values)) == [0.0, 1.0, 2.0, 3.0]
