"""Programs that models write are judged by running their tests, in the sandbox."""

from __future__ import annotations

import gzip
import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from synthe_core.agents.sandbox.sandbox import Sandbox
from synthe_core.errors import InputError
from synthe_core.evaluation.pass_at_k import pass_at_k, program_of
from synthe_core.evaluation.tasks.programs import humaneval, judge_humaneval, judge_mbpp, mbpp
from tests.paths import SHARED

PROBLEMS = SHARED / "data" / "eval" / "HumanEval.jsonl.gz"


def isolated() -> bool:
    try:
        return Sandbox.open().isolated
    except InputError:
        return False


needs_sandbox = pytest.mark.skipif(not isolated(), reason="this system does not isolate programs")

DOUBLE: dict[str, Any] = {
    "task_id": "mine/0",
    "prompt": 'import math\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "canonical_solution": "    return 2 * x\n",
}


@pytest.mark.parametrize(
    ("samples", "passed", "k"), [(1, 0, 1), (1, 1, 1), (5, 2, 1), (5, 2, 3), (6, 4, 3), (20, 1, 10)]
)
def test_pass_at_k_is_the_share_of_choices_with_one_that_passes(samples: int, passed: int, k: int) -> None:
    choices = list(combinations(range(samples), k)) if samples < 10 else None
    if choices is None:
        expected = 1 - math.comb(samples - passed, k) / math.comb(samples, k)
    else:
        expected = sum(min(choice) < passed for choice in choices) / len(choices)
    assert pass_at_k(samples, passed, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("samples", "passed", "k"), [(1, 2, 1), (1, 0, 2), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_of_too_few_samples_is_an_error(samples: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError):
        pass_at_k(samples, passed, k)


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("    return 2 * x\n", 1),
        ("    return x + x", 1),
        ("Sure:\n\n```python\ndef double(x):\n    return int(math.fabs(2 * x)) * (1 if x > 0 else -1)\n```\nDone.", 1),
        ("```\n    return 2 * x\n```", 1),
        ("    pass\n", 0),
        ("    return 2 * x +\n", 0),
        ("    raise SystemExit(0)\n", 0),
        ("    import os; os._exit(0)\n", 0),
        ("    return 2 * x\n\ndef check(candidate):\n    pass\n", 1),  # the tests come after what it defines
        ("", 0),
    ],
)
def test_an_answer_passes_if_its_tests_run_to_their_end(answer: str, expected: int) -> None:
    assert judge_humaneval(DOUBLE, [answer]) == {"pass@1": expected}


@needs_sandbox
def test_several_samples_give_each_k_that_they_suffice_for() -> None:
    answers = ["    return 2 * x\n"] * 3 + ["    pass\n"] * 7
    scores = judge_humaneval(DOUBLE, [answers])
    assert scores == {"pass@1": pytest.approx(0.3), "pass@10": 1.0}


@needs_sandbox
def test_mbpp_answers_run_with_their_setup() -> None:
    doc = {"test_setup_code": "base = 3", "test_list": ["assert add(1) == base + 1", "assert add(0) == 3"]}
    assert judge_mbpp(doc, ["def add(x):\n    return x + 3"]) == {"pass@1": 1}
    assert judge_mbpp(doc, ["def add(x):\n    return x"]) == {"pass@1": 0}


def test_a_program_is_the_whole_function_or_continues_the_prompt() -> None:
    assert program_of("    return 1", "def f():\n", "f") == "def f():\n    return 1"
    assert program_of("def f():\n    return 1", "import os\ndef f():\n", "f") == "import os\ndef f():\n    return 1"
    assert program_of("x\n```py\ndef f(): return 1", "def f():\n", "f") == "def f(): return 1"  # cut before the fence
    assert program_of("def g(): pass", "p", "f") == "pdef g(): pass"


def test_files_of_problems_are_read_and_bad_ones_are_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl.gz", tmp_path / "bad.jsonl"
    with gzip.open(good, "wt") as file:
        file.write(json.dumps(DOUBLE) + "\n")
    assert humaneval(str(good))["test"][0]["entry_point"] == "double"
    rows = [{"task_id": i, "text": "t", "code": "c", "test_list": ["assert f() == 1"]} for i in (1, 11, 600)]
    bad.write_text("\n".join(map(json.dumps, rows)))
    loaded = mbpp(str(bad))
    assert [loaded[name]["task_id"] for name in ("prompt", "test")] == [[1], [11]]
    for path in (bad, tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError):
            humaneval(str(path))


@needs_sandbox
@pytest.mark.slow
@pytest.mark.skipif(not PROBLEMS.exists(), reason="no HumanEval beside the project")
def test_canonical_solutions_pass_and_empty_ones_fail() -> None:
    problems = humaneval(str(PROBLEMS))["test"]
    right = [judge_humaneval(doc, [doc["canonical_solution"]])["pass@1"] for doc in problems]
    empty = [judge_humaneval(doc, ["    pass\n"])["pass@1"] for doc in problems]
    assert (sum(right), sum(empty), len(right)) == (164, 0, 164)
    endless = judge_humaneval(problems[0], ["    while True:\n        pass\n"])
    assert endless == {"pass@1": 0}
