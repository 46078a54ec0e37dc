"""The execution context: an immutable value that is active around passes only, and that every verb's passes run in."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from synthe_core.evaluation import confidence, perplexity
from synthe_core.evaluation.harness_model import Synthe
from synthe_core.hardware import kernel_tuning
from synthe_core.hardware.execution import DEFAULT, ExecutionContext, active_context
from synthe_core.hardware.kernel_tuning import tuned_kernels_path
from synthe_core.hardware.probe import probe
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate
from synthe_core.inference.request import Request
from synthe_core.introspection.report import introspect
from synthe_core.merging.evaluate import compare
from synthe_core.merging.inputs.checkpoint import CheckpointModel
from synthe_core.model.language_model import LanguageModel
from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.dispatch import use_kernels
from synthe_core.packing.loss import measure_loss
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.atomic import write_file
from synthe_core.storage.checkpoint import Checkpoint, save, weights
from synthe_core.storage.manifest import Manifest
from tests.conftest import needs_compiler

# The value


def test_a_context_cannot_be_changed() -> None:
    kernels = {"delta_rule": "chunked"}
    context = ExecutionContext(kernels=kernels)
    kernels["delta_rule"] = "native"
    assert context.kernels == {"delta_rule": "chunked"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.precision = "bfloat16"  # type: ignore[misc]
    with pytest.raises(TypeError):
        context.kernels["delta_rule"] = "native"  # type: ignore[index]


def test_activations_nest_and_end_also_with_an_error() -> None:
    outer, inner = ExecutionContext(precision="bfloat16"), ExecutionContext(kernels={"delta_rule": "reference"})
    assert active_context() is DEFAULT
    with outer.activate():
        assert torch.is_autocast_enabled("cpu")
        with pytest.raises(ZeroDivisionError), inner.activate():
            assert active_context() is inner and not torch.is_autocast_enabled("cpu")
            raise ZeroDivisionError
        assert active_context() is outer and torch.is_autocast_enabled("cpu")
        with use_kernels(delta_rule="chunked"):
            assert active_context() == dataclasses.replace(outer, kernels={"delta_rule": "chunked"})
    assert active_context() is DEFAULT and not torch.is_autocast_enabled("cpu")


def test_an_activation_is_of_its_thread() -> None:
    seen: list[ExecutionContext] = []
    with ExecutionContext(batch_invariant=True).activate():
        thread = threading.Thread(target=lambda: seen.append(active_context()))
        thread.start()
        thread.join()
    assert seen == [DEFAULT]


def test_threads_are_set_within_the_block(two_threads: None) -> None:
    with ExecutionContext(threads=1).activate():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


# The verbs


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_tuning, "cache_dir", lambda: tmp_path / "cache")


def checkpoint(folder: Path, **runtime: Any) -> Path:
    recipe = Recipe.model_validate(
        {
            "model": {"width": 16, "blocks": 1, "block": [{"type": "delta", "heads": 2}], "confidence": {}},
            "data": {"sequence": 32, "tokenizer": {"type": "bytes"}},
            "runtime": {"device": "cpu", "precision": "float32", **runtime},
        }
    )
    with torch.random.fork_rng():
        model = LanguageModel(recipe.model, 257)
    save(folder, recipe=recipe, vocab=257, tensors=weights(model), manifest=Manifest(), tokenizer=ByteTokenizer())
    return folder


def serve(path: Path, text: Path) -> None:
    engine = Engine([LoadedModel.load(path, "m")], cache_bytes=0)
    outputs: list[Any] = []
    engine.add_request(Request(model="m", prompt_token_ids=tuple(b"some words to read"), max_tokens=3), outputs.append)
    while engine.has_unfinished:
        engine.step()
    if outputs[-1].message:  # the sequence ends with it, and no other does
        raise InputError(outputs[-1].message)


def harness(path: Path, text: Path) -> None:
    request = SimpleNamespace(args=("some words to read, ", "and others"))
    Synthe(path, device="cpu").loglikelihood([request])  # type: ignore[list-item]


def generated(path: Path, text: Path) -> None:
    model = LoadedModel.from_checkpoint(Checkpoint.open(path), "m", batch_invariant=False)
    list(generate(model, ["some words to read"], 3))


VERBS: dict[str, Callable[[Path, Path], Any]] = {
    "generate": generated,
    "eval perplexity": lambda path, text: list(perplexity.evaluate(path, sources=[str(text)], contexts=[32])),
    "eval confidence": lambda path, text: list(confidence.evaluate(path, sources=[str(text)], tokens=64)),
    "eval lm": harness,
    "introspect": lambda path, text: introspect(path, "some words to read", device="cpu"),
    "serve": serve,
    "merge --eval": lambda path, text: list(compare({"m": CheckpointModel(path, "m")}, [str(text)], tokens=64)),
    "pack": lambda path, text: list(
        measure_loss(Checkpoint.open(path), Checkpoint.open(path).tensors, [str(text)], 64)
    ),
}
each_verb = pytest.mark.parametrize("verb", VERBS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("words and words, and others after them. " * 20)
    return path


@pytest.fixture
def used() -> Iterator[set[str]]:
    """The kernels of the delta rule that ran."""
    delta_rule.used.clear()
    yield delta_rule.used
    delta_rule.used.clear()


@each_verb
def test_passes_run_the_recipes_kernels(verb: str, tmp_path: Path, text: Path, used: set[str]) -> None:
    VERBS[verb](checkpoint(tmp_path / "model", kernels={"delta_rule": "reference"}), text)
    assert used == {"reference"}


@each_verb
def test_a_forced_kernel_that_cannot_serve_is_an_error_in_one_line(verb: str, tmp_path: Path, text: Path) -> None:
    path = checkpoint(tmp_path / "model", kernels={"delta_rule": "fla"})
    with pytest.raises(InputError, match="kernel fla of delta_rule cannot serve a call: written for CUDA"):
        VERBS[verb](path, text)


@needs_compiler
@each_verb
def test_passes_run_the_tuned_kernels(verb: str, tmp_path: Path, text: Path, used: set[str]) -> None:
    """Here `chunked`, which the ranking has behind `native`."""
    path = checkpoint(tmp_path / "model")
    stored = tuned_kernels_path(Checkpoint.open(path).recipe, "cpu", probe())
    stored.parent.mkdir(parents=True)
    write_file(stored, '{"kernels": {"delta_rule": "chunked"}}')
    VERBS[verb](path, text)
    assert "chunked" in used


def test_an_unknown_kernel_is_refused_before_any_work(tmp_path: Path) -> None:
    recipe = Checkpoint.open(checkpoint(tmp_path / "model")).recipe
    wrong = recipe.model_copy(
        update={"runtime": recipe.runtime.model_copy(update={"kernels": {"delta_rule": "nativ"}})}
    )
    with pytest.raises(InputError, match="nativ"):
        context_for_recipe(wrong, "cpu")


def test_a_forced_kernel_that_is_not_batch_invariant_takes_the_promise_back(tmp_path: Path) -> None:
    recipe = Checkpoint.open(checkpoint(tmp_path / "model", kernels={"linear": "torch"})).recipe
    assert not context_for_recipe(recipe, "cpu", batch_invariant=True).batch_invariant
    plain = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"kernels": {}})})
    assert context_for_recipe(plain, "cpu", batch_invariant=True).batch_invariant
    assert not context_for_recipe(plain, torch.device("cuda"), batch_invariant=True).batch_invariant
