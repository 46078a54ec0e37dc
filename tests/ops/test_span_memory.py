import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.delta_rule import delta_rule
from synthe_core.ops.span_memory import SpanState, projected, span_memory
from synthe_core.ops.span_memory.framed import framed

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
BATCH, HEADS, KEY, VALUE = 2, 3, 4, 5


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def drawn(time, batch=BATCH, online=False, seed=0):
    """Arguments with a past that has momentum, and a span that has begun."""
    torch.manual_seed(seed)
    head = (batch, time, HEADS)
    gates = torch.randn(3, *head, dtype=torch.float64)
    begun = KEY if not online else 0
    k, v = unit(batch, 6, HEADS, KEY), unit(batch, 6, HEADS, VALUE)
    moments = (
        torch.einsum("bthk,bthv->bhkv", k, torch.cat([k, v], -1))
        if begun
        else 0.3 * torch.einsum("bthk,bthv->bhkv", k, v)
    )
    return {
        "query": unit(*head, KEY),
        "key": unit(*head, KEY),
        "value": unit(*head, VALUE),
        "rate": gates[0],
        "sharpness": torch.rand(HEADS, dtype=torch.float64),
        "decay": 0.2 * gates[1].sigmoid(),
        "momentum": 0.9 * gates[2].sigmoid(),
        "weight": torch.rand(batch, time, dtype=torch.float64),
        "memory": 0.3 * torch.randn(batch, HEADS, KEY, VALUE, dtype=torch.float64),
        "velocity": 0.3 * torch.randn(batch, HEADS, KEY, VALUE, dtype=torch.float64),
        "pending": moments,
        "tally": torch.rand(batch, HEADS, 3, dtype=torch.float64),
    }


def at(*places, time, batch=BATCH):
    finished = torch.zeros(batch, time, dtype=torch.bool)
    finished[:, list(places)] = True
    return finished


def empty(arguments):
    """The same with nothing remembered and no span begun."""
    state = {name: torch.zeros_like(arguments[name]) for name in ("memory", "velocity", "pending", "tally")}
    return arguments | state


def test_the_step_is_the_gradient_of_the_loss_it_states():
    """One span: M after minus M before is autograd's gradient of ½ Σ lr ‖M k - v‖², with momentum and decay by hand."""
    spans, size = 3, 6
    time = spans * size
    a = drawn(time + 1)
    a["weight"][:, -1] = 0
    a |= {"pending": torch.zeros_like(a["pending"]), "tally": torch.zeros_like(a["tally"])}
    _, error, rate, state = span_memory(**a, finished=at(6, 12, 18, time=time + 1), span=size)
    memory, velocity = a["memory"], a["velocity"]
    for span in range(spans):
        part = slice(span * size, (span + 1) * size)
        k, v, w = a["key"][:, part], a["value"][:, part], a["weight"][:, part, None]
        leaf = memory.clone().requires_grad_()
        mistakes = torch.einsum("bhkv,bthk->bthv", leaf, k) - v
        relative = mistakes.detach().square().sum(-1)  # values have length 1
        r = w * torch.sigmoid(a["rate"][:, part] + a["sharpness"] * (1e-4 + relative).log())
        torch.testing.assert_close(error[:, part], relative, **CLOSE)
        torch.testing.assert_close(rate[:, part], r, **CLOSE)
        gram = torch.einsum("bth,bthi,bthj->bhij", r, k, k)
        lr = r / torch.linalg.matrix_norm(gram).clamp_min(1)[:, None]
        (gradient,) = torch.autograd.grad(0.5 * (lr * mistakes.square().sum(-1)).sum(), leaf)
        alpha, eta = ((w * a[name][:, part]).sum(1) / w.sum(1) for name in ("decay", "momentum"))
        velocity = eta[..., None, None] * velocity - gradient
        memory = (1 - alpha[..., None, None]) * memory + velocity
        memory = memory * (KEY**0.5 / torch.linalg.matrix_norm(memory)).clamp_max(1)[..., None, None]
    torch.testing.assert_close(state.memory, memory, **CLOSE)
    torch.testing.assert_close(state.velocity, velocity, **CLOSE)
    assert state.pending.abs().max() == 0 and state.tally.abs().max() == 0


def test_a_surprising_token_is_learned_faster():
    a = drawn(2, batch=1)
    a["key"][:, 1], a["value"][:, 1], a["rate"][:] = a["key"][:, 0], -a["value"][:, 0], 0.0
    a["weight"][:] = 1
    a["memory"] = torch.einsum("bhk,bhv->bhkv", a["key"][:, 0], a["value"][:, 0])  # knows the first, not the second
    output = span_memory(**a, finished=at(time=2, batch=1), span=2)
    assert output.error[:, 0].max() < 1e-20 and (output.error[:, 1] - 4).abs().max() < 1e-12
    assert (output.rate[:, 1] > 0.5).all() and (output.rate[:, 0] < 0.5).all()
    plain = span_memory(**a | {"sharpness": None}, finished=at(time=2, batch=1), span=2)
    assert (plain.rate == 0.5).all()


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("momentum", [True, False])
def test_frames_equal_the_recurrence_where_rows_have_clocks_of_their_own(online, momentum):
    time, span = 23, 5
    a = drawn(time, batch=4, online=online)
    if not momentum:
        a |= {"momentum": None, "velocity": a["velocity"][:, :0]}
    position = torch.tensor([0, 3, 104, 9])[:, None] + torch.arange(time)
    position[2] += 7 * (torch.arange(time) > 11)  # a gap
    finished = F.pad(position[:, 1:] // span > position[:, :-1] // span, (1, 0))
    finished[3, 0] = True
    lengths = torch.tensor([time, 9, time, 1])[:, None]
    real = torch.arange(time) < lengths
    finished &= real
    outcomes = []
    for fn in (span_memory.reference, framed):
        leaves = {name: x.clone().requires_grad_() for name, x in a.items() if x is not None}
        given = {**a, **leaves, "weight": leaves["weight"] * real}
        output = fn(**given, finished=finished, span=span, online=online)
        seen = [x[real] for x in output[:3]] + list(output.state)
        torch.manual_seed(5)
        total = sum((x * torch.randn_like(x)).sum() for x in seen)
        outcomes.append((seen, torch.autograd.grad(total, list(leaves.values()), allow_unused=True)))
    for one, other in zip(outcomes[0][0], outcomes[1][0], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    for name, one, other in zip(leaves, outcomes[0][1], outcomes[1][1], strict=True):
        one, other = (torch.zeros_like(leaves[name]) if g is None else g for g in (one, other))
        torch.testing.assert_close(one, other, msg=lambda m, name=name: f"{name}: {m}", **CLOSE)


def test_online_is_the_delta_rule_within_a_span_and_is_read_after_it():
    time = 11
    a = empty(drawn(time, online=True)) | {"sharpness": None}
    output = span_memory(**a, finished=at(5, 10, time=time), span=5, online=True)
    rate = a["weight"][..., None] * a["rate"].sigmoid()
    memory = torch.zeros_like(a["memory"])
    for start in (0, 5):
        part = slice(start, start + 5)
        q, k, v, w = (a[name][:, part] for name in ("query", "key", "value", "weight"))
        torch.testing.assert_close(output.read[:, part], torch.einsum("bhkv,bthk->bthv", memory, q), **CLOSE)
        memory = delta_rule.reference(k, k, v, rate[:, part], None, memory)[1]
        alpha = (w[..., None] * a["decay"][:, part]).sum(1) / w.sum(1)[:, None]
        memory = projected((1 - alpha[..., None, None]) * memory)
    torch.testing.assert_close(output.state.memory, memory, **CLOSE)


@pytest.mark.parametrize("kind", ["one direction", "turning", "random"])
def test_the_state_stays_bounded_for_any_input(kind):
    """The highest rate, the most momentum, no decay, a truth that turns around: the bounds of the docstring."""
    torch.manual_seed(0)
    span, spans = 8, 200
    time = span * spans
    most, size = 0.9, 4
    angle = torch.arange(time, dtype=torch.float64) * (0.9 if kind == "turning" else 0.0)
    key = F.pad(torch.stack([angle.cos(), angle.sin()], -1), (0, size - 2)) if kind != "random" else unit(time, size)
    turn = torch.arange(time) // (3 * span) % 2 * 2 - 1  # every three spans the truth is the opposite
    value = unit(1, size) * turn[:, None]
    head = torch.ones(1, time, 1, dtype=torch.float64)
    state = SpanState(*(torch.zeros(1, 1, *s, dtype=torch.float64) for s in ((4, 4), (4, 4), (4, 8), (3,))))
    loud = 0.0
    for start in range(0, time, span):
        part = slice(start, start + span)
        k, v = key[None, part, None], value[None, part, None]
        one = head[:, part]
        finished = at(0, time=span, batch=1)
        state = framed(k, k, v, 50 * one, None, 0 * one, most * one, one[..., 0], finished, *state, span).state
        gram, written = state.pending.split(4, -1)
        clipped = torch.linalg.matrix_norm(gram).clamp_min(1)
        assert torch.linalg.matrix_norm(written) / clipped <= size**0.25 + 1e-9
        assert torch.linalg.matrix_norm(gram, 2) / clipped <= 1 + 1e-9
        assert torch.linalg.matrix_norm(state.memory) <= size**0.5 + 1e-9
        assert torch.linalg.matrix_norm(state.velocity) <= (size**0.5 + size**0.25) / (1 - most)
        loud = max(loud, float(torch.linalg.matrix_norm(state.memory)))
    if kind == "one direction":
        assert loud > 1.9  # momentum overshoots its values (length 1): without the ball it would go further


def test_tokens_of_no_weight_leave_no_trace():
    time = 7
    a = drawn(time)
    a["weight"][:, 2:5] = 0
    other = {name: x.clone() for name, x in a.items()}
    other["key"][:, 2:5], other["value"][:, 2:5], other["decay"][:, 2:5] = 9.0, -9.0, 1.0
    states = [span_memory(**x, finished=at(6, time=time), span=7).state for x in (a, other)]
    for one, same in zip(*states, strict=True):
        assert torch.equal(one, same)
