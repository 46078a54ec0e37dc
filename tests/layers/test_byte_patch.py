"""Byte patches: the learner against a loop over patches, the stem against torch's own convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from synthe_core.layers import build, parse
from synthe_core.layers.byte_patch import BytePatch, Stem
from synthe_core.layers.learner import Pass

WIDTH = 6


def learner(**settings: object):
    torch.manual_seed(0)
    made = build(parse({"type": "byte_patch"} | settings), WIDTH).double()
    with torch.no_grad():
        made.norm.weight.add_(0.1 * torch.randn(WIDTH))
        made.norm.bias.add_(0.1 * torch.randn(WIDTH))
    return made


def by_loop(made, x: torch.Tensor) -> torch.Tensor:
    """The equation, token by token, for one row of x [T, D] from its beginning."""
    stride, taps = made.config.stride, made.config.taps
    kernel = made.conv.weight.view(WIDTH, taps, WIDTH)
    held, rows = torch.zeros(WIDTH, dtype=x.dtype), []
    for p in range(len(x)):
        if (p + 1) % stride == 0:
            held = sum(kernel[:, j] @ x[p - taps + 1 + j] for j in range(taps) if p - taps + 1 + j >= 0)
        rows.append(F.layer_norm(held, (WIDTH,), made.norm.weight, made.norm.bias) * F.silu(made.gate(x[p])))
    return torch.stack(rows)


@pytest.mark.parametrize("settings", [{}, {"stride": 1, "taps": 1}, {"stride": 3, "taps": 8}], ids=str)
@pytest.mark.parametrize("time", [1, 3, 4, 19])
def test_it_is_its_equation(settings, time):
    made, x = learner(**settings), torch.randn(2, time, WIDTH, dtype=torch.float64)
    y, _ = made(x, None, Pass.over(x))
    torch.testing.assert_close(y, torch.stack([by_loop(made, row) for row in x]))


def test_rows_that_stand_at_different_places_keep_their_own_clocks():
    made = learner()
    texts = [torch.randn(n, WIDTH, dtype=torch.float64) for n in (3, 6, 13)]
    lengths = torch.tensor([len(text) for text in texts])
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=9.0)
    _, state = made(padded, None, Pass.over(padded, lengths))
    more = torch.randn(3, 10, WIDTH, dtype=torch.float64)
    y, _ = made(more, state, Pass.over(more, start=lengths))
    for row, text in enumerate(texts):
        torch.testing.assert_close(y[row], by_loop(made, torch.cat([text, more[row]]))[len(text) :])


def test_a_patch_is_seen_from_its_last_token_on():
    made, x = learner(), torch.randn(1, 12, WIDTH, dtype=torch.float64, requires_grad=True)
    y, _ = made(x, None, Pass.over(x))
    for t, first, last in ((6, 0, 3), (7, 2, 7), (10, 2, 7)):
        (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        seen = gradient[0].abs().amax(-1).nonzero()[:, 0].tolist()
        assert seen == sorted({*range(first, last + 1), t})


@pytest.mark.parametrize("taps", [4, 5, 6, 9])
@pytest.mark.parametrize("time", [1, 4, 18])
def test_the_stem_is_torchs_strided_convolution(taps, time):
    torch.manual_seed(0)
    stem = Stem(BytePatch.Config(taps=taps), WIDTH).double()
    x = torch.randn(2, time, WIDTH, dtype=torch.float64)
    latents, lengths = stem(x, None)
    kernel = stem.conv.weight.view(WIDTH, taps, WIDTH).transpose(1, 2)
    before = (taps - 4) // 2
    text = F.pad(x.transpose(1, 2), (before, 4 + taps))
    expected = F.conv1d(text, kernel, stride=4)[:, :, : -(-time // 4)].transpose(1, 2)
    assert lengths is None
    torch.testing.assert_close(latents, F.layer_norm(expected, (WIDTH,)))


def test_the_stem_reads_no_padding():
    torch.manual_seed(0)
    stem = Stem(BytePatch.Config(), WIDTH).double()
    x = torch.randn(4, 11, WIDTH, dtype=torch.float64)
    lengths = torch.tensor([11, 8, 5, 0])
    latents, short = stem(x, lengths)
    assert short.tolist() == [3, 2, 2, 0]
    for row, length in enumerate(lengths.tolist()):
        alone, _ = stem(x[row : row + 1, : max(length, 1)], None)
        torch.testing.assert_close(latents[row, : short[row]], alone[0, : short[row]])


def test_taps_that_leave_out_tokens_are_refused():
    with pytest.raises(ValidationError, match="3 taps leave out tokens at stride 4"):
        BytePatch.Config(taps=3)
