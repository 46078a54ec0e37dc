"""The table of objectives: what training minimises."""

from __future__ import annotations

from synthe_core.registry import Table

OBJECTIVES = Table(
    "objective",
    "synthe.objectives",
    {
        "classification": "synthe_core.training.objectives.classification:Classification",
        "distill": "synthe_core.training.objectives.distill:Distill",
        "document": "synthe_core.training.objectives.document:Document",
        "dpo": "synthe_core.training.objectives.dpo:DPO",
        "kto": "synthe_core.training.objectives.kto:KTO",
        "language_modeling": "synthe_core.training.objectives.language_modeling:LanguageModeling",
        "orpo": "synthe_core.training.objectives.orpo:ORPO",
        "sft": "synthe_core.training.objectives.sft:SFT",
    },
)
