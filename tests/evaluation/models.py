"""Small checkpoints of random weights, and small tasks in the harness's own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from synthe_core.data.tokenizers import ByteTokenizer, Tokenizer
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe
from synthe_core.storage import checkpoint as checkpoints
from synthe_core.storage.manifest import Manifest

ATTENTION: list[Any] = [{"type": "attention", "heads": 2}, {"type": "mlp", "hidden": 48}]
DELTA: list[Any] = [{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 32}]


def saved(
    folder: Path,
    block: list[Any] = DELTA,
    tokenizer: Tokenizer | None = None,
    *,
    sequence: int = 64,
    vocab: int | None = None,
    **model: Any,
) -> Path:
    """A checkpoint whose every parameter is away from its initial value."""
    tokenizer = tokenizer or ByteTokenizer()
    values = {"model": {"width": 32, "blocks": 2, "block": block} | model, "data": {"sequence": sequence}}
    recipe = Recipe.model_validate({"name": folder.name, **values})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LanguageModel(recipe.model, vocab or tokenizer.vocab_size)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoints.save(
        folder,
        recipe=recipe,
        vocab=made.vocab,
        tensors=checkpoints.weights(made),
        manifest=Manifest(parameters=made.parameter_count()),
        tokenizer=tokenizer,
    )
    return folder


def task(folder: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> Path:
    """A task over rows of JSON."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **config,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def choices(folder: Path, name: str = "rivers", count: int = 6) -> Path:
    """Multiple choice: which word goes on."""
    rows = [
        {
            "question": f"the river runs to the {n}",
            "options": [" sea", " hills that remember", " stone", " rain"],
            "gold": n % 4,
        }
        for n in range(count)
    ]
    return task(
        folder,
        name,
        rows,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{options}}",
        doc_to_target="gold",
        target_delimiter="",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )


def rolling(folder: Path, name: str = "texts") -> Path:
    """Whole texts, shorter and longer than what the models are trained on."""
    rows = [{"text": "the river runs to the sea and comes again as rain " * n} for n in (1, 2, 3)]
    metrics = [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}]
    return task(
        folder,
        name,
        rows,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=metrics,
    )


def written(folder: Path, name: str = "writing", **settings: Any) -> Path:
    """Free text up to a stop string."""
    rows = [{"text": "the river runs to the", "answer": "sea"}, {"text": "rain on the", "answer": "hills"}]
    return task(
        folder,
        name,
        rows,
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="answer",
        generation_kwargs={"until": ["."], "max_gen_toks": 8, **settings},
        metric_list=[{"metric": "exact_match"}],
    )
