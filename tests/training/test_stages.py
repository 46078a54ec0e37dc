"""Training in stages: parts that join later, each alone at first."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event as Stop

import pytest
import torch

from synthe_core.errors import Interrupted
from synthe_core.events import Metric, Notice
from synthe_core.layers.conditional_gate import UNSET
from synthe_core.model.parts import parts, without_parts
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from synthe_core.training import train
from tests.training.conftest import assert_same, of

MEMORY = {
    "type": "multiscale_memory",
    "tiers": [
        {"every": 1, "rule": "momentum"},
        {"every": 2, "size": 8, "rule": {"type": "test_time", "heads": 2}},
        {"every": 4, "size": 4, "rule": "kalman"},
    ],
}
PROBE = {"type": "attention", "heads": 2, "window": 6, "when": {"signal": "confidence", "below": 0.5}}
MODEL = {
    "blocks": 3,
    "block": ["kalman", MEMORY, {"type": "mlp", "hidden": 16}, PROBE],
    "depth": {"min": 1, "target": 0.5, "hidden": 8},
}
STAGES = [
    {
        "until": 0.25,
        "sequence": 8,
        "without": ["multiscale_memory.tier2", "multiscale_memory.tier3", "attention", "depth"],
        "warm": 0.1,
    },
    {"until": 0.5, "without": ["multiscale_memory.tier3", "depth"], "warm": 0.1},
    {"until": 0.75, "without": ["depth"], "warm": 0.1},
]
WARM = {4: ("multiscale_memory.tier2", "attention"), 7: ("multiscale_memory.tier3",), 10: ("depth",)}
WARM |= {step + 1: joined for step, joined in WARM.items()}  # 10% of 12 steps, begun ones included
WITHOUT = {step: STAGES[(step - 1) // 3]["without"] if step < 10 else [] for step in range(1, 13)}


@pytest.fixture
def staged(recipe):
    def make(**train):
        return recipe(model=MODEL, budget="12steps", stages=STAGES, weight_decay=0.5, validations=4, **train)

    return make


def tensors(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The weights after every step."""
    after = {}
    for path in checkpoints(run):
        checkpoint = Checkpoint(path)
        after[checkpoint.manifest.step] = dict(checkpoint.tensors.items())
    return after


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_only_active_parts_are_trained_and_new_parts_alone_at_first(staged, optimizer, tmp_path):
    config = staged(save_every="1steps", keep=20, optimizer=optimizer)
    list(train(config, out=tmp_path / "run"))
    after, by_name = tensors(tmp_path / "run"), parts(config.model)

    def of_part(names, tensor):
        return tensor.startswith(tuple(prefix for name in names for prefix in by_name[name].prefixes))

    assert set(after) == set(range(1, 13))
    for step in range(2, 13):
        moved = {name for name, value in after[step].items() if not torch.equal(value, after[step - 1][name])}
        weights = {name for name in after[step] if not name.endswith(("threshold", "thresholds", "seed"))}
        assert not [name for name in moved if of_part(WITHOUT[step], name)], step
        if step in WARM:
            assert moved and all(of_part(WARM[step], name) for name in moved), step
            if step - 1 in WARM:  # where a part ends in zeros, what is before them moves in its second step
                moved |= {name for name in weights if not torch.equal(after[step - 1][name], after[step - 2][name])}
                still = {name for name in weights if of_part(WARM[step], name)} - moved
                assert all("persistence" in name for name in still), (step, still)
        else:
            still = weights - moved
            assert all(of_part(WITHOUT[step], name) or "persistence" in name for name in still), (step, still)
    thresholds = [after[step]["router.thresholds"].le(UNSET).all() for step in (9, 10)]
    assert thresholds[0] and not thresholds[1]


@pytest.mark.parametrize("settings", [{}, {"carry": True, "ema": 0.9}], ids=str)
def test_a_run_resumed_in_any_stage_equals_an_uninterrupted_one(staged, settings, tmp_path):
    config = staged(**settings)
    list(train(config, out=tmp_path / "whole"))
    for step in (2, 3, 4, 6, 9, 11):  # within a stage, at its end, and while something is trained alone
        stop = Stop()
        with pytest.raises(Interrupted):
            for event in train(config, out=tmp_path / "parts", resume=step > 2, stop=stop):
                if isinstance(event, Metric) and event.phase == "train" and event.step == step:
                    stop.set()
        torch.manual_seed(step)
        assert Checkpoint.open(tmp_path / "parts", latest=True).manifest.without == sorted(WITHOUT[step])
    list(train(config, out=tmp_path / "parts", resume=True))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    keys = ("step", "phase", "loss", "stage", "flops")
    lines = [
        [[json.loads(line).get(key) for key in keys] for line in (tmp_path / run / "metrics.jsonl").open()]
        for run in ("whole", "parts")
    ]
    assert lines[0] == lines[1]


def test_metrics_and_notices_report_the_stage_and_its_operations(staged, tmp_path):
    config = staged()
    events = list(train(config, out=tmp_path / "run"))
    metrics = {metric.step: metric.values for metric in of(events, Metric) if metric.phase == "train"}
    assert [metrics[step]["stage"] for step in range(1, 13)] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert ["depth" in metrics[step] for step in (9, 10)] == [False, True]
    assert ["gate_rate" in metrics[step] for step in (3, 4)] == [False, True]
    vocab = Checkpoint.open(tmp_path / "run").vocab
    for step, length in ((1, 8), (9, 16)):
        smaller = config.model_copy(update={"model": without_parts(config.model, WITHOUT[step])}).meta_model(vocab)
        whole = config.meta_model(vocab)
        assert metrics[step]["flops_dense"] == pytest.approx(whole.flops(length))
        if step == 1:  # nothing in it skips tokens
            assert metrics[step]["flops"] == pytest.approx(smaller.flops(length))
    validated = [metric for metric in of(events, Metric) if metric.phase == "validation"]
    assert [metric.values["stage"] for metric in validated] == [1, 2, 3, 4]  # each at the end of a stage, and of it
    assert ["depth" in metric.values for metric in validated] == [False, False, False, True]
    notices = [notice.message for notice in of(events, Notice) if notice.message.startswith("stage")]
    tiers = "multiscale_memory.tier2, multiscale_memory.tier3"
    assert notices[0] == f"stage 1 of 4: sequences of 8 tokens, without attention, depth, {tiers}"
    second = "stage 2 of 4: sequences of 16 tokens, without depth, multiscale_memory.tier3"
    assert notices[1:3] == [f"{second}; first, attention, multiscale_memory.tier2 alone", second]
    assert notices[-1] == "stage 4 of 4: sequences of 16 tokens"


def test_a_checkpoint_of_an_early_stage_leaves_out_later_parts_and_initializes_other_runs(staged, recipe, tmp_path):
    list(train(staged(save_every="1steps", keep=20), out=tmp_path / "run"))
    early, last = (Checkpoint(checkpoints(tmp_path / "run")[step - 1]) for step in (3, 12))
    assert early.model().without == frozenset(WITHOUT[3]) and last.model().without == frozenset()
    text = torch.randint(0, early.vocab, (2, 16))
    waiting = dict(early.tensors.items())
    model, spoilt = early.model(), early.model()
    with torch.no_grad():
        for name, value in spoilt.state_dict().items():
            if name.startswith("router.") or ".slow." in name or ".learners.3." in name:
                value.add_(1)
        assert torch.equal(model(text)[0], spoilt(text)[0])
        spoilt.leave_out([])
        assert not torch.equal(model(text)[0], spoilt(text)[0])
    list(train(recipe(model=MODEL), out=tmp_path / "next", init=early.path))  # all of it from here on
    begun = Checkpoint.open(tmp_path / "next", latest=True)
    assert begun.manifest.without == [] and begun.tensors.keys() == waiting.keys()
    list(train(staged(), out=tmp_path / "again", init=last.path))  # and back into the first stage


def test_stages_may_be_removed_when_a_run_resumes(staged, recipe, tmp_path):
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in train(staged(), out=tmp_path / "run", stop=stop):
            if isinstance(event, Metric) and event.step == 2:
                stop.set()
    whole = recipe(model=MODEL, budget="12steps", weight_decay=0.5, validations=4)
    events = list(train(whole, out=tmp_path / "run", resume=True))
    assert all("depth" in metric.values for metric in of(events, Metric))
    assert Checkpoint.open(tmp_path / "run", latest=True).manifest.without == []


def test_a_new_part_that_is_never_active_changes_no_other_part(recipe, tmp_path):
    """A tier that speaks once in 64 tokens has nothing to say in sequences of 16: no gradient, no failure."""
    memory = {
        "type": "multiscale_memory",
        "tiers": [{"every": 1, "rule": "momentum"}, {"every": 64, "size": 4, "rule": "kalman"}],
    }
    stages = [{"until": 0.5, "without": ["multiscale_memory.tier2"], "warm": 0.2}]
    config = recipe(model={"block": [memory, "mlp"]}, stages=stages, save_every="1steps", keep=20)
    list(train(config, out=tmp_path / "run"))
    after = tensors(tmp_path / "run")
    tier = tuple(prefix for prefix in parts(config.model)["multiscale_memory.tier2"].prefixes)
    assert all(torch.equal(value, after[3][name]) or name.startswith(tier) for name, value in after[4].items())
    assert not torch.equal(after[6]["embedding.weight"], after[4]["embedding.weight"])
