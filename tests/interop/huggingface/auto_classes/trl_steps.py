"""Two steps of TRL's SFTTrainer and DPOTrainer on a checkpoint of ours, whole and with LoRA, as a program.

    python -m tests.interop.huggingface.auto_classes.trl_steps CHECKPOINT FOLDER

Nothing here names synthe: the auto classes know its checkpoints. Prints a JSON object for each trainer.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

TEXT = "the river runs to the sea"
OPTIONS = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "logging_steps": 1}
OPTIONS |= {"save_strategy": "no", "max_length": 64, "bf16": False, "learning_rate": 1e-3}


def steps(trainer: Any) -> dict[str, Any]:
    """Trains, and returns the loss of every step, and how many of the trained parameters have moved."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    moved = sum(not torch.equal(after[name], value) for name, value in before.items())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "trained": len(before), "moved": moved}


def main(checkpoint: str, out: str) -> None:
    data = {
        "sft": Dataset.from_dict({"text": [TEXT] * 8}),
        "dpo": Dataset.from_dict({"prompt": ["1 + 1 = "] * 8, "chosen": ["2"] * 8, "rejected": ["3"] * 8}),
    }
    trainers: dict[str, Any] = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}
    for kind, (trainer, config) in trainers.items():
        for lora in (False, True):
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
            tuned = trainer(
                model=AutoModelForCausalLM.from_pretrained(checkpoint),
                args=config(output_dir=out, **OPTIONS),
                train_dataset=data[kind],
                processing_class=tokenizer,
                peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
            )
            text = tokenizer(TEXT + tokenizer.eos_token, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                loss = float(tuned.model.eval()(text, labels=text).loss)
            result = {"kind": kind, "lora": lora, "loss": loss, **steps(tuned)}
            print(json.dumps(result), flush=True)
            tuned.save_model(f"{out}/{kind}-{lora}")


if __name__ == "__main__":
    main(*sys.argv[1:])
