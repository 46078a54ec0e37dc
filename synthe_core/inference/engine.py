"""The engine: one decoder for every text that a model generates. It works in steps, on the thread that calls it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Many
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from synthe_core.errors import InputError
from synthe_core.inference.admission import AdmissionControl
from synthe_core.inference.constraints import Constraint
from synthe_core.inference.fairness import TokenCounters, WaitingQueue
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.metrics import EngineMetrics
from synthe_core.inference.mixture import Mixture
from synthe_core.inference.model_registry import ModelRegistry
from synthe_core.inference.outputs import Finished, FinishReason, OutputCallback
from synthe_core.inference.prefix_cache import PrefixCache
from synthe_core.inference.request import ContextLengthExceeded, Request
from synthe_core.inference.sampler import SamplingState
from synthe_core.inference.scheduler import ModelScheduler
from synthe_core.inference.scheduler_config import SchedulerConfig
from synthe_core.inference.sequence import Sequence, SequenceStatus
from synthe_core.inference.session_store import SessionLimits, SessionStore
from synthe_core.inference.tool_constraint import compile_constraint
from synthe_core.inference.validation import check_request, empty_prompt, one_line
from synthe_core.model.session import Session

CACHE_BYTES = 1 << 30
MAX_COUNTED_TOKENS = 1 << 20  # the state of a longer text is reckoned as that of so many
MAX_WAITING = 256
FAILED = ("error", "refused")


class Engine:
    """Runs requests to `models`. `add_request`, then `step` while `has_unfinished`.

    max_num_seqs:    sequences that run at once; max_waiting: requests that may wait for room.
    max_state_bytes: what the states of all running sequences may take; by default half of the free memory. cache_bytes:
                     cached prefixes in memory; of both no more than a model's `memory_plan` has. cache_disk_bytes: in
                     files of `cache_dir`, by default eight times as many.
    sessions:        the folder of saved conversations, by default memory. session_limits: what an owner may save.
    max_owned:       requests that an owner may have at once, waiting ones included; the owner "" any number.
    saver, post:     where sessions are saved, and how work comes back to the engine's thread; else within the step.
    """

    def __init__(
        self,
        models: Many[LoadedModel],
        *,
        max_num_seqs: int = 64,
        max_waiting: int = MAX_WAITING,
        max_state_bytes: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        cache_dir: Path | None = None,
        cache_disk_bytes: int | None = None,
        sessions: Path | None = None,
        session_limits: SessionLimits | None = None,
        max_owned: int | None = None,
        config: SchedulerConfig | None = None,
        saver: Executor | None = None,
        post: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self.config = config or SchedulerConfig()
        for plan in filter(None, (each.memory_plan for each in models)):
            self.config = self.config.within(plan.prefill_tokens)
            max_state_bytes, cache_bytes = plan.at_most(max_state_bytes, cache_bytes)
        self.registry = ModelRegistry(models)
        self.sessions = SessionStore(sessions, cache_bytes, session_limits)
        self.metrics = EngineMetrics()
        self.prefix_cache = PrefixCache(cache_bytes, cache_dir, cache_disk_bytes)
        self.admission = AdmissionControl(max_num_seqs, max_waiting, max_state_bytes, max_owned, models)
        self.counters = TokenCounters()
        self.waiting = WaitingQueue()
        self.running: dict[Sequence, ModelScheduler] = {}
        self._schedulers: dict[str, ModelScheduler] = {}
        self._num_saving = 0
        self._saver, self._post = saver, post

    def make_sequence(
        self,
        request: Request,
        on_output: OutputCallback,
        *,
        constraint: Constraint | None = None,
        session: Session | None = None,
        keep_state: bool = False,
    ) -> Sequence:
        """A sequence for `add_sequence`; it counts as waiting from now on. May be called by any thread.

        constraint: what the sequence may generate, where the request has no JSON schema and no grammar. session: of one
        row, to continue. keep_state: `sequence.state` is wanted at the end.
        Raises NotFound, InputError for what the model cannot do, Busy if there is no room.
        """
        owner = request.owner
        resolved = self.registry.resolve(request.model, owner)
        check_request(request, resolved.model, session is not None or request.session_id is not None)
        state_bytes = _state_bytes(resolved.model, len(request.prompt_token_ids) + request.max_tokens)
        self.admission.check(state_bytes, owner)
        constraint = compile_constraint(resolved.model.tokenizer, resolved.model.vocab, request) or constraint
        if request.session_id is not None:
            self.sessions.claim(request.session_id, resolved.fingerprints.weights, owner, state_bytes)
        self.admission.enqueue(owner)
        self.metrics.add(owner, requests=1)
        return Sequence(request, on_output, resolved, constraint, session=session, keep_state=keep_state)

    def make_mixture(self, requests: Many[Request], weights: Many[float], on_output: OutputCallback) -> list[Sequence]:
        """Sequences for `add_sequence` that generate one text together, see `Mixture`; `on_output` is of the first.

        Raises InputError where they are not of one model, or more than run at once; and what `make_sequence` raises,
        with none of them made.
        """
        mixture, made = Mixture(weights), list[Sequence]()
        if len(requests) != len(weights) or len({request.max_tokens for request in requests}) != 1:
            raise InputError("a mixture has a weight for each request, and one limit of tokens")
        if len(requests) > self.admission.max_num_seqs:
            raise InputError(f"{len(requests)} requests are mixed, and {self.admission.max_num_seqs} run at once")
        try:
            for request in requests:
                made.append(self.make_sequence(request, on_output if not made else lambda output: False))
            if len({id(each.resolved.model) for each in made}) > 1:
                raise InputError("only requests to one model can be mixed", "they may have different adapters")
        except BaseException:
            for each in made:
                self.admission.dequeue(each.request.owner)
                self.admission.leave(each.request.owner)
            raise
        for each in made:
            each.mixture = mixture
        mixture.members = made
        return made

    def add_sequence(self, sequence: Sequence) -> None:
        """Queues a sequence; it starts with one of the next steps."""
        self.counters.enter(sequence.request.client)
        self.waiting.append(sequence)

    def add_request(self, request: Request, on_output: OutputCallback, **options: Any) -> Sequence:
        """`make_sequence` and `add_sequence`."""
        sequence = self.make_sequence(request, on_output, **options)
        self.add_sequence(sequence)
        return sequence

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence has not ended, one whose session is being saved included."""
        return self.has_work or self._num_saving > 0

    @torch.inference_mode()
    def step(self) -> None:
        """Starts waiting sequences for which there is room, and takes every model's sequences one step further."""
        self._admit()
        for key, scheduler in list(self._schedulers.items()):
            try:
                scheduler.step()
            except Exception as error:
                for sequence in [each for each, owner in self.running.items() if owner is scheduler]:
                    self.finish(sequence, "error", error)
            if not scheduler.sequences:
                del self._schedulers[key]
            self.detach_unused(scheduler.model)

    def finish(self, sequence: Sequence, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends a sequence, whatever it is doing. Every sequence ends here, and once. For an InputError the reason is
        "refused".

        Its session is saved with what was generated; after an error, or if nothing was generated yet, the session
        stays as it was. `Finished` is emitted after that.
        """
        if sequence.finished:
            return
        if isinstance(error, InputError):
            reason = "refused"
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
            self.admission.dequeue(sequence.request.owner)
            sequence.state = None  # it is as its session's file has it
        elif failure := self._remove(sequence, reason):
            reason, error = "error", failure
        self.counters.leave(sequence.request.client)
        sequence.finish_reason, sequence.error = reason, error
        if reason not in FAILED and sequence.request.session_id is not None and sequence.state is not None:
            self._save_session(sequence)
        else:
            self._emit_finished(sequence)
        for member in () if sequence.mixture is None else sequence.mixture.members:
            self.finish(member, reason, error)

    def abort(self, sequence: Sequence) -> None:
        """Ends a sequence that nobody waits for any more."""
        self.finish(sequence, "cancelled")

    def detach_unused(self, model: LoadedModel) -> None:
        """Detaches the adapters of a model that were unloaded and that no sequence uses."""
        resolved = (sequence.resolved for sequence in self.running)
        model.detach_unused(each.adapter for each in resolved if each.model is model and each.adapter is not None)

    def status(self, owner: str = "") -> dict[str, Any]:
        """Figures by name, for people and for Prometheus: of an owner's requests, of all for the owner ""."""
        models = self.registry.models.items()
        live, waiting, state_bytes = self._load(owner)
        return {
            "live": live,
            "waiting": waiting,
            "max_batch": self.admission.max_num_seqs,
            "max_waiting": self.admission.max_waiting,
            **self.metrics.of(owner).snapshot(),
            "exact": all(model.batch_invariant for _, model in models),
            "speculation": {name: model.speculation.summary for name, model in models if model.speculation is not None},
            "state_bytes_per_sequence": {name: model.state_bytes(MAX_COUNTED_TOKENS) for name, model in models},
            "state_bytes": state_bytes,
            "state_bytes_limit": self.admission.max_state_bytes,
            "sessions": len(self.sessions.list(owner)) if owner else self.sessions.count(),
            "cache": self.prefix_cache.stats(owner),
        }

    def _load(self, owner: str) -> tuple[int, int, int]:
        """How many sequences run and wait, and the bytes of their states: an owner's, or all."""
        admission = self.admission
        if not owner:
            return admission.num_running, admission.num_waiting + admission.num_paused, admission.state_bytes
        own = [each for each in list(self.running) if each.request.owner == owner]
        paused = sum(each.status is SequenceStatus.PAUSED for each in own)
        state_bytes = sum(each.state_bytes for each in own)
        return len(own) - paused, admission.num_waiting_of(owner) + paused, state_bytes

    def _admit(self) -> None:
        """Starts waiting sequences as long as there is room: those of the clients that have least at work, and among
        these of the client that got least; of one client in their order."""
        while self.waiting:
            at_work = Counter(each.request.client for each in self.running if each.status is not SequenceStatus.PAUSED)
            sequence = self.waiting.first(at_work, self.counters)
            group = [sequence] if sequence.mixture is None else sequence.mixture.members
            is_paused = sequence.status is SequenceStatus.PAUSED
            try:
                for each in group:
                    if not each.token_ids:
                        self._prepare(each)
                if not is_paused and not self.admission.has_memory(sum(each.state_bytes for each in group)):
                    return
                if not self.admission.has_slots(len(group)) and not self._make_room(sequence, at_work):
                    return
            except Exception as error:
                self.finish(sequence, "error", error)
                continue
            for each in group:
                self._begin(each, is_paused)

    def _begin(self, sequence: Sequence, is_paused: bool) -> None:
        """Starts a waiting sequence for which there is room."""
        if sequence.finished:  # another of its mixture has failed
            return
        self.waiting.remove(sequence)
        self.running[sequence] = scheduler = self._scheduler(sequence.resolved.model)
        if is_paused:
            self.admission.resume()
            scheduler.resume(sequence)
        else:
            self.admission.acquire(sequence.state_bytes, sequence.request.owner)
            sequence.admitted_at = time.monotonic()
            scheduler.add(sequence)

    def _make_room(self, sequence: Sequence, at_work: Counter[str]) -> bool:
        """Pauses a sequence of the client that has most at work, if that is at least two more than the client of
        `sequence` has: its newest one."""
        client, most = at_work.most_common(1)[0]
        if most < at_work[sequence.request.client] + 2 or sequence.mixture is not None:
            return False
        candidates = (
            each
            for each in reversed(self.running)
            if each.request.client == client and each.status is not SequenceStatus.PAUSED and each.mixture is None
        )
        if (newest := next(candidates, None)) is None:
            return False
        self.running[newest].pause(newest)
        self.admission.pause()
        self.waiting.push_front(newest)
        return True

    def _prepare(self, sequence: Sequence) -> None:
        """Loads the sequence's session, and sets up what it reads and how it samples."""
        request, model, session = sequence.request, sequence.resolved.model, sequence.session
        if request.session_id is not None:
            with model.activate(sequence.resolved.adapter):
                session = self.sessions.open(request.session_id, model.model, request.owner)
        tokens = list(request.prompt_token_ids)
        if session is not None:
            sequence.state, sequence.num_past_tokens = session.state, int(session.state.position[0])
            tokens.insert(0, int(session.pending[0]))
        if not tokens:
            raise empty_prompt()
        length = sequence.num_past_tokens + len(tokens) + request.max_tokens
        if model.max_length is not None and length > model.max_length:
            raise ContextLengthExceeded(
                f"with what the session has read that is more than the model's {model.max_length} tokens"
            )
        sequence.sampling = SamplingState.create(
            request.sampling, request.seed, model.vocab, tokens, model.device, sequence.constraint
        )
        if request.min_tokens:
            ends = () if request.ignore_eos else model.end_token_ids
            sequence.sampling.postpone_end(request.min_tokens, (*ends, *request.stop_token_ids), model.vocab)
        sequence.state_bytes = _state_bytes(model, length)
        sequence.token_ids = tokens

    def _scheduler(self, model: LoadedModel) -> ModelScheduler:
        if model.name not in self._schedulers:
            self._schedulers[model.name] = ModelScheduler(
                model, self.config, self.prefix_cache, self.metrics, self.counters, self.finish
            )
        return self._schedulers[model.name]

    def _remove(self, sequence: Sequence, reason: FinishReason) -> Exception | None:
        """Takes a running sequence out of its scheduler; returns what went wrong, if anything."""
        scheduler, failure = self.running.pop(sequence), None
        if sequence.status is SequenceStatus.PAUSED:
            self.waiting.remove(sequence)
            self.admission.resume()
        keep_state = reason not in FAILED and (sequence.keep_state or sequence.request.session_id is not None)
        try:
            scheduler.remove(sequence, keep_state)
        except Exception as error:
            failure = error
        if not keep_state or failure:
            sequence.state = None
        self.admission.release(sequence.state_bytes, time.monotonic() - sequence.admitted_at)
        self.metrics.add(sequence.request.owner, cached_tokens=sequence.num_cached_tokens)
        return failure

    def _save_session(self, sequence: Sequence) -> None:
        """Saves the session, and then emits `Finished`."""
        session = Session(sequence.state, torch.tensor([sequence.last_token_id]))
        sequence.status = SequenceStatus.SAVING
        self._num_saving += 1
        save = partial(self._write_session, sequence, session)
        if self._saver is None or self._post is None:
            self._after_saving(sequence, save())
        else:
            post = self._post
            self._saver.submit(lambda: post(partial(self._after_saving, sequence, save())))

    def _write_session(self, sequence: Sequence, session: Session) -> Exception | None:
        """Returns what went wrong, if anything."""
        request, fingerprints = sequence.request, sequence.resolved.fingerprints
        assert request.session_id is not None
        try:
            with torch.inference_mode():
                weights, shape = fingerprints.weights, fingerprints.shape
                self.sessions.save(request.session_id, request.model, weights, shape, session, request.owner)
        except Exception as error:
            return error
        return None

    def _after_saving(self, sequence: Sequence, failure: Exception | None) -> None:
        self._num_saving -= 1
        if failure is not None:
            sequence.finish_reason, sequence.error = "error", failure
        self._emit_finished(sequence)

    def _emit_finished(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.FINISHED
        assert sequence.finish_reason is not None
        if sequence.request.session_id is not None:
            self.sessions.release(sequence.request.session_id, sequence.request.owner)
        self.admission.leave(sequence.request.owner)
        self.metrics.add(sequence.request.owner, failed=sequence.finish_reason == "error")
        finished = Finished(
            sequence.finish_reason,
            "",
            sequence.num_prompt_tokens or len(sequence.request.prompt_token_ids),
            sequence.num_cached_tokens,
            len(sequence.output_token_ids),
            "" if sequence.error is None else one_line(sequence.error),
            getattr(sequence.error, "code", None),
            sequence.num_drafted_tokens,
            sequence.num_accepted_tokens,
        )
        try:
            sequence.emit(finished)
        except Exception:  # nobody is left to be told
            self.metrics.add(sequence.request.owner, failed=sequence.finish_reason != "error")


def _state_bytes(model: LoadedModel, length: int) -> int:
    return model.state_bytes(min(length, MAX_COUNTED_TOKENS))
