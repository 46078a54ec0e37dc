"""In a fresh process, transformers knows our model type without an import by the user."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from synthe_core.interop.huggingface.auto_classes import registration
from tests.evaluation.models import saved
from tests.paths import ROOT
from tests.processes import run_program

ENTRY_POINT = "synthe-transformers = synthe_core.interop.huggingface.auto_classes.registration:autoload\n"
PATH = "'model'"
MODEL = "print(type(AutoModelForCausalLM.from_pretrained('model')).__name__)"
CASES = {
    "the configuration": "from transformers import AutoConfig\n"
    "print(type(AutoConfig.from_pretrained('model')).__name__)",
    "the module of the table": "import transformers.models.auto.configuration_auto as table\n"
    "print(type(table.AutoConfig.from_pretrained('model')).__name__)\n"
    "import types; assert type(table) is types.ModuleType",
    "the tokenizer": "from transformers import AutoTokenizer\n"
    "tokenizer = AutoTokenizer.from_pretrained('model')\n"
    "assert tokenizer.decode(tokenizer('the sea').input_ids) == 'the sea'",
    "the model": f"from transformers import AutoModelForCausalLM\n{MODEL}",
    "the model, torch first": f"import torch\nfrom transformers import AutoModelForCausalLM\n{MODEL}",
    "the harness first": f"import lm_eval.models.huggingface\nfrom transformers import AutoModelForCausalLM\n{MODEL}",
    "peft first": f"import peft\nfrom transformers import AutoModelForCausalLM\n{MODEL}",
    "a pipeline": "from transformers import pipeline\n"
    "print(pipeline('text-generation', 'model')('the', max_new_tokens=3)[0]['generated_text'][:3])",
    "another model type": "from transformers import AutoConfig\nprint(AutoConfig.for_model('llama').model_type)\n"
    "import sys; assert 'synthe_core.layers' not in sys.modules",
    "no transformers": "import torch, sys\nassert 'transformers' not in sys.modules\n"
    "assert not [name for name in sys.modules if name.startswith('synthe_core.storage')]",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and the facts of an installed package with our entry point alone."""
    folder = tmp_path_factory.mktemp("fresh")
    saved(folder / "model")
    facts = folder / "packages" / "synthe-0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: synthe\nVersion: 0\n")
    (facts / "entry_points.txt").write_text(f"[torch.backends]\n{ENTRY_POINT}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_fresh_process_loads_our_checkpoints(folder: Path, case: str) -> None:
    done = run_program(
        [sys.executable, "-W", "error::ImportWarning", "-c", CASES[case]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder / 'packages'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "is not supported" not in done.stderr and "not recognized" not in done.stderr, done.stderr


def test_the_package_has_the_entry_point() -> None:
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["torch.backends"]
    name, _, target = ENTRY_POINT.strip().partition(" = ")
    assert entries[name] == target


def test_a_table_that_is_there_is_added_to() -> None:
    transformers = pytest.importorskip("transformers")
    registration.autoload()
    registration.autoload()
    from synthe_core.interop.huggingface.auto_classes.configuration import SyntheConfig

    assert type(transformers.AutoConfig.for_model("synthe")) is SyntheConfig


def test_a_table_that_is_not_there_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table_of_models.py").write_text("entries = ['their own']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "MODULE", "table_of_models")
    monkeypatch.setattr(registration, "register", lambda: sys.modules["table_of_models"].entries.append("ours"))
    registration.autoload()
    registration.autoload()
    waiting = [finder for finder in sys.meta_path if isinstance(finder, registration._Waiting)]
    assert len(waiting) == 1 and "table_of_models" not in sys.modules
    import table_of_models  # type: ignore[import-not-found]

    assert table_of_models.entries == ["their own", "ours"]
    assert not any(isinstance(finder, registration._Waiting) for finder in sys.meta_path)
    assert not isinstance(table_of_models.__spec__.loader, registration._Following)


def test_a_table_that_is_being_made_is_added_to_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("table_of_models")
    module.__spec__ = type("Spec", (), {"_initializing": True})()  # type: ignore[assignment]
    module.entries = ["their own"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "table_of_models", module)
    monkeypatch.setattr(registration, "MODULE", "table_of_models")
    monkeypatch.setattr(registration, "register", lambda: module.entries.append("ours"))
    registration.autoload()
    assert module.entries == ["their own"]
    module.__spec__._initializing = False  # type: ignore[union-attr]
    assert module.entries == ["their own", "ours"] and type(module) is ModuleType
