"""Sizes, counts and lengths as people write them: one parser and one formatter for each.

A size is in bytes: kB, MB, GB, TB and PB are powers of 1000; KiB, MiB, GiB, TiB and PiB are powers of 1024.
A count is a plain number: k, M, G (or B), T and P are powers of 1000.
A length is a number of tokens in a sequence: k and M are powers of 1024, so that 8k is 8192.
"""

from __future__ import annotations

import math
import re

COUNT_SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12, "P": 10**15}
EXACT = 10_000
"""Below it a part and its whole are written with all their digits."""
NUMBER = r"[0-9][0-9_]*(?:\.[0-9]*)?"
_COUNT = re.compile(rf"\s*({NUMBER})\s*([{''.join(COUNT_SUFFIXES)}]?)\s*")
_SIZE = re.compile(rf"\s*({NUMBER})\s*((?:[kmgtp]i?)?)(b?)\s*", re.IGNORECASE)
_LENGTH = re.compile(r"\s*([0-9][0-9_]*)\s*([kKmM]?)\s*")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str, unit: str = "B") -> int:
    """Bytes of `512MiB`, `2GB`, `1.5 g` or `4096`. A number without a unit is in `unit`s. ValueError otherwise."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a size, such as 20MB or 1.5GiB")
    number, prefix, byte = match.groups()
    if not prefix and not byte and unit != "B":
        return parse_size(number + unit)
    prefix = prefix.lower()
    base = 1024 if prefix.endswith("i") else 1000
    return int(_number(number) * base ** _POWERS[prefix.removesuffix("i")])


def format_size(size: float) -> str:
    """Bytes in powers of 1024, three significant digits: 1536 -> 1.5 KiB."""
    power = 0
    while size >= 999.5 and power < 5:
        size, power = size / 1024, power + 1
    digits = f"{size:.3g}" if power and size < 999.5 else f"{size:.0f}"
    return f"{digits} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"


def parse_count(text: str) -> float:
    """The number of `20M`, `1.5k`, `1_000` or `7`. ValueError otherwise."""
    match = _COUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a count, such as 500, 1.5k or 20M")
    return _number(match[1]) * COUNT_SUFFIXES[match[2]]


def format_count(count: float) -> str:
    """A number in powers of 1000, three significant digits: 1234567 -> 1.23M."""
    if not math.isfinite(count):
        return str(count)
    size, power = abs(count), 0
    while size >= 999.5 and power < 5:
        size, power = size / 1000, power + 1
    text = f"{size:.3g}" if size < 999.5 and (power or count % 1) else f"{size:.0f}"
    return f"{'-' if count < 0 else ''}{text}{('', 'k', 'M', 'G', 'T', 'P')[power]}"


def format_part(part: float, whole: float) -> str:
    """A part with what it is of, in one unit: `302/1070`, `1.2M/3.5M`."""
    if abs(whole) < EXACT and float(part).is_integer() and float(whole).is_integer():
        return f"{part:.0f}/{whole:.0f}"
    text = format_count(whole)
    unit = COUNT_SUFFIXES.get(text[-1])
    if unit is None or abs(part) >= abs(whole):
        return f"{format_count(part)}/{text}"
    number = part / unit
    digits = f"{number:.3g}" if number >= 1 else f"{number:.2f}".rstrip("0").rstrip(".")
    return f"{digits}{text[-1]}/{text}"


def parse_length(text: str) -> int:
    """Tokens of `512`, `2k` (2048) or `1M` (1048576). ValueError otherwise, and for 0."""
    match = _LENGTH.fullmatch(text)
    if match is None or not _number(match[1]):
        raise ValueError(f"'{text}' is not a number of tokens, such as 512, 2k or 1M")
    return int(_number(match[1])) * 1024 ** _POWERS[match[2].lower()]


def format_length(length: int) -> str:
    """Tokens in units of 1024 from there on: 8192 -> 8k."""
    return f"{length // 1024}k" if length >= 1024 else str(length)


def _number(text: str) -> float:
    digits = text.replace("_", "")
    return float(digits) if "." in digits else int(digits)
