import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.layers.slots import MAX_STRENGTH, Slots
from synthe_core.layers.trace import Trace
from synthe_core.ops.dispatch import use_kernels
from synthe_core.state import named_leaves, nbytes

WIDTH = 48
SMALL = {"slots": 20, "heads": 2, "key_size": 8, "value_size": 5, "reads": 3, "writes": 4, "chunk": 6}


def make(width=WIDTH, **config):
    torch.manual_seed(0)
    return Slots(Slots.Config(**SMALL | config), width).double()


def inputs(batch, time, width=WIDTH):
    torch.manual_seed(1)
    return torch.randn(batch, time, width, dtype=torch.float64)


def run(learner, x, state=None, start=0, **more):
    ctx = Pass.over(x, start=torch.full((x.shape[0],), start), **more)
    return *learner(x, state, ctx), ctx


def traced(learner, x, **more):
    trace = Trace()
    y, state, _ = run(learner, x, trace=trace, **more)
    return y, state, {record.name: record.value for record in trace.records}


def test_an_unwritten_bank_returns_zeros_until_the_first_tick():
    y, state, _ = run(make(), inputs(2, 9))
    assert y[:, :6].abs().max() == 0
    assert y[:, 6:].abs().max() > 0
    assert (state.bank[..., 8:] != 0).any(-1).any(-1).sum(1).tolist() == [4, 4]  # slots written at one tick


def test_a_token_that_comes_again_reads_what_it_wrote():
    learner, x = make(slots=30, writes=6, match=0.9), inputs(1, 7)
    x[:, 6] = x[:, 2]
    _, state, seen = traced(learner, x)
    value = (learner.project.weight @ x[0, 2])[2 * 2 * 8 :][: 2 * 5].view(2, 5)
    assert seen["novelty"][0, 6] < 1e-4 < 0.1 < seen["novelty"][0, 2]
    assert seen["refines"][0].tolist() == [False] * 6 + [True]
    assert seen["overwrites"][0].tolist() == [True] * 6 + [False]
    best = seen["read_slots"][0, 6, :, 0]
    assert best[0] == best[1]
    torch.testing.assert_close(state.bank[0, best[0], :, 8:], seen["strength"][0, 2] * value)
    assert (seen["read_weights"][0, 6, :, 0] > seen["read_weights"][0, 6, :, 1]).all()


def test_reads_weigh_contents_by_cosine_and_are_gated():
    learner, x = make(value_size=4), inputs(1, 1)
    with torch.no_grad():
        learner.initial_contents.normal_()
        learner.log_scale[1] = 0.3
    y, _, _ = run(learner, x)
    q, _, _, gate, _ = (learner.project.weight @ x[0, 0]).split([16, 16, 8, 8, 1])
    q, keys = F.normalize(q.view(2, 8), dim=-1), F.normalize(learner.initial_keys, dim=-1)
    reads = []
    for head, scale in enumerate((math.sqrt(8), math.exp(0.3))):
        logits, index = (scale * keys[:, head] @ q[head]).sort(descending=True)
        reads.append(logits[:3].softmax(0) @ learner.initial_contents[index[:3], head])
    torch.testing.assert_close(y[0, 0], learner.out.weight @ (torch.cat(reads) * F.silu(gate)), rtol=1e-4, atol=1e-5)


def test_the_balance_loss_is_the_squared_distance_from_even_use():
    learner = make(balance=0.5, reads=20)
    with torch.no_grad():
        learner.log_scale.fill_(-60.0)  # all logits 0: every slot is read alike
    (name, loss), *rest = run(learner, inputs(2, 4))[2].losses
    assert name == "balance" and not rest and loss < 1e-12
    learner = make(balance=0.5, reads=2, router="sparsemax")
    with torch.no_grad():
        learner.log_scale.fill_(9.0)  # one slot a head and token
        learner.initial_keys.copy_(learner.initial_keys[:1].expand_as(learner.initial_keys))
        learner.initial_keys[1:] *= -1
    x = inputs(2, 4)
    shares = torch.zeros(2, 20, dtype=torch.float64)
    _, _, seen = traced(learner, x)
    for row in range(2):
        for t in range(4):
            for weights, slots in zip(seen["read_weights"][row, t], seen["read_slots"][row, t], strict=True):
                shares[row].index_add_(0, slots, weights / 8)
    torch.testing.assert_close(seen["usage"], shares)
    loss = run(learner, x)[2].losses[0][1]
    torch.testing.assert_close(loss, 0.5 * ((shares - 1 / 20) ** 2).sum(1).mean())


def test_auxiliary_losses_leave_padding_out_and_are_of_training_only():
    learner, x = make(prediction=0.3), inputs(2, 15)
    longer = torch.cat([x, 100 + inputs(2, 4)], 1)
    plain, padded = run(learner, x)[2].losses, run(learner, longer, lengths=torch.tensor([15, 15]))[2].losses
    assert [name for name, _ in plain] == ["balance", "prediction"]
    for (_, one), (_, other) in zip(plain, padded, strict=True):
        torch.testing.assert_close(one, other)
        assert one > 0
    assert run(learner, x, lengths=torch.tensor([0, 0]))[2].losses[1][1] == 0
    assert run(learner.eval(), x)[2].losses == []


def test_prediction_compares_each_read_with_the_next_content():
    learner, x = make(prediction=2.0, value_size=6), inputs(1, 13)
    loss = run(learner, x[:, 11:], run(learner, x[:, :11])[1], start=11)[2].losses[1][1]
    # The read of token 11, undone from a second run whose gate and output are known.
    q = (learner.project.weight[:16] @ x[0, 11]).view(2, 8)
    bank = run(learner, x[:, :11])[1].bank[0]
    reads = []
    for head in range(2):
        logits, index = (math.sqrt(8) * bank[:, head, :8] @ F.normalize(q[head], dim=-1)).sort(descending=True)
        reads.append(logits[:3].softmax(0) @ bank[index[:3], head, 8:])
    guess = learner.predict.weight @ torch.cat(reads)
    target = learner.project.weight[32:44] @ x[0, 12]
    torch.testing.assert_close(loss, 2 * (1 - F.cosine_similarity(guess, target, dim=0)), rtol=1e-4, atol=1e-5)


def test_gumbel_noise_is_of_training_only_and_repeats_with_the_seed():
    noisy, plain, x = make(noise="gumbel"), make(), inputs(2, 20)
    torch.manual_seed(3)
    one = run(noisy, x)[0]
    another = run(noisy, x)[0]
    torch.manual_seed(3)
    assert torch.equal(run(noisy, x)[0], one) and not torch.equal(another, one)
    assert torch.equal(run(noisy.eval(), x)[0], run(plain, x)[0])


def test_recomputing_in_the_backward_pass_draws_the_same_noise():
    learner, gradients = make(noise="gumbel"), []
    for again in (False, True):
        x = inputs(2, 20).requires_grad_()
        torch.manual_seed(3)
        y = checkpoint(lambda x: run(learner, x)[0], x, use_reentrant=False) if again else run(learner, x)[0]
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_sparsemax_leaves_slots_out():
    _, _, seen = traced(make(router="sparsemax", reads=10), inputs(2, 30))
    assert (seen["read_weights"] == 0).any() and (seen["read_weights"][..., 0] > 0).all()
    torch.testing.assert_close(seen["read_weights"].sum(-1), torch.ones(2, 30, 2, dtype=torch.float64))


def test_ages_count_tokens():
    learner, x = make(slots=200, writes=1, match=0.9), inputs(1, 40)
    _, state, _ = run(learner, x)
    since_read, since_write, read_use, write_use = state.ages[0].unbind(-1)
    # A tick every 6 tokens, one slot each; what was never written has been idle for all 40.
    expected = {40 - tick for tick in range(6, 40, 6)} | {40}
    assert set(since_write.tolist()) <= expected and 4 in since_write.tolist()
    assert since_read.min() == 0 and since_read.max() <= 40
    assert (read_use >= 0).all() and (write_use[since_write == 40] == 0).all()


def test_state_has_a_constant_size_and_its_bytes_are_counted():
    learner = make().float()
    state = run(learner, inputs(1, 33).float())[1]
    expected = 4 * (20 * 2 * 13 + 20 * 4 + 6 * 2 * 13 + 6)
    assert nbytes(state) == expected == learner.state_bytes(33) == learner.state_bytes(9000)


def test_strength_stays_below_one():
    learner, x = make(match=-0.9, noise="gumbel"), inputs(1, 30)
    with torch.no_grad():
        learner.strength_bias.fill_(1e4)
    x.requires_grad_()
    y, state, _ = run(learner, x)
    y.square().sum().backward()
    assert x.grad.isfinite().all() and all(leaf.isfinite().all() for _, leaf in named_leaves(state))
    assert float(torch.tensor(MAX_STRENGTH, dtype=torch.float32)) < 1


def test_a_long_text_in_bfloat16_stays_finite():
    learner = make(chunk=32, slots=64).float()
    x = (30 * inputs(1, 8192)).float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y, state, _ = run(learner, x)
    assert y.dtype == torch.bfloat16 and y.isfinite().all()
    assert all(leaf.dtype == torch.float32 and leaf.isfinite().all() for _, leaf in named_leaves(state))


def test_cost_is_linear_in_time():
    learner, per_token = make(chunk=20), []
    for time in (100, 800):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), use_kernels(slot_memory="chunked"):
            run(learner, inputs(1, time))
        per_token.append(counter.get_total_flops() / time)
    assert per_token[1] < 1.01 * per_token[0]
    assert learner.flops(800) == learner.flops(100)


def test_a_pass_that_begins_at_a_tick_runs_no_spare_frame():
    learner, counted = make(slots=500), []
    for start in (0, 1):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), use_kernels(slot_memory="chunked"):
            run(learner, inputs(1, 24), start=start)
        counted.append(counter.get_total_flops())
    assert counted[1] > 1.15 * counted[0]  # five frames instead of four


def test_defaults_fit_usual_widths_and_need_no_storage_to_be_counted():
    for width in (192, 512):
        with torch.device("meta"):
            learner = Slots(Slots.Config(), width)
        assert learner.state_bytes(1) == 4 * (1024 * 4 * (32 + width // 16 + 1) + 32 * (4 * (32 + width // 16) + 1))


@pytest.mark.parametrize(
    "config,message",
    [
        ({"reads": 21}, "21 reads of 20 slots"),
        ({"writes": 7}, "7 writes at a tick of 6 tokens to 20 slots"),
        ({"value_size": None, "heads": 13}, "width 48 leaves no content for 13 heads"),
    ],
)
def test_invalid_sizes_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        make(**config)


def test_invalid_keys_are_refused():
    for bad in ({"slots": 1}, {"reads": 1}, {"match": 1.0}, {"router": "gumbel"}, {"horizon": 1}, {"size": 3}):
        with pytest.raises(ValidationError):
            Slots.Config.model_validate(bad)
