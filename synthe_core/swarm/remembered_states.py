"""Remembered states: what a specialist's system prompt and documents leave in the model, read once and stored in a
file.

adapters/NAME/state.safetensors is a session (see `synthe_core.model.session`) after the tokens that all prompts of the
specialist begin with. Its metadata identify the model, the adapter's version and the text; a file of others is remade.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from synthe_core import state as states
from synthe_core.errors import InputError, SyntheError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.model_registry import ResolvedModel
from synthe_core.inference.prefix_cache import CachedState
from synthe_core.model.session import Session, tensors_digest, write_session
from synthe_core.storage.tensor_file import TensorFile
from synthe_core.swarm.prompting import PromptWriter

FILE = "state.safetensors"
WEIGHTS, TEXT, DIGEST = "weights", "text", "digest"
"""Metadata of the file: the fingerprint of model and adapter, the digests of the tokens and of the file's tensors."""

SLACK, SLACK_BYTES = 2, 1 << 20
"""A state is refused that takes so many times the bytes that it should, and so many more: passes pad windows."""


@dataclass(frozen=True)
class RememberedState:
    """weights, text: as in the file's metadata. tokens: how many it has read. bytes: of the state. was_read: whether
    the text was read for it now, and not by an earlier process or on another machine."""

    weights: str
    text: str
    tokens: int
    bytes: int
    was_read: bool


def state_path(folder: Path, name: str) -> Path:
    """The file of a specialist's remembered state in the swarm's `folder`."""
    return folder / "adapters" / name / FILE


def prefix_alignment(engine: AsyncEngine, model: LoadedModel) -> int:
    """Where a prompt of the model may be cut, so that its answer has the bits of one that is read in one piece."""
    config = engine.engine.config
    return config.aligned(model.alignment(config.chunk_size)).alignment


class RememberedStates:
    """The states of specialists, pinned in the engine's cache: every request of theirs begins from there.

    folder: of the swarm. models: the engine's name of each specialist. For any thread.
    """

    def __init__(self, folder: Path, engine: AsyncEngine, models: Mapping[str, str]) -> None:
        self._folder, self._engine, self._models = folder, engine, models
        self._states = dict[str, RememberedState]()
        self._lock = threading.Lock()

    def get(self, name: str) -> RememberedState | None:
        """The state that a specialist's requests begin from now."""
        return self._states.get(name)

    def tokens_of(self, name: str, num_cached_tokens: int) -> int:
        """How many tokens of its remembered state a request did not read, of which so many were cached in all."""
        state = self._states.get(name)
        return 0 if state is None or num_cached_tokens < state.tokens else state.tokens

    def follow(self, writers: Mapping[str, PromptWriter]) -> list[str]:
        """Brings the states of these specialists to their model, adapter and text of now; returns whose have changed.

        A state of others is dropped first: until the new one is there, requests read the text. After an error, which
        is raised when all were looked at, a specialist has no remembered state.
        """
        changed, failure = [], None
        with self._lock:
            for name, writer in writers.items():
                try:
                    if self._follow(name, writer):
                        changed.append(name)
                except SyntheError as error:
                    failure = error
        if failure is not None:
            raise failure
        return changed

    def forget(self, names: Iterable[str]) -> None:
        """Drops the states of these specialists; the files stay."""
        for name in names:
            self._states.pop(name, None)
            self._engine.call(partial(self._engine.prefix_cache.unpin, name)).result()

    def _follow(self, name: str, writer: PromptWriter) -> bool:
        resolved = self._engine.registry.resolve(self._models[name])
        weights, text = _weights(resolved), _digest(writer)
        state = self._states.get(name)
        if not writer.prefix or (state is not None and (state.weights, state.text) == (weights, text)):
            return False
        if state is not None:
            self.forget([name])
        path = state_path(self._folder, name)
        was_read = not self._pin(name, resolved, writer, path)
        if was_read:
            assert writer.pending is not None
            session = self._engine.read(self._models[name], (*writer.prefix, writer.pending))
            if self._engine.registry.resolve(self._models[name]).fingerprints != resolved.fingerprints:
                return False  # the adapter was swapped meanwhile: the next look reads with that
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = states.to_tensors(session.state, "state") | {"pending": session.pending}
            keys = {WEIGHTS: weights, TEXT: text, DIGEST: tensors_digest(tensors)}
            write_session(path, tensors, {"model": resolved.fingerprints.shape, **keys})
            if not self._pin(name, resolved, writer, path):
                raise InputError(f"{path} was changed while it was written", "one program at a time writes there")
        size = sum(entry.end - entry.begin for entry in TensorFile(path).entries.values())
        self._states[name] = RememberedState(weights, text, len(writer.prefix), size, was_read)
        return True

    def _pin(self, name: str, resolved: ResolvedModel, writer: PromptWriter, path: Path) -> bool:
        """Pins the state in a file, memory-mapped; False for a file that is not there, damaged, or of other weights or
        another text."""

        def pin() -> bool:
            try:
                file = TensorFile(path)
                if (file.metadata.get(WEIGHTS), file.metadata.get(TEXT)) != (_weights(resolved), _digest(writer)):
                    return False
                if file.metadata.get(DIGEST) != tensors_digest(file):
                    return False
                with resolved.model.activate(resolved.adapter):
                    session = Session.of(file, resolved.model.model)
            except InputError:
                return False
            if session.pending.tolist() != [writer.pending] or not _has_read(session, writer, resolved.model):
                return False
            cached = CachedState(resolved.fingerprints.weights, writer.prefix, session.state, resumable=True)
            self._engine.prefix_cache.pin(name, cached)
            return True

        return path.is_file() and self._engine.call(pin).result()


def check_length(name: str, writer: PromptWriter, model: str, most: int | None) -> None:
    """InputError if prompt and documents leave no room for a request in a model that reads `most` tokens."""
    length = len(writer.prefix)
    if most is not None and length + 2 > most:
        message = f"{name} cannot read its prompt and documents: {length:,} tokens, and {model} reads {most:,}"
        raise InputError(message, "give it a part of them, or train an adapter on them: synthe train --document")


def _has_read(session: Session, writer: PromptWriter, model: LoadedModel) -> bool:
    """Whether the state is that of one row after the prefix, and no larger than such a one."""
    length = len(writer.prefix)
    most = SLACK * model.state_bytes(length) + SLACK_BYTES
    return session.state.position.tolist() == [length] and states.nbytes(session.state) <= most


def _weights(resolved: ResolvedModel) -> str:
    """What identifies the numbers of a state: model, adapter, format of the matrices, device and precision."""
    context = resolved.model.context
    return f"{resolved.fingerprints.weights} {resolved.model.device.type} {context.precision}"


def _digest(writer: PromptWriter) -> str:
    tokens = np.array((*writer.prefix, -1 if writer.pending is None else writer.pending), dtype="<i8")
    return hashlib.sha256(tokens.tobytes()).hexdigest()
