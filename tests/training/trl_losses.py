"""The losses and gradients of TRL's trainers and of our objectives on the same batches, as JSON lines.

python -m tests.training.trl_losses FOLDER, in an environment with TRL. Each line has the loss of both; of the model
that transformers runs, the largest difference of a gradient's entry; and of the imported model, that of the embedding's
gradient, and the norms of both.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from synthe_core.data.conversations.example_batches import GOOD
from synthe_core.data.stream import Batch
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.interop.huggingface.transformers_model import TransformersModel
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.objective_table import OBJECTIVES
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.objectives.objective import ObjectiveContext, ObjectiveSetup

WORDS, ROWS = 40, 4
DPO = {
    "sigmoid": ({"loss_type": ["sigmoid"]}, {}),
    "normalized": ({"loss_type": ["sigmoid_norm"], "beta": 2.0}, {"length_normalized": True, "beta": 2.0}),
    "ipo": ({"loss_type": ["ipo"]}, {"loss_type": "ipo"}),
    "robust": (
        {"loss_type": ["robust"], "label_smoothing": 0.2},
        {"loss_type": "robust", "label_smoothing": 0.2},
    ),
}


def tokenizer() -> Any:
    vocabulary = {f"w{number}": number for number in range(WORDS)} | {"<eos>": WORDS, "<unk>": WORDS + 1}
    words = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=WORDS + 2, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def text(generator: torch.Generator, length: int) -> str:
    return "".join(f" w{number}" for number in torch.randint(WORDS, (length,), generator=generator))


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [(4, 3, 9), (7, 12, 2), (1, 5, 6), (9, 2, 14)]
    names = ("prompt", "chosen", "rejected")
    return [{n: text(generator, size) for n, size in zip(names, each, strict=True)} for each in lengths]


def trainer_of(kind: Any, config: Any, data: list[dict[str, Any]], folder: Path, **keys: Any) -> Any:
    reference, policy = (transformers.LlamaForCausalLM.from_pretrained(folder / name) for name in ("start", "now"))
    arguments = config(
        output_dir=str(folder / "out"), per_device_train_batch_size=ROWS, report_to=[], use_cpu=True, bf16=False,
        max_length=None, gradient_checkpointing=False, **keys,
    )  # fmt: skip
    given = {"ref_model": reference} if kind in (DPOTrainer, KTOTrainer) else {}
    return kind(
        policy, args=arguments, train_dataset=datasets.Dataset.from_list(data), processing_class=tokenizer(), **given
    )


def batch_of(ids: Tensor, real: Tensor, answer: Tensor, group: int, good: Tensor | None = None) -> Batch:
    """Texts [B, T] of which `real` are no padding and `answer` are scored."""
    targets = torch.where(answer.bool(), ids, IGNORED)[:, 1:].contiguous()
    lengths = real.sum(1) - 1
    extras = {GOOD: torch.ones(len(ids), dtype=torch.bool) if good is None else good.bool()}
    return Batch(ids[:, :-1].contiguous(), targets, lengths, group, extras)


def interleaved(tensor: Tensor) -> Tensor:
    """Chosen rows, then rejected ones, as pairs."""
    return torch.stack(tensor.chunk(2), 1).flatten(0, 1)


def ours(name: str, keys: dict[str, Any], batch: Batch, folder: Path) -> list[tuple[float, dict[str, Tensor]]]:
    """Loss and gradients of the model that transformers runs, and of the imported one."""
    inner = [transformers.LlamaForCausalLM.from_pretrained(folder / each) for each in ("start", "now")]
    imported = [Checkpoint.open(folder / each).model() for each in ("start", "now")]
    results = []
    for start, now in ((TransformersModel(inner[0]), TransformersModel(inner[1])), imported):
        objective = OBJECTIVES[name](OBJECTIVES[name].Config(**keys))
        context = ExecutionContext(torch.device("cpu"))
        setup = ObjectiveSetup(start, ByteTokenizer(), context, len(batch.inputs), batch.inputs.shape[1])
        list(objective.begin(setup))
        with torch.no_grad():
            if hasattr(objective, "reference"):
                objective.reference.logprobs(start, batch)
            for parameter, value in zip(start.parameters(), now.parameters(), strict=True):
                parameter.copy_(value)
        start.requires_grad_(True)
        loss = objective(start, objective.prepare(start, batch), ObjectiveContext())
        mean = loss.total / objective.count(batch)
        mean.backward()
        results.append((float(mean.detach()), {n: p.grad for n, p in start.named_parameters() if p.grad is not None}))
    return results


def compare(case: str, trainer: Any, loss: Tensor, name: str, keys: dict[str, Any], batch: Batch, folder: Path) -> None:
    trainer.model.zero_grad()
    loss.backward()
    theirs = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    (same, gradients), (imported, fused) = ours(name, keys, batch, folder)
    norm, own = (sum(float(g.double().square().sum()) for g in all_.values()) ** 0.5 for all_ in (theirs, fused))
    embedding = theirs["model.embed_tokens.weight"] - fused["embedding.weight"]
    line = {
        "case": case,
        "trl": float(loss.detach()),
        "transformers": same,
        "imported": imported,
        "largest": max(float(g.abs().max()) for g in theirs.values()),
        "gradient": max(float((g - gradients[n]).abs().max()) for n, g in theirs.items()),
        "parameters": [len(theirs), len(gradients)],
        "embedding": float(embedding.abs().max()),
        "norms": [norm, own],
    }
    print(json.dumps(line), file=sys.__stdout__, flush=True)


def main(folder: Path) -> None:
    llama(0).save_pretrained(folder / "start")
    model = llama(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "now")
    for name in ("start", "now"):
        tokenizer().save_pretrained(folder / name)

    trainer = trainer_of(
        SFTTrainer, SFTConfig, [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows()], folder
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    real, answer = inputs["attention_mask"], inputs["labels"] != IGNORED
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    compare("sft", trainer, loss, "sft", {}, batch_of(inputs["input_ids"], real, answer, 1), folder)

    for case, (theirs, keys) in DPO.items():
        trainer = trainer_of(DPOTrainer, DPOConfig, rows(), folder, **theirs)
        inputs = next(iter(trainer.get_train_dataloader()))
        parts = (interleaved(inputs[n]) for n in ("input_ids", "attention_mask", "completion_mask"))
        loss = trainer.compute_loss(trainer.model, dict(inputs))
        compare(f"dpo {case}", trainer, loss, "dpo", keys, batch_of(*parts, 2), folder)

    ratings = [
        {"prompt": r["prompt"], "completion": r["chosen" if n % 2 else "rejected"], "label": bool(n % 2)}
        for n, r in enumerate(rows())
    ]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer = trainer_of(KTOTrainer, KTOConfig, ratings, folder, train_sampling_strategy="sequential", **weights)
    inputs = next(iter(trainer.get_train_dataloader()))
    batch = batch_of(
        inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"], 1, torch.as_tensor(inputs["label"])
    )
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    compare("kto", trainer, loss, "kto", weights, batch, folder)

    trainer = trainer_of(ORPOTrainer, ORPOConfig, rows(), folder)
    inputs = next(iter(trainer.get_train_dataloader()))
    width = max(inputs[f"{side}_input_ids"].shape[1] for side in ("chosen", "rejected"))
    parts = []
    for name, padding in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED)):
        sides = [inputs[f"{side}_{name}"] for side in ("chosen", "rejected")]
        wide = [torch.nn.functional.pad(each, (0, width - each.shape[1]), value=padding) for each in sides]
        parts.append(interleaved(torch.cat(wide)))
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, dict(inputs))
    batch = batch_of(parts[0], parts[1], parts[2] != IGNORED, 2)
    compare("orpo", trainer, loss, "orpo", {"nll": "text"}, batch, folder)


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):  # trainers print what they log
        main(Path(sys.argv[1]))
