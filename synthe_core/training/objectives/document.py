"""A document's knowledge into an adapter: context distillation on what the model itself writes about its passages."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from synthe_core.adapters.lora_linear import with_adapter
from synthe_core.data.spec import DataSpec, SourceSpec
from synthe_core.data.stream import Batch
from synthe_core.errors import InputError
from synthe_core.evaluation.accumulators import WeightedMeans
from synthe_core.events import Event
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import probe
from synthe_core.model.language_model import LanguageModel, Loss, measures
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.objectives import ObjectiveConfig, Reads
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.training.distillation.divergence import Targets
from synthe_core.training.distillation.losses import prediction_losses
from synthe_core.training.distributed.engine import Engine
from synthe_core.training.documents.cache import PassageSettings, document_material
from synthe_core.training.documents.material import MaterialSettings
from synthe_core.training.documents.teacher import TeacherTable, read_answers, teacher_table
from synthe_core.training.objectives.objective import Objective, ObjectiveContext, ObjectiveSetup

LOG_P, IDS = "teacher_log_p", "teacher_ids"
"""The teacher's predictions in a batch's `token_extras`, [B, T, k]."""


class Document(Objective):
    """KL(p || q), summed over the tokens of answers; the mean over all of them in a batch.

    p: what the model without the adapter predicts after the passage, the question and the answer so far, its `top_k`
    likeliest tokens and all others as one event. q: what the model with the adapter predicts without the passage.

    Sources: Askell et al. 2021, "A general language assistant as a laboratory for alignment" (context distillation);
    Snell et al. 2022, "Learning by distilling context".
    """

    reads: Reads = "conversations"  # type: ignore[misc]
    adapter_lr = 1e-3  # few rows, read many times: with 1e-4 little is learnt (docs/results/documents.md)

    class Config(ObjectiveConfig):
        """The keys of `objective: document`."""

        type: Literal["document"] = "document"
        document: str = Field("", description="the document: a .txt, .md, .html, .pdf or .docx file")
        passage: int = Field(256, ge=16, description="the most tokens of a passage")
        overlap: int = Field(32, ge=0, description="tokens that a passage may share with the one before it")
        questions: int = Field(2, ge=0, description="questions that the model writes about each sentence, at most")
        continuations: int = Field(2, ge=0, le=5, description="beginnings of each sentence that it finishes")
        top_k: int = Field(64, ge=1, description="the teacher's likeliest tokens; the others are one event")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.table: TeacherTable | None = None

    def write_data(self, recipe: Recipe, base: Checkpoint | None) -> Generator[Event, None, DataSpec]:
        config = self.config
        if not config.document:
            raise InputError("objective.document names no document", "name one: --document handbook.pdf")
        if base is None:
            raise InputError(
                "a document is put into an adapter, whose model is the teacher", "add --lora rank=32 and --init MODEL"
            )
        path = yield from document_material(
            Path(config.document).expanduser(),
            base,
            choose_device(recipe.runtime.device, probe()).value,
            PassageSettings(config.passage, config.overlap),
            MaterialSettings(config.questions, config.continuations, recipe.seed),
        )
        return recipe.data.model_copy(update={"sources": (SourceSpec(source=str(path)),)})

    def begin(self, setup: ObjectiveSetup) -> Iterator[Event]:
        self.setup = setup
        material = Path(setup.sources[0])
        kind = f"{setup.context.device.type}-{setup.context.precision}-{self.config.top_k}"
        path = material.with_suffix(f".{kind}.safetensors")
        engine = setup.engine or Engine(setup.model)
        missing = any(engine.ranks.gather(not path.is_file()))
        if missing and (engine.sharded or engine.ranks.local_rank == 0):  # all have a part of a sharded model
            answers = read_answers(material, setup.tokenizer)
            training = setup.model.training
            setup.model.eval()
            with with_adapter(setup.model, None), setup.context.activate(), engine.whole():
                table = yield from teacher_table(setup.model, answers, setup.rows, self.config.top_k)
            setup.model.train(training)
            if engine.ranks.local_rank == 0:
                table.save(path)
        engine.ranks.meet()
        self.table = TeacherTable.read(path)  # of a resumed run the same file

    def prepare(self, model: Any, batch: Batch) -> Batch:
        assert self.table is not None and batch.lengths is not None
        log_p, ids = self.table.batch(batch.inputs, batch.targets, batch.lengths)
        assert ids is not None
        return batch._replace(token_extras={**batch.token_extras, LOG_P: log_p, IDS: ids})

    def __call__(self, model: LanguageModel, batch: Batch, ctx: ObjectiveContext) -> Loss:
        hidden, _, run = model.hidden(batch.inputs, None, batch.lengths)
        where = batch.targets != IGNORED
        log_p, ids = batch.token_extras[LOG_P][where][None], batch.token_extras[IDS][where][None]
        scored = prediction_losses(
            model, hidden[where][None], batch.targets[where][None], lambda part: Targets(log_p[:, part], ids[:, part])
        )
        each = torch.zeros(batch.targets.shape, dtype=scored.each.dtype, device=hidden.device)
        each[where] = scored.each[0]
        return Loss(
            scored.divergence,
            where.sum(),
            self._auxiliary(model, hidden, run, batch.targets),
            each,
            measures(run),
            sum(run.skipped),
            tuple(run.buffer_updates),
        )

    def _auxiliary(self, model: LanguageModel, hidden: Tensor, run: Any, targets: Tensor) -> dict[str, Tensor]:
        """The losses of the learners, the router and the confidence head, which reads the model's likeliest tokens."""
        top = None
        if model.confidence is not None and "confidence" not in run.without:
            with torch.no_grad():
                top = model.head.cross_entropy(hidden, targets, True)[2]
        return model.auxiliary_losses(hidden, run, targets, top)

    def evaluate(self, model: Any, batches: Iterable[Batch], context: ExecutionContext) -> Iterator[DocumentScore]:
        score = DocumentScore()
        for batch in batches:
            prepared = self.prepare(model, batch).to(context.device)
            with torch.no_grad(), context.activate():
                score.add(prepared, self(model, prepared, ObjectiveContext()))
            yield score


class DocumentScore:
    """Means over the tokens of held-out answers, in nats: the divergence from the teacher, and the cross-entropy.

    rows: answers read so far.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._means = WeightedMeans()

    def add(self, batch: Batch, loss: Loss) -> None:
        self.rows += len(batch.inputs)
        scored = max(float(loss.scored), 1.0)
        self._means.add({"loss": loss.total / scored, "cross_entropy": loss.each.sum() / scored}, scored)

    def values(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._means.values().items()}
