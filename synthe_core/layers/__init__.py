"""The table of learners, and how a recipe's entries become them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from synthe_core.layers.learner import Learner, Spec
from synthe_core.layers.table_entry import parse_entry
from synthe_core.registry import Table

LAYERS = Table(
    "learner",
    "synthe.layers",
    {
        "attention": "synthe_core.layers.attention:Attention",
        "bidirectional_attention": "synthe_core.layers.bidirectional_attention:BidirectionalAttention",
        "byte_patch": "synthe_core.layers.byte_patch:BytePatch",
        "channel_mixing": "synthe_core.layers.channel_mixing:ChannelMixing",
        "context_routed_moe": "synthe_core.layers.context_routed_moe:ContextRoutedMoE",
        "conv": "synthe_core.layers.conv:Conv",
        "delta": "synthe_core.layers.delta:Delta",
        "delta_memory": "synthe_core.layers.delta_memory:DeltaMemory",
        "experts": "synthe_core.layers.experts:Experts",
        "fast_weights": "synthe_core.layers.fast_weights:FastWeights",
        "forgetting_attention": "synthe_core.layers.forgetting_attention:ForgettingAttention",
        "gated_delta_2": "synthe_core.layers.gated_delta_2:GatedDelta2",
        "gated_conv": "synthe_core.layers.gated_conv:GatedConv",
        "gla": "synthe_core.layers.gla:GLA",
        "hgrn2": "synthe_core.layers.hgrn2:HGRN2",
        "hyena": "synthe_core.layers.hyena:Hyena",
        "kalman": "synthe_core.layers.kalman:Kalman",
        "kda": "synthe_core.layers.kda:KDA",
        "latent_attention": "synthe_core.layers.latent_attention:LatentAttention",
        "lightning_attention": "synthe_core.layers.lightning_attention:LightningAttention",
        "log_linear": "synthe_core.layers.log_linear:LogLinear",
        "mamba": "synthe_core.layers.mamba:Mamba",
        "mamba2": "synthe_core.layers.mamba2:Mamba2",
        "mamba3": "synthe_core.layers.mamba3:Mamba3",
        "mesa": "synthe_core.layers.mesa:Mesa",
        "mlp": "synthe_core.layers.mlp:MLP",
        "mlstm": "synthe_core.layers.mlstm:MLSTM",
        "momentum": "synthe_core.layers.momentum:Momentum",
        "multiscale_memory": "synthe_core.layers.multiscale_memory:MultiscaleMemory",
        "retention": "synthe_core.layers.retention:Retention",
        "rg_lru": "synthe_core.layers.rg_lru:RGLRU",
        "rwkv7": "synthe_core.layers.rwkv7:RWKV7",
        "slots": "synthe_core.layers.slots:Slots",
        "spectral": "synthe_core.layers.spectral:Spectral",
        "test_time": "synthe_core.layers.test_time:TTT",
        "titans": "synthe_core.layers.titans:Titans",
        "ttt": "synthe_core.layers.ttt:TTTNetwork",
        "tiers": "synthe_core.layers.tiers:Tiers",
    },
    aliases={"thalamus": "context_routed_moe"},
)


def parse(entry: Any) -> Any:
    """A recipe's `{type: delta, heads: 8}` as that learner's Config; errors keep the place of the key."""
    return entry if isinstance(entry, Spec) else parse_entry(LAYERS, entry, last="residual")  # which all of them have


class _AnyLearner:
    """Gives a learner field its JSON Schema: any of the table's."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [handler(LAYERS[name].Config.__pydantic_core_schema__) for name in LAYERS]}


LearnerSpec = Annotated[SerializeAsAny[Spec], BeforeValidator(parse), _AnyLearner()]
"""A field that holds the configuration of any learner of the table."""


def build(spec: Any, width: int) -> Learner[Any]:
    """The learner that `spec` describes, `width` channels wide, with its own initial values."""
    return LAYERS[spec.type](spec, width)
