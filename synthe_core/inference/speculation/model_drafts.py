"""Drafts that a model writes: another one of the same tokenizer, or the first blocks of the model itself."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from collections.abc import Sequence as Many
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from synthe_core.adapters.lora import Adapter
from synthe_core.errors import InputError
from synthe_core.inference.fused_decoder import FusedDecoder
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.speculation.passes import TokensPass, run_pass
from synthe_core.inference.speculation.proposer import DraftRequest
from synthe_core.layers.adapter_batch import use_adapters
from synthe_core.model.language_model import LanguageModel, ModelState

CHUNK, LONGEST_CHUNK = 32, 512
"""A draft model reads up to so many tokens with its first drafted one, and those before them in passes of so many."""


class Release(Protocol):
    """A pass whose states can be given up."""

    def release(self) -> None: ...


class DraftModelProposer:
    """The likeliest next tokens under a smaller model, which reads every text on its own (Leviathan et al. 2023)."""

    is_free = False

    def __init__(self, draft: LoadedModel, target: LoadedModel) -> None:
        """InputError if the models have different tokens."""
        check_tokens_alike(draft, target)
        self.draft, self.name = draft, f"draft={draft.name}"
        self._states: dict[Hashable, tuple[ModelState, int]] = {}  # after so many of a text's tokens

    @torch.inference_mode()
    def propose(self, requests: Many[DraftRequest]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in requests]
        rows = [row for row, each in enumerate(requests) if self._has_room(each)]
        if not rows:
            return drafts
        wanted = [requests[row] for row in rows]
        with self.draft.activate():
            befores, unread = zip(*(self._before(each) for each in wanted), strict=True)
            nobody = [None] * len(rows)
            made = run_pass(self.draft, unread, befores, nobody)
            after = [made.state(row, len(each)) for row, each in enumerate(unread)]
            for each, state in zip(wanted, after, strict=True):
                self._states[each.key] = state, len(each.prompt) + len(each.output)
            hidden = made.hidden[_last_rows(unread)]
            made_of = _continued(self.draft, hidden, after, [each.most for each in wanted], nobody)
        for row, draft in zip(rows, made_of, strict=True):
            drafts[row] = draft
        return drafts

    def matched(self, request: DraftRequest) -> None:
        return None

    def forget(self, key: Hashable) -> None:
        self._states.pop(key, None)

    def _has_room(self, request: DraftRequest) -> bool:
        length = len(request.prompt) + len(request.output) + request.most
        return self.draft.max_length is None or length <= self.draft.max_length

    def _before(self, request: DraftRequest) -> tuple[ModelState, list[int]]:
        """The draft model's state, and the tokens that it has not read: at least the newest, and few."""
        text = [*request.prompt, *request.output]
        state, count = self._states.get(request.key, (None, 0))
        while len(text) - count > CHUNK:
            tokens = torch.tensor([text[count : min(count + LONGEST_CHUNK, len(text) - 1)]], device=self.draft.device)
            state, count = self.draft.forward(tokens, state).state, count + tokens.shape[1]
        return self.draft.model.init_state(1) if state is None else state, text[count:]


class EarlyExitProposer:
    """The likeliest next tokens under the model's first blocks, its norm and its head, from its own state (Elhoushi
    et al. 2024, LayerSkip). A model may be trained for it: `early_exit` of the objective language_modeling."""

    is_free = False

    def __init__(self, model: LoadedModel, blocks: int | None = None) -> None:
        """blocks: how many; by default those that it was trained with, or a third. InputError if the model cannot leave
        the others out."""
        whole = model.model
        own = getattr(whole, "blocks", None)
        if own is None:
            raise InputError("--speculate early-exit: transformers runs this model", "use ngram or draft=MODEL")
        if whole.router is not None:
            raise InputError(
                "--speculate early-exit: each token decides how many blocks it runs already", "use ngram or draft=MODEL"
            )
        if len(own) < 2:
            raise InputError("--speculate early-exit: the model has a single block", "use ngram or draft=MODEL")
        blocks = blocks or model.early_exit_blocks or max(1, len(own) // 3)
        if not 0 < blocks < len(own):
            raise InputError(
                f"--speculate early-exit={blocks}: the model has {len(own)} blocks", f"1 to {len(own) - 1} may draft"
            )
        self.model, self.blocks, self.name = model, blocks, f"early-exit={blocks}"
        self._network = _first_blocks(whole, blocks)
        self._first = model.with_network(self._network)
        self._decoder: FusedDecoder | None = None  # of the whole model, when `_first` was made

    @torch.inference_mode()
    def propose(self, requests: Many[DraftRequest]) -> list[list[int]]:
        adapters = [each.adapter for each in requests]
        self._follow_adapters(adapters)
        befores = [_truncated(each.state, self.blocks) for each in requests]
        unread = [[*each.prompt, *each.output][each.num_read :] for each in requests]
        made = run_pass(self._first, unread, befores, adapters)
        after = [made.state(row, len(each)) for row, each in enumerate(unread)]
        hidden = made.hidden[_last_rows(unread)]
        drafts = _continued(self._first, hidden, after, [each.most for each in requests], adapters)
        _release(made)  # the pass that verifies writes the same entries
        return drafts

    def matched(self, request: DraftRequest) -> None:
        return None

    def forget(self, key: Hashable) -> None:
        pass

    def _follow_adapters(self, adapters: Many[Adapter | None]) -> None:
        """Attached adapters are those of the whole model, whose maps these are."""
        self.model.adapter_batch(adapters)
        whole = self.model.fused_decoder() if self.model.has_exact_passes else None
        if whole is not self._decoder:
            self._decoder, self._first = whole, self.model.with_network(self._network)


def check_tokens_alike(draft: LoadedModel, target: LoadedModel) -> None:
    """InputError if a token of one model means something else to the other."""
    ours, theirs = target.tokenizer, draft.tokenizer
    if ours.pieces[: target.vocab] != theirs.pieces[: draft.vocab] or target.vocab != draft.vocab:
        raise InputError(
            f"--speculate draft: {draft.name} has another tokenizer than {target.name}: "
            f"{draft.vocab} tokens of {theirs.name} and {target.vocab} of {ours.name}",
            "a draft's tokens must mean the same to both; a model that was distilled or fine-tuned from it has them",
        )


def _continued(
    model: LoadedModel,
    hidden: Tensor,
    befores: list[Any],
    most: Many[int],
    adapters: Many[Adapter | None],
) -> list[list[int]]:
    """Of each text the likeliest tokens, as many as it wants. hidden [B, D]: after its last token."""
    drafts: list[list[int]] = [[] for _ in befores]
    first: list[Any] = []
    rows = list(range(len(befores)))
    while True:
        with use_adapters(model.adapter_batch(adapters[row] for row in rows)):
            tokens = model.logits(hidden).argmax(-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            drafts[row].append(token)
        rows = [row for row in rows if len(drafts[row]) < most[row]]
        if not rows:
            break
        made = run_pass(
            model, [drafts[row][-1:] for row in rows], [befores[row] for row in rows], [adapters[row] for row in rows]
        )
        first = first or [made]
        hidden = made.hidden
        for index, row in enumerate(rows):
            befores[row] = made.state(index, 1)
    for made in first:
        _release(made)
    return drafts


def _last_rows(tokens: Many[Many[int]]) -> list[int]:
    """Where the last token of each text is in a pass."""
    return [end - 1 for end in accumulate(map(len, tokens))]


def _release(made: TokensPass | Release) -> None:
    if (release := getattr(made, "release", None)) is not None:
        release()


def _first_blocks(whole: LanguageModel, count: int) -> LanguageModel:
    """The model without its later blocks; all parameters are the model's own."""
    first = copy.copy(whole)
    first._modules = dict(whole._modules)
    first.blocks = nn.ModuleList(list(whole.blocks)[:count])
    return first


def _truncated(state: ModelState, blocks: int) -> ModelState:
    return ModelState(state.position, state.blocks[:blocks])
