"""Text without a server: prompts in, text as it is generated, and the session to continue from."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch

from synthe_core import state as states
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.inference.constraints import FirstTokenConstraint
from synthe_core.inference.detokenizer import Detokenizer
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished, Output, OutputCallback, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.scheduler_config import offline
from synthe_core.model.session import Session

UNLIMITED = 1 << 62


class TextDelta(NamedTuple):
    """New text of the prompt number `row`."""

    row: int
    text: str


class EncodedPrompt(NamedTuple):
    """A prompt's tokens, what the first generated token must be (None: anything), and the text that it repeats."""

    token_ids: list[int]
    constraint: FirstTokenConstraint | None = None
    repeated: str = ""


def offline_engine(
    model: LoadedModel, max_num_seqs: int, *, max_state_bytes: int = UNLIMITED, cache_bytes: int = 0
) -> Engine:
    """An engine for texts that nobody waits for one by one."""
    return Engine(
        [model],
        max_num_seqs=max_num_seqs,
        max_waiting=UNLIMITED,
        max_state_bytes=max_state_bytes,
        cache_bytes=cache_bytes,
        config=offline(model.device.type),
    )


def generate(
    model: LoadedModel,
    prompts: Sequence[str],
    max_tokens: int,
    *,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    session: Session | None = None,
    keep_session: bool = True,
) -> Generator[TextDelta, None, Session | None]:
    """Continues each prompt by up to `max_tokens` tokens; returns the session, from which a later call continues, or
    None with `keep_session` off: then no state stays in memory after its text.

    A text ends at the tokenizer's end of text, before the first stop string, or where the model can read no more. An
    empty prompt starts a document. Row i draws with `seed` + i. With a session of one row and several prompts, each
    prompt continues that row.
    """
    engine = offline_engine(model, max(1, len(prompts)))
    if keep_session:
        _check_room(model, len(prompts))
    pasts: Sequence[Session | None] = [None] * len(prompts)
    if session is not None:
        pasts = _rows(session.spread(len(prompts)))
    deltas: deque[TextDelta] = deque()
    sequences = []
    for row, (prompt, past) in enumerate(zip(prompts, pasts, strict=True)):
        encoded = encode_prompt(model, prompt, begins=past is None)
        detokenizer = Detokenizer(model.tokenizer.decoder(), stop, encoded.repeated)
        read = len(encoded.token_ids) + (0 if past is None else int(past.state.position[0]) + 1)
        request = Request(
            model.name,
            tuple(encoded.token_ids),
            model.fitting(max_tokens, read),
            sampling or SamplingParams(),
            seed=seed + row,
            return_logprob=False,
        )
        receive = _receiver(row, detokenizer, deltas)
        sequence = engine.add_request(
            request, receive, constraint=encoded.constraint, session=past, keep_state=keep_session
        )
        sequences.append(sequence)
    while engine.has_unfinished:
        engine.step()
        while deltas:
            yield deltas.popleft()
        if errors := [sequence.error for sequence in sequences if sequence.error is not None]:
            raise errors[0]
    if not keep_session:
        return None
    last = torch.tensor([sequence.last_token_id for sequence in sequences], device=model.device)
    return Session(states.join([sequence.state for sequence in sequences]), last)


def _check_room(model: LoadedModel, texts: int) -> None:
    """InputError where the states of all texts do not fit into the memory that was given."""
    plan = model.memory_plan
    if plan is not None and texts * model.state_bytes(1) > max(plan.states, model.state_bytes(1)):
        raise InputError(
            f"the states of {texts} texts do not fit into the memory that was given",
            f"save fewer at a time: there is room for {plan.states // model.state_bytes(1)}",
        )


def _receiver(row: int, detokenizer: Detokenizer, deltas: deque[TextDelta]) -> OutputCallback:
    def receive(output: Output) -> bool:
        text = ""
        if isinstance(output, TokenOutput):
            text = detokenizer.push(output.token_id)
        elif isinstance(output, Finished):
            text = detokenizer.flush()
        if text:
            deltas.append(TextDelta(row, text))
        return detokenizer.stopped

    return receive


def _rows(session: Session) -> list[Session]:
    """A session for each row."""
    indices = torch.arange(len(session.pending)).split(1)
    pending = session.pending.split(1)
    return [Session(states.take(session.state, index), each) for index, each in zip(indices, pending, strict=True)]


def encode_prompt(model: LoadedModel, prompt: str, begins: bool) -> EncodedPrompt:
    """The tokens of a prompt that `begins` a text, or continues a session."""
    tokenizer = model.tokenizer
    tokens = list(tokenizer.encode(prompt))
    if begins:
        tokens = ([] if tokenizer.begin is None else [tokenizer.begin]) + tokens or [tokenizer.end]
    if foreign := [token for token in tokens if token >= model.vocab]:
        raise InputError(
            f"the tokenizer gave token {foreign[0]}, and the model knows {model.vocab}",
            "the checkpoint's tokenizer.json is not the one it was trained with",
        )
    return heal(tokenizer, tokens, model.vocab, shortest=1 if begins else 0)


def heal(tokenizer: Tokenizer, tokens: list[int], vocab: int, shortest: int) -> EncodedPrompt:
    """Token healing of a prompt that ends in a space, if the tokenizer writes a word and the space before it as one
    token: the space is removed, and the first generated token must begin with it. At least `shortest` tokens stay."""
    if len(tokens) <= shortest or tokenizer.pieces[tokens[-1]] != b" ":
        return EncodedPrompt(tokens)
    allowed = torch.zeros(vocab, dtype=torch.bool)
    allowed[[i for i, piece in enumerate(tokenizer.pieces[:vocab]) if piece.startswith(b" ")]] = True
    if int(allowed.sum()) < 2:
        return EncodedPrompt(tokens)
    return EncodedPrompt(tokens[:-1], FirstTokenConstraint(allowed), " ")
