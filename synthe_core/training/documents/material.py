"""What a model writes about the passages of a document: questions with answers, and the ends of sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from itertools import groupby, takewhile
from typing import NamedTuple

from synthe_core.data.chat_template import with_template
from synthe_core.data.document_text.matching import contains, words
from synthe_core.data.document_text.passages import Passage, sentences
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.training.documents.completing import complete
from synthe_core.training.documents.filtering import continuation_fault, parse_question, question_fault
from synthe_core.training.documents.prompts import (
    QUESTION,
    Message,
    Prompt,
    continuation_message,
    passage_text,
    prompt_tokens,
    question_messages,
    with_document,
)
from synthe_core.training.documents.stages import Stages

MAX_TOKENS = 48
GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.7, top_p=0.95)
CUTS = (0.35, 0.65, 0.5, 0.2, 0.8)
"""The share of a sentence's words that are given, of its first continuation, its second and so on."""
MIN_WORDS = 4
"""A shorter sentence is neither finished nor requests about."""
PRONOUNS = frozenset("he she it they them his her its their this that these those there".split())  # noqa: SIM905
"""A sentence that begins so is read with the one before it."""


class Item(NamedTuple):
    """A message of the user and an answer that is right where the passage is known."""

    question: str
    answer: str
    passage: int
    kind: str


class MaterialSettings(NamedTuple):
    """How much is written: questions and continuations for each sentence."""

    questions: int = 2
    continuations: int = 2
    seed: int = 0


class _Sentence(NamedTuple):
    """text: with the sentence before where it refers to that one."""

    sentence: str
    text: str
    passage: Passage


def write_material(
    model: LoadedModel,
    title: str,
    passages: Sequence[Passage],
    settings: MaterialSettings,
    stages: Stages | None = None,
) -> Generator[Event, None, list[Item]]:
    """The material about all passages, in their order; what is useless is left out and counted in a Notice.

    Deterministic: the same model, passages and settings give the same items on a machine. InputError if nothing is
    useful. stages: what an interrupted call has written.
    """
    writer = _Writer(model, title, passages, settings, stages or Stages())
    items = yield from writer.questions()
    items += yield from writer.continuations()
    items.sort(key=lambda item: item.passage)
    if writer.faults:
        dropped = ", ".join(f"{count} {fault}" for fault, count in writer.faults.most_common())
        yield Notice(f"{len(items)} questions and continuations; left out: {dropped}")
    if not items:
        raise InputError(
            f"the model writes nothing useful about {title}", "use a model that follows instructions, or a longer text"
        )
    return items


class _Writer:
    def __init__(
        self,
        model: LoadedModel,
        title: str,
        passages: Sequence[Passage],
        settings: MaterialSettings,
        stages: Stages,
    ) -> None:
        self._model, self._title, self._settings, self._stages = model, title, settings, stages
        self._tokenizer = with_template(model.tokenizer)
        self._sentences = [each for passage in passages for each in sentences_of(passage)]
        self._texts = {passage.number: passage_text(passage, title) for passage in passages}
        self.faults: Counter[str] = Counter()

    def questions(self) -> Generator[Event, None, list[Item]]:
        """Questions, the first about each sentence by greedy decoding and others sampled, with the model's answers
        after it has read the passage."""
        pairs: dict[tuple[int, str], str] = {}
        prompts = _shared(
            [prompt_tokens(self._tokenizer, question_messages(each.text), QUESTION) for each in self._sentences]
        )
        for turn in range(self._settings.questions):
            texts = yield from self._complete(
                f"writing questions ({turn + 1} of {self._settings.questions})",
                prompts,
                "\n\n",
                SAMPLED if turn else GREEDY,
                self._settings.seed + turn * len(prompts),
            )
            for each, text in zip(self._sentences, texts, strict=True):
                if pair := self._useful(text, each):
                    pairs[each.passage.number, pair[0]] = pair[1]
        return (yield from self._answered(pairs))

    def _useful(self, text: str, sentence: _Sentence) -> tuple[str, str] | None:
        pair = parse_question(text)
        fault = "not a question" if pair is None else question_fault(*pair, sentence.text)
        if fault is not None:
            self.faults[fault] += 1
        return pair if fault is None else None

    def _answered(self, pairs: dict[tuple[int, str], str]) -> Generator[Event, None, list[Item]]:
        """The model's own answer where it has the short one in it, otherwise the short one."""
        pairs = dict(sorted(pairs.items(), key=lambda pair: pair[0][0]))
        prompts = self._with_passages([(number, {"role": "user", "content": text}, "") for number, text in pairs])
        texts = yield from self._complete("answering", prompts, "\n")
        return [
            Item(question, _whole(text) if contains(_whole(text), short) else short, number, "question")
            for ((number, question), short), text in zip(pairs.items(), texts, strict=True)
        ]

    def continuations(self) -> Generator[Event, None, list[Item]]:
        """The ends of sentences, written after the passage and the beginning of the sentence."""
        starts: dict[tuple[int, str], str] = {}
        for each in self._sentences:
            for cut in CUTS[: self._settings.continuations]:
                start = _start(each.sentence, cut)
                starts[each.passage.number, start] = start
        requests = [(number, continuation_message(self._title, start), start) for number, start in starts]
        texts = yield from self._complete("finishing sentences", self._with_passages(requests), "\n")
        items = []
        for (number, message, start), text in zip(requests, texts, strict=True):
            end = _first_sentence(text)
            if fault := continuation_fault(end, self._texts[number]):
                self.faults[fault] += 1
            else:
                items.append(Item(message["content"], start + end, number, "continuation"))
        return items

    def _complete(
        self, what: str, prompts: Sequence[Prompt], stop: str, sampling: SamplingParams = GREEDY, seed: int = 0
    ) -> Generator[Event, None, list[str]]:
        work = complete(
            what, self._model, self._tokenizer, prompts, MAX_TOKENS, sampling=sampling, seed=seed, stop=(stop,)
        )
        return self._stages.run(what, work)

    def _with_passages(self, requests: Sequence[tuple[int, Message, str]]) -> list[Prompt]:
        """Prompts of (passage, message, the beginning of the answer), in the order of passages. Those of one passage
        share its tokens."""
        prompts: list[Prompt] = []
        for number, group in groupby(requests, key=lambda each: each[0]):
            text = self._texts[number]
            prompts += _shared(
                [
                    prompt_tokens(self._tokenizer, with_document(self._tokenizer, text, [message]), opening)
                    for _, message, opening in group
                ]
            )
        return prompts


def sentences_of(passage: Passage) -> list[_Sentence]:
    """The sentences of a passage that are not in the one before it, without very short ones."""
    result, before = [], ""
    for sentence in sentences(passage.new_text):
        refers = words(sentence)[:1] and words(sentence)[0] in PRONOUNS
        if len(sentence.split()) >= MIN_WORDS:
            result.append(_Sentence(sentence, f"{before} {sentence}".strip() if refers else sentence, passage))
        before = sentence
    return result


def _shared(prompts: Sequence[Sequence[int]]) -> list[Prompt]:
    """Prompts with the length of the prefix that all of them share, which leaves a token of each."""
    columns = zip(*(each[:-1] for each in prompts), strict=False) if len(prompts) > 1 else ()
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return [Prompt(tuple(each), common) for each in prompts]


def _start(sentence: str, cut: float) -> str:
    every = sentence.split()
    return " ".join(every[: min(len(every) - 1, max(2, round(len(every) * cut)))])


def _first_sentence(text: str) -> str:
    """The first sentence of a text, with the space before it."""
    first = sentences(text)[:1]
    return text[: text.index(first[0]) + len(first[0])] if first else ""


def _whole(text: str) -> str:
    """A text without a last sentence that was cut off."""
    every = sentences(text)
    if len(every) > 1 and every[-1][-1:] not in ".!?":
        every.pop()
    return " ".join(every)
