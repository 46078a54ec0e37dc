"""Checkpoints that are opened with nearly no memory beside what they need at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from synthe_core.model.language_model import LanguageModel
from synthe_core.offload import model as offload
from synthe_core.offload.plan import MemoryNeeds, MemoryPlan, plan_memory
from synthe_core.storage.checkpoint import Checkpoint

Open = Callable[..., LanguageModel]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Open]:
    """`opened(path, format, extra, min_bytes, layout)`: the model at `path` with `extra` bytes more than the least
    memory of a layout: -1 with embedding and head on disk, 1 with an embedding that the head has not, 0 with none."""
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    made: list[LanguageModel] = []

    def build(
        path: Path, format: str | None = None, extra: int = 0, min_bytes: int = 1, layout: int = 1
    ) -> LanguageModel:
        def choose(memory: int, layouts: Sequence[MemoryNeeds], texts: int) -> tuple[int, MemoryPlan]:
            number = layout % len(layouts)
            return number, plan_memory(layouts[number].smallest + extra, layouts[number], texts)

        monkeypatch.setattr(offload, "choose_layout", choose)
        model = offload.offloaded_model(Checkpoint.open(path), format, 0, min_bytes=min_bytes)
        made.append(model)
        return model.eval().requires_grad_(False)

    yield build
    for model in made:
        if model.offload.streamed is not None:
            model.offload.streamed.close()
