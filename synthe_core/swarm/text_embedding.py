"""The base's own embedding of texts: the mean over the tokens of what its first blocks make of them.

A few blocks are enough to say what a text is about, and cost a part of what an answer's pass costs:
docs/results/swarm.md compares depths.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor, nn

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.model.language_model import LanguageModel

DEPTH = 1 / 5
"""The share of the blocks that read a text."""
MIN_BLOCKS = 2
MAX_TOKENS = 128
"""Tokens of a text that are read, or as many as the base reads: its beginning and its end."""
MAX_CHARACTERS = 8192
"""Characters of a text that are made into tokens: its beginning and its end."""
MAX_TEXTS = 16
"""Texts that are read in one pass, between two steps of the engine."""
MAX_CACHED = 1024
"""Texts whose embeddings are remembered: a request's is needed to route it, and to search for facts."""


class TextEmbedder:
    """Embeds texts with a model of a running engine, without an adapter, for any number of threads.

    Texts of several threads share a pass. name: what identifies the embeddings; those of another are not compared.
    """

    def __init__(self, engine: AsyncEngine, model: str, blocks: int | None = None) -> None:
        """blocks: how many of the first blocks read a text; by default a share of them, `DEPTH`. A model that has no
        blocks of its own, or whose tokens decide how many they run, reads with all."""
        self._engine, self._model = engine, model
        loaded = engine.models[model]
        self._tokenizer = loaded.tokenizer
        self._most = MAX_TOKENS if loaded.max_length is None else min(MAX_TOKENS, loaded.max_length)
        self._network = _first_blocks(loaded, blocks)
        weights = engine.registry.resolve(model).fingerprints.weights
        self.name = weights if self._network is None else f"{weights} {len(self._network.blocks)} blocks"
        self._lock = threading.Lock()
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()
        self._waiting: list[tuple[str, tuple[int, ...], Future[np.ndarray]]] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, D]."""
        futures = [self._look_up(text) for text in texts]
        runs = [self._engine.call(self._run) for _ in range(-(-sum(not each.done() for each in futures) // MAX_TEXTS))]
        for run in runs:
            run.result()  # an engine that stops says so
        return np.stack([each.result() for each in futures])

    def _look_up(self, text: str) -> Future[np.ndarray]:
        future: Future[np.ndarray] = Future()
        with self._lock:
            if (known := self._known.get(text)) is not None:
                self._known.move_to_end(text)
                future.set_result(known)
                return future
        tokens = self._tokens(text)  # by this thread: the engine has others to serve
        with self._lock:
            self._waiting.append((text, tokens, future))
        return future

    def _tokens(self, text: str) -> tuple[int, ...]:
        if len(text) > MAX_CHARACTERS:
            text = text[: MAX_CHARACTERS // 2] + text[-MAX_CHARACTERS // 2 :]
        return shortened(self._tokenizer.encode(text), self._most) or (self._tokenizer.end,)

    def _run(self) -> None:
        """Reads the first texts that wait, on the engine's thread."""
        with self._lock:
            some, self._waiting = self._waiting[:MAX_TEXTS], self._waiting[MAX_TEXTS:]
        if not some:
            return
        try:
            rows = self._read([tokens for _, tokens, _ in some])
        except BaseException as error:
            for *_, future in some:
                future.set_exception(error)
            return
        with self._lock:
            for (text, *_), row in zip(some, rows, strict=True):
                self._known[text] = row
            while len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)
        for (*_, future), row in zip(some, rows, strict=True):
            future.set_result(row)

    @torch.inference_mode()
    def _read(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        model = self._engine.models[self._model]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        tokens, lengths = tokens.to(model.device), lengths.to(model.device)
        with model.activate():
            hidden = self._hidden(model, tokens, lengths)
        is_text = torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]
        mean = (hidden.float() * is_text[..., None]).sum(1) / lengths[:, None]
        return mean.cpu().numpy()

    def _hidden(self, model: LoadedModel, tokens: Tensor, lengths: Tensor) -> Tensor:
        if self._network is None:
            return model.forward(tokens, None, lengths).hidden
        return self._network.hidden(tokens, None, lengths)[0]


def shortened(tokens: Sequence[int], limit: int = MAX_TOKENS) -> tuple[int, ...]:
    """At most `limit` tokens: the first half of them from the beginning, the others from the end."""
    if len(tokens) <= limit:
        return tuple(tokens)
    return (*tokens[: limit // 2], *tokens[len(tokens) - (limit - limit // 2) :])


def _first_blocks(loaded: LoadedModel, count: int | None) -> LanguageModel | None:
    """The model without its later blocks, with the parameters of the whole; None where it cannot leave them out."""
    whole = loaded.model
    blocks = getattr(whole, "blocks", None)
    if blocks is None or whole.router is not None:
        return None
    count = max(MIN_BLOCKS, round(DEPTH * len(blocks))) if count is None else count
    if count >= len(blocks):
        return None
    first = copy.copy(whole)
    first._modules = dict(whole._modules)
    first.blocks = nn.ModuleList(list(blocks)[:count])
    return first
