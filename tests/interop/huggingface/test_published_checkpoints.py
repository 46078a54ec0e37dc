"""A published model that transformers runs is a checkpoint: packed, trained, adapted and merged as our own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.events import Event, Result
from synthe_core.interop.converted import FINE_TUNING
from synthe_core.introspection.report import introspect
from synthe_core.merging.config import spec_of
from synthe_core.merging.merge import merge
from synthe_core.merging.method import Method
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.packing.unpack import unpack
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.manifest import FileDigest
from synthe_core.training.objectives.document import Document
from synthe_core.training.objectives.objective import Objective
from synthe_core.training.run import recipe_from_checkpoint, train
from tests.interop.huggingface.backend_families import ATTENTION, RECURRENT, family

transformers = pytest.importorskip("transformers")
from synthe_core.interop.huggingface.exporter import export_hf  # noqa: E402
from synthe_core.interop.huggingface.published_model import build  # noqa: E402
from synthe_core.interop.load import load_model  # noqa: E402

TEXT = torch.tensor([[5, 9, 200, 31, 7, 7, 88, 2, 64, 150]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention and Mamba in one layer, of an architecture that our learners do not have."""
    return family(tmp_path_factory.mktemp("published") / "zamba", "Zamba2")


def logits(path: Path) -> Tensor:
    with torch.inference_mode():
        return load_model(path).model(TEXT)[0]


LORA = ['train.lora={"rank": 2}']


def of_transformers(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path).eval()


@torch.inference_mode()
def logits_of_transformers(model: Any) -> Tensor:
    return model(TEXT, use_cache=False).logits


def done(events: Iterable[Event]) -> Result:
    last = list(events)[-1]
    assert isinstance(last, Result)
    return last


def trained(folder: Path, out: Path, steps: int, *overrides: str) -> Path:
    """The checkpoint of a run of some steps that begins with the model."""
    text = out.with_suffix(".txt")
    text.write_text("the sea the sea times is times " * 80)
    settings = ["data.sequence=16", f"train.budget={steps}steps", "train.batch=4", "train.micro_batch=2"]
    settings += [f"data.sources={text}", "runtime.precision=float32", "train.lr=1e-3", "train.validations=1"]
    recipe = recipe_from_checkpoint(folder, [*settings, *overrides])
    return Checkpoint.open(done(train(recipe, out=out, init=folder)).path).path


@pytest.mark.parametrize("kind", [*RECURRENT, *ATTENTION])
def test_tensors_have_their_published_names(tmp_path: Path, kind: str) -> None:
    """What is saved is what transformers saves, and a model without storage has its names, shapes and state."""
    path = family(tmp_path / "m", kind)
    files = load_file(path / "model.safetensors")
    spec = PublishedSpec(config=json.loads((path / "config.json").read_text()))
    model = build(spec)
    model.load_published(files, path)
    tensors = model.published_tensors()
    assert tensors.keys() == files.keys() and all(torch.equal(tensors[name], files[name]) for name in files)
    with torch.device("meta"):
        sketch = build(spec)
    shapes = {name: tensor.shape for name, tensor in sketch.published_tensors().items()}
    assert shapes == {name: tensor.shape for name, tensor in files.items()}
    assert [sketch.state_bytes(time) for time in (1, 40)] == [model.state_bytes(time) for time in (1, 40)]


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_those_of_transformers(folder: Path, recompute: bool) -> None:
    peer = of_transformers(folder)
    model = build(PublishedSpec(config=json.loads((folder / "config.json").read_text())), recompute)
    model.load_published(load_file(folder / "model.safetensors"), folder)
    model.train()
    loss, _ = model.loss(TEXT[:, :-1], TEXT[:, 1:])
    loss.objective.backward()
    peer.train()
    expected = peer(TEXT, labels=TEXT, use_cache=False).loss
    expected.backward()
    torch.testing.assert_close(loss.objective, expected, rtol=1e-5, atol=1e-5)
    for (name, own), (_, theirs) in zip(model.named_parameters(), peer.named_parameters(), strict=True):
        assert own.grad is not None or theirs.grad is None, name
        if own.grad is not None:
            torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_packed_model_is_served_and_unpacked(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "z.synapse"
    done(pack(folder, file, PackOptions()))
    assert torch.equal(logits(file), logits(folder))
    assert Checkpoint.open(file).digest == Checkpoint.open(folder).digest, "the weights are packed as they are"
    about = Checkpoint.open(file).source.pack_manifest  # type: ignore[attr-defined]
    assert about.base.parameters == sum(p.numel() for p in of_transformers(folder).parameters())
    done(unpack(file, tmp_path / "z", "model"))
    assert torch.equal(logits(tmp_path / "z"), logits(folder))
    torch.testing.assert_close(logits_of_transformers(of_transformers(tmp_path / "z")), logits(folder))


def test_an_adapter_is_trained_in_the_format_of_peft(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    before = (folder / "model.safetensors").read_bytes()
    run = trained(folder, tmp_path / "run", 4, "train.lora={rank: 2, alpha: 8}")
    assert (folder / "model.safetensors").read_bytes() == before
    adapted = peft.PeftModel.from_pretrained(of_transformers(folder), run).eval()
    expected = logits_of_transformers(adapted)
    torch.testing.assert_close(logits(run), expected, rtol=1e-4, atol=1e-4)
    assert float((expected - logits(folder)).abs().max()) > 1e-3, "the adapter has learned something"
    served = load_model(folder)
    served.load_adapter("notes", run)
    with torch.inference_mode(), served.activate(served.adapters["notes"]):
        torch.testing.assert_close(served.model(TEXT)[0], expected, rtol=1e-4, atol=1e-4)
    done(pack(folder, tmp_path / "a.synapse", PackOptions(adapters=[f"notes={run}"])))
    with pytest.raises(InputError, match="lm_head shares its matrix"):
        trained(folder, tmp_path / "head", 1, "train.lora={rank: 2, targets: [lm_head]}")


def test_whole_training_resumes_and_saves_what_transformers_reads(folder: Path, tmp_path: Path) -> None:
    straight = trained(folder, tmp_path / "one", 4, "train.ema=0.5")
    first = trained(folder, tmp_path / "two", 2, "train.ema=0.5", "train.schedule=wsd")
    assert Checkpoint.open(first).resumable
    longer = Recipe.load(tmp_path / "two", ["train.budget=4steps"])
    resumed = Checkpoint.open(done(train(longer, out=tmp_path / "two", resume=True)).path)
    assert resumed.manifest.step == 4
    for run in (straight, resumed.path):
        torch.testing.assert_close(logits(run), logits_of_transformers(of_transformers(run)), rtol=1e-4, atol=1e-4)
    assert json.loads((straight / "config.json").read_text())["dtype"] == "float32"
    assert float((logits(straight) - logits(folder)).abs().max()) > 1e-3
    with pytest.raises(InputError, match="is trained without a state"):
        trained(folder, tmp_path / "carry", 1, "train.carry=true")


def test_checkpoints_of_one_architecture_are_merged(folder: Path, tmp_path: Path) -> None:
    run = trained(folder, tmp_path / "run", 2)
    done(pack(folder, tmp_path / "z.synapse", PackOptions()))
    spec = spec_of(Method("linear"), [str(run), str(tmp_path / "z.synapse")], {})
    done(merge(spec, out=tmp_path / "merged"))
    merged, one, two = (Checkpoint.open(each).tensors for each in (tmp_path / "merged", run, folder))
    for name in merged:
        torch.testing.assert_close(merged[name], (one[name] + two[name]) / 2)
    assert logits(tmp_path / "merged").isfinite().all()


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "model_type", "auto_map"])
def test_a_recipe_of_another_size_than_its_weights_is_refused(folder: Path, tmp_path: Path, key: str) -> None:
    """Before memory is allocated for it, also in a file from elsewhere."""
    done(pack(folder, tmp_path / "z.synapse", PackOptions()))
    path = tmp_path / "z"
    done(unpack(tmp_path / "z.synapse", path, "model"))
    recipe = Checkpoint.open(path).recipe
    assert isinstance(recipe.model, PublishedSpec)
    values = {"num_hidden_layers": 900, "hidden_size": 1 << 20, "vocab_size": 1 << 33, "model_type": "unheard-of"}
    changed = {**recipe.model.config, key: values.get(key, {"AutoModelForCausalLM": "code.Model"})}
    if key == "auto_map":
        changed |= {"architectures": ["Unheard"], "model_type": "unheard-of"}
    spec = recipe.model.model_copy(update={"config": changed})
    (path / "recipe.yaml").write_text(recipe.model_copy(update={"model": spec}).to_yaml())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["recipe.yaml"] = FileDigest.of(path / "recipe.yaml").model_dump()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert "\n" not in caught.value.message and len(caught.value.message) < 600


def test_what_needs_learners_says_which_there_are(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Zamba2ForCausalLM, which our learners do not have") as caught:
        introspect(folder, "hello")
    assert "LlamaForCausalLM" in str(caught.value.hint)
    with pytest.raises(InputError, match="Zamba2ForCausalLM of transformers already"):
        done(export_hf(folder, out=tmp_path / "out"))
    with pytest.raises(InputError, match="which only transformers runs"):
        Checkpoint.open(folder).model()


def test_an_adapter_of_a_published_model_has_a_learning_rate_of_its_own(folder: Path) -> None:
    document = [*LORA, "objective.type=document", "objective.document=a.txt"]
    rates = [recipe_from_checkpoint(folder, given).train.lr for given in ([], LORA, document, [*LORA, "train.lr=3e-4"])]
    assert rates == [FINE_TUNING["lr"], Objective.adapter_lr, Document.adapter_lr, 3e-4]
