"""Quantities in a text: a number, its unit, and how exact it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Bound = Literal["exact", "least", "most", "about"]

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_SMALL = {word: float(value) for value, word in enumerate(f"{_WORDS} eighteen nineteen".split())}
_ROUND = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = dict(zip(_ROUND.split(), range(20, 100, 10), strict=True))
_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "million": 1e6, "mn": 1e6, "billion": 1e9, "bn": 1e9, "trillion": 1e12,
    "dozen": 12.0,
}  # fmt: skip
_AFTER_MONEY = {"k": 1e3, "m": 1e6, "b": 1e9}  # elsewhere these are units
_UNITS: dict[str, tuple[str, float]] = {}
"""The dimension of a unit, and how many of the dimension's own unit it is."""


def _define(dimension: str, **units: float) -> None:
    _UNITS.update({name.replace("_", " "): (dimension, factor) for name, factor in units.items()})


_define("length", mm=1e-3, cm=1e-2, m=1, km=1e3, millimetre=1e-3, centimetre=1e-2, metre=1, kilometre=1e3)
_define("length", millimeter=1e-3, centimeter=1e-2, meter=1, kilometer=1e3, inch=0.0254, inches=0.0254)
_define("length", foot=0.3048, feet=0.3048, ft=0.3048, yard=0.9144, mile=1609.344, light_year=9.4607e15)
_define("mass", mg=1e-6, g=1e-3, kg=1, milligram=1e-6, gram=1e-3, kilogram=1, kilo=1, tonne=1e3, ton=1e3)
_define("mass", pound=0.45359237, lb=0.45359237, lbs=0.45359237, ounce=0.028349523, oz=0.028349523)
_define("time", ms=1e-3, second=1, sec=1, minute=60, min=60, hour=3600, day=86400, week=604800, month=2629800)
_define("time", year=31557600, decade=315576000, century=3155760000, centuries=3155760000)
_define(
    "volume", ml=1e-3, l=1, litre=1, liter=1, millilitre=1e-3, milliliter=1e-3, gallon=3.785411784, pint=0.473176473
)
_define("area", hectare=1e4, acre=4046.8564224)
_define("data", byte=1, bytes=1, kb=1e3, mb=1e6, gb=1e9, tb=1e12, kib=1024, mib=1048576, gib=1073741824)
_define("power", watt=1, kw=1e3, mw=1e6, gw=1e9, kilowatt=1e3, megawatt=1e6, horsepower=745.69987)
_define("share", percent=1, per_cent=1)
_UNITS.update({"%": ("share", 1.0), "°": ("angle", 1.0), "degree": ("angle", 1.0)})
_SYMBOLS = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}
_CURRENCIES = {
    "dollar": "dollar", "usd": "dollar", "buck": "dollar", "euro": "euro", "eur": "euro", "gbp": "pound sterling",
    "yen": "yen", "rupee": "rupee", "franc": "franc", "yuan": "yuan",
}  # fmt: skip

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_WRITTEN = "|".join([*_SMALL, *_TENS])
_QUANTITY = re.compile(
    rf"(?<![\w.])(?P<sign>[-−])?(?P<symbol>[$€£¥])?\s?"
    rf"(?:(?P<digits>{_NUMBER})(?P<ordinal>st|nd|rd|th)?|(?P<written>(?:{_WRITTEN})(?:[- ](?:{_WRITTEN}))?)\b)"
    rf"(?P<scales>(?:[\s-]?(?:{'|'.join(sorted(_SCALES, key=len, reverse=True))})\b)*)"
    r"(?:[\s-]?(?P<unit>%|°|(?:per cent|light years?|square|cubic)\b(?:\s[a-z]+)?|[A-Za-z]+))?",
    re.IGNORECASE,
)
_LEAST = re.compile(
    r"(?:at least|more than|over|above|exceed\w*|greater than|no (?:less|fewer) than|minimum of)\s*$", re.I
)
_MOST = re.compile(
    r"(?:at most|less than|fewer than|under|below|up to|no more than|maximum of|nearly|almost)\s*$", re.I
)
_ABOUT = re.compile(r"(?:about|around|approximately|roughly|some|circa|ca\.?|nearly|almost|estimated)\s*$", re.I)


@dataclass(frozen=True)
class Quantity:
    """value: in the dimension's own unit. dimension: such as `length`, `dollar` or `count`; of a count, `noun` is what
    is counted. bound: whether the text says at least, at most or about so much."""

    value: float
    dimension: str = "count"
    noun: str = ""
    bound: Bound = "exact"
    text: str = ""


def quantities(text: str) -> list[Quantity]:
    """The quantities of a text in order. Numbers that are years or parts of dates are here too, as counts."""
    return list(_read(text))


def _read(text: str) -> Iterator[Quantity]:
    for match in _QUANTITY.finditer(text):
        value = _value(match)
        unit, bound = (match["unit"] or "").lower(), _bound(text[: match.start()])
        if match["symbol"]:
            yield Quantity(value * _AFTER_MONEY.get(unit, 1.0), _SYMBOLS[match["symbol"]], "", bound, match[0])
        elif (known := _unit(unit)) is not None:
            yield Quantity(value * known[1], known[0], "", bound, match[0])
        else:
            noun = "" if match["ordinal"] else unit
            yield Quantity(value, "ordinal" if match["ordinal"] else "count", noun, bound, match[0])


def _value(match: re.Match[str]) -> float:
    if match["digits"]:
        value = float(match["digits"].replace(",", ""))
    else:
        words = re.split(r"[- ]", match["written"].lower())
        value = float(sum(_SMALL.get(word, _TENS.get(word, 0)) for word in words))
    for scale in re.findall(r"[a-z]+", match["scales"].lower()):
        value *= _SCALES[scale]
    return -value if match["sign"] else value


def _unit(name: str) -> tuple[str, float] | None:
    for each in (name, name.removesuffix("s")):
        if each in _UNITS:
            return _UNITS[each]
        if each in _CURRENCIES:
            return _CURRENCIES[each], 1.0
    return None


def _bound(before: str) -> Bound:
    if _LEAST.search(before):
        return "least"
    if _MOST.search(before):
        return "most"
    return "about" if _ABOUT.search(before) else "exact"


def comparable(first: Quantity, second: Quantity) -> bool:
    """Whether two quantities measure the same: one dimension, and of counts the same noun where both have one."""
    if first.dimension != second.dimension:
        return False
    return first.dimension != "count" or not (first.noun and second.noun) or _stem(first.noun) == _stem(second.noun)


def agree(first: Quantity, second: Quantity) -> bool:
    """Whether two comparable quantities can both be right: within rounding, and within what "over 5" leaves open."""
    low, high = _range(first)
    other_low, other_high = _range(second)
    return low <= other_high and other_low <= high


def _range(quantity: Quantity) -> tuple[float, float]:
    value, margin = quantity.value, _precision(quantity)
    if quantity.bound == "least":
        return value - margin, float("inf")
    if quantity.bound == "most":
        return float("-inf"), value + margin
    if quantity.bound == "about":
        margin = max(margin, 0.1 * abs(value))
    return value - margin, value + margin


def _precision(quantity: Quantity) -> float:
    """Half of a rounding error of what was measured. A count is exact."""
    if quantity.dimension in ("count", "ordinal"):
        return 1e-9
    return 0.005 * abs(quantity.value) + 1e-9


def _stem(noun: str) -> str:
    return noun[:-3] + "y" if noun.endswith("ies") else noun.removesuffix("s")
