"""The shape of a model in a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from synthe_core.errors import closest
from synthe_core.layers import LAYERS, LearnerSpec
from synthe_core.layers.learner import Spec
from synthe_core.layers.multiscale_stem import ONE_STRIDE, STRIDES, StemConfig
from synthe_core.model.block import EPS, NormType, residual_of
from synthe_core.model.confidence import ConfidenceSpec
from synthe_core.model.depth import DepthSpec

ONE_KIND, KINDS = "(one kind)", "(kinds)"
UNION_TAGS = (ONE_KIND, KINDS, ONE_STRIDE, STRIDES)
"""What pydantic puts into the path of an error below `block` and `patch`."""


def _kinds(value: Any) -> str:
    return KINDS if isinstance(value, list) and value and all(isinstance(kind, list) for kind in value) else ONE_KIND


Kind = Annotated[list[LearnerSpec], Field(min_length=1, max_length=100)]
BlockSpec = Annotated[
    Annotated[Kind, Tag(ONE_KIND)] | Annotated[list[Kind], Field(max_length=1000), Tag(KINDS)], Discriminator(_kinds)
]
"""The learners of a block, or several kinds of block."""


class ClassifySpec(Spec):
    """The head of an encoder: one class for the whole text."""

    type: Literal["classify"] = "classify"
    classes: int = Field(..., ge=2, description="how many; the most frequent labels of the data are kept")
    pool: Literal["attention", "mean"] = Field("attention", description="how the tokens become one vector")


class ModelSpec(Spec):
    """The shape of a model: `block` is the list of learners, repeated `blocks` times."""

    width: int = Field(..., ge=1, description="channels of the residual stream")
    blocks: int = Field(..., ge=1, le=1000, description="how many blocks there are")
    block: BlockSpec = Field(
        ...,
        description="the learners of a block, in order; or a list of such lists, one for each block in turn, repeated "
        "as often as needed",
    )
    tie: bool = Field(True, description="one matrix for the embedding and the head")
    embed_norm: bool = Field(True, description="normalise embeddings to unit scale before the first block")
    embedding_scale: float = Field(1.0, gt=0, description="what embeddings are multiplied by")
    positions: int | None = Field(
        None, ge=1, le=1 << 20, description="learned embeddings of as many positions, which texts cannot be longer than"
    )
    norm: NormType = Field(
        "rms",
        description="of the norms: root mean square; layer: LayerNorm; layer_no_bias: without a bias; layer_no_affine: "
        "without a weight too",
    )
    norm_eps: float = Field(EPS, gt=0, description="added to a mean square by the norms")
    head_bias: bool = Field(False, description="a learned bias of the logits")
    logit_scale: float = Field(1.0, gt=0, description="what logits are multiplied by")
    logit_cap: float | None = Field(None, gt=0, description="c of c tanh(logits / c), which bounds logits; null: none")
    depth: DepthSpec | None = Field(None, description="lets each token decide how many blocks it runs; null: all")
    confidence: ConfidenceSpec | None = Field(
        None, description="a small head that predicts whether the most likely next token is correct"
    )
    head: ClassifySpec | None = Field(
        None, description="classification head, which makes the model an encoder; null: a language model"
    )
    patch: StemConfig | None = Field(
        None, description="an encoder's stem: a strided convolution over the tokens, or several (`strides: [2, 4, 8]`)"
    )

    @property
    def kinds(self) -> list[list[Spec]]:
        """The kinds of block, each the list of its learners; block i is of kind i modulo their number."""
        nested = isinstance(self.block[0], list)
        return self.block if nested else [self.block]  # type: ignore[return-value, list-item]

    def learners_of(self, block: int) -> list[Spec]:
        """The learners of a block, by its index."""
        kinds = self.kinds
        return kinds[block % len(kinds)]

    @property
    def learners(self) -> list[Spec]:
        """Every learner of every kind of block that the model has."""
        return [spec for kind in self.kinds[: self.blocks] for spec in kind]

    @property
    def published(self) -> tuple[str, ...]:
        """The signals that the learners of a block publish."""
        names = [name for spec in self.learners for name in LAYERS[spec.type].publishes(spec)]  # type: ignore[attr-defined]
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _depth_leaves_blocks_to_choose(self) -> ModelSpec:
        if self.depth is None:
            return self
        if self.depth.min >= self.blocks:
            raise field_error(
                ("depth", "min"),
                f"{self.depth.min} of {self.blocks} blocks are run by every token, which leaves none to choose",
                f"at most {self.blocks - 1}, or leave out model.depth" if self.blocks > 1 else "leave out model.depth",
            )
        if self.head is not None:
            raise field_error(("depth",), "an encoder runs every block", "leave out model.depth, or model.head")
        return self

    @model_validator(mode="after")
    def _an_encoder_predicts_no_token(self) -> ModelSpec:
        if self.confidence is not None and self.head is not None:
            raise field_error(
                ("confidence",), "an encoder predicts no next token", "leave out model.confidence, or model.head"
            )
        return self

    @model_validator(mode="after")
    def _only_encoders_see_the_whole_text(self) -> ModelSpec:
        if self.head is not None:
            return self
        for path, spec in self.paths():
            if not LAYERS[spec.type].causal:  # type: ignore[attr-defined]
                raise field_error(
                    path,
                    f"{spec.type} sees the whole text, and a language model may not see what it is to predict",  # type: ignore[attr-defined]
                    "use it in an encoder: model.head={type: classify, classes: N}; `hyena` is its causal kin",
                )
        if self.patch is not None:
            raise field_error(
                ("patch",),
                "a stem shortens the text, and a language model predicts every token",
                "use it in an encoder (model.head), or put the learner `byte_patch` into the block",
            )
        return self

    @model_validator(mode="after")
    def _signals_come_before_their_readers(self) -> ModelSpec:
        for path, _, name in self.unresolved_signals():
            raise field_error(
                path,
                f"no learner before it in the block publishes the signal '{name}'",
                _publisher_hint(name),
            )
        return self

    @model_validator(mode="after")
    def _tensors_are_shared_before_they_are_used(self) -> ModelSpec:
        """By a learner before, in the same block or in an earlier one that every token runs."""
        shared: set[str] = set()
        for block in range(self.blocks):
            own = set(shared)
            for place, spec in enumerate(self.learners_of(block)):
                learner = LAYERS[spec.type]  # type: ignore[attr-defined]
                for name in learner.uses(spec):
                    if name not in own:
                        kind = [block % len(self.kinds)] if isinstance(self.block[0], list) else []
                        raise field_error(
                            ("block", *kind, place),
                            f"no learner before it shares '{name}'",
                            "give the first layer's learner values: share, in a kind of block of its own",
                        )
                own.update(learner.shares(spec))
            shared = own if self.depth is None or block not in self.depth.places(self.blocks) else shared
        return self

    @model_validator(mode="after")
    def _residuals_have_a_learner_before_them(self) -> ModelSpec:
        for path, spec in self.paths():
            residual = residual_of(spec)
            if path[-1] == 0 and (residual.parallel or residual.norm == "shared"):
                raise field_error(
                    (*path, "residual"), "the first learner of a block has none before it", "leave out `residual` there"
                )
            if residual.norm == "shared" and residual_of(self._before(path)).norm == "post":
                raise field_error(
                    (*path, "residual", "norm"), "the learner before it has no norm to share", "such as norm: pre"
                )
        if getattr(self.patch, "residual", None) is not None:
            raise field_error(("patch", "residual"), "a stem is added to nothing", "leave it out")
        return self

    def paths(self) -> Iterator[tuple[tuple[str | int, ...], Spec]]:
        """Every learner of every kind of block, with its key's path."""
        for index, kind in enumerate(self.kinds):
            for place, spec in enumerate(kind):
                yield ("block", index, place) if isinstance(self.block[0], list) else ("block", place), spec

    def _before(self, path: tuple[str | int, ...]) -> Spec:
        """The learner before the one at a key's path."""
        *_, place = path
        kind = self.kinds[path[1] if len(path) == 3 else 0]  # type: ignore[index]
        return kind[place - 1]  # type: ignore[operator]

    def unresolved_signals(self) -> Iterator[tuple[tuple[str | int, ...], Spec, str]]:
        """Every signal that a learner reads and no learner before it in the block publishes: the reader's path in the
        recipe, the reader, the name."""
        published: set[str] = set()
        for path, spec in self.paths():
            learner = LAYERS[spec.type]  # type: ignore[attr-defined]
            if path[-1] == 0:
                published = set()
            yield from ((path, spec, name) for name in learner.reads(spec) if name not in published)
            published.update(learner.publishes(spec))


def _publisher_hint(name: str) -> str:
    """The hint for a signal that is not published: the learners that publish it, or the nearest name."""
    by_signal: dict[str, list[str]] = {}
    for learner in LAYERS:
        for signal in LAYERS[learner].publishes(LAYERS[learner].Config()):
            by_signal.setdefault(signal, []).append(learner)
    if name in by_signal:
        return f"put one that does before it: {', '.join(by_signal[name])}"
    near = closest(name, by_signal)
    return f"did you mean '{near}'?" if near else f"signals: {', '.join(sorted(by_signal))}"


def field_error(path: tuple[str | int, ...], message: str, hint: str) -> PydanticCustomError:
    """An error of several keys together, reported at `path` below the mapping that is validated."""
    return PydanticCustomError("field", "{message}", {"message": message, "path": path, "hint": hint})
