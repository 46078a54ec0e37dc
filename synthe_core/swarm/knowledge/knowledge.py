"""`Knowledge`: what the swarm does with facts and conversations, for one user at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from synthe_core.swarm.checking.check import Contradiction, check_answer
from synthe_core.swarm.checking.verifier import Verifier
from synthe_core.swarm.extraction.patterns import claims
from synthe_core.swarm.extraction.relations import is_functional, relation
from synthe_core.swarm.knowledge import personal_data
from synthe_core.swarm.knowledge.conversations import Conversations, Message
from synthe_core.swarm.knowledge.embedder import Embedder
from synthe_core.swarm.knowledge.fact import USER, Claim, Fact, Source, key
from synthe_core.swarm.knowledge.facts import MAX_FACTS, Added, Facts
from synthe_core.swarm.knowledge.retrieval import TokenCounter, estimated_tokens, fitting
from synthe_core.swarm.knowledge.search import search
from synthe_core.swarm.redaction import redact
from synthe_core.swarm.store import Store

CHECKED_FACTS = 20  # facts that an answer is compared with


@dataclass(frozen=True)
class KnowledgeLimits:
    """max_facts: of one user. trust_users: whether what a named user says of themself is trusted, for that user alone.

    What a user says of the world, what a model read out of a conversation and what nobody in particular said are
    trusted only after a review (`Knowledge.trust`).
    """

    max_facts: int = MAX_FACTS
    trust_users: bool = True


class Knowledge:
    """What is known: facts with a source and a time, and conversations.

    A user sees their own facts and everybody's, those of the user "". Every method writes in one transaction.

    count_tokens: how many tokens a text has; without it, an estimate that is rather too large.
    verifier:     judges whether a sentence contradicts another; without it, rules alone.
    """

    def __init__(
        self,
        store: Store,
        *,
        limits: KnowledgeLimits | None = None,
        count_tokens: TokenCounter = estimated_tokens,
        verifier: Verifier | None = None,
    ) -> None:
        self.store, self.limits, self.count_tokens, self.verifier = (
            store,
            limits or KnowledgeLimits(),
            count_tokens,
            verifier,
        )
        self.facts = Facts(store, self.limits.max_facts)
        self.conversations = Conversations(store)

    def record_turn(self, user: str, conversation: str, role: str, text: str) -> Message:
        """Stores a turn of a conversation, redacted, and the facts that patterns read in it if it is the user's."""
        with self.store.transaction():
            message = self.conversations.record(user, conversation, role, text)
            if role == "user":
                for claim in claims(message.text):
                    self.learn(user, claim, Source.USER if key(claim.subject) == USER else Source.STATEMENT, message)
        return message

    def learn(self, user: str, claim: Claim, source: Source, message: Message) -> Added:
        """Writes a claim that was read in a message."""
        trusted = self.limits.trust_users and source is Source.USER and user != ""
        confidence = 0.9 if source is Source.USER else 0.6
        return self.facts.add(
            user, claim, source, trusted=trusted, confidence=confidence, message=message.id, at=message.time
        )

    def add(
        self, user: str, subject: str, predicate: str, object: str, *, negated: bool = False, trusted: bool = True
    ) -> Added:
        """Writes a fact that who runs the swarm knows; with the user "" for everybody."""
        name = relation(redact(predicate))
        claim = Claim(redact(subject), name, redact(object), negated, is_functional(name))
        return self.facts.add(user, claim, Source.OPERATOR, trusted=trusted)

    def correct(self, user: str, id: int, object: str, *, by_operator: bool = False) -> Added:
        """Replaces the object of a user's fact. The old one stays in the history and enters no prompt any more.

        by_operator: whether who runs the swarm corrects it, who is always trusted. A user is trusted with facts of
        themself: their correction of another trusted fact is stored, and takes its place only after a review.
        """
        old = self.facts.get(user, id)
        claim = Claim(old.subject, old.predicate, redact(object), False, old.functional)
        of_themself = self.limits.trust_users and user != "" and key(old.subject) == USER
        source = Source.OPERATOR if by_operator else Source.USER if key(old.subject) == USER else Source.STATEMENT
        return self.facts.add(user, claim, source, trusted=by_operator or of_themself, instead_of=id)

    def retrieve(self, user: str, text: str, budget_tokens: int, embed: Embedder | None = None) -> list[Fact]:
        """The trusted current facts that belong to `text`, the best first, as many as fit a prompt.

        `retrieval.block` is the text that they take, of at most `budget_tokens` tokens.
        """
        return fitting(search(self.facts, user, text, embed=embed), budget_tokens, self.count_tokens)

    def check(self, user: str, answer_text: str) -> list[Contradiction]:
        """Where an answer contradicts the trusted facts of the user and of everybody. The answer is not changed."""
        known = self.facts.current(user, trusted=True, shared=True) if claims(answer_text, "assistant") else []
        near = search(self.facts, user, answer_text, limit=CHECKED_FACTS)
        return check_answer(answer_text, known, near, self.verifier)

    def export(self, user: str) -> dict[str, Any]:
        """Everything stored of a user, for JSON."""
        return personal_data.export(self.store, user)

    def export_lines(self, user: str, *, named: bool = True) -> Iterator[str]:
        """The same as JSON, in pieces (see `personal_data.export_lines`)."""
        return personal_data.export_lines(self.store, user, named=named)

    def forget(self, user: str) -> dict[str, int]:
        """Deletes everything stored of a user; returns how many rows of each table that were."""
        return personal_data.forget(self.store, user)
