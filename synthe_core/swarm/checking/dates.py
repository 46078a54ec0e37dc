"""Dates in a text, of which parts may be open."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = "january february march april may june july august september october november december"
_MONTHS = {name[:3]: number for number, name in enumerate(_NAMES.split(), 1)}
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEAR = r"(?P<year>1\d{3}|20\d{2}|21\d{2})"
_DAY = r"(?P<day>[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?"
_COUNTED = "people|dollars|euros|pounds|miles|feet|metres|meters|years|days|cases|deaths|times|million|billion"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"\b{_YEAR}-(?P<month_number>1[0-2]|0[1-9])-(?P<day>3[01]|[12]\d|0[1-9])\b",
        rf"\b{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?\b",
        rf"\b{_MONTH}\s+{_DAY}(?!\d)(?:,?\s+{_YEAR})?\b",
        rf"\b{_MONTH},?\s+(?:of\s+)?{_YEAR}\b",
        rf"(?<![\w,.$€£¥-]){_YEAR}(?!\s?(?:[%$€£¥°]|km|m\b|kg|{_COUNTED}))\b(?![,.]\d)",
    )
)


@dataclass(frozen=True)
class Date:
    """A day, a month, a year, or a day of any year: what is None is open. text: how it was written."""

    year: int | None = None
    month: int | None = None
    day: int | None = None
    text: str = ""

    def agrees(self, other: Date) -> bool:
        """Whether both can be the same day."""
        mine, others = (self.year, self.month, self.day), (other.year, other.month, other.day)
        return all(a is None or b is None or a == b for a, b in zip(mine, others, strict=True))


def dates(text: str) -> list[Date]:
    """The dates of a text in order; a year alone is one."""
    by_place: dict[int, Date] = {}
    taken: list[tuple[int, int]] = []
    for form in _FORMS:
        for match in form.finditer(text):
            if any(match.start() < end and begin < match.end() for begin, end in taken):
                continue
            taken.append(match.span())
            by_place[match.start()] = _date(match)
    return [by_place[begin] for begin in sorted(by_place)]


def without_dates(text: str) -> str:
    """A text whose dates are blank, so that their numbers are not counted as quantities."""
    for form in _FORMS:
        text = form.sub(lambda match: " " * len(match[0]), text)
    return text


def _date(match: re.Match[str]) -> Date:
    parts = match.groupdict()
    month = (
        int(parts["month_number"]) if parts.get("month_number") else _MONTHS.get((parts.get("month") or "")[:3].lower())
    )
    year, day = (int(parts[name]) if parts.get(name) else None for name in ("year", "day"))
    return Date(year, month, day, match[0])
