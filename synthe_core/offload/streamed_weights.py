"""The weights of some layers, in two buffers: while one layer computes, a thread reads the next one into the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from synthe_core.offload.file_reader import FileReader
from synthe_core.storage.finite import check_finite
from synthe_core.storage.tensor_file import Extent

SLOTS = 2


class StoredTensor(NamedTuple):
    """A tensor's name, where its numbers are on disk, and where they are put in memory."""

    name: str
    extents: list[Extent]
    tensor: Tensor


class StreamedWeights:
    """Layers in the order in which a pass uses them, which begins again after the last one. Layer i is read into buffer
    i modulo SLOTS: its tensors are parts of that.

        with weights.holding(3): ...        # layer 3 is there, and stays

    Any order is right; the usual one is fast, since the next layers are read ahead. One thread at a time holds a layer,
    others wait. Every number is checked to be finite when it is read first.
    """

    def __init__(self, layers: Sequence[Sequence[StoredTensor]], reader: FileReader, source: object) -> None:
        """source: what the weights are of, for messages."""
        self._layers, self._reader, self._source = layers, reader, source
        self._lock = threading.RLock()  # of the thread that holds a layer
        self._changed = threading.Condition()
        self._content: list[int | None] = [None] * SLOTS
        self._next, self._held = 0, False
        self._error: BaseException | None = None
        self._closed = False
        self._checked: set[int] = set()
        self._thread = threading.Thread(target=self._work, name="weights", daemon=True)
        self._thread.start()

    @contextmanager
    def holding(self, layer: int) -> Iterator[None]:
        """Within the block the layer's tensors have their numbers. Raises what reading them has raised."""
        self.acquire(layer)
        try:
            yield
        finally:
            self.release(layer)

    def acquire(self, layer: int) -> None:
        """Waits for the layer. After an error nothing is held."""
        self._lock.acquire()
        try:
            with self._changed:
                self._next, self._held = layer, True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._has(layer) or self._error is not None or self._closed)
                if not self._has(layer):
                    error, self._error = self._error, None
                    self._held = False
                    self._changed.notify_all()
                    raise error or RuntimeError("the weights are closed")
        except BaseException:
            self._lock.release()
            raise

    def release(self, layer: int) -> None:
        """Its buffer may be used for another layer, once that is needed."""
        with self._changed:
            self._held, self._next = False, (layer + 1) % len(self._layers)
            self._changed.notify_all()
        self._lock.release()

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._reader.close()

    def _has(self, layer: int) -> bool:
        return self._content[layer % SLOTS] == layer

    def _wanted(self) -> int | None:
        """The layer to read now: the next ones in order that are not there, as far as there are buffers."""
        if self._error is not None:
            return None
        taken: set[int] = set()
        for ahead in range(min(SLOTS, len(self._layers))):
            layer = (self._next + ahead) % len(self._layers)
            if layer % SLOTS in taken:
                return None
            taken.add(layer % SLOTS)
            if not self._has(layer):
                return layer
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wanted() is not None)
                if self._closed:
                    return
                layer = self._wanted()
                assert layer is not None
                self._content[layer % SLOTS] = None
            try:
                self._read(layer)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._content[layer % SLOTS] = layer
                    self._changed.notify_all()

    def _read(self, layer: int) -> None:
        read_tensors(self._reader, self._layers[layer], self._source, check=layer not in self._checked)
        self._checked.add(layer)


def read_tensors(reader: FileReader, tensors: Sequence[StoredTensor], source: object, *, check: bool) -> None:
    """Reads tensors; check: InputError for one that is not finite."""
    reader.read((each.extents, each.tensor) for each in tensors)
    for each in tensors if check else ():
        check_finite(each.name, each.tensor, source)
