"""What a model that has read the passage predicts at every token of an answer, computed once for all answers."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from synthe_core import state as states
from synthe_core.data.chat_template import with_template
from synthe_core.data.conversations.prepare import Reader
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Progress
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.storage.atomic import new_file
from synthe_core.storage.tensor_file import TensorFile
from synthe_core.training.distillation.divergence import Targets, targets_of
from synthe_core.training.documents.prompts import with_document

LONGEST = 1 << 40
PROGRESS_SECONDS = 0.2
CHUNK = 256
"""Places whose logits are in memory at once."""


class Answer(NamedTuple):
    """One example: what the student is trained on, and the teacher's tokens before the same answer.

    key: of the student's row. prompt: with the passage. answer: the tokens that are predicted.
    """

    key: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    passage: int


class TeacherTable:
    """The teacher's predictions at the tokens of answers: log p and ids [N, k], and where each row's are."""

    def __init__(self, keys: Tensor, ends: Tensor, targets: Targets) -> None:
        begins = [0, *ends.tolist()[:-1]]
        self._rows = dict(zip(keys.tolist(), zip(begins, ends.tolist(), strict=True), strict=True))
        self._targets = targets
        self.tensors = {"keys": keys, "ends": ends, "log_p": targets.log_p, "ids": _ids(targets)}

    @classmethod
    def read(cls, path: Path) -> TeacherTable:
        file = TensorFile(path)
        return cls(file["keys"], file["ends"], Targets(file["log_p"], file["ids"]))

    def save(self, path: Path) -> None:
        with new_file(path, wait=60) as partial:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, partial)

    def batch(self, inputs: Tensor, targets: Tensor, lengths: Tensor) -> Targets:
        """log p and ids [B, T, k] at the targets of a batch; 0 elsewhere. InputError for a row that it has not."""
        shape = (*inputs.shape, self._targets.log_p.shape[-1])
        log_p, ids = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
        for row, length in enumerate(lengths.tolist()):
            key = row_key(inputs[row, :length], targets[row, :length])
            if key not in self._rows:
                raise InputError(
                    "a row is not of the document's material",
                    "leave out data.sources, and let data.validation be a fraction",
                )
            part, where = slice(*self._rows[key]), targets[row] != IGNORED
            log_p[row, where] = self._targets.log_p[part]
            ids[row, where] = _ids(self._targets)[part].long()
        return Targets(log_p, ids)


def read_answers(path: Path, tokenizer: Tokenizer) -> list[Answer]:
    """The examples in a file of material, each once, those of a passage together."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    templated = with_template(tokenizer)
    students = _tokens(path, tokenizer, [line["messages"] for line in lines])
    teachers = _tokens(
        path, tokenizer, [with_document(templated, line["document"], line["messages"]) for line in lines]
    )
    rows: dict[int, Answer] = {}
    for line, (ids, trained), (before, of_answer) in zip(lines, students, teachers, strict=True):
        key = row_key(ids[:-1], torch.where(trained[1:], ids[1:], IGNORED))
        prompt = before[: int(of_answer.nonzero()[0])]
        rows.setdefault(key, Answer(key, tuple(prompt.tolist()), tuple(ids[trained].tolist()), line["passage"]))
    return list(rows.values())


def row_key(inputs: Tensor, targets: Tensor) -> int:
    """A hash of a row without its padding, both int64 [T]."""
    content = inputs.cpu().numpy().tobytes() + targets.cpu().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def teacher_table(model: Any, answers: Sequence[Answer], rows: int, top_k: int) -> Generator[Event, None, TeacherTable]:
    """The predictions of `model` as it is at every token of the answers, its `top_k` likeliest tokens of each.

    The tokens that the prompts of a passage share are read once; `rows` answers are read at a time.
    """
    done, started, shown = 0, time.monotonic(), time.monotonic()
    parts: list[Targets] = []
    for _, group in groupby(answers, key=lambda each: each.passage):
        members = list(group)
        shared = [] if isinstance(model.spec, PublishedSpec) else _common_prefix([each.prompt for each in members])
        state = _state_after(model, shared)
        for first in range(0, len(members), rows):
            part = members[first : first + rows]
            parts += _read(model, part, len(shared), state, top_k)
            done += len(part)
            if (now := time.monotonic()) - shown > PROGRESS_SECONDS:
                shown = now
                yield Progress(
                    "the teacher reads", done, len(answers), "answers", (now - started) * (len(answers) / done - 1)
                )
    targets = Targets(torch.cat([each.log_p for each in parts]), torch.cat([_ids(each) for each in parts]))
    ends = torch.tensor([len(each.answer) for each in answers]).cumsum(0)
    return TeacherTable(torch.tensor([each.key for each in answers]), ends, targets)


@torch.no_grad()
def _state_after(model: Any, tokens: Sequence[int]) -> Any:
    if not tokens:
        return None
    return model.hidden(torch.tensor([tokens], device=model.embedding.weight.device))[1]


@torch.no_grad()
def _read(model: Any, answers: Sequence[Answer], read: int, state: Any, top_k: int) -> list[Targets]:
    """The predictions for each answer, after `read` tokens of its prompt that `state` has seen."""
    device = model.embedding.weight.device
    texts = [[*each.prompt[read:], *each.answer[:-1]] for each in answers]
    lengths = torch.tensor([len(each) for each in texts])
    tokens = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    index = torch.zeros(len(texts), dtype=torch.int64, device=device)
    before = None if state is None else states.take(state, index)
    hidden = model.hidden(tokens.to(device), before, lengths.to(device))[0]
    result = []
    for row, (each, text) in enumerate(zip(answers, texts, strict=True)):
        places = hidden[row, len(text) - len(each.answer) : len(text)]
        predicted = [targets_of(model.head(part).float(), top_k=top_k) for part in places.split(CHUNK)]
        log_p = torch.cat([part.log_p for part in predicted]).float().cpu()
        ids = torch.cat([_ids(part) for part in predicted]).int().cpu()
        result.append(Targets(log_p, ids))
    return result


def _ids(targets: Targets) -> Tensor:
    """The tokens of predictions; all of them in order where they are of every token."""
    if targets.ids is not None:
        return targets.ids
    return torch.arange(targets.log_p.shape[-1]).expand(targets.log_p.shape)


def _common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with; a token of each is left."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*(each[:-1] for each in prompts), strict=False))
    return [column[0] for column in columns]


def _tokens(path: Path, tokenizer: Tokenizer, conversations: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """The tokens of each conversation, int64 [T], and which are trained on, bool [T], as training reads them."""
    reader = Reader("conversations", tokenizer, LONGEST)
    result = []
    for made in reader.read([(f"{path}:{n}", {"messages": each}) for n, each in enumerate(conversations, 1)]):
        if isinstance(made, InputError):
            raise made
        text = made[0].texts[0]
        result.append((torch.as_tensor(text.ids).long(), torch.as_tensor(text.trained).bool()))
    return result
