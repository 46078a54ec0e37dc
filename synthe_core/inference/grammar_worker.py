"""A process that compiles grammars within bounds of time and memory, which llguidance alone does not keep to.

It runs as a script and imports nothing of the package. It says `ready`. Then each line of its input is a job,
`{"grammar": ...}`, and each line of its output an answer, `{"error": ...}`, null for a grammar that can be followed.
Over the bounds, it dies.
"""

from __future__ import annotations

import json
import os
import random
import sys
from contextlib import suppress
from typing import Any

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 100_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 30_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""llguidance's own: they bound the time of a step, and what a text's grammar takes."""
SECONDS = 2
"""Processor time of a job."""
MEMORY = 96 << 20
"""Bytes that a job may take beside the process itself."""
STEPS = 16
"""Tokens of a random text that is tried on the grammar."""


class Bytes:
    """The vocabulary of a tokenizer whose tokens are bytes, as llguidance asks for it."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def check(vocabulary: Any, grammar: str) -> str | None:
    """What is wrong with a grammar; None for nothing."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    choice = random.Random(0)
    for step in range(STEPS):
        mask = matcher.compute_bitmask() if not matcher.is_error() else bytes(33)
        allowed = [token for token in range(257) if mask[token // 8] >> token % 8 & 1]
        if allowed and not matcher.is_error():
            matcher.consume_token(choice.choice(allowed))
        if matcher.is_error():
            return str(matcher.get_error())
        if not allowed and step == 0:
            return "it allows no text"
        if not allowed or matcher.is_stopped():
            break
    return None


def main() -> None:
    from llguidance import LLTokenizer, TokenizerWrapper

    vocabulary = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=257)
    check(vocabulary, '{"grammars": [{"json_schema": {}}]}')  # loads what every job needs
    with suppress(OSError):
        os.nice(10)  # whoever generates comes first
    _answer("ready")
    for line in sys.stdin:
        _bound()
        try:
            error = check(vocabulary, json.loads(line)["grammar"])
        except (ValueError, TypeError, RecursionError) as exception:
            error = str(exception)
        _answer(json.dumps({"error": error}))


def _answer(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _bound() -> None:
    """Sets the limits of the next job, where the system has them."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + SECONDS, hard))
        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, hard))


if __name__ == "__main__":
    main()
