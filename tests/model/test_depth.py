"""The depth router: budgets, gradients, compaction, what is counted, and what is refused."""

from __future__ import annotations

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.layers.conditional_gate import UNSET
from synthe_core.layers.learner import Pass, apply_buffer_updates
from synthe_core.layers.trace import Trace
from synthe_core.model import depth as routing
from synthe_core.model.depth import (
    EXPLORATION_SEED,
    CompactIndex,
    DepthSpec,
    ExplorationSample,
    depths,
    group_by_count,
    padded_tokens,
)
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.hashing import hash_uniform
from synthe_core.recipe.accounting import account
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import load_weights, weights
from synthe_core.storage.yaml_reader import read_yaml
from synthe_core.training.optimizer import Optimizer

VOCAB = 23
BLOCK = [{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 24}]
SETTLED = {"min": 2, "target": 0.5, "hidden": 8}


def model_of(depth, blocks=6, width=16, block=BLOCK, **rest):
    torch.manual_seed(0)
    spec = {"width": width, "blocks": blocks, "block": block, "depth": depth}
    return LanguageModel(ModelSpec.model_validate(spec), VOCAB, **rest).double()


def tokens(batch=3, time=40, seed=1):
    torch.manual_seed(seed)
    return torch.randint(0, VOCAB, (batch, time))


@pytest.mark.parametrize("mode", ["exit", "skip"])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.6, 0.95])
@pytest.mark.parametrize("routed", [1, 2, 5])
def test_rates_are_shares_whose_mean_is_the_target(mode, target, routed):
    rates = DepthSpec(mode=mode, target=target).rates(routed)
    assert sum(rates) / routed == pytest.approx(target)
    assert all(0 < rate < 1 for rate in rates)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("mode", ["exit", "skip"])
def test_thresholds_meet_the_rates_of_the_step_they_were_taken_of(mode):
    model, text = model_of(SETTLED | {"mode": mode}), tokens(8, 64)
    loss, _ = model.loss(text, text)
    assert float(loss.measures["depth"]) == 1.0  # at first every token runs every block
    apply_buffer_updates(loss.buffer_updates)
    trace = Trace()
    model.eval().hidden(text, trace=trace)
    keep = next(record.value for record in trace.records if record.name == "keep")
    expected = torch.tensor(model.spec.depth.rates(4))
    torch.testing.assert_close(keep.float().mean((1, 2)), expected, atol=2 / 512, rtol=0)


def test_in_mode_exit_a_token_that_left_does_not_come_back():
    model, text = model_of(SETTLED | {"mode": "exit"}), tokens()
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    trace = Trace()
    model.hidden(text, trace=trace)
    keep = next(record.value for record in trace.records if record.name == "keep").int()
    assert (keep[1:] <= keep[:-1]).all()
    assert torch.equal(depths(model, text), 2 + keep.sum(0))


@pytest.mark.parametrize("mode", ["exit", "skip"])
def test_when_all_tokens_stay_the_model_is_the_one_without_a_router(mode):
    routed, plain, text = model_of(SETTLED | {"mode": mode}), model_of(None), tokens()
    assert torch.equal(routed(text)[0], plain(text)[0])
    one, other = (model.loss(text[:, :-1], text[:, 1:])[0] for model in (routed, plain))
    assert float(one.skipped) == 0
    one.objective.backward()
    other.objective.backward()
    gradients = dict(routed.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad), name
    assert (depths(plain, text) == 6).all() and (depths(routed, text) == 6).all()


def test_without_selected_tokens_the_model_is_its_first_blocks():
    routed, shallow, text = model_of(SETTLED), model_of(None, blocks=2), tokens()
    routed.eval().router.thresholds.fill_(torch.inf)
    for name, tensor in weights(shallow).items():
        tensor.copy_(weights(routed)[name])
    calls = count_calls(routed)
    loss, _ = routed.loss(text, text)
    assert torch.equal(routed(text)[0], shallow(text)[0])
    assert set(calls) == {0, 1}
    assert float(loss.measures["depth"]) == 0
    per_block = sum(learner.flops(40) for learner in routed.blocks[0].learners)
    assert float(loss.skipped) == pytest.approx(4 * per_block * text.numel())
    loss.objective.backward()
    assert all(torch.isfinite(p.grad).all() for p in routed.parameters() if p.grad is not None)


def count_calls(model):
    """The shapes that each block is run on, by block."""
    calls = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, out, i=index: calls.setdefault(i, []).append(args[0].shape))
    return calls


def test_a_decoded_token_runs_only_the_rows_and_blocks_that_it_needs():
    model, text = model_of(SETTLED), tokens(batch=6)
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    with torch.no_grad():
        _, state = model(text[:, :-1])
        deep = depths(model, text)[:, -1]
        assert deep.unique().numel() > 1
        calls = count_calls(model)
        logits, _ = model(text[:, -1:], state)
    for index in range(6):
        rows = int((deep > index).sum())
        assert calls.get(index, []) == ([(rows, 1, 16)] if rows else [])
    torch.testing.assert_close(logits[:, 0], model(text)[0][:, -1], rtol=1e-9, atol=1e-10)


def test_blocks_run_on_no_more_than_the_longest_row_of_those_that_stay():
    model, text = model_of(SETTLED), tokens()
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    deep, calls = depths(model, text), count_calls(model)
    model(text)
    for index in range(2, 6):
        counts = (deep > index).sum(1)
        assert calls[index] == [(int((counts > 0).sum()), int(counts.max()), 16)]


def test_rows_are_grouped_by_their_selected_tokens():
    assert group_by_count([0, 0]) == [] and group_by_count([0, 5, 3]) == [[1, 2]]
    assert group_by_count([7] * 16) == [list(range(16))]
    counts = [3, 40, 5, 38, 4, 39, 0, 6, 41, 20, 22, 19, 21]
    groups = group_by_count(counts)
    assert groups == [[0, 2, 4, 7], [9, 10, 11, 12], [1, 3, 5, 8]]
    assert padded_tokens(groups, counts) == 4 * (6 + 22 + 41) < padded_tokens([list(range(13))], counts)
    for length in range(1, 40):
        counts = [length * row % 11 for row in range(length)]
        groups = group_by_count(counts)
        everyone = sorted(row for group in groups for row in group)
        assert everyone == [row for row in range(length) if counts[row]]
        assert len(groups) <= 4 and all(len(group) >= min(4, len(everyone)) for group in groups)


@pytest.mark.parametrize("case", ["delta", "multiscale_memory", "attention", "experts"])
def test_grouping_rows_changes_no_number(case, monkeypatch):
    """But auxiliary losses that compare the tokens of a pass, which are then each group's own."""
    block = [{"type": case, "heads": 2} if case in ("delta", "attention") else {"type": case}, "mlp"]
    model, text = model_of(SETTLED, block=block), tokens(14, 40)
    text[::3] = text[::3, :1]
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    calls, actual = count_calls(model), []
    for together in (False, True):
        calls.clear()
        if together:
            monkeypatch.setattr(
                routing, "group_by_count", lambda counts: [[row for row, count in enumerate(counts) if count]]
            )
        model.zero_grad()
        loss, state = model.loss(text[:, :-1], text[:, 1:])
        loss.total.backward()
        assert (max(map(len, calls.values())) == 1) is together
        more = model(tokens(14, 5, seed=3), state)[0]
        actual.append([loss.total, more, *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*actual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_block_lives_in_its_own_time():
    """A memory that averages its inputs gives the same as for the selected tokens alone."""
    model, text = model_of(SETTLED | {"min": 1}, blocks=2), tokens(batch=1)
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    keep = depths(model, text)[0] == 2
    assert 0 < int(keep.sum()) < 40
    x, states = model.embed(text, torch.zeros_like(text)), model.init_state(1).blocks
    first, _ = model.blocks[0](x, states[0], Pass.over(x))
    short = first[:, keep]
    last, _ = model.blocks[1](short, model.blocks[1].init_state(1), Pass.over(short))
    expected = first.clone()
    expected[:, keep] = last
    hidden, after, _ = model.hidden(text)
    torch.testing.assert_close(hidden, model.norm(expected))
    assert after.blocks[1][-1].tolist() == [int(keep.sum())]


def test_places_gather_and_scatter():
    keep = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    x = torch.arange(12.0).view(3, 4, 1).requires_grad_()
    places = CompactIndex.of(keep, torch.tensor([0, 2]), 3)
    short = places.gather(x)
    assert short[places.real].flatten().tolist() == [0, 2, 3, 9]
    assert places.real.sum(1).tolist() == [3, 1]
    out = places.scatter(short + 100, x)
    assert out.flatten().tolist() == [100, 1, 102, 103, 4, 5, 6, 7, 8, 109, 10, 11]
    (gradient,) = torch.autograd.grad((out * torch.arange(12.0).view(3, 4, 1)).sum(), x)
    assert gradient.flatten().tolist() == list(range(12))


def test_scores_learn_to_rank_tokens_by_what_the_blocks_gained():
    torch.manual_seed(0)
    losses = torch.randn(6, 50, dtype=torch.float64)
    gains = (losses[::2] - losses[1::2]).T

    def router_loss(scores):
        return float(ExplorationSample(torch.arange(50), scores, []).router_loss(losses))

    assert router_loss(3 * gains + 7) < 0.02 and router_loss(-gains) > 1.98  # not quite 0 and 2: gains are clipped
    assert router_loss(torch.ones(50, 3, dtype=torch.float64)) == pytest.approx(1)
    one = ExplorationSample(torch.arange(50), gains[:, :1], []).router_loss(losses[:2])
    assert float(one) < 0.02
    scores = torch.ones(0, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        ExplorationSample(torch.arange(0), scores, []).router_loss(torch.ones(2, 0)), scores
    )
    assert gradient.numel() == 0


@pytest.mark.parametrize("mode", ["exit", "skip"])
def test_its_loss_compares_the_models_predictions_with_and_without_the_blocks(mode, monkeypatch):
    model, text = model_of({"min": 1, "hidden": 8, "mode": mode, "explore": 0.2}, blocks=3), tokens()
    seen = {}
    monkeypatch.setattr(
        ExplorationSample,
        "router_loss",
        lambda self, losses: seen.update(losses=losses, at=self.indices) or losses.sum(),
    )
    inputs, targets = text[:, :-1], text[:, 1:].clone()
    targets[1, 5:20] = -100
    model.loss(inputs, targets)  # thresholds are not set: all tokens run every block
    at = seen["at"]
    assert 0 < len(at) < 0.4 * inputs.numel() and (targets.flatten()[at] != -100).all()
    for row, blocks in enumerate((1, 2, 2, 3) if mode == "skip" else (1, 3)):
        smaller = LanguageModel(model.spec.model_copy(update={"blocks": blocks, "depth": None}), VOCAB).double()
        own = model.state_dict()
        smaller.load_state_dict({name: own[name] for name in smaller.state_dict()})
        each = smaller.loss(inputs, targets)[0].each
        torch.testing.assert_close(seen["losses"][row], each.flatten()[at])


def test_what_it_learns_from_runs_every_block_in_training_only():
    model, text = model_of(SETTLED | {"explore": 0.3}), tokens()
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    trained = depths(model, text)
    chosen = hash_uniform(torch.arange(40), EXPLORATION_SEED) < 0.3
    assert (trained[:, chosen] == 6).all() and 0 < int(chosen.sum()) < 20
    selected = float(model.loss(text, text)[0].measures["depth"])  # without exploring tokens
    deep = float((depths(model.eval(), text) - 2).double().mean()) / 4
    assert selected == pytest.approx(deep, abs=0.1) and deep < float((trained - 2).double().mean()) / 4
    assert model.hidden(text)[2].exploration is None


@pytest.mark.parametrize("mode", ["exit", "skip"])
def test_training_holds_the_mean_depth_at_its_target(mode):
    torch.manual_seed(0)
    model = model_of({"min": 1, "target": 0.4, "hidden": 16, "mode": mode}, blocks=4).float()
    recipe_train = Recipe.model_validate({"model": model.spec.model_dump()}).train
    optimizer = Optimizer(model, recipe_train)
    depths_logged, losses = [], []
    for step in range(80):
        text = tokens(8, 48, seed=100 + step)
        text[:, 1::2] = text[:, ::2]  # every second token repeats the one before it
        loss, _ = model.loss(text[:, :-1], text[:, 1:])
        optimizer.zero_grad()
        loss.objective.backward()
        optimizer.step(min(1.0, (step + 1) / 10))
        apply_buffer_updates(loss.buffer_updates)
        depths_logged.append(float(loss.measures["depth"]))
        losses.append(float(loss.objective.detach()))
    assert sum(depths_logged[40:]) / 40 == pytest.approx(0.4, abs=0.03)
    assert losses[-1] < losses[0] - 0.5
    model.eval()
    loss, _ = model.loss(text[:, :-1], text[:, 1:])
    assert loss.buffer_updates == ()
    assert float(loss.measures["depth"]) == pytest.approx(0.4, abs=0.08)


def test_thresholds_move_only_after_the_step_and_are_a_part_of_the_weights():
    model, text = model_of(SETTLED), tokens()
    before = model.router.thresholds.clone()
    one, two = (model.loss(tokens(seed=seed), text)[0] for seed in (1, 2))
    assert torch.equal(model.router.thresholds, before)
    apply_buffer_updates([*one.buffer_updates, *two.buffer_updates])
    mean = (one.buffer_updates[0][1] + two.buffer_updates[0][1]) / 2
    torch.testing.assert_close(model.router.thresholds, mean)
    assert "router.thresholds" in weights(model)


def test_every_second_block_may_be_run_by_all():
    model, text = model_of({"min": 1, "target": 0.3, "mode": "skip", "every": 2, "hidden": 8}), tokens(14, 40)
    assert list(model.routed) == [1, 3, 5] and [len(block) for block in model.init_state(1).blocks] == [2, 3] * 3
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    calls = count_calls(model.eval())
    with torch.no_grad():
        whole, _ = model(text)
        assert all((sum(b * t for b, t, _ in calls[block]) == text.numel()) == (block % 2 == 0) for block in range(6))
        deep = depths(model, text)
        assert int(deep.min()) == 3 and float(deep.double().mean()) == pytest.approx(3.9, abs=0.1)
        pieces, state = [], None
        for start, end in ((0, 1), (1, 22), *((t, t + 1) for t in range(22, 40))):
            piece, state = model(text[:, start:end], state)
            pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-10)


def test_padding_does_not_count():
    model, text = model_of(SETTLED), tokens(4)
    lengths = torch.tensor([40, 7, 1, 0])
    alone = model.loss(text[:1], text[:1])[0].buffer_updates[0][1]
    padded = model.loss(text, text, lengths=torch.tensor([40, 0, 0, 0]))[0].buffer_updates[0][1]
    torch.testing.assert_close(alone, padded)
    apply_buffer_updates(model.loss(text, text, lengths=lengths)[0].buffer_updates)
    model.eval()
    depth = float(model.loss(text, text, lengths=lengths)[0].measures["depth"])
    real = torch.arange(40) < lengths[:, None]
    assert depth == pytest.approx(float((depths_of(model, text, lengths)[real] - 2).double().mean()) / 4)
    nothing = model_of(SETTLED)
    apply_buffer_updates(nothing.loss(text, text, lengths=torch.zeros(4, dtype=torch.int64))[0].buffer_updates)
    assert (nothing.router.thresholds == UNSET).all()


def depths_of(model, text, lengths):
    trace = Trace(frozenset({"depth"}))
    model.hidden(text, lengths=lengths, trace=trace)
    return trace.records[0].value


def test_weights_without_a_router_load_where_that_is_allowed(tmp_path):
    plain, routed = model_of(None), model_of(SETTLED)
    with torch.no_grad():
        plain.embedding.weight.add_(1)
    load_weights(routed, weights(plain), tmp_path, fresh=("router.",))
    assert torch.equal(routed(tokens())[0], plain(tokens())[0])
    with pytest.raises(InputError, match=r"no tensor router\."):
        load_weights(routed, weights(plain), tmp_path)


def test_what_is_counted():
    spec = {"width": 16, "blocks": 6, "block": BLOCK}
    data = {"tokenizer": "bytes", "sequence": 32}
    plain, routed = (
        account(Recipe.model_validate({"model": spec | {"depth": depth}, "data": data})) for depth in (None, SETTLED)
    )
    router = 16 + 16 * 8 + 8 + 8
    assert routed.by_learner["router"] == router == routed.parameters - plain.parameters
    assert routed.flops - plain.flops == 2 * (16 * 8 + 8)
    assert routed.state_bytes[32] - plain.state_bytes[32] == 4 * 8
    model = model_of(SETTLED, width=16)
    assert sum(routed.by_learner.values()) == routed.parameters
    state = model.init_state(2)
    assert [len(block) for block in state.blocks] == [2, 2, 3, 3, 3, 3]


def test_executed_operations_are_those_of_the_passes_that_ran():
    model, text = model_of(SETTLED), tokens()
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    calls = count_calls(model)
    loss, _ = model.loss(text, text)

    def cost(shape):
        return shape[0] * shape[1] * sum(learner.flops(shape[1]) for learner in model.blocks[0].learners)

    ran = sum(cost(shape) for shapes in calls.values() for shape in shapes)
    assert 6 * cost(text.shape) - float(loss.skipped) == pytest.approx(ran)


@pytest.mark.parametrize(
    "model,message",
    [
        ({"blocks": 2, "depth": {"min": 2}}, "2 of 2 blocks are run by every token"),
        ({"blocks": 1, "depth": {"min": 1}}, "1 of 1 blocks"),
        ({"blocks": 4, "depth": {"target": 1.0}}, "less than 1"),
        ({"blocks": 4, "depth": {"mode": "jump"}}, "'exit' or 'skip'"),
        ({"blocks": 4, "depth": {"every": 2}}, "every: 2 is for mode: skip"),
        ({"blocks": 4, "depth": {}, "head": {"classes": 2}}, "an encoder runs every block"),
    ],
)
def test_invalid_settings_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        Recipe.from_source(source({"width": 16, "block": BLOCK} | model))


def source(model):
    from pathlib import Path

    import yaml

    path = Path("recipe.yaml").resolve()
    path.write_text(yaml.safe_dump({"model": model, "data": {"labels": "path"} if "head" in model else {}}))
    try:
        return read_yaml(path)
    finally:
        path.unlink()


def test_bfloat16_routes_in_float32():
    model, text = model_of(SETTLED).float(), tokens()
    apply_buffer_updates(model.loss(text, text)[0].buffer_updates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.loss(text[:, :-1], text[:, 1:])
        scores = model.router.scores(model.embed(text, torch.zeros_like(text)))
    assert scores.dtype == torch.float32
    loss.objective.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert 0.3 < float(loss.measures["depth"]) < 0.7
