"""Texts generated after prompts, by the engine. Prefixes that several prompts share are read once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.evaluation.prefix_tree import Node, build_tree
from synthe_core.evaluation.reading import MAX_STATE_BYTES, Reader
from synthe_core.hardware.execution import active_context
from synthe_core.inference.detokenizer import Detokenizer
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import offline_engine
from synthe_core.inference.outputs import Finished, Output, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.sequence import Sequence as EngineSequence

MAX_NUM_SEQS = 1024
"""Sequences that run at once, if no batch size is given and their states leave room."""
CACHE_BYTES = MAX_STATE_BYTES // 2


class Prompt(NamedTuple):
    """One token or more to continue, and the seed of their sampling."""

    tokens: Sequence[int]
    seed: int = 0


def write(
    reader: Reader,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    limit: int,
    stop: Sequence[str],
    sampling: SamplingParams,
) -> Iterator[tuple[int, str]]:
    """Each prompt's index and the text of at most `limit` tokens after it, cut before the first of `stop`.

    A text does not depend on the prompts beside it.
    """
    if limit < 1:
        yield from ((index, "") for index in range(len(prompts)))
        return
    reader.counts.requested += sum(len(prompt.tokens) for prompt in prompts)
    model = LoadedModel("model", reader.model, tokenizer, context=active_context())
    engine = offline_engine(
        model, reader.batch or MAX_NUM_SEQS, max_state_bytes=MAX_STATE_BYTES, cache_bytes=CACHE_BYTES
    )
    texts = [_Text(index, Detokenizer(tokenizer.decoder(), stop)) for index in range(len(prompts))]
    order, breakpoints = shared_prefixes([prompt.tokens for prompt in prompts])
    finished: deque[_Text] = deque()
    for index in order:
        request = Request(
            "model",
            tuple(prompts[index].tokens),
            limit,
            sampling,
            seed=prompts[index].seed,
            return_logprob=False,
            cache_breakpoints=tuple(breakpoints[index]),
        )
        texts[index].add(engine, request, finished)
    while engine.has_unfinished:
        reader.check()
        computed, generated = engine.metrics.computed_tokens, engine.metrics.output_tokens
        engine.step()
        reader.counts.computed += engine.metrics.computed_tokens - computed
        reader.counts.generated += engine.metrics.output_tokens - generated
        while finished:
            text = finished.popleft()
            if text.sequence.error is not None:
                raise text.sequence.error
            yield text.index, text.text


class _Text:
    """The text of one prompt while it is generated."""

    sequence: EngineSequence

    def __init__(self, index: int, detokenizer: Detokenizer) -> None:
        self.index, self.text, self._detokenizer = index, "", detokenizer

    def add(self, engine: Engine, request: Request, finished: deque[_Text]) -> None:
        """Submits the request; at its end this text is appended to `finished`."""

        def receive(output: Output) -> bool:
            if isinstance(output, TokenOutput):
                self.text += self._detokenizer.push(output.token_id)
            elif isinstance(output, Finished):
                self.text += self._detokenizer.flush()
                finished.append(self)
            return self._detokenizer.stopped

        self.sequence = engine.add_request(request, receive)


def shared_prefixes(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """An order of the sequences in which those that share a prefix stand together, and for each sequence the lengths of
    the prefixes that it shares with others."""
    order: list[int] = []
    lengths: list[list[int]] = [[] for _ in sequences]
    todo: list[tuple[Node, list[int]]]
    todo = [(root, []) for root in sorted(build_tree(sequences), key=lambda node: len(node.tokens))]
    while todo:
        node, shared = todo.pop()
        if node.children or len(node.ends) > 1:
            shared = [*shared, node.end]
        for index in node.ends:
            lengths[index] = shared
            order.append(index)
        todo += [(child, shared) for child in reversed(node.children)]
    return order, lengths
