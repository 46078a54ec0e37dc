"""The recipe: one validated YAML file that is the whole experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from pydantic import Field, PositiveInt, SerializeAsAny, ValidationError, field_validator, model_validator

from synthe_core.adapters.spec import LoraSpec
from synthe_core.budget import Budget
from synthe_core.data.spec import DataSpec
from synthe_core.errors import InputError, closest, shortened, unknown
from synthe_core.layers.learner import Spec
from synthe_core.model.classifier import Model, build_model
from synthe_core.model.parts import missing_dependency, parts, without_parts
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.model.spec import UNION_TAGS, ModelSpec, field_error
from synthe_core.model.student_spec import StudentSpec
from synthe_core.recipe.objective_table import OBJECTIVES
from synthe_core.recipe.objectives import ObjectiveSpec, Reads
from synthe_core.recipe.overrides import assign
from synthe_core.storage.yaml_reader import Key, YamlSource, read_yaml

CONVERSATION_TOKENS = 1024
"""`data.sequence` of conversations, preferences and ratings where a recipe does not state it."""


class Stage(Spec):
    """A stage of training. After the last one the whole model is trained, on sequences of the data's length."""

    until: float = Field(..., gt=0, lt=1, description="the fraction of the budget at which it ends")
    sequence: int | None = Field(None, ge=1, description="tokens a sequence; default the data's")
    without: list[str] = Field(
        [], description="parts that wait: learners by type, tiers such as multiscale_memory.tier3, depth, confidence"
    )
    warm: float = Field(
        0.02, ge=0, lt=1, description="fraction of the budget after it for which the parts that join are trained alone"
    )


class TrainSpec(Spec):
    """How a model learns."""

    budget: Budget = Field(
        Budget(180, "seconds"), description="tokens, steps, epochs or time: 20Mtokens, 500steps, 3epochs, 3m"
    )
    batch: int = Field(16, ge=1, description="sequences per optimizer step")
    micro_batch: int | Literal["auto"] = Field("auto", description="sequences per forward pass; auto fits memory")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="muon for matrices and AdamW for the rest, or AdamW"
    )
    lr: float = Field(3e-3, gt=0, description="peak learning rate, on AdamW's scale for both optimizers")
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's moment decays")
    schedule: Literal["cosine", "wsd", "linear"] = Field("cosine", description="what follows the warmup")
    warmup: float = Field(0.02, ge=0, lt=1, description="fraction of the budget over which lr rises from 0")
    decay: float = Field(0.2, gt=0, le=1, description="fraction of the budget over which wsd falls at the end")
    final: float = Field(0.0, ge=0, le=1, description="lr at the end, as a fraction of the peak")
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of averaged weights, which are then what is evaluated"
    )
    stages: list[Stage] = Field(
        [], description="shorter sequences and smaller models first; all of both after the last stage"
    )
    lora: LoraSpec | None = Field(
        None, description="train a low-rank adapter of the model that training begins with (--init), which stays frozen"
    )
    carry: bool = Field(False, description="rows go on where they stopped: truncated back-propagation through state")
    validations: int = Field(8, ge=1, description="how often to validate, evenly over the budget, the end included")
    validation_tokens: int = Field(131_072, ge=1, description="at most this many held-out tokens each time")
    canary: str | None = Field(
        None, description="text, a source, whose bits per byte every validation measures too: whether it is forgotten"
    )
    sample: str | None = Field(None, description="prompt for a piece of text at each validation")
    sample_tokens: int = Field(120, ge=1)
    log_every: int = Field(10, ge=1, description="steps between metrics; slow steps are reported every 10 seconds")
    save_every: Budget = Field(Budget(300, "seconds"), description="how often to save between validations")
    keep: int = Field(2, ge=1, description="newest checkpoints to retain besides the best")
    patience: int = Field(20, ge=1, description="non-finite steps in a row before stopping")

    @model_validator(mode="after")
    def _stages_rise(self) -> TrainSpec:
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)):
            raise ValueError("stages: each stage's `until` must be larger than the one before")
        return self


class MeshSpec(Spec):
    """How several processes share a model."""

    replicate: PositiveInt | Literal["auto"] = Field(
        "auto", description="groups that each hold a whole model; auto: as many as the processes make"
    )
    shard: PositiveInt | Literal["auto"] = Field(
        1, description="processes of a group, which share its parameters; auto: all that replicate leaves"
    )
    sequence: PositiveInt = Field(1, description="processes over which the tokens of every row are cut")
    param_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="what sharded parameters are gathered in; gradients are summed in float32"
    )
    offload: bool = Field(False, description="sharded parameters and optimizer state in the memory of the CPU")
    timeout: PositiveInt = Field(600, description="seconds after which a process stops waiting for the others")


class RuntimeSpec(Spec):
    """How the work is run; the results' meaning does not depend on it."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto measures which is faster here")
    compile: bool = Field(False, description="torch.compile the blocks")
    recompute: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    threads: int | None = Field(None, ge=1, description="CPU threads; all cores by default")
    kernels: dict[str, str] = Field({}, description="operator: kernel, to overrule the choice")
    log: list[Literal["tensorboard", "trackio", "wandb"]] = Field([], description="besides metrics.jsonl")
    mesh: MeshSpec = Field(MeshSpec(), description="several processes: copies of the model, or shards of it")


class Recipe(Spec):
    """model, data, objective, train, runtime: the whole experiment."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also the folder under runs/")
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**62)
    model: SerializeAsAny[ModelSpec]
    data: DataSpec = DataSpec()
    objective: ObjectiveSpec = Field(
        None, description="what training minimises; null: language_modeling, or classification for an encoder"
    )
    train: TrainSpec = TrainSpec()
    runtime: RuntimeSpec = RuntimeSpec()

    @field_validator("model", mode="before")
    @classmethod
    def _published_models_have_a_config(cls, value: Any) -> Any:
        """And a student's is that of its teacher."""
        if isinstance(value, dict):
            for key, kind in (("config", PublishedSpec), ("from_teacher", StudentSpec)):
                if key in value:
                    return kind.model_validate(value)
        return value

    @model_validator(mode="after")
    def _published_models_are_trained_without_a_state(self) -> Recipe:
        if self.train.carry and isinstance(self.model, PublishedSpec):
            raise field_error(
                ("train", "carry"), "a model of transformers is trained without a state", "leave out train.carry"
            )
        return self

    @model_validator(mode="after")
    def _conversations_have_room(self) -> Recipe:
        """Rows have their own length, so that a longer `data.sequence` costs nothing where it is not used."""
        if self.reads != "text" and "sequence" not in self.data.model_fields_set:
            length = min(CONVERSATION_TOKENS, self.model.positions or CONVERSATION_TOKENS)
            object.__setattr__(self, "data", self.data.model_copy(update={"sequence": length}))
        return self

    @model_validator(mode="after")
    def _stages_divide(self) -> Recipe:
        for place, stage in enumerate(self.train.stages):
            if stage.sequence is not None and self.data.sequence % stage.sequence:
                raise field_error(
                    ("train", "stages", place, "sequence"),
                    f"{stage.sequence} does not divide data.sequence {self.data.sequence}",
                    "rows are cut into whole sequences",
                )
        return self

    @model_validator(mode="after")
    def _positions_reach_to_the_end(self) -> Recipe:
        if self.model.positions is not None and self.model.positions < self.data.sequence:
            raise field_error(
                ("model", "positions"),
                f"{self.model.positions} positions are fewer than the tokens of a sequence, {self.data.sequence}",
                "raise model.positions, or lower data.sequence",
            )
        return self

    @model_validator(mode="after")
    def _stages_leave_out_parts_of_the_model(self) -> Recipe:
        known = parts(self.model)
        for place, stage in enumerate(self.train.stages):
            path: tuple[str | int, ...] = ("train", "stages", place, "without")
            for index, name in enumerate(stage.without):
                if name not in known:
                    error = unknown("part of the model", name, known)
                    raise field_error((*path, index), error.message, error.hint or "")
            if pair := missing_dependency(self.model, stage.without):
                raise field_error(path, "{} builds on {}, which is left out".format(*pair), f"leave out {pair[0]} too")
            rest = without_parts(self.model, stage.without)
            for _, reader, signal in rest.unresolved_signals():
                name = reader.type
                message = f"{name} reads the signal '{signal}', and what publishes it is left out"
                raise field_error(path, message, f"leave out {name} too")
            if rest.confidence is not None and (lost := set(self.model.published) - set(rest.published)):
                message = f"the confidence head reads the signal '{min(lost)}', and what publishes it is left out"
                raise field_error(path, message, "leave out confidence too")
        return self

    @model_validator(mode="after")
    def _an_encoder_classifies(self) -> Recipe:
        if self.model.head is None:
            if self.data.labels is not None:
                raise field_error(
                    ("data", "labels"),
                    "a language model reads no labels",
                    "leave them out, or make an encoder: model.head={type: classify, classes: N}",
                )
            return self
        if self.data.labels is None:
            raise field_error(
                ("model", "head"), "an encoder needs labelled text", "set data.labels to `path` or `field:NAME`"
            )
        for key, given, reason in (
            ("carry", self.train.carry, "an encoder keeps no state to carry on"),
            ("sample", self.train.sample is not None, "an encoder does not write text"),
        ):
            if given:
                raise field_error(("train", key), reason, f"leave out train.{key}, or model.head")
        for place, stage in enumerate(self.train.stages):
            if stage.sequence is not None:
                raise field_error(
                    ("train", "stages", place, "sequence"),
                    "a text has one label, and its pieces have none",
                    "leave it out, or model.head",
                )
        return self

    @model_validator(mode="after")
    def _rows_are_read_whole(self) -> Recipe:
        """Conversations are rows of their own length, each with a state of its own."""
        if self.reads == "text":
            return self
        assert self.objective is not None
        name = self.objective.type
        for path, given, reason in (
            (("model", "head"), self.model.head is not None, f"{name} trains a language model, and this is an encoder"),
            (("data", "labels"), self.data.labels is not None, f"{name} reads conversations, which have no labels"),
            (("train", "carry"), self.train.carry, "conversations do not continue each other"),
        ):
            if given:
                raise field_error(path, reason, f"leave out {'.'.join(path)}, or objective")
        for place, stage in enumerate(self.train.stages):
            if stage.sequence is not None:
                raise field_error(
                    ("train", "stages", place, "sequence"),
                    "a conversation is not cut into pieces",
                    "leave it out, or objective",
                )
        return self

    @model_validator(mode="after")
    def _the_objective_carries_a_state(self) -> Recipe:
        if self.objective is not None and self.train.carry and not OBJECTIVES[self.objective.type].carries:
            raise field_error(("train", "carry"), f"{self.objective.type} begins every row anew", "leave it out")
        return self

    @model_validator(mode="after")
    def _an_early_exit_is_before_the_last_block(self) -> Recipe:
        if self.early_exit_blocks is None:
            return self
        path, blocks = ("objective", "early_exit"), self.model.blocks
        if not isinstance(self.model, ModelSpec):
            raise field_error(path, "transformers runs this model", "leave it out")
        if self.model.depth is not None:
            raise field_error(path, "each token decides how many blocks it runs", "leave out model.depth, or this")
        if self.early_exit_blocks >= blocks:
            raise field_error(
                (*path, "blocks"), f"the model has {blocks} blocks", f"at most {blocks - 1} come before an exit"
            )
        return self

    @model_validator(mode="after")
    def _a_stream_has_no_end(self) -> Recipe:
        if not self.data.stream:
            return self
        if self.objective is not None and self.reads != "text":
            reason = f"{self.objective.type} reads rows, which are read once and then cached"
            raise field_error(("data", "stream"), reason, "leave it out")
        for key, budget in (("budget", self.train.budget), ("save_every", self.train.save_every)):
            if budget.unit == "epochs":
                reason = "the number of sequences in a stream is not known, and so there are no epochs"
                raise field_error(("train", key), reason, "give tokens or steps, or leave out data.stream")
        for path, given, reason in (
            (("train", "carry"), self.train.carry, "the rows of streamed text do not continue each other"),
            (("data", "labels"), self.data.labels is not None, "labelled text is not streamed"),
        ):
            if given:
                raise field_error(path, reason, f"leave out {'.'.join(path)}, or data.stream")
        return self

    @property
    def early_exit_blocks(self) -> int | None:
        """How many blocks are before the early exit that the model is trained with; None without one."""
        exit = getattr(self.objective, "early_exit", None)
        return None if exit is None else int(exit.blocks)

    @property
    def reads(self) -> Reads:
        """What the objective trains on."""
        reads: Reads = "text" if self.objective is None else OBJECTIVES[self.objective.type].reads
        return reads

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Reads a recipe file, or the recipe of a checkpoint folder, and applies `key.path=value` overrides."""
        path = Path(path)
        return cls.from_source(read_yaml(path / "recipe.yaml" if path.is_dir() else path), overrides)

    @classmethod
    def from_source(cls, source: YamlSource, overrides: Sequence[str] = ()) -> Recipe:
        for assignment in overrides:
            source = source.with_override(assign(source.values, assignment))
        try:
            return cls.model_validate(source.values)
        except ValidationError as error:
            raise _explain(error, source) from None

    def to_yaml(self) -> str:
        """The resolved recipe: every key with the value in force."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)

    def with_batch(self, batch: int) -> Recipe:
        """The recipe with another `train.batch`."""
        return self.model_copy(update={"train": self.train.model_copy(update={"batch": batch})})

    def digest(self) -> str:
        """A digest of the recipe, the same on every machine."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def meta_model(self, vocab: int) -> Model:
        """The model without storage, for counting and for checking sizes."""
        with torch.device("meta"):
            return build_model(self.model, vocab)


MAX_FAULT = 400
"""Characters of one fault's line, which may quote values of the recipe."""


def _explain(error: ValidationError, source: YamlSource) -> InputError:
    """The first few errors of a recipe, each with its position, as one InputError."""
    faults = list(_flatten(error.errors(include_url=False), ()))
    lines, hints = [], []
    for path, message, hint in faults[:5]:
        lines.append(f"{source.locate(path)}: {shortened(message, MAX_FAULT)}")
        if hint:
            hints.append(hint)
    if len(faults) > 5:
        lines.append(f"and {len(faults) - 5} more")
    return InputError(lines, hints[0] if hints else "`synthe recipe schema` lists every key")


def _flatten(
    errors: Iterable[Any], prefix: tuple[Key, ...], keys: list[str] | None = None
) -> Iterable[tuple[tuple[Key, ...], str, str | None]]:
    """Path, message and hint of each error; `keys` are those of the learner that the errors are in."""
    for fault in errors:
        path = (*prefix, *(key for key in fault["loc"] if key not in UNION_TAGS))
        context = fault.get("ctx", {})
        if fault["type"] == "nested":
            yield from _flatten(context["nested"].errors(include_url=False), path, context["keys"])
            continue
        shown = ".".join(shortened(str(key)) for key in path) or "recipe"
        if fault["type"] == "extra_forbidden":
            known = _keys_at(path[:-1]) if keys is None else keys
            near = closest(str(path[-1]), known)
            yield path, f"unknown key '{shown}'", f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
        elif fault["type"] == "missing":
            yield path, f"missing key '{shown}'", None
        elif fault["type"] == "field":
            path = (*path, *context["path"])
            yield path, f"{'.'.join(map(str, path))}: {fault['msg']}", context["hint"]
        elif fault["type"] == "entry":
            yield (*path, "type"), f"{shown}: {fault['msg']}", context.get("hint")
        else:
            message = str(context["error"]) if "error" in context else fault["msg"][:1].lower() + fault["msg"][1:]
            yield path, f"{shown}: {message}", None


def _keys_at(path: tuple[Key, ...]) -> list[str]:
    """The known keys of the mapping at `path` of a recipe."""
    spec: Any = Recipe
    for key in path:
        annotation = spec.model_fields[key].annotation if isinstance(key, str) and key in spec.model_fields else None
        inner = next(
            (a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, Spec)), None
        )
        spec = inner or spec
    return list(spec.model_fields)
