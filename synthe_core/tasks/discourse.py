"""Discourse: facts stated once, changed at times, and queried much later, among sentences without facts."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import RandomState
from pydantic import Field

from synthe_core.errors import InputError
from synthe_core.layers.learner import Spec
from synthe_core.tasks.draw import distinct, integers, marked, octave
from synthe_core.tasks.task import UNSCORED, Examples, Integers, Preset, PresetName, Share, Task

SAY, ASK, BLANK, WORDS = 0, 1, 2, 3
SENTENCE = 4


class Discourse(Task):
    """SAY anna age 31 | w w w w | SAY anna age 32 | w w w w | ASK anna age _ : the target at `age` is 32.

    Sentences have four tokens. `facts` different (entity, attribute) pairs get a value in the first quarter of the
    text; `updates` times one of them, drawn at random, gets another value in the second quarter; `questions` on random
    facts stand in the second half, their answers unwritten. All other sentences are random words. With a longer text,
    only the distance grows. Slices: `distance` in tokens from the value that counts to the question, as the power of
    two at or below it; `updates` of the fact. This is the task for memories of several time scales.

    Tokens: SAY, ASK, BLANK, then `words` words, `entities`, `attributes` and `values`, in this order.
    """

    class Config(Spec):
        type: Literal["discourse"] = "discourse"
        length: int = Field(256, ge=SENTENCE, description="tokens of a sequence, a multiple of 4")
        facts: int = Field(8, ge=1)
        updates: int = Field(8, ge=0)
        questions: int = Field(8, ge=1)
        entities: int = Field(32, ge=1)
        attributes: int = Field(16, ge=1)
        values: int = Field(64, ge=2)
        words: int = Field(64, ge=1, description="vocabulary of the sentences that say nothing")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        smallest = SENTENCE * max(4 * config.facts, 4 * config.updates, 2 * config.questions)
        if config.length < smallest:
            raise InputError(
                f"discourse: {config.facts} facts, {config.updates} updates and {config.questions} questions do not fit"
                f" into their parts of {config.length} tokens",
                f"the smallest length that fits is {smallest}",
            )
        if config.length % SENTENCE:
            above = config.length + -config.length % SENTENCE
            raise InputError(
                f"discourse: length must be a multiple of {SENTENCE}, not {config.length}",
                f"the next that fits is {above}",
            )
        if config.entities * config.attributes < config.facts:
            raise InputError(
                f"discourse: {config.entities} entities with {config.attributes} attributes do not make"
                f" {config.facts} facts",
                f"the smallest number of entities that fits is {-(-config.facts // config.attributes)}",
            )

    @property
    def vocab(self) -> int:
        return WORDS + self.config.words + self.config.entities + self.config.attributes + self.config.values

    @property
    def chance(self) -> float:
        return 1 / self.config.values

    def batch(self, count: int, rng: RandomState) -> Examples:
        config, sentences, rows = self.config, self.config.length // SENTENCE, np.arange(count)
        entities = WORDS + config.words
        attributes = entities + config.entities
        values = attributes + config.attributes
        text = integers(rng, WORDS, entities, (count, sentences, SENTENCE))
        what = distinct(rng, count, 0, config.entities * config.attributes, config.facts)
        entity, attribute = entities + what // config.attributes, attributes + what % config.attributes

        value = integers(rng, 0, config.values, (count, config.facts))  # as it now is
        stated = distinct(rng, count, 0, sentences // 4, config.facts)  # the sentence that states it
        changes = np.zeros_like(stated)

        def write(sentence: Integers, verb: int, fact: Integers, last: Integers | int) -> None:
            for place, token in enumerate((verb, entity[rows, fact], attribute[rows, fact], last)):
                text[rows, sentence, place] = token

        for place in range(config.facts):
            write(stated[:, place], SAY, np.full(count, place), values + value[:, place])
        updated = np.sort(distinct(rng, count, sentences // 4, sentences // 2, config.updates), axis=1)
        for sentence in updated.T:
            fact = integers(rng, 0, config.facts, (count,))
            value[rows, fact] = (value[rows, fact] + integers(rng, 1, config.values, (count,))) % config.values
            stated[rows, fact] = sentence
            changes[rows, fact] += 1
            write(sentence, SAY, fact, values + value[rows, fact])
        queried = distinct(rng, count, sentences // 2, sentences, config.questions)
        about = integers(rng, 0, config.facts, (count, config.questions))
        for sentence, fact in zip(queried.T, about.T, strict=True):
            write(sentence, ASK, fact, BLANK)

        def labels(of_fact: Integers) -> Integers:
            return marked(config.length, SENTENCE * queried + 2, of_fact)

        distance = SENTENCE * (queried - np.take_along_axis(stated, about, axis=1)) - 1
        slices = {"distance": octave(distance), "updates": np.take_along_axis(changes, about, axis=1)}
        return Examples(
            text.reshape(count, -1),
            labels(values + np.take_along_axis(value, about, axis=1)),
            {name: labels(label) for name, label in slices.items()},
        )

    def solve(self, inputs: Integers) -> Integers:
        """Reads sentence by sentence and remembers the newest value of everything."""
        targets = np.full(inputs.shape, UNSCORED, dtype=np.int64)
        for row, tokens in enumerate(inputs.tolist()):
            known: dict[tuple[int, int], int] = {}
            for start in range(0, len(tokens), SENTENCE):
                verb, entity, attribute, last = tokens[start : start + SENTENCE]
                if verb == SAY:
                    known[entity, attribute] = last
                elif verb == ASK:
                    targets[row, start + 2] = known[entity, attribute]
        return targets

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(length: int, facts: int, examples: int) -> Share:
            return Share(cls.Config(length=length, facts=facts, updates=facts, questions=2 * facts), examples)

        if name == "quick":
            # As many tokens of each length: with the longest alone a memory finds late what a fact is, or never.
            train = [share(32, 2, 24_000), share(64, 4, 12_000), share(128, 8, 6_000), share(256, 8, 3_000)]
            return Preset(train, [share(n, 8, 128) for n in (256, 512, 1024, 2048)])
        return Preset([share(1024, 32, 50_000)], [share(n, 32, 500) for n in (1024, 2048, 4096, 8192)])
