"""What a language model makes of a claim that it reads after what is known: a state of one of its middle blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from synthe_core.errors import InputError
from synthe_core.inference.loaded_model import LoadedModel

ClaimStates = Callable[[Sequence[tuple[str, str]]], np.ndarray]
"""From (known, stated) sentences: float [N, D]."""

DEPTH = 2 / 3
"""Of the block whose output is read: docs/results/swarm-knowledge.md compares depths."""
MAX_KNOWN, MAX_STATED = 160, 80  # tokens: the end of what is known, the beginning of what is stated
BATCH = 8


def claim_states(model: LoadedModel, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """float32 [N, D]: the output of the block at two thirds of the depth, at the last token of the stated sentence.

    Runs the model: not while its engine does, unless on the engine's thread (`AsyncEngine.call`).
    """
    prompts = [_prompt(model, known, stated) for known, stated in pairs]
    order = sorted(range(len(pairs)), key=lambda row: len(prompts[row]))
    rows: dict[int, np.ndarray] = {}
    for begin in range(0, len(order), BATCH):
        some = order[begin : begin + BATCH]
        for row, state in zip(some, _read(model, [prompts[row] for row in some]), strict=True):
            rows[row] = state
    return np.stack([rows[row] for row in range(len(pairs))]) if pairs else np.zeros((0, 0), dtype=np.float32)


def _prompt(model: LoadedModel, known: str, stated: str) -> list[int]:
    """The tokens of a pair, at most as many as the model reads: the claim, then the end of what is known."""
    tokenizer = model.tokenizer
    begin = [] if tokenizer.begin is None else [tokenizer.begin]
    frame = [*begin, *tokenizer.encode("Premise: "), *tokenizer.encode("\nClaim:")]
    room = MAX_STATED + MAX_KNOWN if model.max_length is None else max(1, model.max_length - len(frame))
    said = tokenizer.encode(f" {stated}")[: min(MAX_STATED, room)]
    if not known:
        return [*begin, *tokenizer.encode("Claim:"), *said]
    text = tokenizer.encode(known)[-MAX_KNOWN:]
    text = text[max(0, len(text) - (room - len(said))) :]
    return [*begin, *tokenizer.encode("Premise: "), *text, *tokenizer.encode("\nClaim:"), *said]


@torch.inference_mode()
def _read(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    blocks = getattr(model.model, "blocks", None)
    if blocks is None:
        raise InputError(f"{model.name} runs in transformers, which gives no states", "train with --no-states")
    block = blocks[min(len(blocks) - 1, max(0, round(DEPTH * len(blocks)) - 1))]
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: tuple[Tensor, object]) -> None:
        outputs.append(output[0])

    hook = block.register_forward_hook(keep)
    try:
        with model.activate():
            model.forward(tokens.to(model.device), None, lengths.to(model.device))
    finally:
        hook.remove()
    last = outputs[0][torch.arange(len(prompts)), lengths.to(model.device) - 1]
    return last.float().cpu().numpy()
