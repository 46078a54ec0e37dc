"""The matrix memory of xLSTM: its equations, transformers' own code for it, and gates that overflow without care."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.mlstm import EMPTY_SCALE, mlstm
from tests.ops.memory_rules import assert_same

NAMES = ("q", "k", "v", "log_input", "log_forget", "memory", "scale")
either = pytest.mark.parametrize("rule", [mlstm.reference, mlstm.named("composed")], ids=["reference", "composed"])


def arguments(time, key=6, value=10, *, heads=2, loud=1.0, started=True, dtype=torch.float64, seed=0):
    """Two rows; `loud` is the size of the gates' logits, sigmoid for the forget gate."""
    generator = torch.Generator().manual_seed(1000 * seed + time)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    q, k, v = draw(2, time, heads, key), draw(2, time, heads, key) / math.sqrt(key), draw(2, time, heads, value)
    log_input, log_forget = loud * draw(2, time, heads), F.logsigmoid(loud * draw(2, time, heads))
    if started:
        return [q, k, v, log_input, log_forget, draw(2, heads, key, value + 1), loud * draw(2, heads)]
    memory = torch.zeros(2, heads, key, value + 1, dtype=dtype)
    return [q, k, v, log_input, log_forget, memory, torch.full((2, heads), EMPTY_SCALE, dtype=dtype)]


def outcome(rule, inputs, true_size=False):
    """Outputs, the memory (as it is stored, or at its true size), and the gradients of a fixed projection of both."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    h, memory, scale = rule(*leaves)
    if true_size:
        memory = memory * scale[..., None, None].exp()
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum() for x in (h, memory))
    slopes = torch.autograd.grad(loss, leaves)
    return {"h": h.detach(), "C": memory.detach()} | {f"d{n}": g for n, g in zip(NAMES, slopes, strict=True)}


def unfolded(q, k, v, log_input, log_forget):
    """h as a weighted sum over the past, Σ_s w_ts (q_t·k_s) v_s / max(|Σ_s w_ts (q_t·k_s)|, 1), where w_ts is the
    exponential of F_t - F_s + log i_s; the largest exponent of each t is taken out of sum and bound."""
    total = log_forget.cumsum(1).transpose(1, 2)
    exponent = total[..., None] - total[..., None, :] + log_input.transpose(1, 2)[..., None, :]
    exponent = exponent.masked_fill(torch.ones(exponent.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    largest = exponent.amax(-1, keepdim=True)
    weights = (exponent - largest).exp() * torch.einsum("bthk,bshk->bhts", q, k)
    bound = (-largest).clamp_max(700).exp()
    h = torch.einsum("bhts,bshv->bhtv", weights, v) / torch.maximum(weights.sum(-1, keepdim=True).abs(), bound)
    return h.transpose(1, 2)


@either
@pytest.mark.parametrize("loud", [1.0, 10.0])
def test_it_is_a_normalised_sum_over_the_past(rule, loud):
    inputs = arguments(41, loud=loud, started=False)
    torch.testing.assert_close(rule(*inputs)[0], unfolded(*inputs[:5]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("time", [1, 2, 17, 65, 130])
@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("loud", [1.0, 10.0])
def test_the_parallel_form_equals_the_recurrence(time, started, loud):
    inputs = arguments(time, started=started, loud=loud)
    actual, expected = outcome(mlstm.named("composed"), inputs), outcome(mlstm.reference, inputs)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@either
@pytest.mark.parametrize("at", [1, 40, 64])
def test_time_may_be_split_anywhere(rule, at):
    *inputs, memory, scale = arguments(100, loud=5.0)
    h, last, final = rule(*inputs, memory, scale)
    h1, middle, m = rule(*(x[:, :at] for x in inputs), memory, scale)
    h2, end, m = rule(*(x[:, at:] for x in inputs), middle, m)
    assert_same({"h": torch.cat([h1, h2], 1), "C": end, "m": m}, {"h": h, "C": last, "m": final}, 1e-11)


@either
def test_the_scale_of_the_memory_is_free(rule):
    *inputs, memory, scale = arguments(30)
    other = rule(*inputs, memory * math.e**-3, scale + 3)
    h, last, final = rule(*inputs, memory, scale)
    torch.testing.assert_close(other[0], h, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other[1] * other[2][..., None, None].exp(), last * final[..., None, None].exp())


@either
def test_an_empty_memory_returns_zeros_at_any_forget_gate(rule):
    """A forget gate above 1 makes nothing of nothing: what is written after 100 such tokens counts in full."""
    q, k, v, log_input, log_forget, memory, scale = arguments(101, started=False)
    log_forget, log_input = torch.full_like(log_forget, 3.0), torch.full_like(log_input, -math.inf)
    log_input[:, -1] = 0
    h, last, final = rule(q, k, v, log_input, log_forget, memory, scale)
    score = (q * k).sum(-1)[:, -1, :, None]
    assert h[:, :-1].abs().max() == 0
    torch.testing.assert_close(h[:, -1], score * v[:, -1] / score.abs().clamp_min(1))
    torch.testing.assert_close(last[..., -1] * final[..., None].exp(), k[:, -1])


@either
def test_tokens_without_gates_leave_memory_and_scale_as_they_are(rule):
    for started in (True, False):
        q, k, v, log_input, log_forget, memory, scale = arguments(20, started=started)
        h, last, final = rule(
            q, k, v, torch.full_like(log_input, -math.inf), torch.zeros_like(log_forget), memory, scale
        )
        assert torch.equal(last, memory) and torch.equal(final, scale)
        assert torch.isfinite(h).all()


def plainly(q, k, v, log_input, log_forget, *_):
    """The published equations without a stabiliser."""
    memory, outputs = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1] + 1), []
    for t in range(q.shape[1]):
        column = torch.cat([v[:, t], torch.ones_like(v[:, t, :, :1])], -1)
        memory = log_forget[:, t, :, None, None].exp() * memory
        memory = memory + log_input[:, t, :, None, None].exp() * k[:, t, :, :, None] * column[:, :, None]
        read = torch.einsum("bhk,bhkv->bhv", q[:, t], memory)
        outputs.append(read[..., :-1] / read[..., -1:].abs().clamp_min(1))
    return torch.stack(outputs, 1)


@either
@pytest.mark.parametrize("forget", ["sigmoid", "exponential"])
def test_gates_of_plus_and_minus_100_at_512_tokens(rule, forget):
    """Without a stabiliser this is NaN, in float64 too where the forget gate is exponential."""
    q, k, v, log_input, log_forget, memory, scale = arguments(512, started=False)
    sign = torch.where(torch.rand(2, *log_input.shape, generator=torch.Generator().manual_seed(4)) < 0.5, -1.0, 1.0)
    log_input, logit = 100 * sign[0].double(), 100 * sign[1].double()
    log_forget = F.logsigmoid(logit) if forget == "sigmoid" else logit + 1
    inputs = [q, k, v, log_input, log_forget, memory, scale]
    assert torch.isnan(plainly(*(x.float() for x in inputs))).any()
    exact = unfolded(*inputs[:5])
    torch.testing.assert_close(rule(*inputs)[0], exact, rtol=1e-8, atol=1e-8)
    leaves = [x.float().requires_grad_() for x in inputs]
    h, memory, scale = rule(*leaves)
    # Where n·q cancels h is ill conditioned, hence a share of the largest rather than of each.
    assert (h - exact).abs().max() <= 1e-4 * exact.abs().max()
    slopes = torch.autograd.grad((h * torch.randn_like(h)).sum(), leaves[:5])
    assert all(torch.isfinite(x).all() for x in (h, memory, scale, *slopes))


@either
def test_a_query_of_zeros_reads_zeros(rule):
    q, k, v, log_input, log_forget, memory, scale = arguments(9, loud=100.0, dtype=torch.float32)
    q = torch.zeros_like(q).requires_grad_()
    h = rule(q, k, v, log_input + 300, log_forget, memory, scale)[0]
    assert h.abs().max() == 0
    assert torch.isfinite(torch.autograd.grad(h.sum(), q)[0]).all()


def test_float32_over_a_long_time_and_deep_forgetting():
    """Sums of the log decays reach -5e7 here: a scale taken from them would be wrong by whole units."""
    for shift, loud in ((0.0, 1.0), (-7e4, 30.0)):
        *inputs, memory, scale = arguments(2048, 8, 8, heads=1, loud=loud, started=False, dtype=torch.float32)
        inputs[4] = inputs[4] + shift * (torch.arange(2048) % 3 == 0)[:, None]
        h, memory, scale = mlstm.named("composed")(*inputs, memory, scale)
        zeros, unstarted = torch.zeros(2, 1, 8, 9).double(), torch.full((2, 1), EMPTY_SCALE).double()
        exact = mlstm.reference(*(x.double() for x in inputs), zeros, unstarted)
        assert (h - exact[0]).abs().max() <= 1e-4 * exact[0].abs().max()
        torch.testing.assert_close(scale.double(), exact[2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(memory.double(), exact[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlstm_recurrent_sequence_native", "mlstm_chunkwise_native_autograd"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["64", "32"])
@either
def test_equals_transformers_in_outputs_states_and_gradients(rule, name, dtype, tolerance):
    xlstm = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    peer = getattr(xlstm, name, None)
    if peer is None:
        pytest.skip(f"this transformers has no {name}")

    def theirs(q, k, v, log_input, log_forget, memory, scale):
        """In their words: [B, H, T, ...], forget logits, queries scaled by K^-1/2, an epsilon beside the bound."""
        logit = log_forget - torch.log(-torch.expm1(log_forget))  # the inverse of logsigmoid
        swapped = [x.transpose(1, 2) for x in (q * q.shape[-1] ** 0.5, k, v, log_input, logit)]
        start = (memory[..., :-1], memory[..., -1], scale[..., None])
        start = dict(zip(("c_initial", "n_initial", "m_initial"), start, strict=True))
        extra = {"eps": 0.0, "chunk_size": 16, "dtype_state": dtype, "return_last_states": True}
        h, (c, n, m) = peer(*swapped, **start, **extra)
        return h.transpose(1, 2), torch.cat([c, n[..., None]], -1), m[..., 0]

    inputs = arguments(64, loud=2.0, dtype=dtype)
    assert_same(outcome(rule, inputs, True), outcome(theirs, inputs, True), tolerance)
