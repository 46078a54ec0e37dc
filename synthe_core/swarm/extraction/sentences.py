"""Sentences of a text, and those of them that state something."""

from __future__ import annotations

import re

MAX_SENTENCES = 400  # of one text
MAX_LENGTH = 1000  # characters of a sentence; a longer one is no sentence

_ABBREVIATION = (
    r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|vs|Jr|Sr|No|ca)\.)"
    r"(?<!\b(?:Mrs|Inc|Ltd|etc|Gen|Col)\.)(?<!\bProf\.)(?<!\b(?:e\.g|i\.e)\.)"
)
_END = re.compile(rf"(?<=[.!?]){_ABBREVIATION}[\"')\]]*\s+|\n+")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_QUOTED = re.compile(r"^\s*>.*$", re.MULTILINE)
_MARK = re.compile(r"^[ \t]*(?:[-*•#]+|\d+[.)])[ \t]+|\*\*|__", re.MULTILINE)
_UNREAL = re.compile(
    r"(?i)\b(?:if|unless|suppose|supposing|imagine|pretend|would|could|might|maybe|perhaps|possibly|wish|hope|hypothetical"
    r"|assume|assuming|think|believe|guess|said|says|claims?|claimed|asked)\b"
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, without code, quoted lines and marks of lists."""
    plain = _MARK.sub("", _QUOTED.sub("", _CODE.sub(" ", text)))
    parts = (" ".join(part.split()) for part in _END.split(plain))
    return [part for part in parts if 0 < len(part) <= MAX_LENGTH][:MAX_SENTENCES]


def statements(text: str) -> list[str]:
    """The sentences that say how things are: no questions, conditions, beliefs or reports of others' words."""
    return [each for each in sentences(text) if not each.endswith("?") and not _UNREAL.search(each)]
