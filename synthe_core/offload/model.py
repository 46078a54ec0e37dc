"""Building a model of which a part of the layers is in memory; the others are read from their files in each pass.

A layer here is a learner of a block. Of it the matrices of linear maps are read that have MIN_BYTES or more, for the
time in which it is called. What else it has may be used at other times, for a first state for example, and stays; so do
matrices that several learners share, norms and router. Of an embedding that is not the head's matrix the rows of a
pass' tokens are read. The head stays as long as there is room for it; else it is read in slices, as more layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from synthe_core.model.language_model import LanguageModel
from synthe_core.model.quantized_model import quantizable_matrices, set_matrix
from synthe_core.offload.converted_weights import ConvertedWeights, convert, converted_path, open_converted
from synthe_core.offload.file_reader import FileReader, is_readable
from synthe_core.offload.layout import Layout, Source, aligned, layouts_of
from synthe_core.offload.pass_times import PassTimes
from synthe_core.offload.plan import TEXTS, MemoryNeeds, MemoryPlan, choose_layout
from synthe_core.offload.stored_matrix import RowReader
from synthe_core.offload.streamed_weights import SLOTS, StoredTensor, StreamedWeights, read_tensors
from synthe_core.ops.cross_entropy import CHUNK_BYTES
from synthe_core.quantization.matrix import QuantizedMatrix
from synthe_core.quantization.sliced import SlicedMatrix
from synthe_core.storage.checkpoint import Checkpoint, weights
from synthe_core.storage.checkpoint.quantized import check_stored, packed_matrix, replace_tensor, set_tensor
from synthe_core.storage.checkpoint.sources import extents_of
from synthe_core.storage.checkpoint.weights import check_names, check_shape
from synthe_core.storage.finite import check_finite

MIN_BYTES = 1 << 20
"""Smaller tensors stay in memory: reading them apart would cost more than they take."""
PROBE = 1 << 29
"""Bytes that are read once more to measure how fast that is."""
LOGITS_ROWS, LOGITS_COPIES = 16, 3


class Offload(NamedTuple):
    """What of a model is read in each pass. layers: of each learner, in order, the number of its streamed layer, None
    for one that stays in memory. read_bytes: what a pass reads. converted: the file with weights in another form than
    the checkpoint's, if there is one. times: of decoding passes."""

    plan: MemoryPlan
    layers: list[int | None]
    streamed: StreamedWeights | None
    read_bytes: int
    bytes_per_second: float
    converted: Path | None
    times: PassTimes
    summary: str = ""

    def holding(self, learner: int) -> AbstractContextManager[None]:
        """Within the block the learner of this number has its weights."""
        return Holder(self.streamed, self.layers)(learner)

    def spans(self, learners: slice) -> Iterator[slice]:
        """Learners in runs that can be computed without reading in between."""
        first = learners.start
        for number in range(learners.start, learners.stop):
            if self.layers[number] is not None:
                if first < number:
                    yield slice(first, number)
                yield slice(number, number + 1)
                first = number + 1
        if first < learners.stop:
            yield slice(first, learners.stop)


def offloaded_model(
    checkpoint: Checkpoint, format: str | None, memory: int, texts: int = TEXTS, min_bytes: int = MIN_BYTES
) -> LanguageModel:
    """The language model of a checkpoint within `memory` bytes of this process, on the CPU. format: of its matrices, as
    in `Checkpoint.model`; texts: how many there may be at once. Its `offload` says what is where. InputError if so much
    memory is not enough."""
    model = checkpoint.empty_model()
    groups = _Groups(model)
    sources = _sources(model, groups, checkpoint, format, min_bytes)
    sizes = [sum(each.nbytes for each in sources if each.group == number) for number in range(groups.count)]
    getattr(checkpoint.tensors, "release", lambda: None)()  # pages of a mapped file would count as the process'
    process, fixed = psutil.Process().memory_info().rss, sum(each.nbytes for each in sources if each.group is None)
    needs = MemoryNeeds(process, fixed, sizes, *_pass_needs(model))
    layouts = layouts_of(model, sources, sizes)
    without = [replace(needs, fixed=fixed - each.nbytes, layers=sizes + each.slice_bytes) for each in layouts]
    number, plan = choose_layout(memory, [needs, *without], texts)
    layout = layouts[number - 1] if number else Layout([], None, [])
    model.offload = _load(model, sources, plan, groups.count, checkpoint.path, layout)
    return model


class _Groups:
    """Which learner each tensor of a model belongs to: its number, or None for what stays."""

    def __init__(self, model: LanguageModel) -> None:
        places = [(b, i) for b, block in enumerate(model.blocks) for i in range(len(block.learners))]  # type: ignore[arg-type]
        prefixes = {f"blocks.{b}.learners.{i}.": number for number, (b, i) in enumerate(places)}
        maps = {id(each._parameters.get("weight")) for each in model.modules() if isinstance(each, nn.Linear)}
        self.count = len(prefixes)
        self.of: dict[str, int | None] = {}
        first: dict[int, str] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            number = prefixes.get(".".join(name.split(".")[:4]) + ".") if id(tensor) in maps else None
            known = first.setdefault(id(tensor), name)
            self.of[known] = number if known == name or self.of[known] == number else None


def _sources(
    model: LanguageModel, groups: _Groups, checkpoint: Checkpoint, format: str | None, min_bytes: int
) -> list[Source]:
    """What is read from files into given places. Small tensors are loaded right away."""
    tensors: Any = checkpoint.tensors
    path = checkpoint.path
    state = model.state_dict(keep_vars=True)
    own = {name: state[name] for name in weights(model)}
    check_names(own, tensors, path)
    matrices = {} if format is None else quantizable_matrices(model)
    direct: dict[str, list[Any]] = {}
    for name, tensor in own.items():
        check_shape(name, tensor, tuple(tensors.shape(name)), path)
        if name in matrices:
            continue
        extents = extents_of(tensors, name)
        if tensor.nbytes < min_bytes or tensor.dtype != torch.float32:
            set_tensor(model, name, check_finite(name, tensors[name], path))
        elif extents is not None and is_readable(extents, torch.float32):
            direct[name] = extents
    others = [
        name
        for name, each in own.items()
        if name in matrices or (name not in direct and each.dtype == torch.float32 and each.nbytes >= min_bytes)
    ]
    converted = _converted(checkpoint, format, others, matrices)
    made = []
    for name, tensor in own.items():
        if name in direct:
            made.append(Source(name, tensor, groups.of[name], aligned(tensor.nbytes), direct[name], None))
        elif converted is not None and name in others:
            nbytes = sum(aligned(each.nbytes) for each in converted.all_extents(name))
            made.append(Source(name, tensor, groups.of[name], nbytes, None, converted))
    return made


def _converted(
    checkpoint: Checkpoint, format: str | None, names: Sequence[str], matrices: Mapping[str, Tensor]
) -> ConvertedWeights | None:
    """The tensors that a checkpoint has in another form, from the cache; they are written there if they are not."""
    if not names:
        return None
    path = converted_path(checkpoint.weights_digest, format)
    if (made := open_converted(path, names)) is not None:
        return made
    tensors = checkpoint.tensors
    release = getattr(tensors, "release", lambda: None)

    def value(name: str) -> Tensor | QuantizedMatrix:
        release()
        if name in matrices:
            assert format is not None
            return packed_matrix(tensors, name, checkpoint.path, format)
        return check_finite(name, tensors[name], checkpoint.path)

    made = convert(path, names, value)
    release()
    if format is not None and not made.matrices:
        check_stored(format, {"float32"}, checkpoint.path)
    return made


def _load(
    model: LanguageModel, sources: Iterable[Source], plan: MemoryPlan, count: int, path: Path, layout: Layout
) -> Offload:
    buffers = [torch.empty(size, dtype=torch.uint8) for size in plan.slots]
    total = count + len(layout.slices)
    layers = [number - plan.resident if number >= plan.resident else None for number in range(total)]
    streamed: list[list[StoredTensor]] = [[] for layer in layers if layer is not None]
    resident: list[StoredTensor] = []
    arenas = [_Arena(buffers[layer % len(buffers)]) for layer in range(len(streamed))]
    converted = None

    def place_of(group: int | None) -> tuple[Any, list[StoredTensor]]:
        layer = None if group is None else layers[group]
        return (torch.empty, resident) if layer is None else (arenas[layer].take, streamed[layer])

    for each in sources:
        if each.converted is not None:
            converted = each.converted.file.path
        if layout.stored(each.name) is None:
            place, into = place_of(each.group)
            into += _placed(model, each, place)
    slices: list[QuantizedMatrix] = []
    for number, span in enumerate(layout.slices):
        place, into = place_of(count + number)
        assert layout.head is not None
        matrix, tensors = layout.head.placed([span], place)
        slices.append(matrix)
        into += tensors
    reader = FileReader()
    read_tensors(reader, resident, path, check=True)
    streaming, speed = None, 0.0
    if streamed:
        streaming = StreamedWeights(streamed, reader, path)
        speed = _measured(streaming, streamed, reader)
        _attach(model, streaming, layers[:count])
        weakref.finalize(model, streaming.close)
    _place_sliced(model, sources, layout, slices, Holder(streaming, layers[count:]), path)
    read = sum(extent.nbytes for layer in streamed for each in layer for extent in each.extents)
    return Offload(plan, layers[:count], streaming, read, speed, converted, PassTimes())


@dataclass(frozen=True)
class Holder:
    """`holder(number)`: within the block the streamed layer of this number in `layers`, if it is one, is in memory."""

    streamed: StreamedWeights | None
    layers: Sequence[int | None]

    def __call__(self, number: int) -> AbstractContextManager[None]:
        layer = self.layers[number]
        return nullcontext() if layer is None or self.streamed is None else self.streamed.holding(layer)


def _place_sliced(
    model: LanguageModel,
    sources: Iterable[Source],
    layout: Layout,
    slices: list[QuantizedMatrix],
    holding: Holder,
    path: Path,
) -> None:
    """Gives a model the matrices that are not in memory."""
    for each in sources:
        if (stored := layout.stored(each.name)) is not None:
            rows = RowReader(stored, path)
            weakref.finalize(model, rows.close)
            own = slices if stored is layout.head else []
            set_matrix(model, each.parameter, SlicedMatrix(stored.shape, own, holding.__call__, rows, stored.format))


def _measured(streaming: StreamedWeights, layers: Sequence[Sequence[StoredTensor]], reader: FileReader) -> float:
    """Bytes a second of reading, over about PROBE bytes of some layers. The buffers are filled before that: the first
    use of memory takes time of its own."""
    for layer in range(min(SLOTS, len(layers))):
        with streaming.holding(layer):
            pass
    begun, seconds = reader.nbytes, reader.seconds
    for layer in range(SLOTS, len(layers)):
        if reader.nbytes - begun > PROBE:
            break
        with streaming.holding(layer):
            pass
    if reader.nbytes == begun:
        return reader.nbytes / max(reader.seconds, 1e-9)
    return (reader.nbytes - begun) / max(reader.seconds - seconds, 1e-9)


def _placed(model: LanguageModel, source: Source, place: Any) -> list[StoredTensor]:
    """Gives a tensor or a matrix of the model its memory; what is read into that."""
    if source.converted is not None and source.name in source.converted.matrices:
        made: list[StoredTensor] = []
        converted = source.converted

        def put(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
            tensor = place(shape, dtype=dtype)
            made.append(StoredTensor(name, converted.extents(name), tensor))
            return tensor

        set_matrix(model, source.parameter, converted.packed(source.name, put))
        return made
    tensor = place(tuple(source.parameter.shape), dtype=torch.float32)
    replace_tensor(model, source.parameter, tensor)
    extents = source.extents if source.converted is None else source.converted.extents(source.name)
    assert extents is not None
    return [StoredTensor(source.name, extents, tensor)]


def _attach(model: LanguageModel, streaming: StreamedWeights, layers: Sequence[int | None]) -> None:
    """Has every learner wait for its weights when it is called, and give them up afterwards, after an error too."""
    for learner, layer in zip(model.learners, layers, strict=True):
        if layer is not None:
            held: list[int] = []  # by the one thread that may hold a layer

            def before(module: nn.Module, inputs: Any, layer: int = layer, held: list[int] = held) -> None:
                streaming.acquire(layer)
                held.append(layer)

            def after(module: nn.Module, inputs: Any, output: Any, layer: int = layer, held: list[int] = held) -> None:
                if held:  # not where `before` has raised
                    held.pop()
                    streaming.release(layer)

            learner.register_forward_pre_hook(before)
            learner.register_forward_hook(after, always_call=True)


class _Arena:
    """Tensors in a buffer, one after the other."""

    def __init__(self, buffer: Tensor) -> None:
        self._buffer, self._end = buffer, 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        first, self._end = self._end, self._end + aligned(nbytes)
        return self._buffer[first : first + nbytes].view(dtype).view(shape)


def _pass_needs(model: LanguageModel) -> tuple[Callable[[int], int], int, int]:
    """A text's state by its length, and what a pass needs for each token and once: about the outputs of a layer's maps,
    twice, with a few vectors of the stream; and logits, of some rows or of a chunk, with what is made of them."""
    widest = 0
    for learner in model.learners:
        maps = [each for each in learner.modules() if isinstance(each, nn.Linear)]
        widest = max(widest, sum(each.out_features + each.in_features for each in maps))
    token = 4 * (8 * model.spec.width + 2 * widest)
    return model.state_bytes, token, LOGITS_COPIES * max(CHUNK_BYTES, 4 * LOGITS_ROWS * model.vocab)
