"""Strengths of expert pathways from a saved session, with which later texts begin."""

from __future__ import annotations

import torch

from synthe_core import state as states
from synthe_core.errors import InputError
from synthe_core.layers.context_routed_moe import ContextRoutedMoE
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import Session


@torch.no_grad()
def set_pathway_prior(model: LanguageModel, session: Session) -> None:
    """From now on texts that begin have the session's strengths of every pathway, the mean over its rows; all else of
    their state is fresh. InputError for a model that routes no experts by context."""
    routed = [module for module in model.modules() if isinstance(module, ContextRoutedMoE)]
    if not routed:
        raise InputError("the model has no context_routed_moe, so no pathways", "leave out --pathways")
    strengths = [leaf for name, leaf in states.named_leaves(session.state) if name.endswith(".strength")]
    for learner, strength in zip(routed, strengths, strict=True):
        learner.prior.copy_(strength.mean(0))
