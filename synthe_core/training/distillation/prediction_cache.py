"""A teacher's most likely tokens on disk, so that several runs over a text, or epochs of it, run the teacher once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from synthe_core.errors import InputError
from synthe_core.hardware.probe import cache_dir
from synthe_core.storage.atomic import new_file
from synthe_core.storage.tensor_file import TensorFile, save_tensors
from synthe_core.training.distillation.divergence import Targets

WAIT = 60.0  # seconds for another run that writes the same row


class PredictionCache:
    """Targets by teacher and row of tokens; a row that is stored is never computed again.

    name: of what the predictions depend on besides the tokens: the teacher's digest, temperature, how many tokens, and
    precision. A token takes 8 bytes for each of its k likely successors.
    """

    def __init__(self, digest: str, temperature: float, top_k: int, precision: str) -> None:
        facts = f"{digest} {temperature!r} {top_k} {precision}"
        self.folder = cache_dir() / "distillation" / hashlib.sha256(facts.encode()).hexdigest()[:24]

    def targets(self, rows: Tensor, compute: Callable[[Tensor], Targets]) -> Targets:
        """The targets [B, T, k] of rows of tokens, int64 [B, T]; `compute` gives those of rows that are not stored."""
        stored = [self._read(row) for row in rows]
        missing = [number for number, each in enumerate(stored) if each is None]
        if missing:
            new = compute(rows[missing])
            assert new.ids is not None
            for number, log_p, ids in zip(missing, new.log_p, new.ids, strict=True):
                self._write(rows[number], Targets(log_p, ids))
                stored[number] = Targets(log_p, ids)
        return _stack(stored, rows.device)

    def _path(self, row: Tensor) -> Path:
        name = hashlib.sha256(row.cpu().numpy().tobytes()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _read(self, row: Tensor) -> Targets | None:
        path = self._path(row)
        if not path.is_file():
            return None
        try:
            tensors = TensorFile(path)
            log_p, ids = tensors["log_p"], tensors["ids"].long()
        except (InputError, KeyError, OSError):  # a damaged entry is made again
            return None
        return Targets(log_p, ids) if log_p.shape[0] == row.shape[0] else None

    def _write(self, row: Tensor, targets: Targets) -> None:
        path = self._path(row)
        assert targets.ids is not None
        tensors = {"log_p": targets.log_p.cpu().contiguous(), "ids": targets.ids.int().cpu().contiguous()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path, wait=WAIT) as partial:
            save_tensors(tensors, partial)


def _stack(rows: Sequence[Targets | None], device: torch.device) -> Targets:
    known = [row for row in rows if row is not None]
    log_p = torch.stack([row.log_p.to(device) for row in known])
    return Targets(log_p, torch.stack([row.ids.to(device) for row in known if row.ids is not None]))
