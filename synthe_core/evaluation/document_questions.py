"""The verb `eval document`: questions about a document, answered by a model that knows it in different ways."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, Field, ValidationError

from synthe_core import state as states
from synthe_core.data.chat_template import with_template
from synthe_core.data.document_text import DocumentText, read_document
from synthe_core.data.document_text.matching import contains
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_checkpoint
from synthe_core.model.session import Session
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.documents.completing import complete
from synthe_core.training.documents.prompts import (
    Prompt,
    document_text,
    prompt_tokens,
    with_document,
)

MAX_TOKENS = 40
STOP = ("\n",)
GREEDY = SamplingParams(temperature=0.0)


class Question(BaseModel, extra="allow"):
    """A line of a questions file. The first answer is the one whose probability is compared with the distractors'."""

    question: str = Field(min_length=1)
    answers: list[str] = Field(min_length=1)
    distractors: list[str] = []


class Knowledge(NamedTuple):
    """A model, and what it has read before a question: nothing, or the document, in `session`.

    preparation: seconds until the first question. bytes: of what stores the document beside the model.
    """

    way: str
    model: LoadedModel
    session: Session | None = None
    preparation: float = 0.0
    bytes: int = 0


class WayScore(NamedTuple):
    """One way over all questions.

    accuracy:    the share of greedy answers that contain an accepted one, by words.
    choice:      the share of questions whose accepted answer has a higher log-probability per byte than every
                 distractor; None without distractors.
    nats:        the mean of -log p of the accepted answer, per token.
    seconds:     per question, answered in batches. preparation: once, before them. bytes: beside the model.
    """

    way: str
    accuracy: float
    choice: float | None
    nats: float
    seconds: float
    preparation: float
    bytes: int
    answers: list[str]


def evaluate(
    path: Path, document: Path, questions: Path, *, adapter: Path | None = None, device: str = "auto"
) -> Iterator[Event]:
    """Asks a model every question with nothing, with the document in its context, with the state after the document
    from a file, and with an adapter, if one is given. The last event is a Result with the score of each way.

    InputError for a file of questions that has other lines. A document that is longer than the model's context leaves
    out the ways that read it, with a Notice.
    """
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe

    every = read_questions(questions)
    text = read_document(document)
    where = choose_device(device, probe()).value
    opened = Checkpoint.open(path)
    scores: list[WayScore] = []
    with tempfile.TemporaryDirectory() as folder:
        for knowledge in _ways(opened, text, adapter, where, Path(folder)):
            if isinstance(knowledge, Notice):
                yield knowledge
                continue
            scores.append((yield from _score(knowledge, text, every)))
    yield Result({"document": str(document), "questions": len(every), "ways": [each._asdict() for each in scores]})


def read_questions(path: Path) -> list[Question]:
    """The questions in a JSON lines file. InputError names a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    result = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                result.append(Question.model_validate_json(line))
            except ValidationError as error:
                fault = error.errors(include_url=False)[0]
                place = ".".join(map(str, fault["loc"])) or "the line"
                hint = 'a line is {"question": "...", "answers": ["..."], "distractors": ["..."]}'
                raise InputError(f"{path}:{number}: {place}: {fault['msg']}", hint) from None
    if not result:
        raise InputError(f"{path} has no questions", 'a line is {"question": "...", "answers": ["..."]}')
    return result


def _ways(
    opened: Checkpoint, text: DocumentText, adapter: Path | None, device: str, folder: Path
) -> Iterator[Knowledge | Notice]:
    model = load_checkpoint(opened, "model", device, batch_invariant=False)
    yield Knowledge("nothing", model)
    prefix = _prefix(model, text)
    if model.max_length is not None and len(prefix) + 4 * MAX_TOKENS > model.max_length:
        yield Notice(
            f"{text.path} has {len(prefix):,} tokens and the model reads {model.max_length:,}: without the document in "
            "context and as a state",
            "warning",
        )
    else:
        started = time.perf_counter()
        session = _read(model, prefix)
        yield Knowledge("in context", model, session, time.perf_counter() - started, len(text.text.encode()))
        file = folder / "document.state"
        session.save(file, model.model)
        del session
        started = time.perf_counter()
        session = Session.load(file, model.model)
        yield Knowledge("saved state", model, session, time.perf_counter() - started, file.stat().st_size)
    if adapter is not None:
        started = time.perf_counter()
        checkpoint = Checkpoint.open(adapter, base=opened.path)
        model = load_checkpoint(checkpoint, "adapter", device, batch_invariant=False)
        size = sum(tensor.nbytes for tensor in checkpoint.adapter.tensors.values()) if checkpoint.adapter else 0
        yield Knowledge("adapter", model, None, time.perf_counter() - started, size)


def _prefix(model: LoadedModel, text: DocumentText) -> list[int]:
    """The tokens before every question: those that two different prompts with the document have in common."""
    one, other = (_prompt(model, text, question) for question in ("0", "A"))
    return one[: next(place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])]


def _prompt(model: LoadedModel, text: DocumentText | None, question: str) -> list[int]:
    tokenizer = with_template(model.tokenizer)
    messages: list[Any] = [{"role": "user", "content": question}]
    if text is not None:
        titled = text.text.startswith(f"# {text.title}\n")
        content = text.text if titled else document_text(text.text, [text.title])
        messages = with_document(tokenizer, content, messages)
    return prompt_tokens(tokenizer, messages)


@torch.inference_mode()
def _read(model: LoadedModel, tokens: Sequence[int]) -> Session:
    with model.activate():
        state = model.forward(torch.tensor([tokens[:-1]], device=model.device), None).state
    return Session(state, torch.tensor([tokens[-1]], device=model.device))


def _score(knowledge: Knowledge, text: DocumentText, every: Sequence[Question]) -> Generator[Event, None, WayScore]:
    model, session = knowledge.model, knowledge.session
    skipped = 0 if session is None else int(session.state.position[0]) + 1
    prompts = [
        _prompt(model, None if session is None else text, each.question)[skipped:] for each in every
    ]  # the session has read what stands before the question
    started = time.perf_counter()
    answers = yield from complete(
        f"answering: {knowledge.way}",
        model,
        with_template(model.tokenizer),
        [Prompt(tuple(each)) for each in prompts],
        MAX_TOKENS,
        sampling=GREEDY,
        stop=STOP,
        session=session,
    )
    seconds = (time.perf_counter() - started) / len(every)
    right, chosen, nats = 0, [], []
    for number, (each, prompt, answer) in enumerate(zip(every, prompts, answers, strict=True)):
        yield Progress(f"comparing answers: {knowledge.way}", number, len(every), "questions")
        right += any(contains(answer, accepted) for accepted in each.answers)
        per_byte, per_token = _log_probabilities(model, session, prompt, [each.answers[0], *each.distractors])
        nats.append(-per_token[0])
        if each.distractors:
            chosen.append(per_byte[0] > max(per_byte[1:]))
    return WayScore(
        knowledge.way,
        right / len(every),
        sum(chosen) / len(chosen) if chosen else None,
        sum(nats) / len(nats),
        seconds,
        knowledge.preparation,
        knowledge.bytes,
        [answer.strip() for answer in answers],
    )


@torch.inference_mode()
def _log_probabilities(
    model: LoadedModel, session: Session | None, prompt: Sequence[int], options: Sequence[str]
) -> tuple[list[float], list[float]]:
    """log p of each option after the prompt, per byte and per token."""
    encoded = [_option_tokens(model, option) for option in options]
    before = [*([] if session is None else session.pending.tolist()), *prompt]
    lengths = torch.tensor([len(before) + len(each) - 1 for each in encoded], device=model.device)
    tokens = torch.zeros(len(options), int(lengths.max()), dtype=torch.int64, device=model.device)
    for row, each in enumerate(encoded):
        tokens[row, : int(lengths[row])] = torch.tensor([*before, *each[:-1]], device=model.device)
    index = torch.zeros(len(options), dtype=torch.int64, device=model.device)
    with model.activate():
        state = None if session is None else states.take(session.state, index)
        hidden = model.forward(tokens, state, lengths).hidden
        logits = [model.logits(hidden[row, len(before) - 1 : int(lengths[row])]) for row in range(len(options))]
    sums = [
        float(each.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids, device=model.device)].sum())
        for each, ids in zip(logits, encoded, strict=True)
    ]
    per_byte = [each / len(option.encode()) for each, option in zip(sums, options, strict=True)]
    return per_byte, [each / len(ids) for each, ids in zip(sums, encoded, strict=True)]


def _option_tokens(model: LoadedModel, option: str) -> list[int]:
    """An answer as the chat template writes it: with a space before it where that is how answers begin."""
    space = "" if model.tokenizer.chat_template is not None else " "
    return model.tokenizer.encode(space + option)
