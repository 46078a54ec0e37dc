"""Writes answers: requests to the specialists that were chosen, their drafts, and one answer made of these."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from synthe_core.errors import InputError, unknown
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import NotFound, Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.swarm.confidence import mean_signals
from synthe_core.swarm.events import Draft
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.generation import Generated, Generation
from synthe_core.swarm.models import BASE, SpecialistModels
from synthe_core.swarm.prompting import Message, PromptWriter, system_text
from synthe_core.swarm.recollection import Recollection
from synthe_core.swarm.record import Record
from synthe_core.swarm.remembered_states import RememberedStates, check_length, prefix_alignment
from synthe_core.swarm.remote.chat import RemoteChat, RemoteModel
from synthe_core.swarm.request import SwarmRequest
from synthe_core.swarm.router.decision import Decision
from synthe_core.swarm.spec import SpecialistSpec, SwarmSpec
from synthe_core.swarm.synthesis.best import best
from synthe_core.swarm.synthesis.drafting import Assignment, Run, Writing, single
from synthe_core.swarm.synthesis.drafting import Judge as DraftJudge
from synthe_core.swarm.synthesis.fuse import SEPARATOR, fuse
from synthe_core.swarm.synthesis.tutor import tutored
from synthe_core.swarm.synthesis.write import write

METHODS = ("best", "write", "fuse")


class AnswerWriter:
    """Writes the answers of one swarm, for any number of threads.

    spec: as the swarm has it now. prompts, tutors: what writes each specialist's prompts, and those on other servers.
    """

    def __init__(
        self,
        folder: SwarmFolder,
        engine: AsyncEngine,
        running: SpecialistModels,
        remembered: RememberedStates,
        record: Record,
        recollection: Recollection,
    ) -> None:
        self.folder, self.engine, self.running, self.remembered = folder, engine, running, remembered
        self.record, self.recollection = record, recollection
        self.spec: SwarmSpec = folder.spec
        self.prompts: dict[str, PromptWriter] = {BASE: self._prompt_writer(BASE, None)}
        self.tutors: dict[str, RemoteModel] = {}

    def add(self, specialists: Mapping[str, SpecialistSpec]) -> None:
        """Prepares to write for these specialists, or for none of them. InputError for documents that cannot be read,
        or are too long."""
        tutors = {name: RemoteModel.of(name, each) for name, each in specialists.items() if each.url is not None}
        self.prompts |= {name: self._prompt_writer(name, each) for name, each in specialists.items()}
        self.tutors |= tutors

    def served(self, name: str) -> LoadedModel:
        """The model that a specialist runs on."""
        return self.engine.find(self.running.names[name])[0]

    def write(self, request: SwarmRequest, text: str, decision: Decision, facts: str) -> Writing:
        """The answer of those who were chosen."""
        estimates = {each.name: each.probability for each in decision.candidates}

        def judge(name: str, generated: Generated) -> Draft:
            return self._draft(name, generated, decision.domain, estimates.get(name, 0.5), request.user)

        def run(requests: Sequence[Request], weights: Sequence[float] | None = None) -> Generation:
            try:
                return Generation(self.engine, requests, request.cancellation, weights)
            except NotFound:  # an adapter was rolled back to none since the requests were made
                renewed = [self.running.renewed(each) for each in requests]
                return Generation(self.engine, renewed, request.cancellation, weights)

        if (tutor := self.tutors.get(decision.answering[0])) is not None:
            return (yield from self._write_tutored(request, decision, facts, tutor, run, judge))
        assignments = [Assignment(n, self._request(n, request, request.messages, facts)) for n in decision.answering]
        if len(assignments) == 1:
            return (yield from single(run, assignments[0], judge))
        method = request.synthesis or self.spec.synthesis.type
        if method == "best":
            return (yield from best(run, assignments, judge))
        if method == "write":

            def writer(message: str) -> Request:
                return self._request(BASE, request, [{"role": "user", "content": message}], "")

            return (yield from write(run, assignments, judge, text, writer))
        if method == "fuse":
            weights = [estimates.get(each.specialist, 0.5) for each in assignments]
            return (yield from fuse(run, assignments, judge, weights))
        raise unknown("synthesis", method, METHODS)

    def _write_tutored(
        self, request: SwarmRequest, decision: Decision, facts: str, tutor: RemoteModel, run: Run, judge: DraftJudge
    ) -> Writing:
        """The answer of a specialist on another server. It reads the conversation, and nothing that is known of the
        user."""
        name = decision.answering[0]
        local = decision.candidates[0].name if decision.candidates else BASE
        system = self.spec.specialists[name].prompt.strip()
        messages = [{"role": "system", "content": system}] if system else []
        messages += [dict(each) for each in request.messages]
        max_tokens = request.max_tokens or self.spec.answers.max_tokens
        temperature = request.sampling.get("temperature", self.spec.answers.temperature)
        assignment = Assignment(local, self._request(local, request, request.messages, facts))
        remote = RemoteChat(tutor, messages, max_tokens, temperature, self.spec.remote)
        request.cancellation.watch(remote)

        def judge_remote(chat: RemoteChat) -> Draft:
            record = self.record.records.of(name, decision.domain).mean
            contradictions = tuple(self.recollection.check(request.user, chat.text))
            reason = "stop" if chat.reason == "stop" else "length"
            return Draft(name, chat.text, reason, record, {}, contradictions=contradictions)

        return (yield from tutored(run, assignment, judge, name, remote, judge_remote, request.stream))

    def _request(self, name: str, request: SwarmRequest, messages: Sequence[Message], facts: str) -> Request:
        """A specialist's request to the engine."""
        prompt, served = self.prompts[name](messages, facts), self.served(name)
        given = dict(request.sampling)
        if self.spec.answers.temperature is not None:
            given.setdefault("temperature", self.spec.answers.temperature)
        return Request(
            self.running.names[name],
            prompt.token_ids,
            max_tokens=served.fitting(request.max_tokens or self.spec.answers.max_tokens, len(prompt.token_ids)),
            sampling=_sampling(served, given),
            stop=prompt.stop,
            seed=secrets.randbits(32) if request.seed is None else request.seed,
            cache_breakpoints=(prompt.shared,) if prompt.shared else (),
            client=request.client,
            owner=request.owner,
        )

    def _draft(self, name: str, generated: Generated, domain: str, estimate: float, user: str) -> Draft:
        """What a specialist has generated, with its confidence and what it contradicts."""
        end = generated.end
        assert end is not None
        means = mean_signals(generated.logprobs, generated.confidences)
        confidence, signals = self.record.confidence_of(name, domain, estimate, means)
        return Draft(
            name,
            generated.text,
            end.reason,
            confidence,
            signals._asdict(),
            end.num_prompt_tokens,
            generated.num_cached_tokens,
            end.num_output_tokens,
            end.message,
            tuple(self.recollection.check(user, generated.text)),
            dict(zip(name.split(SEPARATOR), generated.weights, strict=False)),
            self.remembered.tokens_of(name, generated.num_cached_tokens),
        )

    def _prompt_writer(self, name: str, spec: SpecialistSpec | None) -> PromptWriter:
        served, system = self.served(name if name in self.running.names else BASE), ""
        if spec is not None:
            system = system_text(name, spec, {each: self.folder.resolve(each) for each in spec.documents})
        alignment = prefix_alignment(self.engine, served)
        writer = PromptWriter(served.tokenizer, system, alignment, served.max_length)
        check_length(name, writer, served.name, served.max_length)
        return writer


def _sampling(served: LoadedModel, given: Mapping[str, Any]) -> SamplingParams:
    try:
        return served.defaults.apply(given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise InputError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}") from None
