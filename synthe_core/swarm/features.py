"""What the router knows of a text: the base model's own embedding of it, centred and scaled by what it has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

FLOOR = 1e-3
"""The least deviation of a dimension, as a share of the mean one."""
GROWTH = 1.5
MAX_SNAPSHOT = 4096
"""Texts after which centre and scale stay what they are."""

Embed = Callable[[Sequence[str]], np.ndarray]
"""Embeds texts: float32 [N, D], as `TextEmbedder` does."""

SAMPLES = (
    "What is the capital of Australia?",
    "Write a Python function that reverses a list.",
    "How do I treat a cold without medicine?",
    "A farmer has 12 cows and sells 5 of them. How many cows are left?",
    "Summarize the causes of the First World War in three sentences.",
    "My girlfriend does not answer my calls. What should I do?",
    "SELECT name FROM users WHERE age > 30 ORDER BY name;",
    "Who won the football world cup in 2010?",
    "Explain how photosynthesis works to a child.",
    "Translate 'good morning' into French.",
    "The stock market fell sharply on Monday after the central bank raised interest rates.",
    "Why does my computer restart by itself every few minutes?",
    "Once upon a time there was a small dragon that was afraid of fire.",
    "Is it legal to record a telephone call?",
    "def add(a, b):\n    return a + b",
    "Which guitar is good for a beginner?",
    "The village lies on the bank of the river, twelve kilometres north of the town.",
    "Solve x^2 - 5x + 6 = 0.",
    "What should I cook tonight with rice, eggs and spinach?",
    "Describe the difference between a virus and a bacterium.",
    "Give me three ideas for a birthday party.",
    "How far is the moon from the earth?",
    "Please correct the grammar: he go to school yesterday.",
    "What does NATO stand for?",
)
"""Texts of many kinds, from which the centre begins."""


class Standardizer:
    """Centres and scales embeddings by the running mean and deviation of each dimension (Welford 1962).

    Hidden states of language models have a few dimensions that are large for every text; texts differ in the others.
    Centre and scale are those of a snapshot, so that what is learned on top stays exact: `observe` says when
    the snapshot moves, each time after half as many texts again, up to `MAX_SNAPSHOT`.
    """

    def __init__(self, count: int = 0, mean: np.ndarray | None = None, squares: np.ndarray | None = None) -> None:
        self.count, self._mean, self._squares = count, mean, squares
        self._take()

    @classmethod
    def of(cls, embeddings: np.ndarray) -> Standardizer:
        """From texts [N, D] that it has seen."""
        made = cls()
        for each in embeddings:
            made._add(each)
        made._take()
        return made

    def observe(self, embedding: np.ndarray) -> bool:
        """Takes in another text's embedding [D]; returns whether centre and scale have moved with it."""
        if self.count >= MAX_SNAPSHOT:
            return False
        self._add(embedding)
        if self.count < GROWTH * self._taken:
            return False
        self._take()
        return True

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [..., D], standardised and of length 1."""
        return self.direction(embeddings.astype(np.float64) - self._centre)

    def direction(self, differences: np.ndarray) -> np.ndarray:
        """Differences from a centre [..., D], scaled and of length 1."""
        standard = differences.astype(np.float64) / self._scale
        return standard / np.maximum(np.linalg.norm(standard, axis=-1, keepdims=True), 1e-9)

    @property
    def size(self) -> int:
        """D."""
        return len(self._centre)

    def state(self) -> tuple[int, np.ndarray, np.ndarray]:
        """How many texts, their mean and the sums of squared deviations, as the constructor takes them."""
        assert self._mean is not None and self._squares is not None
        return self.count, self._mean, self._squares

    def _add(self, embedding: np.ndarray) -> None:
        value = embedding.astype(np.float64)
        if self._mean is None or self._squares is None:
            self._mean, self._squares = np.zeros_like(value), np.zeros_like(value)
        self.count += 1
        difference = value - self._mean
        self._mean = self._mean + difference / self.count
        self._squares = self._squares + difference * (value - self._mean)

    def _take(self) -> None:
        self._taken = self.count
        if self._mean is None or self._squares is None:
            self._centre, self._scale = np.zeros(1), np.ones(1)
            return
        deviation = np.sqrt(self._squares / max(1, self.count))
        self._centre, self._scale = self._mean, np.maximum(deviation, FLOOR * deviation.mean() + 1e-12)


def capability_texts(description: str, capabilities: Iterable[str], prompt: str) -> list[str]:
    """The texts whose embeddings stand for a specialist before it has answered anything."""
    texts = [f"This is about {each}." for each in capabilities]
    return [*texts, description] if description else texts or [prompt[:1000]]
