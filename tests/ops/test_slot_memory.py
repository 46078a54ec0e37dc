"""The slot memory: worked examples, its kernel against its definition, its routers and its noise."""

from __future__ import annotations

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.ops.dispatch import use_kernels
from synthe_core.ops.slot_memory import Policy, slot_memory
from synthe_core.ops.slot_memory.routing import READ_USE, SINCE_READ, SINCE_WRITE, WRITE_USE, gumbel, route

each_form = pytest.mark.parametrize("form", ["reference", "chunked", "native"])
DECAY = 0.9


def policy(**changes):
    return Policy(
        **{"reads": 2, "writes": 1, "match": 0.5, "horizon": 10.0, "staleness": 1.0, "router": "softmax"} | changes
    )


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def write(form, keys, values, strengths, slots, chunk, ages=None, **changes):
    """The memory after tokens of one head with these keys and values, which all look for X; `slots` are pairs of a key
    and a content."""
    count, bank = len(keys), tensor([[[*key, content]] for key, content in slots])[None]
    key = tensor(keys)[None, :, None]
    ages = torch.zeros(1, len(slots), 4, dtype=torch.float64) if ages is None else ages
    with use_kernels(slot_memory=form):
        return slot_memory(
            tensor(X).expand_as(key),
            key,
            tensor(values).view(1, count, 1, 1),
            tensor(strengths)[None],
            bank,
            ages,
            torch.zeros(1, chunk, 1, bank.shape[-1], dtype=torch.float64),
            torch.zeros(1, chunk, dtype=torch.float64),
            torch.zeros(1, dtype=torch.int64),
            None,
            policy(**changes),
        )


def holds(memory, expected):
    torch.testing.assert_close(memory.bank[0, :, 0], tensor(expected), rtol=1e-12, atol=1e-12)


X, Y, Z, NEW = [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]


@each_form
def test_tokens_near_a_slot_refine_it_in_turn(form):
    memory = write(form, [X, X], [1, 3], [0.5, 0.25], [(X, 10), (Y, 20)], chunk=2)
    holds(memory, [[*X, 4.875], [*Y, 20]])  # 10 -> 10 + 0.5 (1 - 10) = 5.5 -> 5.5 + 0.25 (3 - 5.5)
    assert memory.ages[0, :, SINCE_WRITE].tolist() == [0, 2]
    torch.testing.assert_close(memory.ages[0, :, WRITE_USE], tensor([0.1 * 2 * 0.75, 0]))
    assert memory.affinity.tolist() == [[1, 1]] and memory.novelty.tolist() == [[0, 0]]


@each_form
def test_refining_moves_the_key_too(form):
    near = [0.8, 0.6, 0, 0]
    memory = write(form, [near], [2], [0.5], [(X, 0), (Z, 0)], chunk=1)
    holds(memory, [[0.9, 0.3, 0, 0, 1], [*Z, 0]])


@each_form
def test_a_novel_token_overwrites_the_least_useful_slot(form):
    ages = torch.zeros(1, 3, 4, dtype=torch.float64)
    ages[0, :, READ_USE] = tensor([2.0, 0.5, 0.4])
    ages[0, 1, SINCE_READ] = ages[0, 1, SINCE_WRITE] = 9  # idle, which weighs more than its better use
    memory = write(form, [NEW], [7], [0.5], [(X, 1), (Y, 2), (Z, 3)], chunk=1, ages=ages, reads=1)
    holds(memory, [[*X, 1], [*NEW, 3.5], [*Z, 3]])
    assert memory.novelty.tolist() == [[1]]
    assert memory.ages[0, 1, :3].tolist() == [0, 0, 1]
    torch.testing.assert_close(memory.ages[0, 0, READ_USE], tensor(DECAY * 2 + 0.1 * 3))


@each_form
def test_the_most_novel_token_goes_first_and_takes_the_least_useful_slot(form):
    half = [0.4, 0, 0, 0.9]
    ages = torch.zeros(1, 2, 4, dtype=torch.float64)
    ages[0, :, READ_USE] = tensor([1.0, 0.5])
    both = write(form, [half, Y], [4, 6], [0.5, 0.5], [(X, 1), (Z, 2)], chunk=2, ages=ages, writes=2)
    holds(both, [[*half, 2], [*Y, 3]])
    one = write(form, [half, Y], [4, 6], [0.5, 0.5], [(X, 1), (Z, 2)], chunk=2, ages=ages, writes=1)
    holds(one, [[*X, 1], [*Y, 3]])


@each_form
def test_of_similar_tokens_one_is_written(form):
    memory = write(form, [NEW, NEW, NEW], [4, 6, 8], [0.5] * 3, [(X, 1), (Y, 2), (Z, 3)], chunk=3, writes=3, reads=3)
    holds(memory, [[*X, 1], [*NEW, 2], [*Z, 3]])  # of two that are as useless, the first
    assert memory.novelty.tolist() == [[1, 0, 0]]


@each_form
def test_a_slot_refined_at_a_tick_is_not_overwritten_by_it(form):
    memory = write(form, [X, NEW], [3, 8], [0.5, 0.5], [(X, 1)], chunk=2, reads=1)
    holds(memory, [[*X, 2]])


@each_form
def test_before_the_tick_nothing_is_written(form):
    memory = write(form, [NEW, X], [4, 6], [0.5, 0.25], [(X, 1), (Y, 2)], chunk=3)
    holds(memory, [[*X, 1], [*Y, 2]])
    assert memory.pending[0, :, 0].tolist() == [[*NEW, 4], [*X, 6], [0] * 5]
    assert memory.pending_strength.tolist() == [[0.5, 0.25, 0]]


def arguments(time, batch=2, heads=2, size=3, value=2, slots=7, chunk=5, start=(3, 11), lengths=None, **changes):
    torch.manual_seed(time)
    start = torch.tensor(start)
    place = torch.arange(chunk) < (start % chunk)[:, None]
    record = torch.cat([unit(batch, chunk, heads, size), torch.randn(batch, chunk, heads, value).double()], -1)
    bank = torch.cat([unit(batch, slots, heads, size), torch.randn(batch, slots, heads, value).double()], -1)
    ages = torch.rand(batch, slots, 4, dtype=torch.float64) * tensor([9, 9, 2, 2])
    ages[..., :2] = ages[..., :2].round()
    named = {
        "query": 2 * unit(batch, time, heads, size),
        "key": unit(batch, time, heads, size),
        "value": torch.randn(batch, time, heads, value, dtype=torch.float64),
        "strength": torch.rand(batch, time, dtype=torch.float64),
        "bank": bank,
        "ages": ages,
        "pending": record * place[..., None, None],
        "pending_strength": torch.rand(batch, chunk, dtype=torch.float64) * place,
    }
    for name in named.keys() - {"ages"}:
        named[name].requires_grad_()
    lengths = None if lengths is None else torch.tensor(lengths)
    return named | {"start": start, "lengths": lengths, "policy": policy(**changes)}


def outcome(form, named):
    with use_kernels(slot_memory=form):
        actual = slot_memory(**named)
    real = torch.ones(actual.novelty.shape, dtype=torch.bool)
    if named["lengths"] is not None:
        real = torch.arange(real.shape[1]) < named["lengths"][:, None]
    per_token = [x[real] for x in actual[:5]]
    torch.manual_seed(0)
    total = sum((x * torch.randn(x.shape, dtype=x.dtype)).sum() for x in (*per_token, *actual[5:]) if x.requires_grad)
    expected = [x for x in named.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    return (*per_token, *actual[5:]), torch.autograd.grad(total, expected)


@pytest.mark.parametrize("time", [1, 2, 4, 5, 38])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"router": "sparsemax", "reads": 4, "writes": 3, "match": 0.2},
        {"lengths": (0, 1), "start": (4, 4), "writes": 5, "match": 0.8},
        {"heads": 1, "slots": 3, "writes": 3, "match": 0.7, "start": (0, 10)},
        {"seed": 2**61 + 5, "reads": 3},
        {"chunk": 1, "match": 0.6},
        {"slots": 37, "chunk": 11, "reads": 5, "writes": 4, "match": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["chunked", "native"])
def test_the_kernel_equals_the_definition(form, time, case):
    seed = case.get("seed")
    if form == "native" and seed is not None:
        pytest.skip("the noise is drawn by torch")
    named = arguments(time, **{key: value for key, value in case.items() if key != "seed"}) | {"seed": seed}
    (expected, slopes), (actual, gradients) = outcome("reference", named), outcome(form, named)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    for a, b in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", ["reference", "chunked"])
def test_the_same_seed_is_the_same_noise_in_any_split(form):
    named = arguments(23, reads=3) | {"seed": 77}
    with use_kernels(slot_memory=form):
        whole = slot_memory(**named)
        parts = ("bank", "ages", "pending", "pending_strength")
        state, weights, start = {name: named[name] for name in parts}, [], named["start"]
        for first, end in ((0, 1), (1, 9), (9, 23)):
            tokens = {name: named[name][:, first:end] for name in ("query", "key", "value", "strength")}
            piece = slot_memory(**named | tokens | state | {"start": start + first})
            state = {name: getattr(piece, name) for name in parts}
            weights.append(piece.weights)
    torch.testing.assert_close(torch.cat(weights, 1), whole.weights, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state["bank"], whole.bank, rtol=1e-12, atol=1e-12)
    assert not torch.equal(whole.slots, slot_memory(**named | {"seed": 78}).slots)


def test_gumbel_noise_draws_from_the_softmax():
    logits = tensor([0.0, 1.0, 2.0, -1.0])
    position, choice = torch.arange(20_000)[None], torch.arange(4).expand(1, 20_000, 4)
    noise = gumbel(5, position, choice, torch.float64)
    drawn = torch.bincount((logits + noise).argmax(-1).flatten(), minlength=4).double() / 20_000
    torch.testing.assert_close(drawn, logits.softmax(-1), rtol=0, atol=0.015)
    torch.testing.assert_close(noise.mean(), tensor(0.5772), rtol=0, atol=0.02)
    rows = gumbel(5, position.expand(2, -1), choice.expand(2, -1, -1), torch.float32)
    assert rows.isfinite().all() and abs(torch.corrcoef(rows.flatten(1))[0, 1]) < 0.02


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    torch.manual_seed(0)
    logits = torch.randn(50, 6, dtype=torch.float64).sort(descending=True).values
    weight = route(logits, "sparsemax")
    torch.testing.assert_close(weight.sum(-1), torch.ones(50, dtype=torch.float64))
    assert (weight >= 0).all() and 0 < (weight == 0).double().mean() < 1
    # Optimality: logits less weights are one number where weight is put, and elsewhere no more than it.
    rest = logits - weight
    threshold = rest[:, :1]
    assert torch.where(weight > 0, (rest - threshold).abs(), 0).max() < 1e-12
    assert torch.where(weight == 0, rest - threshold, 0).max() <= 1e-12


@each_form
@pytest.mark.parametrize(
    "changes,message", [({"reads": 4}, "4 reads of 3 slots"), ({"writes": 3}, "3 writes a tick of 2 tokens")]
)
def test_more_than_there_is_is_refused(form, changes, message):
    with pytest.raises(InputError, match=message):
        write(form, [X], [1], [0.5], [(X, 1), (Y, 2), (Z, 3)], chunk=2, **changes)


def test_narrow_types_are_refused():
    named = {
        key: x.bfloat16() if torch.is_tensor(x) and x.is_floating_point() else x for key, x in arguments(3).items()
    }
    with pytest.raises(InputError, match="float32 or float64"):
        slot_memory(**named)
