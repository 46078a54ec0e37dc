"""What an answer has to do with what is known: facts in the prompt, a check of the text, and turns that are kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.swarm.checking.check import Contradiction
from synthe_core.swarm.checking.verifier import Verifier
from synthe_core.swarm.knowledge.embedder import Embedder
from synthe_core.swarm.knowledge.fact import Fact
from synthe_core.swarm.knowledge.knowledge import Knowledge, KnowledgeLimits
from synthe_core.swarm.knowledge.retrieval import block, line
from synthe_core.swarm.knowledge.search import LIMIT, search
from synthe_core.swarm.spec import KnowledgeSpec
from synthe_core.swarm.store import LimitReached, Store


@dataclass(frozen=True)
class Recalled:
    """Facts for a prompt: each in a line, and the text that they take in it."""

    lines: tuple[str, ...] = ()
    block: str = ""


class Recollection:
    """The knowledge of a swarm as `knowledge` of its swarm.yaml has it: all of it, or none.

    embed:    for the search by meaning. verifier: judges sentences where no rule does, if one was trained.
    context:  how many tokens the base reads, None for no limit: facts take a quarter of it at most.
    """

    def __init__(
        self,
        store: Store,
        spec: KnowledgeSpec,
        tokenizer: Tokenizer,
        embed: Embedder | None = None,
        verifier: Verifier | None = None,
        context: int | None = None,
    ) -> None:
        self.spec, self._embed = spec, embed if spec.embeddings else None
        self._budget = spec.budget_tokens if context is None else min(spec.budget_tokens, context // 4)
        self.knowledge = Knowledge(
            store,
            limits=KnowledgeLimits(spec.max_facts, spec.trust_users),
            count_tokens=lambda text: len(tokenizer.encode(text)),
            verifier=verifier,
        )

    def recall(self, user: str, text: str) -> Recalled:
        """What is known that belongs to a request."""
        if not (self.spec.enabled and self._budget):
            return Recalled()
        facts = self.knowledge.retrieve(user, text, self._budget, self._embed)
        return Recalled(tuple(line(fact) for fact in facts), block(facts))

    def find(self, user: str, text: str, *, history: bool = False, limit: int = LIMIT) -> list[Fact]:
        """The facts of a user and of everybody that belong to a text, the best first, trusted or not; for an empty
        text the newest. history: those too that hold no longer."""
        facts = self.knowledge.facts
        if not text.strip():
            return facts.newest(user, history=history, limit=limit)
        return search(facts, user, text, embed=self._embed, untrusted=True, history=history, limit=limit)

    def check(self, user: str, text: str) -> list[dict[str, Any]]:
        """Where a text contradicts what is known, as values for JSON."""
        if not (self.spec.enabled and self.spec.check):
            return []
        return [_values(each) for each in self.knowledge.check(user, text)]

    def record(self, user: str, conversation: str, request: str, answer: str) -> None:
        """Keeps both turns of a conversation that has a name; what the user says in it becomes facts.

        Beyond the limits of a user nothing more is kept: an answer does not fail for it.
        """
        if self.spec.enabled and conversation:
            with suppress(LimitReached):
                self.knowledge.record_turn(user, conversation, "user", request)
                self.knowledge.record_turn(user, conversation, "assistant", answer)


def _values(contradiction: Contradiction) -> dict[str, Any]:
    fact = contradiction.fact
    return {
        "kind": str(contradiction.kind),
        "sentence": contradiction.sentence,
        "start": contradiction.start,
        "end": contradiction.end,
        "stated": contradiction.stated,
        "fact": {
            **{name: getattr(fact, name) for name in ("id", "subject", "predicate", "object", "negated")},
            "source": fact.source.value,
            "valid_from": fact.valid_from,
        },
        "score": round(contradiction.score, 4),
    }
