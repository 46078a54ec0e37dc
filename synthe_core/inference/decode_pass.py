"""A pass that generates: the running sequences' last tokens are read, and their states go on."""

from __future__ import annotations

import time
from collections.abc import Sequence as Many

from synthe_core.hardware.transfer import to_device
from synthe_core.inference.heads import Heads, next_token_heads
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sequence import Sequence
from synthe_core.inference.state_batch import StateBatch
from synthe_core.layers.adapter_batch import use_adapters


def pass_over_all(model: LoadedModel, batch: StateBatch) -> Heads:
    """What follows the last token of every sequence in the batch, in the order of `batch.sequences`."""
    asking = [slot for slot, each in enumerate(batch.slots) if each is not None and each.request.return_logprob]
    begun = time.perf_counter()
    with use_adapters(batch.adapters):
        tokens = batch.last_token_ids
        captured = model.captured_step(tokens, batch.state)
        output = model.forward(tokens, batch.state) if captured is None else captured
        logits = None if captured is None else captured.logits
        signals = {name: value[:, 0] for name, value in output.signals.items()}
        heads = next_token_heads(model, output.hidden[:, 0], signals, asking, logits)
    if model.model.offload is not None:
        model.model.offload.times.record(len(batch.sequences), time.perf_counter() - begun)
    batch.state = output.state
    occupied = batch.occupied()
    return heads if occupied is None else heads.rows(occupied)


def pass_over(model: LoadedModel, batch: StateBatch, sequences: Many[Sequence]) -> Heads:
    """The same for some of them; the others stay as they are."""
    asking = [row for row, each in enumerate(sequences) if each.request.return_logprob]
    tokens = to_device([[each.last_token_id] for each in sequences], model.device)
    with use_adapters(model.adapter_batch(each.resolved.adapter for each in sequences)):
        output = model.forward(tokens, batch.rows_of(sequences))
        signals = {name: value[:, 0] for name, value in output.signals.items()}
        heads = next_token_heads(model, output.hidden[:, 0], signals, asking)
    batch.replace_rows(sequences, output.state)
    return heads
