"""Three short documents in a folder, and an embedder whose vectors are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from synthe_core.retrieval.embedder import Embedder

TEXTS = {
    "leave.md": "# Leave\n\nEverybody has 30 days of holiday.\n\n## Illness\n\nA doctor's note is due on day three.\n",
    "travel.txt": "Trains are paid in second class. Taxis need a receipt.\n",
    "deep/money.html": "<h1>Money</h1><p>Refunds are paid within fourteen days of the return.</p>",
}
SUBJECTS = (("holiday", "vacation"), ("note", "sick"), ("train", "railway"), ("refund", "reimbursed"))


def embed(texts: Sequence[str]) -> np.ndarray:
    """One dimension for each subject, which is 1 where the text has one of its words."""
    return np.array([[any(w in text.casefold() for w in words) for words in SUBJECTS] for text in texts], np.float32)


@pytest.fixture
def embedder() -> Embedder:
    return Embedder("subjects", embed, centered=False)


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    folder = tmp_path / "handbook"
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / ".hidden.md").write_text("nothing")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder
