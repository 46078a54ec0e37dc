"""Distillation: a student learns the predictions of a teacher, after its layers have learnt the teacher's attention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from synthe_core.data.stream import Batch, Window
from synthe_core.errors import InputError
from synthe_core.evaluation.bits_per_byte import TextScore
from synthe_core.events import Event, Notice
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.layers.learner import Spec
from synthe_core.model.language_model import LanguageModel, Loss, measures
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.objectives import ObjectiveConfig
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.distillation.divergence import Direction, Targets, targets_of
from synthe_core.training.distillation.initialise import initialise_from_teacher
from synthe_core.training.distillation.layers import Layer, check_student, read_teacher, replaced_layers
from synthe_core.training.distillation.losses import Predictions, alignment, orientation, prediction_losses
from synthe_core.training.distillation.prediction_cache import PredictionCache
from synthe_core.training.distillation.teacher import Teacher
from synthe_core.training.objectives.objective import Objective, ObjectiveContext, ObjectiveSetup

RISE = 0.05  # of the budget, over which the learning rate of distillation rises
StageName = Literal["orientation", "alignment", "distillation"]
MEANINGS: dict[StageName, str] = {
    "orientation": "each mixing matrix learns the teacher's attention matrix",
    "alignment": "each layer learns what the teacher's layer returns",
    "distillation": "the whole student learns the teacher's predictions",
}


class DistillStages(Spec):
    """The first two stages, as fractions of the budget; the rest is distillation of predictions."""

    orientation: float = Field(0.15, ge=0, lt=1, description="matrix orientation")
    alignment: float = Field(0.25, ge=0, lt=1, description="hidden-state alignment")
    rate: float = Field(
        0.2,
        gt=0,
        description="learning rate of distillation, which trains the teacher's weights too, as a multiple of train.lr; "
        "after other stages it rises to that over 5% of the budget",
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> DistillStages:
        if self.orientation + self.alignment >= 1:
            raise ValueError("orientation and alignment together must leave a part of the budget")
        return self


class Distill(Objective):
    """MOHAWK's three stages over a teacher of the student's shape.

        orientation    ‖M - A‖_F of mixing matrices, layer by layer
        alignment      ‖y - ŷ‖ of the layers' outputs, layer by layer
        distillation   (1 - c) τ² KL of predictions + c cross-entropy of the text, end to end

    In the first two a layer reads what the teacher's reads, so that only the learners in the place of attention are
    trained. A student with the teacher's attention in every layer has no such stages.

    Source: Bick et al. 2024, "Transformers to SSMs: distilling quadratic knowledge to subquadratic models".
    """

    of_text = False
    carries = False

    class Config(ObjectiveConfig):
        """The keys of `objective: distill`."""

        type: Literal["distill"] = "distill"
        teacher: str | None = Field(None, description="any checkpoint of a language model, or an id of the hub")
        initialise: bool = Field(
            True, description="begin from the teacher's weights; false: from random ones, with or without --init"
        )
        stages: DistillStages = DistillStages()
        temperature: float = Field(1.0, gt=0, description="τ, by which both models' logits are divided")
        divergence: Direction = Field(
            "forward", description="forward: the student covers what the teacher predicts; reverse: it avoids the rest"
        )
        top_k: int | None = Field(
            None, ge=1, description="compare the teacher's k most likely tokens, and the others as one; null: all"
        )
        cache: bool = Field(
            False, description="store the teacher's predictions on disk, for the next epoch or run over the same text"
        )
        cross_entropy: float = Field(0.0, ge=0, le=1, description="c, the share of the text's own cross-entropy")

        @model_validator(mode="after")
        def _a_cache_is_of_some_tokens(self) -> Distill.Config:
            if self.cache and self.top_k is None:
                raise ValueError("cache stores the most likely tokens: set top_k, such as 64")
            return self

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._teacher: Teacher | None = None
        self._layers: list[Layer] = []
        self._cache: PredictionCache | None = None
        self.stage: StageName | None = None

    @property
    def teacher(self) -> Teacher:
        """InputError where none is named."""
        if self._teacher is None:
            self._teacher = Teacher(self.config.teacher)
        return self._teacher

    @property
    def origin(self) -> Checkpoint:
        return self.teacher.checkpoint

    def initialise(self, model: LanguageModel) -> None:
        if self.config.initialise:
            initialise_from_teacher(model, self.teacher.model(model.embedding.weight.device))

    def begin(self, setup: ObjectiveSetup) -> Iterator[Event]:
        self.setup = setup
        self.teacher.check_tokens(setup.tokenizer)
        model, context = setup.model, setup.context
        if model.vocab != self.teacher.vocab:
            raise InputError(
                f"the student has {model.vocab:,} tokens, and the teacher {self.teacher.checkpoint.path} "
                f"{self.teacher.vocab:,}",
                "begin the student from this teacher",
            )
        check_student(model.spec, self.teacher.checkpoint.recipe.model)
        teacher = self.teacher.model(context.device)
        self._layers = replaced_layers(model, teacher)
        if self.config.cache:
            facts = (self.config.temperature, self.config.top_k, context.precision)
            self._cache = PredictionCache(self.teacher.digest, *facts)
        count = len(self._layers)
        yield Notice(f"the teacher is {self.teacher.checkpoint.path}; {count} of its layers are replaced")

    @property
    def _stages(self) -> DistillStages:
        """A student with the teacher's attention in every layer has no layers to train apart."""
        stages: DistillStages = self.config.stages
        return stages if self._layers else stages.model_copy(update={"orientation": 0.0, "alignment": 0.0})

    def learning_rate(self, fraction: float) -> float:
        stages = self._stages
        begins = stages.orientation + stages.alignment
        if fraction < begins:
            return 1.0
        risen = 1.0 if not begins else (fraction - begins) / min(RISE, 1 - begins)
        return stages.rate * min(1.0, 0.01 + risen)

    def reach(self, fraction: float) -> Iterator[Event]:
        stages = self._stages
        ends: dict[StageName, float] = {
            "orientation": stages.orientation,
            "alignment": stages.orientation + stages.alignment,
            "distillation": 1.0,
        }
        stage: StageName = next((name for name, end in ends.items() if fraction < end), "distillation")
        if stage != self.stage:
            self.stage = stage
            share = "" if ends[stage] == 1 else f", until {ends[stage]:.0%} of the budget"
            yield Notice(f"{stage}: {MEANINGS[stage]}{share}")

    @property
    def runs_layers_alone(self) -> bool:
        return self.stage in ("orientation", "alignment")

    def __call__(self, model: LanguageModel, batch: Batch, ctx: ObjectiveContext) -> Loss:
        if self.runs_layers_alone:
            return self._layer_loss(batch)
        return self._prediction_loss(model, batch)

    def _layer_loss(self, batch: Batch) -> Loss:
        assert self.setup is not None and self.stage is not None
        readings, _ = read_teacher(self.teacher.model(self.setup.context.device), self._layers, batch.inputs)
        distances = (orientation if self.stage == "orientation" else alignment)(self._layers, readings)
        scored, mean = (batch.targets != IGNORED).sum(), distances.mean()
        figures: dict[str, Tensor] = {self.stage: mean.detach()}
        return Loss(mean * scored, scored, {}, torch.zeros_like(batch.targets, dtype=torch.float32), figures, 0.0)

    def _prediction_loss(self, model: LanguageModel, batch: Batch) -> Loss:
        hidden, _, ctx = model.hidden(batch.inputs, None, batch.lengths)
        config, scored = self.config, (batch.targets != IGNORED).sum()
        result = prediction_losses(
            model, hidden, batch.targets, self._targets(batch.inputs), config.temperature, config.divergence
        )
        share = config.cross_entropy
        total = (1 - share) * result.divergence + share * result.cross_entropy
        confident = model.confidence is not None and "confidence" not in ctx.without
        top = model.head.cross_entropy(hidden, batch.targets, True)[2] if confident else None
        losses = model.auxiliary_losses(hidden, ctx, batch.targets, top)
        figures = measures(ctx) | _means(result, scored)
        return Loss(total, scored, losses, result.each, figures, sum(ctx.skipped), tuple(ctx.buffer_updates))

    def _targets(self, inputs: Tensor) -> Any:
        """The teacher's predictions after some of the tokens [B, T]: a function of a slice along T."""
        assert self.setup is not None
        teacher = self.teacher.model(self.setup.context.device)
        temperature, top_k = self.config.temperature, self.config.top_k

        def live(rows: Tensor) -> Any:
            with torch.no_grad():
                hidden, _, _ = teacher.hidden(rows)

            @torch.no_grad()
            def chunk(part: slice) -> Targets:
                logits = teacher.head(hidden[:, part])
                return targets_of(logits if logits.dtype == torch.float64 else logits.float(), temperature, top_k)

            return chunk

        if self._cache is None:
            return live(inputs)
        stored = self._cache.targets(inputs, lambda rows: live(rows)(slice(None)))
        return lambda part: Targets(stored.log_p[:, part], None if stored.ids is None else stored.ids[:, part])

    def evaluate(
        self, model: LanguageModel, batches: Iterable[Window], context: ExecutionContext
    ) -> Iterator[DistillScore]:
        teacher = self.teacher.model(context.device)
        score = DistillScore()
        for window in batches:
            inputs, targets = window.inputs.to(context.device), window.targets.to(context.device)
            with torch.no_grad(), context.activate():
                theirs, _, _ = teacher.hidden(inputs)
                hidden, _, ctx = model.hidden(inputs)
                result, own = _compare(model, hidden, targets, teacher, theirs)
            scored = (targets != IGNORED).sum()
            loss = Loss(result.cross_entropy, scored, {}, result.each, measures(ctx), sum(ctx.skipped))
            score.begin(window)
            score.add_pair(loss, model.flops(inputs.shape[1]), result, own)
            yield score


def _means(result: Predictions, scored: Tensor) -> dict[str, Tensor]:
    count = scored.clamp_min(1)
    return {"kl": result.divergence.detach() / count, "cross_entropy": result.cross_entropy.detach() / count}


def _compare(
    model: LanguageModel, hidden: Tensor, targets: Tensor, teacher: LanguageModel, theirs: Tensor
) -> tuple[Predictions, Tensor]:
    """Forward KL over all tokens and both models' cross-entropy of the text, in nats."""
    own = torch.zeros((), device=hidden.device)

    def chunk(part: slice) -> Targets:
        nonlocal own
        predicted = targets_of(teacher.head(theirs[:, part]).float())
        known = targets[:, part]
        nats = -predicted.log_p.gather(-1, known.clamp_min(0)[..., None])[..., 0]
        own = own + (nats * (known != IGNORED)).sum()
        return predicted

    return prediction_losses(model, hidden, targets, chunk), own


class DistillScore(TextScore):
    """The figures of a language model, the forward KL from the teacher in nats per token, and the teacher's own
    perplexity."""

    def __init__(self) -> None:
        super().__init__()
        self._kl = self._teacher = 0.0

    def add_pair(self, loss: Loss, flops: float, result: Predictions, teacher_nats: Tensor) -> None:
        """Adds windows that both models have read."""
        self.add(loss, flops)
        self._kl += float(result.divergence)
        self._teacher += float(teacher_nats)

    def values(self) -> dict[str, float]:
        nats = torch.tensor(self._teacher / max(self.tokens, 1), dtype=torch.float64)
        return super().values() | {
            "kl": self._kl / max(self.tokens, 1),
            "teacher_perplexity": float(nats.clamp_max(700.0).exp()),
        }
