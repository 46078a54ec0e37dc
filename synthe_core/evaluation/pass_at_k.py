"""pass@k: how often one of k programs passes its tests, by running them in the sandbox."""

from __future__ import annotations

import re
import secrets
from functools import cache

from synthe_core.agents.sandbox.limits import Limits
from synthe_core.agents.sandbox.sandbox import Sandbox
from synthe_core.errors import InputError

LIMITS = Limits(seconds=60.0, cpu_seconds=10, output=4 << 10)
"""Of one program with its tests. The processor time decides, which a busy machine does not change."""
FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The probability that one of k programs passes, of `samples` of which `passed` do: 1 - C(n - c, k) / C(n, k).

    Unbiased for k <= n. ValueError for fewer samples than k. Source: Chen et al. 2021, "Evaluating large language
    models trained on code", equation 1.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {passed} of {samples}")
    none = 1.0
    for each in range(samples - passed + 1, samples + 1):
        none *= max(0.0, 1 - k / each)
    return 1 - none


def passes(program: str, tests: str) -> bool:
    """Whether the tests run to their end after the program, in the sandbox.

    A program that ends early, as with `sys.exit(0)`, does not pass: the end of the tests prints a number that was drawn
    for this run. InputError where programs cannot be isolated.
    """
    mark = secrets.token_hex(16)
    done = _sandbox().run(f"{program}\n\n{tests}\n\nprint({chr(10)!r} + {mark!r})\n")
    return done.succeeded and done.stdout.rstrip().endswith(mark)


def program_of(answer: str, prompt: str, name: str) -> str:
    """The program in an answer to `prompt`, the beginning of a function `name`.

    Of an answer with code between fences that is the first such code, otherwise all of it. What defines `name` itself
    stands for the whole function, after the imports of the prompt; anything else continues the prompt.
    """
    fenced = FENCED.search(answer)
    code = fenced[1] if fenced else answer
    if re.search(rf"^(async )?def {re.escape(name)}\b", code, re.MULTILINE):
        imports = [line for line in prompt.splitlines() if line.startswith(("import ", "from "))]
        return "\n".join([*imports, code])
    return prompt + code


@cache
def _sandbox() -> Sandbox:
    try:
        return Sandbox.open(limits=LIMITS)
    except InputError as error:
        raise InputError(
            f"{error.message}: programs that a model writes are not run", "evaluate on another machine"
        ) from None
