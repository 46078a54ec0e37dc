"""What is seen of a model: every emission declared and in its place, and every reading followed back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthe_core.introspection.observe import module_at, observe
from synthe_core.introspection.reads import follow
from synthe_core.introspection.series import collect, meaning_of
from synthe_core.layers.trace import Trace
from synthe_core.model.classifier import Classifier, build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.models import published
from tests.interop.huggingface.test_families_qwen import HYBRID, MOE
from tests.laws.entries import CASES, CAUSAL, WIDTH, block_of, case_name

VOCAB, TIME = 61, 43
each_case = pytest.mark.parametrize("case", CAUSAL, ids=case_name)


def build(block: list[Any], seed: int = 0, **keys: Any) -> LanguageModel:
    torch.manual_seed(seed)
    before: list[Any] = block_of(block[0])[:-1] if isinstance(block[0], dict) else []
    spec = ModelSpec(width=WIDTH, blocks=keys.pop("blocks", 1), block=[*(before or ["kalman"]), *block], **keys)
    model = build_model(spec, VOCAB).eval()
    assert isinstance(model, LanguageModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def text(time: int = TIME) -> list[int]:
    return torch.randint(VOCAB, (time,), generator=torch.Generator().manual_seed(1)).tolist()


@each_case
def test_every_emission_is_declared_and_has_its_declared_shape(case: dict[str, Any]) -> None:
    model = build([case])
    trace = Trace()
    model.hidden(torch.tensor([text(), text()[::-1]]), trace=trace)
    for record in trace.records:
        emission = meaning_of(module_at(model, record.path), record.name)
        assert emission is not None, (record.path, record.name)
        axes = emission.axes.split()
        assert record.value.dim() == len(axes), (record.path, record.name, record.value.shape)
        if "B" in axes:
            assert record.value.shape[axes.index("B")] == 2
        if "T" in axes:
            expected = TIME if record.at is None else record.at.shape[1]
            assert record.value.shape[axes.index("T")] == expected, (record.path, record.name)
        if record.at is not None:
            assert record.at.shape[0] == 2
            assert 0 <= int(record.at.min()) <= int(record.at.max()) < TIME
            assert (record.at.diff(dim=1) > 0).all()


@pytest.mark.parametrize("case", [c for c in CASES if c["type"] == "spectral"], ids=case_name)
def test_encoders_too(case: dict[str, Any]) -> None:
    spec = ModelSpec(width=WIDTH, blocks=1, block=[case], head={"type": "classify", "classes": 3})
    model = build_model(spec, VOCAB)
    assert isinstance(model, Classifier)
    trace = Trace()
    model(torch.tensor([text()]), trace=trace)
    for record in trace.records:
        emission = meaning_of(module_at(model, record.path), record.name)
        assert emission is not None
        assert record.value.dim() == len(emission.axes.split())


@each_case
def test_series_are_aligned_with_their_tokens(case: dict[str, Any]) -> None:
    """Series of a text are those of its beginning, for as long as that goes: nothing slips by a token."""
    model = build([case])
    whole, _ = collect(model, observe(model, text()))
    begun, _ = collect(model, observe(model, text()[:29]))
    earlier = {(each.path, each.name): each for each in begun}
    assert {(each.path, each.name) for each in whole} >= earlier.keys()
    for each in whole:
        if (each.path, each.name) not in earlier:
            continue
        other = earlier[each.path, each.name]
        at = np.arange(TIME) if each.at is None else each.at
        there = np.arange(29) if other.at is None else other.at
        shared = at < 29
        np.testing.assert_array_equal(at[shared], there)
        np.testing.assert_allclose(each.rows[:, shared], other.rows, rtol=2e-3, atol=2e-4)


@each_case
def test_attributed_reads_reconstruct_the_output(case: dict[str, Any]) -> None:
    model = build([case])
    seen = observe(model, text())
    all_reads = [reads for call in seen.memory_calls if (reads := follow(call, TIME)) is not None]
    linear = {"delta", "delta_memory", "fast_weights", "gla", "lightning_attention", "mlstm", "mamba2", "kda", "rwkv7"}
    linear |= {
        "hgrn2",
        "retention",
        "gated_delta_2",
        "forgetting_attention",
        "momentum",
        "attention",
        "latent_attention",
    }
    own = [reads for reads in all_reads if reads.path == "blocks.0.1"]
    assert len(own) == (1 if case["type"] in linear else len(own))
    for reads in all_reads:
        assert reads.error < 1e-5, reads.path
        count = TIME if reads.at is None else len(reads.at)
        assert reads.sources.shape == reads.shares.shape == (count, 8)
        assert (reads.shares.sum(1) < 1 + 1e-5).all()
        assert (np.diff(reads.shares, axis=1) <= 1e-6).all()
        place = np.arange(TIME) if reads.at is None else reads.at
        latest = place if case["type"] != "fast_weights" else place - 1
        assert (reads.sources <= latest[:, None]).all() or reads.path != "blocks.0.1"
        assert (reads.distance >= -1e-4).all()


def test_a_published_hybrid_shows_its_gates_memories_and_routing(tmp_path: Path) -> None:
    """Qwen3.5-MoE: several value heads read one key head, attention has an output gate, experts a shared one."""
    published(tmp_path, "Qwen3_5Moe", **HYBRID, **MOE)
    model = Checkpoint.open(tmp_path).model()
    seen = observe(model, text())
    series, _ = collect(model, seen)
    shown = {(each.path, each.name): each for each in series}
    for block, names in {0: ("beta", "decay"), 3: ("output_gate", "added")}.items():
        assert all((f"blocks.{block}.0", name) in shown for name in names)
        assert all((f"blocks.{block}.1", name) in shown for name in ("chosen", "scores", "shared_gate", "entropy"))
    assert shown["blocks.3.0", "output_gate"].rows.shape == (4, TIME)
    errors = [reads.error for call in seen.memory_calls if (reads := follow(call, TIME)) is not None]
    assert len(errors) == 4 and max(errors) < 1e-5


def test_slow_tiers_and_routed_blocks_report_their_positions() -> None:
    tiers = [{"every": 1, "rule": "momentum"}, {"every": 4, "size": 8, "rule": {"type": "delta", "heads": 2}}]
    model = build([{"type": "multiscale_memory", "tiers": tiers}], blocks=3, depth={"min": 1, "mode": "skip"})
    assert model.router is not None
    model.router.thresholds.fill_(0.0)
    seen = observe(model, text())
    series, _ = collect(model, seen)
    keep = next(each for each in series if each.name == "keep").rows
    assert 0 < keep.sum() < keep.size
    by_name = {(each.path, each.name): each for each in series}
    ticks = by_name["blocks.0.1.slow.0.rule", "beta"]
    assert ticks.at is not None
    assert ticks.at.tolist() == list(range(4, TIME, 4))
    for block in (1, 2):
        added = by_name[f"blocks.{block}.0", "added"]
        selected = np.flatnonzero(keep[block - 1])
        assert (np.arange(TIME) if added.at is None else added.at).tolist() == selected.tolist()
    paths = {call.path for call in seen.memory_calls}
    assert {"blocks.0.1.fast", "blocks.0.1.slow.0.rule"} <= paths
    for call in seen.memory_calls:
        reads = follow(call, TIME)
        assert reads is not None
        assert reads.error < 1e-5
        if call.path == "blocks.2.1.fast":
            assert reads.at is not None
            assert set(reads.sources[reads.sources >= 0].tolist()) <= set(reads.at.tolist())


def test_predictions_are_of_the_token_that_follows() -> None:
    model = build(["mlp"])
    seen = observe(model, text())
    logits = model(torch.tensor([text()]))[0][0].log_softmax(-1)
    assert np.isnan(seen.predictions.bits[0])
    expected = -logits[torch.arange(TIME - 1), torch.tensor(text()[1:])] / np.log(2)
    np.testing.assert_allclose(seen.predictions.bits[1:], expected.detach().numpy(), rtol=1e-4)
    assert seen.predictions.likeliest[:, 0].tolist() == logits.argmax(-1).tolist()
    ranks = (logits[:-1] > logits[torch.arange(TIME - 1), torch.tensor(text()[1:])][:, None]).sum(-1)
    assert seen.predictions.rank[1:].tolist() == ranks.tolist()


def test_a_text_of_one_token() -> None:
    model = build([{"type": "delta", "heads": 2}, "experts", "slots", "multiscale_memory"])
    seen = observe(model, [3])
    assert np.isnan(seen.predictions.bits).tolist() == [True]
    assert collect(model, seen)[0]
    assert all(reads is None or reads.error < 1e-5 for reads in (follow(call, 1) for call in seen.memory_calls))


def test_observing_removes_its_hooks_and_changes_no_output() -> None:
    model = build([{"type": "delta", "heads": 2}])
    before = model(torch.tensor([text()]))[0]
    seen = observe(model, text())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(torch.tensor([text()]))[0], before)
    assert len(seen.memory_calls) == 1
    assert observe(model, text(), memories=False).memory_calls == []
