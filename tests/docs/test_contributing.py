"""The examples of docs/contributing/ do what their pages say: a newcomer's learner, merge method and objective work."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from synthe_core.data.stream import Batch
from synthe_core.layers import LAYERS
from synthe_core.merging.method import Method
from synthe_core.merging.methods import METHODS
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.training.objectives.objective import ObjectiveContext
from tests.docs.markdown import blocks
from tests.paths import ROOT


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports the first Python block of a page as a module of that name."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(page: str) -> ModuleType:
        name = f"example_{page.replace('-', '_')}"
        block = blocks(ROOT / "docs" / "contributing" / f"{page}.md", "python")[0]
        (tmp_path / f"{name}.py").write_text(block.text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def test_the_learner_is_the_same_for_every_split(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAYERS._entries, "leaky", f"{example('learners').__name__}:Leaky")
    model = LanguageModel(ModelSpec(width=16, blocks=2, block=["leaky", "mlp"]), vocab=20).double()
    tokens = torch.randint(20, (2, 11))
    whole, _ = model(tokens)
    first, state = model(tokens[:, :4])
    rest, _ = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=1e-10, atol=1e-10)
    padded, _ = model(tokens, lengths=torch.tensor([11, 7]))
    torch.testing.assert_close(padded[0], whole[0], rtol=1e-10, atol=1e-10)


def test_the_merge_method_gives_copies_of_a_model_back(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS._entries, "towards", f"{example('merge-methods').__name__}:towards")
    method = Method("towards")
    tensor = torch.randn(4, 3)
    assert method.needs_base and list(method.parameters) == ["step"]
    assert torch.equal(method([tensor, tensor], tensor, {"step": 0.5}), tensor)
    torch.testing.assert_close(method([tensor + 1, tensor + 3], tensor, {"step": 0.5}), tensor + 1)


def test_the_objective_is_half_the_loss(example: Callable[[str], ModuleType]) -> None:
    objective = example("objectives").HalfLoss()
    model = LanguageModel(ModelSpec(width=16, blocks=1, block=["momentum", "mlp"]), vocab=20)
    tokens = torch.randint(20, (2, 9))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    loss, _ = model.loss(batch.inputs, batch.targets)
    half = objective(model, batch, ObjectiveContext())
    torch.testing.assert_close(half.total, loss.total / 2)
    assert objective.count(batch) == half.scored == 16
