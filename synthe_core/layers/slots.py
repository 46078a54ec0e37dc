"""A bank of slots: each head reads a few, and novel tokens overwrite the least useful."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.layers.learner import Learner, LearnerConfig, Pass
from synthe_core.layers.projection import Linear, matrix_size, project_in, project_out
from synthe_core.layers.trace import Emission, schema
from synthe_core.ops.activations import sigmoid
from synthe_core.ops.frames import add_columns
from synthe_core.ops.rms_norm import rms_norm
from synthe_core.ops.silu_gate import silu_gate
from synthe_core.ops.slot_memory import Policy, SlotOutput, slot_memory

EPS = 1e-5
MAX_STRENGTH = 1 - 1e-6  # a write's strength stays below 1, where log(1 - s) is infinite


class SlotsState(NamedTuple):
    """bank [B, J, H, K + V], each slot's key and content; ages [B, J, 4], tokens since it was last read and last
    written and its averages of use; pending [B, C, H, K + V] and pending_strength [B, C], the tokens since the last
    tick of the clock."""

    bank: Tensor
    ages: Tensor
    pending: Tensor
    pending_strength: Tensor


class Slots(Learner[SlotsState]):
    """r_t = Σ_j w_tj v_j over the few best of J slots, y_t = W_out (r_t ⊙ silu(W_g x_t)).

    x [B, T, D]. One projection of x gives per head a query and a key [H, K], brought to length 1, a content [H, V], and
    one write strength s = σ(.) a token. A head reads the `reads` slots whose keys are nearest, with logits c q·k_j, c
    learned per head and √K at first. Queries are initialised as the keys: a token first reads similar ones.

    Writing: a token near a slot (mean cosine >= match) refines it, v_j += s (v - v_j) and the key alike. One that is
    near none is novel and overwrites a slot that has been of little use. The clock of the bank ticks at every `chunk`
    positions and takes in that many tokens at once; see `slot_memory` for the exact order. Until then a token is not in
    the bank; attention with a window of at least `chunk` sees it. Positions are absolute, so any split of a sequence
    writes alike. A fresh bank has learned keys and contents; the contents are initially zero, so that an unwritten bank
    returns zeros.

    `noise: gumbel` adds Gumbel noise to the read logits while training. Its seed is drawn from torch's CPU generator at
    each call, so torch.manual_seed repeats a run, and evaluation has none. Auxiliary losses, while training: "balance"
    λ Σ_j (u_j - 1/J)² with u_j slot j's share of a row's reads; "prediction" 1 - cos(W_p r_t, v_{t+1}).

    Source: THL (Transformer Hierarchical Layers, EGen 2026), whose bank ticks at every token.
    """

    class Config(LearnerConfig):
        type: Literal["slots"] = "slots"
        slots: int = Field(1024, ge=2, description="slots of the bank")
        heads: int = Field(4, ge=1)
        key_size: int = Field(32, ge=1, description="size of a head's keys")
        value_size: int | None = Field(None, ge=1, description="size of a head's contents; default width / (4 heads)")
        reads: int = Field(8, ge=2, description="slots that a head reads for a token")
        writes: int = Field(8, ge=1, description="slots overwritten at a tick, at most")
        chunk: int = Field(32, ge=1, description="positions between two ticks, at which the bank is written")
        match: float = Field(0.5, gt=-1, lt=1, description="cosine from which a token refines a slot: not novel")
        router: Literal["softmax", "sparsemax"] = Field("softmax", description="weights of the slots read")
        noise: Literal["none", "gumbel"] = Field("none", description="in the choice of slots, while training")
        horizon: float = Field(1000.0, gt=1, description="tokens that a slot's averages of use reach back")
        staleness: float = Field(1.0, ge=0, description="shares of use lost in `horizon` tokens without a touch")
        balance: float = Field(0.01, ge=0, description="weight λ of the loss that spreads reads over slots; 0 = off")
        prediction: float = Field(0.0, ge=0, description="weight of predicting the next token's content; 0 = off")

    emits = schema(
        {
            "read_slots": Emission("B T H K", "routing", "the slot that each head read most", "first"),
            "read_weights": Emission("B T H K", "routing", "what that slot counted", "first"),
            "usage": Emission("B J", "memory", "share of the reads that each slot got"),
            "strength": Emission("B T", "gates", "write strength of a token"),
            "novelty": Emission("B T", "memory", "1 - the cosine to the nearest slot"),
            "refines": Emission("B T", "memory", "whether the token refines a similar slot"),
            "overwrites": Emission(
                "B T",
                "memory",
                "whether the token may overwrite a slot, if its novelty is among the largest of its tick",
            ),
            "ages": Emission("B J L", "memory", "tokens since each slot was read and written, and its averages of use"),
        }
    )

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        heads, self.key = config.heads, config.key_size
        self.value = config.value_size or width // (4 * heads)
        if self.value < 1:
            raise InputError(f"slots: width {width} leaves no content for {heads} heads", "set value_size")
        if config.reads > config.slots:
            raise InputError(f"slots: {config.reads} reads of {config.slots} slots", f"reads: {config.slots} at most")
        if config.writes > (most := min(config.slots, config.chunk)):
            raise InputError(
                f"slots: {config.writes} writes at a tick of {config.chunk} tokens to {config.slots} slots",
                f"writes: {most} at most",
            )
        self.policy = Policy(config.reads, config.writes, config.match, config.horizon, config.staleness, config.router)
        keys, values = heads * self.key, heads * self.value
        self.features = [2 * keys, values, values, 1]
        self.project = project_in(width, sum(self.features))
        with torch.no_grad():
            self.project.weight[:keys] = self.project.weight[keys : 2 * keys]
        self.out = project_out(values, width)
        self.predict = Linear(values, values, bias=False) if config.prediction else None
        self.register_buffer("unit", torch.full((self.key,), self.key**-0.5), persistent=False)
        self.log_scale = nn.Parameter(torch.full((heads, 1), math.log(self.key) / 2))
        self.strength_bias = nn.Parameter(torch.zeros(1))
        self.initial_keys = nn.Parameter(torch.randn(config.slots, heads, self.key))
        self.initial_contents = nn.Parameter(torch.zeros(config.slots, heads, self.value))

    def init_state(self, batch: int, *, device: torch.device | str = "cpu") -> SlotsState:
        config = self.config
        kind: dict[str, Any] = {"dtype": self.state_dtype, "device": device}
        keys, contents = (x.to(**kind) for x in (self.initial_keys, self.initial_contents))
        record = (config.heads, self.key + self.value)
        bank = torch.cat([F.normalize(keys, dim=-1), contents], -1)
        return SlotsState(
            bank.expand(batch, -1, -1, -1),
            torch.zeros(batch, config.slots, 4, **kind),
            torch.zeros(batch, config.chunk, *record, **kind),
            torch.zeros(batch, config.chunk, **kind),
        )

    def forward(self, x: Tensor, state: SlotsState | None, ctx: Pass) -> tuple[Tensor, SlotsState]:
        state = state or self.init_state(x.shape[0], device=x.device)
        projected = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            qk, value, gate, strength = projected.split(self.features, dim=-1)
            dtype = state.bank.dtype
            query, key = self._unit(qk.to(dtype).unflatten(-1, (2, self.config.heads, self.key))).unbind(2)
            query = query * self.log_scale.to(dtype).exp()
            value = value.to(dtype).unflatten(-1, (self.config.heads, self.value))
            strength = sigmoid((strength + self.strength_bias).to(dtype)).clamp_max(MAX_STRENGTH)[..., 0]
            noisy = self.training and self.config.noise == "gumbel"
            seed = int(torch.randint(2**62, ())) if noisy else None
            start = ctx.positions[:, 0]
            output = slot_memory(query, key, value, strength, *state, start, ctx.lengths, self.policy, seed)
            y = silu_gate(output.read.flatten(2), gate)
        if self.training:
            self._add_losses(output, value, ctx)
        self._emit(output, strength, ctx)
        return self.out(y), SlotsState(output.bank, output.ages, output.pending, output.pending_strength)

    def _unit(self, x: Tensor) -> Tensor:
        """x / ‖x‖ over the last axis, as a root-mean-square norm with every weight K^-1/2."""
        return rms_norm(x, self.unit.to(x.dtype), EPS / self.key, x.dtype)

    def _shares(self, output: SlotOutput, ctx: Pass) -> Tensor:
        """Each slot's share [B, J] of the reads of a row's real tokens in this pass."""
        weights = output.weights
        if ctx.mask is not None:
            weights = weights * ctx.mask[..., None, None] / ctx.mask.sum(1).clamp_min(1)[:, None, None, None]
        else:
            weights = weights / weights.shape[1]
        shares = weights.new_zeros(weights.shape[0], self.config.slots)
        return add_columns(shares, output.slots.flatten(1), weights.flatten(1) / self.config.heads)

    def _add_losses(self, output: SlotOutput, value: Tensor, ctx: Pass) -> None:
        """The auxiliary losses."""
        if self.config.balance:
            excess = self._shares(output, ctx) - 1 / self.config.slots
            ctx.losses.append(("balance", self.config.balance * excess.square().sum(-1).mean()))
        if self.predict is not None and value.shape[1] > 1:
            guess = self.predict(output.read[:, :-1].flatten(2)).to(value.dtype)
            error = 1 - F.cosine_similarity(guess, value[:, 1:].detach().flatten(2), dim=-1)
            if ctx.mask is not None:
                error = error * ctx.mask[:, 1:]
            counted = error.numel() if ctx.mask is None else ctx.mask[:, 1:].sum().clamp_min(1)
            ctx.losses.append(("prediction", self.config.prediction * error.sum() / counted))

    def _emit(self, output: SlotOutput, strength: Tensor, ctx: Pass) -> None:
        if ctx.trace is None:
            return
        ctx.emit("read_weights", output.weights)
        ctx.emit("read_slots", output.slots)
        ctx.emit("usage", self._shares(output, ctx))
        ctx.emit("strength", strength)
        ctx.emit("novelty", output.novelty)
        ctx.emit("refines", output.affinity >= self.config.match)
        ctx.emit("overwrites", output.novelty > 1 - self.config.match)  # if it is among the most novel of its tick
        ctx.emit("ages", output.ages)

    def flops(self, time: int) -> float:
        """The matrices; per token 2 K H J for the slots to read and as many for novelty, 2 K H for each earlier token
        of its tick, the contents read, 4 J for the ages, 4 J a tick for the use of slots, and 3 (K + V) H for a write
        that refines: at most, as fewer tokens may write."""
        config = self.config
        linear = sum(matrix_size(m) for m in (self.project, self.out, self.predict) if m is not None)
        keys, record = config.heads * self.key, config.heads * (self.key + self.value)
        ticks, rest = divmod(time, config.chunk)
        earlier = (ticks * config.chunk * (config.chunk - 1) + rest * (rest - 1)) / 2  # pairs of tokens
        written = ticks * (config.chunk * 3 * record + 4 * config.slots) / time
        find = 4 * keys * config.slots + 2 * keys * earlier / time
        read = 2 * config.reads * config.heads * self.value + 4 * config.slots
        return 2.0 * linear + find + read + written
