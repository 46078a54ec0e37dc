"""docs/reference/ is what the program says of itself."""

from __future__ import annotations

import pytest

from docs.generate import pages
from tests.paths import ROOT

REFERENCE = ROOT / "docs" / "reference"
AGAIN = "run `python -m docs.generate`"


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return pages()


def test_no_page_is_missing_or_left_over(expected: dict[str, str]) -> None:
    present = {path.relative_to(REFERENCE).as_posix() for path in REFERENCE.rglob("*") if path.is_file()}
    assert present == set(expected), AGAIN


def test_every_page_is_current(expected: dict[str, str]) -> None:
    stale = [name for name, text in expected.items() if (REFERENCE / name).read_text(encoding="utf-8") != text]
    assert not stale, AGAIN
