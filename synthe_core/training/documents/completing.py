"""The texts that a model writes after many prompts, by the inference engine."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.events import Event, Progress
from synthe_core.inference.detokenizer import Detokenizer
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import offline_engine
from synthe_core.inference.outputs import Finished, Output, OutputCallback, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.sequence import Sequence as EngineSequence
from synthe_core.model.session import Session
from synthe_core.training.documents.prompts import Prompt

MAX_NUM_SEQS = 48
CACHE_BYTES = 1 << 28
MAX_STATE_BYTES = 1 << 29
PROGRESS_SECONDS = 0.5


class _Text:
    """A text while it is written."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.text = ""
        self._detokenizer = Detokenizer(tokenizer.decoder(), stop)

    def receive(self, output: Output) -> bool:
        if isinstance(output, TokenOutput):
            self.text += self._detokenizer.push(output.token_id)
        elif isinstance(output, Finished):
            self.text += self._detokenizer.flush()
        return self._detokenizer.stopped


def complete(
    what: str,
    model: LoadedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    max_tokens: int,
    *,
    sampling: SamplingParams,
    seed: int = 0,
    stop: Sequence[str] = (),
    session: Session | None = None,
) -> Generator[Event, None, list[str]]:
    """The text of at most `max_tokens` tokens after each prompt, cut before the first of `stop`. Prompt i draws with
    `seed` + i. Yields Progress named `what`. Prompts that share a prefix should stand together: it is read once.
    session: of one row, which every prompt continues."""
    engine = offline_engine(model, MAX_NUM_SEQS, max_state_bytes=MAX_STATE_BYTES, cache_bytes=CACHE_BYTES)
    past = 0 if session is None else int(session.state.position[0]) + 1
    texts = [_Text(tokenizer, stop) for _ in prompts]
    sequences: list[EngineSequence] = []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        request = Request(
            model.name,
            prompt.tokens,
            model.fitting(max_tokens, past + len(prompt.tokens)),
            sampling,
            seed=seed + number,
            return_logprob=False,
            cache_breakpoints=(prompt.shared,) if prompt.shared else (),
        )
        receive: OutputCallback = text.receive
        sequences.append(engine.add_request(request, receive, session=session))
    started = shown = time.monotonic()
    while engine.has_unfinished:
        engine.step()
        now = time.monotonic()
        if now - shown > PROGRESS_SECONDS:
            shown = now
            done = sum(sequence.finished for sequence in sequences)
            left = (now - started) * (len(prompts) - done) / done if done else None
            yield Progress(what, done, len(prompts), "texts", left)
    if errors := [sequence.error for sequence in sequences if sequence.error is not None]:
        raise errors[0]
    return [text.text for text in texts]
