"""What a model of transformers must show on a few tokens before it runs here: pieces and batches change nothing."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.interop.huggingface.invariant_modules import ForeignCalls, angles_depend_on_batch
from synthe_core.interop.huggingface.pretrained import library, quiet
from synthe_core.model.language_model import ModelState
from synthe_core.ops.linear import products_are_batch_invariant

OTHERS = "synthe import hf lists the architectures that our learners have; others run if transformers gives their cache"
TRIAL = 11  # tokens of a text of the trial
CUTS = (5, 9, 10)  # where the longer text is cut into pieces; the other has begun with one token


class Reading(NamedTuple):
    """What one pass of a model may read. pieces: several tokens that continue a text; else they are read one by one.
    batches: several rows; else each is read alone."""

    pieces: bool = True
    batches: bool = True


class TrialModel(Protocol):
    """What a trial uses of a model (see `transformers_model.TransformersModel`)."""

    inner: Any
    name: str
    vocab: int
    embedding: Any
    reading: Reading

    @property
    def dtype(self) -> torch.dtype: ...
    def __call__(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ModelState]: ...
    def next_logits(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ModelState]: ...


READINGS = (Reading(), Reading(pieces=False), Reading(batches=False), Reading(pieces=False, batches=False))
TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}  # of the standard deviation of its logits; 0.2 in narrower types


class FailedTrial(InputError):
    """A model whose logits depend on how its texts are read."""


def check(model: TrialModel) -> None:
    """Sets the model's `reading` to the first with which its logits are those of transformers without a cache, whether
    a text is read in pieces, in a batch with a shorter one, or both. FailedTrial for a model with none."""
    tensors = _module_tensors(model.inner)
    reasons = []
    for reading in READINGS:
        model.reading = reading
        try:
            with quiet(library(model.name)):
                difference, spread = _difference(model)
        except Exception as error:  # an architecture may raise anything for these arguments
            reasons.append(" ".join(str(error).split())[:200])
            continue
        if difference <= TOLERANCE.get(model.dtype, 0.2) * spread:
            return
        reasons.append(f"its logits differ by {difference:.2g} if texts are read in pieces")
    after = _module_tensors(model.inner)
    changed = [name for name, tensor in after.items() if tensors.get(name) is not tensor]
    where = f": it keeps {changed[0]} on a module" if changed else ""
    raise FailedTrial(f"{model.name} cannot run: {reasons[0]}{where}", OTHERS)


@torch.inference_mode()
def is_batch_invariant(model: TrialModel) -> bool:
    """Whether a row's numbers do not depend on the other rows, in the active context. The model calls no product or
    activation that may not be batch-invariant, and a short row has the same bits alone and beside longer ones."""
    if angles_depend_on_batch(model.inner) or not products_are_batch_invariant(model.dtype):
        return False
    text = _trial(model, 3 * TRIAL).view(3, TRIAL)
    lengths = torch.tensor([TRIAL, 3, TRIAL // 2], device=text.device)
    try:
        with ForeignCalls() as calls:
            together = _read_and_continue(model, text, lengths)
        alone = _read_and_continue(model, text[1:2], lengths[1:2])
    except Exception:  # an architecture may pass what the primitives do not take; transformers' own functions do
        return False
    return not calls.names and torch.equal(alone[0], together[1])


@torch.inference_mode()
def _difference(model: TrialModel) -> tuple[float, float]:
    """The largest difference of logits between texts read at once by transformers, without a cache, and in pieces of
    several tokens and of one, in a batch whose other text has begun later; and the standard deviation of the logits."""
    text = _trial(model, TRIAL)
    both = torch.cat([text, text.flip(1)])
    first, last = CUTS[0], CUTS[-1]
    whole = [text, torch.cat([both[1:, :1], both[1:, first:]], 1)]
    expected = [model.inner(input_ids=each, use_cache=False).logits[0].float() for each in whole]
    logits, state = model(both[:, :first], lengths=torch.tensor([first, 1], device=text.device))
    pieces = [[logits[0]], [logits[1, :1]]]
    for begin, end in zip(CUTS, [*CUTS[1:], TRIAL], strict=True):
        before = states.map_leaves(Tensor.clone, state) if begin == last else state
        logits, after = model(both[:, begin:end], state)
        pieces = [[*row, new] for row, new in zip(pieces, logits, strict=True)]
        if begin == last and not _same(state, before):
            raise InputError("a pass writes to the state that it is given")
        state = after
    read = [torch.cat(row).float() for row in pieces]
    worst = max(float((one - other).abs().max()) for one, other in zip(read, expected, strict=True))
    return worst, float(expected[0].std())


def _same(one: ModelState, other: ModelState) -> bool:
    leaves = zip(states.named_leaves(one), states.named_leaves(other), strict=True)
    return all(torch.equal(left, right) for (_, left), (_, right) in leaves)


def _read_and_continue(model: TrialModel, text: Tensor, lengths: Tensor) -> Tensor:
    """Logits [B, 2, V] after the first `lengths` [B] tokens of `text` [B, T], and after another one."""
    first, state = model.next_logits(text, lengths=lengths)
    second, _ = model.next_logits(text[:, :1], state)
    return torch.stack([first, second], 1)


def _module_tensors(inner: nn.Module) -> dict[str, Tensor]:
    """Tensors that are attributes of modules, and neither parameters nor buffers."""
    return {
        f"{name}.{attribute}": value
        for name, module in inner.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def _trial(model: TrialModel, length: int) -> Tensor:
    tokens = torch.randint(model.vocab, (1, length), generator=torch.Generator().manual_seed(0))
    return tokens.to(model.embedding.weight.device)
