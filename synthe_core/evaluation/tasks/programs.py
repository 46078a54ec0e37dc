"""The data and the metrics of code_humaneval.yaml, code_humaneval_20.yaml, code_humaneval_chat.yaml and code_mbpp.yaml.

Sources: HumanEval, Chen et al. 2021; MBPP, Austin et al. 2021. Programs run in the sandbox, without network or files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from synthe_core.data.content import content, damage
from synthe_core.errors import InputError
from synthe_core.evaluation.pass_at_k import pass_at_k, passes, program_of

HUMANEVAL = ("task_id", "prompt", "entry_point", "test")
MBPP = ("text", "code", "test_list")
DEPTHS = (1, 10)


def humaneval(humaneval: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """HumanEval of the hub, or of the file that --metadata names: JSON lines, may be gzipped."""
    if humaneval is None:
        return {"test": datasets.load_dataset("openai/openai_humaneval", split="test")}
    return {"test": datasets.Dataset.from_list(_rows(Path(humaneval), HUMANEVAL))}


def mbpp(mbpp: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """MBPP of the hub, or of the file that --metadata names. Tasks 1 to 10 are examples, 11 to 510 tests."""
    if mbpp is None:
        loaded = datasets.load_dataset("google-research-datasets/mbpp", "full")
        return {"test": loaded["test"], "prompt": loaded["prompt"]}
    rows = _rows(Path(mbpp), MBPP)
    parts = {"prompt": range(1, 11), "test": range(11, 511)}
    return {
        name: datasets.Dataset.from_list([row for row in rows if int(row["task_id"]) in ids])
        for name, ids in parts.items()
    }


def judge_humaneval(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """pass@k of a problem's answers, for each k of which there are as many."""
    answers = results[0] if isinstance(results[0], list) else results
    tests = f"{doc['test']}\n\ncheck({doc['entry_point']})"
    return _shares([passes(program_of(each, doc["prompt"], doc["entry_point"]), tests) for each in answers])


def judge_mbpp(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    answers = results[0] if isinstance(results[0], list) else results
    tests = "\n".join([doc.get("test_setup_code") or "", *doc["test_list"]])
    return _shares([passes(program_of(each, "", ""), tests) for each in answers])


def all_answers(answers: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """Every sample of a problem, not only the first."""
    return answers


def _shares(passed: list[bool]) -> dict[str, float]:
    return {f"pass@{k}": pass_at_k(len(passed), sum(passed), k) for k in DEPTHS if k <= len(passed)}


def _rows(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a file. InputError where one lacks a key."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", "name JSON lines, may be gzipped")
    with damage(path):
        lines = b"".join(content(path)).splitlines()
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise InputError(f"{path} is not JSON lines: {error}", "name a file of this data set") from None
    if not rows or any(not isinstance(row, dict) or any(key not in row for key in keys) for row in rows):
        raise InputError(f"{path} has rows without {', '.join(keys)}", "name a file of this data set")
    return rows
