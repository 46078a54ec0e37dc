"""Commands of the documentation exist, with the options that they are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.command_lines import check, commands, lines
from tests.docs.markdown import blocks, files, relative


@pytest.mark.parametrize("path", [pytest.param(path, id=relative(path)) for path in files()])
def test_commands_exist(path: Path) -> None:
    for block in [*blocks(path, "console"), *blocks(path, "sh"), *blocks(path, "text")]:
        for line in lines(block):
            for words in commands(line):
                try:
                    check(words)
                except Exception as error:
                    raise AssertionError(f"{relative(path)}:{block.line}: {line}\n{error!r}") from error


@pytest.mark.parametrize(
    "line",
    [
        "synthe trian tiny",
        "synthe train tiny --no-such-option",
        "synthe generate",
        "synthe pack inspect a.synapse b.synapse",
        "synthe merge tise a b",
        "synthe merge ties a b --no-such-key 1",
        "synthe bench mqar --layer delta --no-such-key 1",
        "synthe train tiny | synthe generat -",
        "sinthe train tiny",
        "python -m tests.no_such_module",
    ],
)
def test_invalid_commands_are_reported(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 (the parser's own error, or an assertion)
        for words in commands(line):
            check(words)


@pytest.mark.parametrize(
    "line",
    [
        'synthe train tiny --set train.lr=1e-3 | synthe generate - --prompt "import " --tokens 20',
        "synthe merge ties a b --density 0.2 --lambda 0.7",
        "synthe bench state-tracking --group A5 --layer delta",
        "synthe --help",
        "OMP_NUM_THREADS=1 pytest -n auto && ruff check . > out.txt  # a comment",
        "for r in tiny mamba; do synthe train recipes/$r.yaml; done",
    ],
)
def test_valid_commands_are_accepted(line: str) -> None:
    for words in commands(line):
        check(words)
