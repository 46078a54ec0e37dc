"""The verb `learn`: approved pairs of each specialist, through training and the promotion gate, to a new version."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from threading import Event as Stop
from typing import Any

from synthe_core.errors import InputError, Interrupted, SyntheError
from synthe_core.events import Event, Notice, Result
from synthe_core.storage.claim import claim
from synthe_core.swarm.feedback.pairs import Pairs
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.gate import Gate
from synthe_core.swarm.learning.learned_pairs import LearnedPairs
from synthe_core.swarm.learning.plan import new_pairs, plan_of
from synthe_core.swarm.learning.promotion import FAILED, PROMOTED, REFUSED, Promotions
from synthe_core.swarm.learning.state import LearningState
from synthe_core.swarm.learning.training import HELD_OUT, LearningRun, gate_data
from synthe_core.swarm.opening import open_store, pair_limits
from synthe_core.swarm.store import Store

CLAIM, LEARNING = "learning", "learning in"


def learn(
    folder: SwarmFolder, *, specialist: str | None = None, now: bool = False, stop: Stop | None = None
) -> Iterator[Event]:
    """Every specialist that has enough approved pairs learns from them; the last event is a Result with what came of
    each.

    specialist: only this one. now: however few pairs there are. stop: once set, training saves and Interrupted is
    raised; the next call continues there.

    InputError for a specialist that there is not, Busy while another process learns in this swarm. What fails for one
    specialist is raised at the end.
    """
    names = list(folder.spec.specialists) if specialist is None else [specialist]
    for name in names:
        if folder.specialist(name).url is not None and specialist is not None:
            raise InputError(f"{name} is on another server, and learns nothing here", "name another specialist")
    names = [name for name in names if folder.specialist(name).url is None]
    with ExitStack() as stack:
        stack.enter_context(claim(folder.path / CLAIM, LEARNING))
        store = open_store(folder)
        stack.callback(store.close)
        learner = Learner(folder, store, stop or Stop())
        stack.callback(learner.state.end)
        learner.promotions.recover()
        outcomes, failure = list[dict[str, Any]](), None
        for name in names:
            count, enough = len(new_pairs(learner.pairs, name)), folder.spec.learning.min_pairs
            if count and (now or count >= enough):
                try:
                    for event in learner.learn(name):
                        learner.state.show(event)
                        yield event
                    outcomes.append(learner.outcome)
                except Interrupted:
                    raise
                except SyntheError as error:  # the others learn all the same
                    failure = failure or error
            elif count or specialist is not None:
                yield Notice(f"{name} has {count} of {enough} approved pairs that are enough to learn from")
        yield Result({"outcomes": outcomes}, folder.path)
        if failure is not None:
            raise failure


class Learner:
    """Learns for one specialist after another. outcome: what came of the last."""

    def __init__(self, folder: SwarmFolder, store: Store, stop: Stop) -> None:
        self.folder, self._stop = folder, stop
        self.pairs = Pairs(store, pair_limits(folder))
        self.learned = LearnedPairs(store, self.pairs)
        self.promotions = Promotions(folder, self.learned)
        self.state = LearningState(folder)
        self.outcome: dict[str, Any] = {}

    def learn(self, name: str) -> Iterator[Event]:
        """Trains, measures, and promotes or refuses. A failure is a line of the ledger, and raised."""
        spec, versions = self.folder.spec, self.folder.versions(name)
        plan = plan_of(name, versions.current, self.pairs, self.learned, spec.learning, spec.promotion)
        run = LearningRun(self.folder, plan)
        for other in run.path.parent.glob("*"):
            if other != run.path:
                shutil.rmtree(other, ignore_errors=True)  # of pairs or settings that are no longer the same
        self.state.begin(name)
        parts = f"{len(plan.trained)} new, {len(plan.replayed)} earlier, {len(plan.held_out)} held out"
        yield Notice(f"{name} learns from {len(plan.trained) + len(plan.replayed)} pairs: {parts}")
        try:
            yield from self._learn(run)
        except Interrupted:
            raise
        except SyntheError as error:
            self.folder.record(FAILED, name, parent=plan.start, why=[error.message])
            run.discard()
            raise
        run.discard()

    def _learn(self, run: LearningRun) -> Generator[Event, None, None]:
        plan, folder = run.plan, self.folder
        trained = yield from run.train(self.pairs, self._stop)
        gate = Gate(run.base, gate_data(run.recipe), folder.spec.promotion, self._stop)
        origin, before = folder.specialist(plan.specialist).adapter, folder.adapter(plan.specialist)
        origin_path = None if origin is None else folder.path / folder.resolve(origin)
        figures = yield from gate.measure(
            origin_path, before, trained.path, run.path / HELD_OUT, run.earlier, folder.resolve
        )
        faults, facts = figures.faults(folder.spec.promotion), figures.json()
        self.outcome = {"specialist": plan.specialist, "event": REFUSED if faults else PROMOTED, "figures": facts}
        if faults:
            self.promotions.refuse(plan, trained.digest, facts, faults)
            self.outcome["why"] = faults
            yield Notice(f"{plan.specialist} stays as it is: {'; '.join(faults)}", "warning")
            return
        version = self.promotions.promote(plan, trained.path, run.base, facts)
        self.outcome |= {"adapter": version.adapter, "digest": version.digest, "parent": version.parent}
        yield Notice(f"{plan.specialist} answers with {version.adapter} from now on")


def roll_back(folder: SwarmFolder, name: str) -> dict[str, Any]:
    """Makes the version before the current one current again; returns what is current then.

    InputError where nothing was learned, Busy while another process learns in this swarm.
    """
    folder.specialist(name)
    if not folder.has_database:
        raise InputError(f"{name} has learned nothing that could be rolled back", "see: synthe swarm history SWARM")
    with claim(folder.path / CLAIM, LEARNING):
        store = open_store(folder)
        try:
            pairs = Pairs(store, pair_limits(folder))
            promotions = Promotions(folder, LearnedPairs(store, pairs))
            promotions.recover()
            adapter = promotions.roll_back(name)
        finally:
            store.close()
    return {"specialist": name, "adapter": adapter, "digest": folder.versions(name).digest(adapter)}
