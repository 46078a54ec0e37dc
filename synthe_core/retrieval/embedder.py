"""Turning texts into vectors whose cosine says how much they are about the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthe_core.errors import InputError
from synthe_core.storage.json_reader import read_json

if TYPE_CHECKING:
    from synthe_core.inference.loaded_model import LoadedModel

MAX_TOKENS = 512
"""Tokens of a text that are embedded; the rest is left out."""
BATCH = 16
LANGUAGE_MODEL_WEIGHT = 0.1
"""Of a language model's vectors beside words: more makes results worse (docs/results/retrieval.md)."""
MODULES = "modules.json"
"""The file by which a folder of a `sentence` model is known (sentence-transformers)."""


@dataclass(frozen=True)
class Embedder:
    """name: what identifies the vectors, such as a digest of weights: vectors of different names are not compared.

    embed: float32 [N, D], a row for each text. centered: whether vectors need to be standardised before they are
    compared: a few dimensions of a language model's hidden state are large for every text. weight: how much their order
    counts beside that of words where both are fused.
    """

    name: str
    embed: Callable[[Sequence[str]], np.ndarray]
    centered: bool
    weight: float = 1.0


def open_embedder(model: str) -> Embedder:
    """The embedder of a model: a folder of sentence-transformers, or any language model that synthe reads.

    InputError for what is neither.
    """
    folder = Path(model)
    if (folder / MODULES).is_file():
        return sentence_embedder(folder)
    from synthe_core.interop.load import load_model

    return language_model_embedder(load_model(folder, weights="auto"))


def language_model_embedder(model: LoadedModel) -> Embedder:
    """Mean over a text's tokens of the last hidden state."""
    tokenizer = model.tokenizer
    most = MAX_TOKENS if model.max_length is None else min(MAX_TOKENS, model.max_length)

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = [tokenizer.encode(text)[:most] or [tokenizer.end] for text in texts]
        return np.concatenate([_pooled(model, tokens[first : first + BATCH]) for first in range(0, len(tokens), BATCH)])

    return Embedder(f"{model.digest}:mean:{most}", embed, centered=True, weight=LANGUAGE_MODEL_WEIGHT)


def _pooled(model: LoadedModel, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """float32 [N, D]: what the engine reports of texts that are read together."""
    from synthe_core.inference.offline import offline_engine
    from synthe_core.inference.outputs import Output, PooledOutput
    from synthe_core.inference.request import Request

    rows: dict[int, np.ndarray] = {}

    def receiver(row: int) -> Callable[[Output], bool]:
        def receive(output: Output) -> bool:
            if isinstance(output, PooledOutput):
                rows[row] = output.hidden.float().cpu().numpy()
            return False

        return receive

    engine = offline_engine(model, len(texts))
    requests = [Request(model.name, tuple(each), max_tokens=0, pooling=True) for each in texts]
    sequences = [engine.add_request(request, receiver(row)) for row, request in enumerate(requests)]
    while engine.has_unfinished:
        engine.step()
    if errors := [sequence.error for sequence in sequences if sequence.error is not None]:
        raise errors[0]
    return np.stack([rows[row] for row in range(len(texts))])


def sentence_embedder(folder: Path) -> Embedder:
    """A model in the layout of sentence-transformers: an encoder that transformers runs, pooled as its folder says.

    Read are `modules.json`, `1_Pooling/config.json` (mean or first token) and `sentence_bert_config.json`. InputError
    for other modules, such as a dense layer, and without transformers.
    """
    pooling, normalize, most = _layout(folder)
    from synthe_core.interop.huggingface.pretrained import errors_of, library

    transformers = library(folder)
    with errors_of(folder):
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.concatenate(
            [_encoded(model, tokenizer, texts[first : first + BATCH], pooling, normalize, most)
             for first in range(0, len(texts), BATCH)]
        )  # fmt: skip

    return Embedder(f"{_digest(folder)}:{pooling}:{most}", embed, centered=False)


def _layout(folder: Path) -> tuple[str, bool, int]:
    """(pooling, whether vectors have length 1, the largest number of tokens) of a folder of sentence-transformers."""
    try:
        kinds = [str(each["type"]).rpartition(".")[2] for each in json.loads((folder / MODULES).read_bytes())]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{folder / MODULES} is damaged", "download the model again") from None
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        named = ", ".join(kinds)
        raise InputError(f"{folder} has the modules {named}", "only Transformer, Pooling and Normalize are known")
    config = read_json(folder / "1_Pooling" / "config.json")
    modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in names:
        raise InputError(f"{folder} pools by {', '.join(modes) or 'nothing'}", "mean or the first token are known")
    limits = folder / "sentence_bert_config.json"
    most = read_json(limits).get("max_seq_length") if limits.is_file() else None
    return names[modes[0]], "Normalize" in kinds, int(most or MAX_TOKENS)


def _encoded(model: Any, tokenizer: Any, texts: Sequence[str], pooling: str, normalize: bool, most: int) -> np.ndarray:
    import torch

    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.float()
    if pooling == "cls":
        rows = hidden[:, 0]
    else:
        mask = batch["attention_mask"].unsqueeze(-1).float()
        rows = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1e-9)
    return (torch.nn.functional.normalize(rows, dim=-1) if normalize else rows).numpy()


def _digest(folder: Path) -> str:
    """SHA-256 of the weights and the files that say how they are used."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("1_Pooling/*.json")]):
        digest.update(json.dumps([path.name, path.stat().st_size]).encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:32]
