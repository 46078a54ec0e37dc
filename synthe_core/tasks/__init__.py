"""Synthetic tasks: does a learner recall, copy, track? A table like the learners'."""

from __future__ import annotations

from synthe_core.registry import Table

TASKS = Table(
    "task",
    "synthe.tasks",
    {
        "compositional": "synthe_core.tasks.compositional:Compositional",
        "copying": "synthe_core.tasks.copying:Copying",
        "discourse": "synthe_core.tasks.discourse:Discourse",
        "forgetting": "synthe_core.tasks.forgetting:Forgetting",
        "induction": "synthe_core.tasks.induction:Induction",
        "listops": "synthe_core.tasks.listops:ListOps",
        "memory-copy": "synthe_core.tasks.memory_copy:MemoryCopy",
        "modular-arithmetic": "synthe_core.tasks.modular_arithmetic:ModularArithmetic",
        "mqar": "synthe_core.tasks.mqar:MQAR",
        "mqar-stacked": "synthe_core.tasks.mqar_stacked:StackedMQAR",
        "needle": "synthe_core.tasks.needle:Needle",
        "palindrome": "synthe_core.tasks.palindrome:Palindrome",
        "parity": "synthe_core.tasks.parity:Parity",
        "passkey": "synthe_core.tasks.passkey:Passkey",
        "recall-overwrite": "synthe_core.tasks.recall_overwrite:RecallOverwrite",
        "selective-copying": "synthe_core.tasks.selective_copying:SelectiveCopying",
        "stack": "synthe_core.tasks.stack:Stack",
        "state-tracking": "synthe_core.tasks.state_tracking:StateTracking",
    },
)
