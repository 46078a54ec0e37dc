"""A tiny recipe for sweeps."""

from __future__ import annotations

from pathlib import Path

RECIPE = """\
name: small
model: {width: 16, blocks: 1, block: [{type: delta, heads: 2}, mlp]}
data: {sources: texts, sequence: 16}
train: {budget: 4steps, batch: 2, micro_batch: 2, validations: 1, validation_tokens: 64}
runtime: {device: cpu, precision: float32}
"""


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def write_texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    for i in range(30):
        (folder / "texts" / f"{i}.txt").write_text(f"{i} times {i} is {i * i}\n" * 10)
