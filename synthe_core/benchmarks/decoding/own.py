"""Our engine and our server as candidates, on one loaded model."""

from __future__ import annotations

import time
from contextlib import ExitStack

import torch

from synthe_core.benchmarks.decoding.http_candidate import HttpCandidate
from synthe_core.benchmarks.decoding.workload import PREFILL_TOKENS, PROMPT_TOKENS, prompt_tokens
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings

STATE_LIMIT = 1 << 40  # bytes: more than any model needs
EDGE = 2  # steps at the ends of a text that are not timed


class EngineCandidate:
    """Steps of the engine in this process, without HTTP: sampling and detokenizing included."""

    name = "synthe"

    def __init__(self, model: LoadedModel, settings: dict[str, str]) -> None:
        self._model, self.settings = model, settings

    def prepare(self, rows: int) -> None:
        """Needs nothing."""

    def step(self, rows: int, tokens: int) -> float:
        engine = self._engine(rows)
        for row in range(rows):
            self._add(engine, prompt_tokens(self._model.vocab, PROMPT_TOKENS, row), tokens)
        while engine.waiting or not all(each.output_token_ids for each in engine.running):
            engine.step()
        least = max(len(each.output_token_ids) for each in engine.running)
        for _ in range(EDGE):
            engine.step()
        count = tokens - least - 2 * EDGE
        begun = time.perf_counter()
        for _ in range(count):
            engine.step()
        seconds = (time.perf_counter() - begun) / count
        while engine.has_unfinished:
            engine.step()
        return seconds

    def prefill(self) -> float:
        engine = self._engine(1)
        self._add(engine, prompt_tokens(self._model.vocab, PREFILL_TOKENS), 1)
        begun = time.perf_counter()
        while engine.has_unfinished:
            engine.step()
        return time.perf_counter() - begun

    def close(self) -> None:
        """Has nothing of its own."""

    def _engine(self, rows: int) -> Engine:
        return Engine([self._model], max_num_seqs=rows, cache_bytes=0, max_state_bytes=STATE_LIMIT)

    def _add(self, engine: Engine, prompt: list[int], tokens: int) -> None:
        greedy = SamplingParams(temperature=0)
        request = Request(self._model.name, tuple(prompt), tokens, greedy, return_logprob=False, ignore_eos=True)
        engine.add_request(request, lambda output: False)


class ServedCandidate(HttpCandidate):
    """The same over HTTP, from a server in this process."""

    name = "synthe over HTTP"

    def __init__(self, model: LoadedModel, settings: dict[str, str]) -> None:
        self._model, self.settings = model, settings
        self.model, self.vocab = model.name, model.vocab
        self._open = ExitStack()

    def prepare(self, rows: int) -> None:
        if self.port:
            return
        engine = AsyncEngine([self._model], cache_bytes=0, max_state_bytes=STATE_LIMIT)
        self._open.callback(engine.close, 1.0)
        server = self._open.enter_context(Server(engine, Settings()))
        self.host, self.port = server.host, server.port

    def close(self) -> None:
        self._open.close()


def settings_of(model: LoadedModel) -> dict[str, str]:
    """Version, weights and threads."""
    from synthe_core import __version__

    return {"version": __version__, "weights": model.weights, "threads": str(torch.get_num_threads())}
