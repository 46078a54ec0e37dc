"""The slot memory's kernels: ticks where each row's clock has them, refined and overwritten slots, padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.ops.slot_memory import Policy, slot_memory
from tests.gpu.interpreter.comparison import assert_equal, draws


def arguments(time, slots, chunk, key, value, dtype=torch.float64, start=(0, 3), lengths=None, seed=None, **changes):
    """Two rows at different places of their clock; keys in a cone, so that some tokens refine and some are novel."""
    normal, uniform = draws(0, dtype)
    batch, heads = len(start), 2
    unit = lambda *shape: F.normalize(normal(*shape) + 0.6, dim=-1)  # noqa: E731
    settings = {"reads": 3, "writes": 2, "match": 0.6, "horizon": 10.0, "staleness": 1.0, "router": "softmax"}
    bank = torch.cat([unit(batch, slots, heads, key), normal(batch, slots, heads, value)], -1)
    pending = torch.cat([unit(batch, chunk, heads, key), normal(batch, chunk, heads, value)], -1)
    return {
        "query": 2 * unit(batch, time, heads, key),
        "key": unit(batch, time, heads, key),
        "value": normal(batch, time, heads, value),
        "strength": 0.9 * uniform(batch, time),
        "bank": bank,
        "ages": torch.stack([(9 * uniform(batch, slots)).round(), (9 * uniform(batch, slots)).round(),
                             uniform(batch, slots), uniform(batch, slots)], -1),
        "pending": pending,
        "pending_strength": 0.9 * uniform(batch, chunk),
        "start": torch.tensor(start),
        "lengths": None if lengths is None else torch.tensor(lengths),
        "policy": Policy(**settings | changes),
        "seed": seed,
    }  # fmt: skip


def compared(values, tolerance):
    """Outputs at padding are undefined: those of real tokens count, and the state."""
    lengths = values["lengths"]

    def real(kernel):
        def run(**given):
            out = slot_memory.named(kernel)(**given)
            if lengths is None:
                return out
            mask = torch.arange(out.read.shape[1]) < lengths[:, None]
            shown = [torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, 0) for x in out[:5]]
            return *shown, *out[5:]

        return run

    class Masked:
        name, reference = "slot_memory", staticmethod(real("reference"))

        @staticmethod
        def named(kernel):
            return real(kernel)

    assert_equal(Masked, "triton", values, tolerance, constants=("ages",))


LONG = pytest.param((40, 70, 18, 16, 16), marks=pytest.mark.slow)


@pytest.mark.parametrize("sizes", [(1, 5, 4, 3, 5), (23, 20, 5, 6, 7), LONG], ids=str)
@pytest.mark.parametrize("router", ["softmax", "sparsemax"])
def test_outputs_and_gradients(sizes, router):
    compared(arguments(*sizes, router=router), 1e-9)


def test_a_step_at_a_tick():
    compared(arguments(1, 20, 4, 6, 7, start=(3, 7)), 1e-9)


def test_padding():
    compared(arguments(23, 20, 5, 6, 7, lengths=(23, 9)), 1e-9)
    compared(arguments(3, 20, 5, 6, 7, lengths=(3, 0)), 1e-9)


def test_noise():
    compared(arguments(23, 20, 5, 6, 7, seed=2**61 + 5), 1e-9)


def test_all_slots_refined():
    compared(arguments(23, 3, 8, 6, 7, match=-0.5), 1e-9)


def test_all_tokens_novel():
    compared(arguments(23, 6, 8, 6, 7, match=0.999, writes=6), 1e-9)


def test_float32():
    compared(arguments(23, 20, 5, 6, 7, torch.float32), 1e-4)
