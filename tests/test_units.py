from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthe_core.units import (
    format_count,
    format_length,
    format_part,
    format_size,
    parse_count,
    parse_length,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("3 B", 3),
        ("2k", 2_000),
        ("2kB", 2_000),
        ("20MB", 20_000_000),
        ("1.5GB", 1_500_000_000),
        ("5 gb", 5 * 10**9),
        ("1T", 10**12),
        ("1KiB", 1024),
        ("512MiB", 512 << 20),
        ("1.5 GiB", 3 << 29),
        ("2Gi", 2 << 30),
        ("1pib", 1 << 50),
        (" 1_000 MB ", 10**9),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_number_without_a_unit_takes_the_default_unit() -> None:
    assert parse_size("8", unit="GiB") == 8 << 30
    assert parse_size("8MB", unit="GiB") == 8_000_000
    assert parse_size("8B", unit="GiB") == 8


@pytest.mark.parametrize("text", ["", "GB", "-1", "5x", "5XB", "1..5GB", "1e9", "nan", "inf", "5 G B", "5iB", "٣MB"])
def test_a_bad_size_is_an_error_of_one_line_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size, such as 20MB or 1\.5GiB") as error:
        parse_size(text)
    assert "\n" not in str(error.value) and f"'{text}'" in str(error.value)


@given(st.integers(0, 1 << 64))
def test_a_formatted_size_parses_to_nearly_the_same(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= 0.005 * size + 1


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (999, "999 B"), (1000, "0.977 KiB"), (1536, "1.5 KiB"), (512 << 20, "512 MiB")],
)
def test_sizes_are_formatted(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("7", 7),
        ("1.5k", 1_500),
        ("1.5K", 1_500),
        ("20M", 2e7),
        ("3G", 3e9),
        ("3B", 3e9),
        ("1T", 1e12),
        ("1_000", 1_000),
    ],
)
def test_counts_are_parsed(text: str, count: float) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-5", "5m", "5 x", "1e6", "nan", "1.5KiB"])
def test_a_bad_count_is_an_error_of_one_line_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a count, such as 500, 1\.5k or 20M") as error:
        parse_count(text)
    assert "\n" not in str(error.value)


@given(st.integers(0, 10**20) | st.floats(0, 1e20))
def test_a_formatted_count_parses_to_nearly_the_same(count: float) -> None:
    text = format_count(count)
    if "e" not in text:  # below 0.0001
        assert math.isclose(parse_count(text), count, rel_tol=0.005)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7"),
        (999, "999"),
        (999_600, "1M"),
        (1_234_567, "1.23M"),
        (-2_500, "-2.5k"),
        (0.5, "0.5"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_counts_are_formatted(count: float, text: str) -> None:
    assert format_count(count) == text


@given(st.integers(0, 12), st.integers(1, 1023))
def test_lengths_are_powers_of_two(power: int, number: int) -> None:
    assert parse_length(str(number)) == number
    assert parse_length(f"{number}k") == number * 1024
    assert parse_length(format_length(1024 << power)) == 1024 << power
    assert format_length(number) == str(number)


def test_a_length_of_millions() -> None:
    assert parse_length("1M") == parse_length("1m") == 1 << 20


@pytest.mark.parametrize("text", ["", "0", "2x", "1.5k", "-4", "k"])
def test_a_bad_length_is_an_error_of_one_line_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of tokens, such as 512, 2k or 1M"):
        parse_length(text)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (302, 1070, "302/1070"),
        (302.5, 1070, "0.3k/1.07k"),
        (9_999, 10_000, "10k/10k"),
        (0, 5, "0/5"),
        (3, 3.5e6, "0M/3.5M"),
        (1.2e6, 3.5e6, "1.2M/3.5M"),
        (1000, 1000, "1000/1000"),
        (12_500, 1e6, "0.01M/1M"),
        (0.25, 2, "0.25/2"),
        (7, math.inf, "7/inf"),
        (math.nan, 5, "nan/5"),
    ],
)
def test_a_part_has_the_unit_of_the_whole(part: float, whole: float, text: str) -> None:
    assert format_part(part, whole) == text
