"""A swarm that answers: routes a request, runs the specialists, makes one answer of theirs, checks and records it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from synthe_core.errors import InputError, SyntheError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.swarm.answer_writer import AnswerWriter
from synthe_core.swarm.answers import Answer, new_answer_id
from synthe_core.swarm.checking.claim_states import claim_states
from synthe_core.swarm.checking.judge import Judge
from synthe_core.swarm.checking.opening import open_verifier
from synthe_core.swarm.checking.verifier import Verifier
from synthe_core.swarm.events import Answered, Routed, SwarmEvent
from synthe_core.swarm.extraction.background import BackgroundReader
from synthe_core.swarm.feedback.feedback import Feedback
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.json_writer import JsonWriter, json_writer
from synthe_core.swarm.knowledge.conversations import check_name
from synthe_core.swarm.knowledge.embedder import Embedder
from synthe_core.swarm.models import BASE, SpecialistModels, load_models
from synthe_core.swarm.opening import open_store, pair_limits
from synthe_core.swarm.prompting import last_request
from synthe_core.swarm.ratings_log import RatingsLog
from synthe_core.swarm.recollection import Recollection
from synthe_core.swarm.record import Record
from synthe_core.swarm.remembered_states import RememberedStates
from synthe_core.swarm.request import SwarmRequest as SwarmRequest
from synthe_core.swarm.router.decision import Decision
from synthe_core.swarm.router.observations import Observation, Observations
from synthe_core.swarm.router.router import Router
from synthe_core.swarm.spec import SwarmSpec
from synthe_core.swarm.synthesis.drafting import Written
from synthe_core.swarm.text_embedding import TextEmbedder
from synthe_core.swarm.unknown_name import unknown_name


class Swarm:
    """A swarm on a running engine, for any number of threads. InputError for a swarm.yaml that does not fit.

    learning_wanted: set by whoever wants a server to begin learning now; the server clears it.
    """

    def __init__(self, folder: SwarmFolder, engine: AsyncEngine) -> None:
        self.folder, self.engine, self.spec = folder, engine, folder.spec
        self.learning_wanted, self._taking_up = threading.Event(), threading.Lock()
        self.running = SpecialistModels(folder, engine)
        self.models, self.unavailable = self.running.names, self.running.unavailable
        self.store = open_store(folder)
        self.record = Record(self.store, self.spec)
        base = engine.registry.resolve(BASE)
        self.embed = TextEmbedder(engine, BASE)
        embed = Embedder(self.embed.name, self.embed)
        write_json, knowledge = json_writer(engine, BASE), self.spec.knowledge
        verifier = self._verifier(base.model, write_json)
        served = base.model
        self.recollection = Recollection(self.store, knowledge, served.tokenizer, embed, verifier, served.max_length)
        self._reader = None
        if knowledge.enabled and knowledge.extraction == "model":
            is_idle = lambda: not engine.engine.has_unfinished  # noqa: E731
            self._reader = BackgroundReader(self.recollection.knowledge, write_json, is_idle)
        limits, implicit = pair_limits(folder), self.spec.feedback.implicit
        self.feedback = Feedback(self.store, limits=limits, implicit=implicit, teach=self.rate)
        self._ratings = RatingsLog(self.store)
        self._observations = Observations(self.store, self.embed.name)
        self.write_json = write_json
        self.remembered = RememberedStates(folder.path, engine, self.models)
        self.writer = AnswerWriter(folder, engine, self.running, self.remembered, self.record, self.recollection)
        self._leave_out_unavailable()
        self.router = Router(self.spec, self.embed, self._observations, self.record.pathways)
        self._follow_states(self.models)

    def _leave_out_unavailable(self) -> None:
        """Takes up every specialist that can be, and goes on without those whose documents or adapters cannot be read.
        `unavailable` has the reason of each."""
        for name, each in self.spec.specialists.items():
            if name in self.unavailable:
                continue
            try:
                self.writer.add({name: each})
            except InputError as error:
                self.running.leave_out(name, error)
        if self.unavailable:
            here = {name: each for name, each in self.spec.specialists.items() if name not in self.unavailable}
            router = self.spec.router
            if router.fallback in self.unavailable:
                router = router.model_copy(update={"fallback": BASE})
            self._use(self.spec.model_copy(update={"specialists": here, "router": router}))

    def _use(self, spec: SwarmSpec) -> None:
        self.spec = self.record.spec = self.writer.spec = spec

    def close(self) -> None:
        """Ends the background work and closes the database. The engine is its owner's."""
        if self._reader is not None:
            self._reader.close()
        self.store.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Who can be addressed."""
        return tuple(self.models)

    def served(self, name: str) -> LoadedModel:
        """The model that a specialist runs on."""
        return self.writer.served(name)

    def digest(self, name: str) -> str:
        """What identifies the weights of a specialist: those of its model and its adapter."""
        return self.engine.registry.resolve(self.models[name]).fingerprints.weights

    def answer(self, request: SwarmRequest) -> Generator[SwarmEvent, None, None]:
        """Answers: yields Routed, pieces of drafts and of the answer as they come, and Answered at the end.

        An answer that is cancelled, also by closing the generator, is not recorded. Raises InputError, Busy, WorkError
        and Cancelled.
        """
        began = time.perf_counter()
        text = last_request(request.messages)
        if request.conversation:
            check_name(request.conversation)  # now, and not when the answer is recorded
        decision, observation = self._route(request, text)
        facts = self.recollection.recall(request.user, text)
        answer_id = new_answer_id()
        yield Routed(answer_id, decision, tuple(facts.lines))
        written = yield from self.writer.write(request, text, decision, facts.block)
        answer = written.answer
        self._record(answer_id, request, text, decision, observation, written)
        yield Answered(
            answer_id,
            answer.text,
            answer.specialist,
            answer.reason,
            answer.confidence,
            written.drafts,
            answer.contradictions,
            time.perf_counter() - began,
            answer.num_prompt_tokens,
            answer.num_cached_tokens,
            answer.num_output_tokens,
            written.degraded,
        )

    def rate(
        self,
        answer_id: str,
        success: float,
        *,
        right: str | None = None,
        user: str | None = None,
    ) -> None:
        """Learns how good an answer was, 0 to 1; see `Record.rate`."""
        self._ratings.note(answer_id)
        observation = self.record.rate(answer_id, success, right=right, user=user)
        if observation is not None:
            self.router.learn(observation)

    def follow_adapters(self) -> list[str]:
        """Takes up the versions of adapters that are current in the folder; returns whose have changed.

        Answers under way end with the version that they began with. After an error, which is raised once all were
        looked at, that specialist goes on as it was.
        """
        changed, failure = [], None
        for name in self.spec.specialists:
            try:
                if self.running.follow(name):
                    changed.append(name)
            except SyntheError as error:
                failure = error
        self._follow_states(self.spec.specialists)
        if failure is not None:
            raise failure
        return changed

    def follow_specialists(self) -> list[str]:
        """Takes up specialists on the base or on other servers that were added to swarm.yaml; returns their names.
        Other changes of the file count when the swarm is opened again."""
        with self._taking_up:
            return self._take_up()

    def _take_up(self) -> list[str]:
        written = SwarmFolder(self.folder.path).spec.specialists
        new = {name: each for name, each in written.items() if name not in self.spec.specialists}
        added = {name: each for name, each in new.items() if each.url or not each.model}
        if not added:
            return []
        self.writer.add(added)
        spec = self.spec.model_copy(update={"specialists": {**self.spec.specialists, **added}})
        self.folder.use(spec)
        for name in added:
            self.running.add(name)
            self.unavailable.pop(name, None)
        router = Router(spec, self.embed, self._observations, self.record.pathways)
        self._use(spec)
        self.router = router
        router.reload()  # what was rated meanwhile
        self._follow_states(added)
        return list(added)

    def follow_ratings(self) -> bool:
        """Learns the ratings that other processes have given; returns whether there were some."""
        if not self._ratings.has_news():
            return False
        self.record.reload()
        self.router.reload()
        return True

    def _verifier(self, base: LoadedModel, write_json: JsonWriter) -> Verifier | None:
        """What checks sentences where no rule does, as `knowledge.judge` says."""
        if self.spec.knowledge.judge == "model":
            return Judge(write_json)
        if self.spec.knowledge.judge == "none":
            return None
        return open_verifier(self.folder.path, base, lambda pairs: self._states(base, pairs))

    def _states(self, model: LoadedModel, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The base's states of pairs of sentences, read between two steps of the engine."""
        return self.engine.call(lambda: claim_states(model, pairs)).result()

    def _route(self, request: SwarmRequest, text: str) -> tuple[Decision, Observation | None]:
        """Who answers: whoever is addressed, or whom the router says."""
        name = request.specialist
        if name is None:
            return self.router.route(text)
        if name in self.unavailable:
            raise InputError(f"{name} is unavailable: {self.unavailable[name].message}", self.unavailable[name].hint)
        if name not in self.models:
            raise unknown_name("specialist", name, self.models)
        return Decision((name,), self.spec.router.fallback, False, "", (), f"{name} was addressed"), None

    def _record(
        self,
        answer_id: str,
        request: SwarmRequest,
        text: str,
        decision: Decision,
        observation: Observation | None,
        written: Written,
    ) -> None:
        """Writes the answer, what may be learned from it and the turns of the conversation, together."""
        answer = written.answer
        every = (*written.drafts, answer)
        drafts = {each.specialist: dict(each.signals) for each in every}
        digests = {name: digest for each in every for name, digest in each.digests.items()}
        with self.store.transaction():
            self.record.answers.add(
                Answer(
                    answer_id,
                    request.user,
                    request.conversation,
                    text,
                    answer.text,
                    decision.answering,
                    answer.specialist,
                    decision.domain,
                    answer.confidence,
                    drafts,
                    decision.json(),
                    digests,
                )
            )
            if (preference := written.preference) is not None:
                self.feedback.teach_pair(
                    request.user, answer_id, text, preference.specialist, preference.chosen, preference.rejected
                )
            if observation is not None:
                self._observations.add(observation, request.user, answer_id)
            self.recollection.record(request.user, request.conversation, text, answer.text)
        if self._reader is not None:
            self._reader.notify()

    def _follow_states(self, names: Iterable[str]) -> None:
        """Brings the remembered states of these specialists to their adapters of now."""
        spec = self.spec.specialists
        prompts = self.writer.prompts
        self.remembered.follow({name: prompts[name] for name in names if name in spec and spec[name].remembers})


@contextmanager
def open_swarm(folder: SwarmFolder, device: str = "cpu", **options: Any) -> Iterator[Swarm]:
    """A swarm on an engine of its own. options: those of `Engine`."""
    with AsyncEngine(load_models(folder, device), **options) as engine:
        swarm = Swarm(folder, engine)
        try:
            yield swarm
        finally:
            swarm.close()
