"""A run from its recipe to its result: what is yielded, what is written, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from threading import Event as Stop

import pytest
import torch

from synthe_core.data.prepare import load
from synthe_core.data.stream import windows
from synthe_core.errors import InputError, Interrupted, WorkError
from synthe_core.events import Metric, Notice, Progress, Result, Sample, Saved
from synthe_core.hardware.probe import probe
from synthe_core.layers.mlp import MLP
from synthe_core.storage.checkpoint import Checkpoint, checkpoints, write
from synthe_core.training import gradients, step, train
from tests.training.conftest import assert_same, files, of


def test_a_run_learns_and_reports(recipe, tmp_path):
    config = recipe(budget="40steps", sample="the ", sample_tokens=5, validations=4, log_every=5)
    events = list(train(config, out=tmp_path / "run"))
    steps = [m for m in of(events, Metric) if m.phase == "train"]
    assert [m.step for m in steps] == [1, *range(5, 45, 5)]
    assert steps[-1].values["loss"] < steps[0].values["loss"] - 1.0
    for name in ("lr", "grad_norm", "tokens_per_second", "peak_fraction", "memory", "bits_per_byte", "fraction"):
        assert steps[-1].values[name] > 0, name
    scores = [m for m in of(events, Metric) if m.phase == "validation"]
    assert [m.step for m in scores] == [10, 20, 30, 40]
    assert scores[-1].values["perplexity"] == pytest.approx(math.exp(scores[-1].values["loss"]))
    assert [s.step for s in of(events, Sample)] == [10, 20, 30, 40]
    assert all(s.text.startswith("the ") for s in of(events, Sample))
    assert [s.step for s in of(events, Saved)] == [10, 20, 30, 40]
    progress = [p for p in of(events, Progress) if p.what == "train"]
    assert (progress[-1].done, progress[-1].total, progress[-1].unit, progress[-1].eta) == (40, 40, "steps", 0)
    result = events[-1]
    assert isinstance(result, Result) and result.path == tmp_path / "run"
    assert result.values["steps"] == 40 and result.values["tokens"] == 40 * 4 * 16
    assert result.values["bits_per_byte"] == scores[-1].values["bits_per_byte"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["phase"]) for line in lines] == [(m.step, m.phase) for m in of(events, Metric)]
    assert len(checkpoints(tmp_path / "run")) == 2
    manifest = Checkpoint.open(tmp_path / "run").manifest
    assert manifest.kernels["linear_cross_entropy"] and manifest.versions["torch"] and manifest.hardware["processor"]
    assert manifest.parameters == sum(t.numel() for t in Checkpoint.open(tmp_path / "run").tensors.values())


def test_bits_per_byte_is_that_of_the_checkpoint(recipe, tmp_path):
    config = recipe(data={"tokenizer": {"type": "bpe", "vocab": 300}})
    result = list(train(config, out=tmp_path / "run"))[-1]
    opened = Checkpoint.open(tmp_path / "run", latest=True)
    model, packed = opened.model(), load(config.data)
    nats, size = 0.0, 0
    for window in windows(packed.validation, 16, 512 // 16):
        with torch.no_grad():
            logits, _ = model(window.inputs)
        nats -= float(logits.log_softmax(-1).gather(-1, window.targets[..., None]).sum())
        size += len(packed.tokenizer.bytes_of(window.targets[0].tolist()))
    assert result.values["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert opened.tokenizer().digest == packed.tokenizer.digest


def test_the_same_recipe_gives_the_same_weights(recipe, tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(len(name))
        list(train(recipe(), out=tmp_path / name))
    assert_same(tmp_path / "a", tmp_path / "b")
    other = recipe().model_copy(update={"seed": 1})
    list(train(other, out=tmp_path / "c"))
    weight = "embedding.weight"
    assert not torch.equal(
        files(tmp_path / "a")["model.safetensors"][weight], files(tmp_path / "c")["model.safetensors"][weight]
    )


def test_runs_are_numbered(recipe, tmp_path):
    paths = [list(train(recipe(budget="1steps")))[-1].path for _ in range(3)]
    assert paths == [Path("runs/tiny"), Path("runs/tiny-2"), Path("runs/tiny-3")]


def test_a_folder_that_is_not_empty_is_not_overwritten(recipe, tmp_path):
    list(train(recipe(budget="1steps"), out=tmp_path / "run"))
    with pytest.raises(InputError, match="is not empty") as refused:
        list(train(recipe(), out=tmp_path / "run"))
    assert f"synthe train {tmp_path / 'run'} --resume" in refused.value.hint
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        list(train(recipe(), out=tmp_path / "file"))


def test_bad_sizes_leave_no_folder(recipe, tmp_path):
    with pytest.raises(InputError, match="not divisible by heads"):
        list(train(recipe(model={"block": [{"type": "attention", "heads": 3}]}), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("made", [False, True])
def test_an_error_before_the_first_step_leaves_the_folder_as_it_was(recipe, tmp_path, monkeypatch, made):
    out = tmp_path / "run"
    if made:
        out.mkdir()
    monkeypatch.setattr(step, "accumulate_gradients", lambda *_, **__: (_ for _ in ()).throw(WorkError("no memory")))
    with pytest.raises(WorkError, match="no memory"):
        list(train(recipe(), out=out))
    assert out.exists() == made and not (made and list(out.iterdir()))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert list(train(recipe(budget="1steps"), out=out))[-1].path == out


def test_an_error_after_a_step_leaves_the_metrics(recipe, tmp_path, monkeypatch):
    real, calls = step.accumulate_gradients, []

    def fails_later(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise WorkError("no memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(step, "accumulate_gradients", fails_later)
    with pytest.raises(WorkError, match="no memory"):
        list(train(recipe(), out=tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() and (tmp_path / "run" / "recipe.yaml").is_file()


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"kernels": {"window_attentoin": "reference"}}, "unknown operator 'window_attentoin'"),
        ({"kernels": {"window_attention": "refrence"}}, "unknown kernel of window_attention 'refrence'"),
        ({"device": "mps"} if not torch.backends.mps.is_available() else {"device": "cuda"}, "no (mps|cuda) device"),
    ],
)
def test_unavailable_runtime_options(recipe, runtime, message, tmp_path):
    with pytest.raises(InputError, match=message):
        list(train(recipe(runtime=runtime), out=tmp_path / "run"))


def test_named_kernels_are_used(recipe, tmp_path):
    config = recipe(budget="2steps", runtime={"kernels": {"window_attention": "reference"}})
    list(train(config, out=tmp_path / "run"))
    assert Checkpoint.open(tmp_path / "run").manifest.kernels["window_attention"] == ["reference"]


@pytest.mark.parametrize("runtime", [{"recompute": True}, {"threads": 2}, {"precision": "bfloat16"}])
def test_runtime_options_train(recipe, runtime, tmp_path):
    threads = torch.get_num_threads()
    events = list(train(recipe(budget="3steps", runtime={"precision": "float32"} | runtime), out=tmp_path / "run"))
    losses = [m.values["loss"] for m in of(events, Metric) if m.phase == "train"]
    list(train(recipe(budget="3steps"), out=tmp_path / "plain"))
    plain = [json.loads(line)["loss"] for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(plain[:2] + plain[-2:-1], rel=2e-2 if "precision" in runtime else 1e-5)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_compiled_blocks_train_the_same_names(recipe, tmp_path):
    events = list(train(recipe(budget="3steps", runtime={"compile": True}), out=tmp_path / "run"))
    list(train(recipe(budget="3steps"), out=tmp_path / "plain"))
    assert files(tmp_path / "run")["model.safetensors"].keys() == files(tmp_path / "plain")["model.safetensors"].keys()
    assert events[-1].values["loss"] == pytest.approx(
        Checkpoint.open(tmp_path / "plain").manifest.metrics["loss"], rel=1e-3
    )


def test_auto_settings_are_chosen_and_reported(recipe, tmp_path):
    config = recipe(budget="1steps", micro_batch="auto", runtime={"precision": "auto"})
    notices = [notice.message for notice in of(list(train(config, out=tmp_path / "run")), Notice)]
    assert any(text.startswith("precision ") for text in notices)
    assert any(text.startswith("micro-batch ") and " of 4: " in text for text in notices)
    state = Checkpoint.open(tmp_path / "run").training_state()
    assert state["precision"] in ("float32", "bfloat16") and state["micro_batch"] in (1, 2, 4)


def test_initial_weights(recipe, tmp_path):
    list(train(recipe(), out=tmp_path / "first"))
    parent = Checkpoint.open(tmp_path / "first")
    list(train(recipe(budget="1steps", lr=1e-9), out=tmp_path / "second", init=tmp_path / "first"))
    child = Checkpoint.open(tmp_path / "second")
    assert child.manifest.parents == [str(parent.path)] and child.manifest.step == 1
    for name, tensor in parent.tensors.items():
        assert torch.allclose(tensor, child.tensors[name], atol=1e-6)
    with pytest.raises(InputError, match="other tokens"):
        other = recipe(data={"tokenizer": {"type": "bpe", "vocab": 300}})
        list(train(other, out=tmp_path / "third", init=tmp_path / "first"))
    list(train(recipe(budget="1steps"), out=tmp_path / "third", init=tmp_path / "first"))  # nothing is left there


def test_a_stop_while_data_is_prepared(recipe, tmp_path):
    stop = Stop()
    stop.set()
    with pytest.raises(Interrupted, match="preparing the data"):
        list(train(recipe(), out=tmp_path / "run", stop=stop))


def test_a_stop_in_the_middle_of_a_validation_does_it_again(recipe, tmp_path):
    list(train(recipe(), out=tmp_path / "whole"))
    stop = Stop()
    with pytest.raises(Interrupted, match="stopped at step 6"):
        for event in train(recipe(), out=tmp_path / "run", stop=stop):
            if isinstance(event, Progress) and event.what == "validate" and len(checkpoints(tmp_path / "run")) == 1:
                stop.set()
    assert Checkpoint.open(tmp_path / "run", latest=True).manifest.metrics == {}
    events = list(train(recipe(), out=tmp_path / "run", resume=True))
    assert [m.phase for m in of(events, Metric)] == ["validation"]
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_one_process_a_run(recipe, tmp_path):
    running = train(recipe(), out=tmp_path / "run")
    while not isinstance(next(running), Metric):
        pass
    with pytest.raises(InputError, match="another process is training"):
        list(train(recipe(), out=tmp_path / "run", resume=True))
    running.close()
    list(train(recipe(), out=tmp_path / "run", resume=True))


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(recipe, tmp_path, monkeypatch):
    real, calls = write.save_tensors, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(WorkError, match="the disk is full"):
        patch.setattr(write, "save_tensors", full)
        list(train(recipe(), out=tmp_path / "run"))
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    list(train(recipe(), out=tmp_path / "whole"))
    list(train(recipe(), out=tmp_path / "run", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_out_of_memory_only_lowers_the_micro_batch(recipe, tmp_path, monkeypatch):
    config = recipe(micro_batch=4)
    list(train(recipe(micro_batch=1), out=tmp_path / "whole"))
    real = gradients.accumulate_gradients

    def small(objective, model, batch, settings, **rest):
        outcome = real(objective, model, batch, settings, **rest)
        if settings.micro_batch > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return outcome

    monkeypatch.setattr(step, "accumulate_gradients", small)
    events = list(train(config, out=tmp_path / "run"))
    warnings = [notice.message for notice in of(events, Notice) if notice.level == "warning"]
    assert warnings == ["out of memory: micro-batch 4 -> 2", "out of memory: micro-batch 2 -> 1"]
    a, b = files(tmp_path / "whole")["model.safetensors"], files(tmp_path / "run")["model.safetensors"]
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert Checkpoint.open(tmp_path / "run").training_state()["micro_batch"] == 1

    def never(*args, **rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "accumulate_gradients", never)
    with pytest.raises(WorkError, match="out of memory with one sequence") as failed:
        list(train(config, out=tmp_path / "none"))
    assert "recompute" in failed.value.hint


def test_no_validation_text(recipe, tmp_path):
    events = list(train(recipe(data={"validation": 0}), out=tmp_path / "run"))
    assert [m.phase for m in of(events, Metric)] == ["train"] * 6
    assert Checkpoint.open(tmp_path / "run").manifest.step == 6


def test_events_describe_the_given_hardware(recipe, tmp_path):
    hardware = replace(probe(), processor="a made-up machine")
    events = list(train(recipe(budget="1steps"), out=tmp_path / "run", hardware=hardware))
    assert any("a made-up machine" in notice.message for notice in of(events, Notice))
    assert Checkpoint.open(tmp_path / "run").manifest.hardware["processor"] == "a made-up machine"


def test_operations_are_counted_as_executed(recipe, tmp_path, monkeypatch):
    """A learner that leaves out half of its work in every pass: metrics.jsonl has both counts, and its measures."""
    real = MLP.forward

    def lazy(self, x, state, ctx):
        ctx.skipped.append(torch.tensor(0.5 * self.flops(x.shape[1]) * x.shape[0] * x.shape[1]))
        ctx.measures.append(("laziness", torch.tensor(0.5)))
        return real(self, x, state, ctx)

    list(train(recipe(), out=tmp_path / "dense"))
    monkeypatch.setattr(MLP, "forward", lazy)
    list(train(recipe(), out=tmp_path / "lazy"))
    dense, lazy = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("dense", "lazy")
    )
    model = Checkpoint.open(tmp_path / "lazy").model()
    mlps = sum(learner.flops(16) for learner in model.learners if isinstance(learner, MLP))
    assert {line["phase"] for line in lazy} == {"train", "validation"}
    for before, line in zip(dense, lazy, strict=True):
        assert before["flops"] == before["flops_dense"] == line["flops_dense"] == pytest.approx(model.flops(16))
        assert line["flops"] == pytest.approx(model.flops(16) - mlps / 2)
        assert line["laziness"] == 0.5 and "laziness" not in before
        assert line["loss"] == before["loss"]
