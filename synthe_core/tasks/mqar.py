"""Multi-query associative recall: keys and their values first, then the keys again, one by one, among filler."""

from __future__ import annotations

from typing import Literal

from numpy.random import RandomState

from synthe_core.tasks.draw import distinct
from synthe_core.tasks.recall import Recall, RecallConfig, interleaved
from synthe_core.tasks.task import Examples, Preset, PresetName, Share


class MQAR(Recall):
    """k1 v1 k2 v2 ... kP vP | . k2 . . k1 . : the target at each key of the second part is its value.

    Keys of a sequence are all different, and so are its values. Source: Arora et al. 2023, "Zoology".
    """

    class Config(RecallConfig):
        type: Literal["mqar"] = "mqar"

    def batch(self, count: int, rng: RandomState) -> Examples:
        vocab, pairs = self.config.vocab, self.config.pairs
        keys = distinct(rng, count, 1, vocab // 2, pairs)
        values = distinct(rng, count, vocab // 2, vocab, pairs)
        inputs, targets, _ = self.ask(rng, interleaved(keys, values), keys[:, :, None], values)
        return Examples(inputs, targets)

    @classmethod
    def preset(cls, name: PresetName) -> Preset:
        def share(vocab: int, length: int, pairs: int, examples: int) -> Share:
            return Share(cls.Config(vocab=vocab, length=length, pairs=pairs), examples)

        if name == "quick":
            # Mostly few pairs, and a high rate: a model learns nothing until it recalls at all, which
            # it learns first with few pairs. The same tokens of 16 pairs alone teach a delta rule nothing.
            train = [share(128, 64, 4, 25_000), share(128, 64, 8, 15_000), share(128, 64, 16, 10_000)]
            return Preset(train, [share(128, 64, pairs, 256) for pairs in (4, 8, 16)], lr=1e-2)
        if name == "standard":
            train = [share(1024, 64, 4, 40_000), *(share(1024, 128, p, 20_000) for p in (8, 16, 32))]
            return Preset(train, [share(1024, 128, p, 1_000) for p in (4, 8, 16, 32)])
        train = [share(8192, 64, 4, 100_000), share(8192, 128, 8, 20_000)]
        train += [share(8192, 256, pairs, 20_000) for pairs in (16, 32, 64)]
        test = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
        return Preset(train, [share(8192, length, pairs, 1_000) for length, pairs in test])
