"""A model as the judge of a contradiction, for a base that is large enough to be one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthe_core.errors import WorkError
from synthe_core.swarm.json_writer import JsonWriter

VERDICTS = ("supported", "open", "contradicted")
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": list(VERDICTS)}},
    "required": ["verdict"],
    "additionalProperties": False,
}
_QUESTION = """\
Known: {known}
Statement: {stated}
Judge the statement by what is known. Write {{"verdict": "supported"}} if what is known supports it, \
{{"verdict": "contradicted"}} if both cannot be true, and {{"verdict": "open"}} otherwise."""


class Judge:
    """A `Verifier` that asks a model, with a schema for its answer. Its scores are 0, 0.5 and 1."""

    threshold = 1.0

    def __init__(self, write: JsonWriter) -> None:
        self._write = write

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """float [N]: 1 for a contradiction, 0.5 where the question is open or the model wrote no verdict."""
        return np.array([self._judge(known, stated) for known, stated in pairs])

    def _judge(self, known: str, stated: str) -> float:
        try:
            verdict = self._write(_QUESTION.format(known=known, stated=stated), SCHEMA)["verdict"]
        except WorkError:
            return 0.5
        return VERDICTS.index(verdict) / 2
