"""`--speculate` as a proposer of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synthe_core.errors import InputError, unknown

if TYPE_CHECKING:
    from synthe_core.inference.loaded_model import LoadedModel
    from synthe_core.inference.speculation.proposer import Proposer

INEXACT = (
    "passes of several tokens round otherwise than those of one: where two tokens are almost equally likely, the text "
    "may go on with the other"
)
KINDS = ("ngram", "draft", "early-exit")


@dataclass(frozen=True)
class SpeculationSettings:
    """kind: one of KINDS. model: what drafts, as it was named. blocks: of an early exit, None for its default."""

    kind: str
    model: str = ""
    blocks: int | None = None

    @classmethod
    def parse(cls, text: str) -> SpeculationSettings:
        """`ngram`, `draft=MODEL`, `early-exit` or `early-exit=BLOCKS`. InputError for anything else."""
        kind, equals, value = text.partition("=")
        kind = kind.replace("_", "-")
        if kind not in KINDS:
            raise unknown("way to speculate", kind, KINDS)
        if kind == "ngram" and equals:
            raise InputError(f"--speculate {text}: ngram has no setting", "write --speculate ngram")
        if kind == "draft":
            if not value:
                raise InputError(f"--speculate {text}: no model named", "for example --speculate draft=runs/tiny")
            return cls(kind, value)
        if not equals:
            return cls(kind)
        if not (value.isascii() and value.isdigit() and int(value)):
            raise InputError(f"--speculate {text}: not a number of blocks", "for example --speculate early-exit=8")
        return cls(kind, blocks=int(value))


def speculate(model: LoadedModel, settings: SpeculationSettings, load: Callable[[str], LoadedModel]) -> str:
    """From now on the model's texts are drafted so; returns how they may differ from those without drafts, "" if they
    do not. load: a draft model by its name. InputError for drafts that the model cannot have."""
    from synthe_core.inference.speculation.model_drafts import DraftModelProposer, EarlyExitProposer
    from synthe_core.inference.speculation.ngram import NgramProposer
    from synthe_core.inference.speculation.proposer import Speculation

    proposer: Proposer
    if settings.kind == "ngram":
        proposer = NgramProposer()
    elif settings.kind == "draft":
        proposer = DraftModelProposer(load(settings.model), model)
    else:
        proposer = EarlyExitProposer(model, settings.blocks)
    model.speculation = Speculation(proposer)
    return "" if model.has_exact_passes else INEXACT
