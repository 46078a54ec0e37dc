"""A language model of ours as a model class of transformers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from synthe_core.errors import InputError
from synthe_core.interop.huggingface.auto_classes.cache import SyntheCache
from synthe_core.interop.huggingface.auto_classes.configuration import SyntheConfig
from synthe_core.interop.huggingface.auto_classes.loading import check_loaded, model_spec, open_checkpoint
from synthe_core.interop.huggingface.auto_classes.padding import Columns, columns_of
from synthe_core.interop.huggingface.auto_classes.peft_layers import adopt
from synthe_core.layers.learner import Pass, apply_buffer_updates
from synthe_core.model.head import Head
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.skip_init import skip_init
from synthe_core.ops.cross_entropy import IGNORED, TopPrediction

MODULE = frozenset(nn.Module().__dict__)
"""The attributes of every module."""


class SyntheForCausalLM(PreTrainedModel, GenerationMixin):
    """The modules of a `LanguageModel`, under the names of our checkpoints, with the interface of transformers.

    Its cache is a `SyntheCache`. A token that `attention_mask` leaves out is not read at all: a row with padding on
    either side gives the numbers that it gives alone. Where labels are given, the loss is the cross-entropy and the
    auxiliary losses that the recipe's learners have. Buffers that training moves (thresholds of routers) are moved when
    the first pass after a backward pass begins.
    """

    config_class = SyntheConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _is_stateful = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers' own form)
    _tied_weights_keys = {"head.weight": "embedding.weight"}  # noqa: RUF012

    def __init__(self, config: SyntheConfig) -> None:
        super().__init__(config)
        built = LanguageModel(model_spec(config), config.vocab_size)
        built.leave_out(config.without or ())
        self._modules.update(built._modules)
        self._own = {name: value for name, value in built.__dict__.items() if name not in MODULE}
        self._updates: list[tuple[Tensor, Tensor]] = []
        self._differentiated = False
        self.gradient_checkpointing = self._built = False
        self.post_init()
        self._built = True

    @property
    def language_model(self) -> LanguageModel:
        """The same modules with synthe's own interface."""
        view = LanguageModel.__new__(LanguageModel)
        view.__dict__.update({name: self.__dict__[name] for name in MODULE}, **self._own)
        view.recompute, view.vocab = self.gradient_checkpointing and self.training, self.config.vocab_size
        return view

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: SyntheCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Logits [B, T, V] after each of `input_ids` int64 [B, T] (or of `inputs_embeds` [B, T, D]), and the cache.

        attention_mask: [B, >= T], whose last T columns are those of this pass. past_key_values: the cache of the tokens
        before; it is changed in place. labels: int64 [B, T], -100 = not scored; they are shifted here. logits_to_keep:
        only the last so many, or those of these columns. num_items_in_batch: the tokens that the loss is divided by.
        InputError for an argument of transformers that this model cannot honour.
        """
        given = (input_ids, attention_mask, past_key_values, inputs_embeds, use_cache)
        hidden, ctx, columns, cache = self._enter(*given, others)
        columns_out = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        laid_out = hidden if columns is None else columns.back(hidden)
        logits = self.head(laid_out if labels is not None else laid_out[:, columns_out])
        loss = None
        if labels is not None:
            loss = self._loss(hidden, logits, ctx, columns, labels, num_items_in_batch)
            logits = logits[:, columns_out]
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return output.to_tuple() if return_dict is False else output

    @property
    def base_model(self) -> Backbone:  # type: ignore[override]
        """The model without its head."""
        return Backbone(self)

    def hidden_states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: SyntheCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """What the head's matrix is applied to, [B, T, D], with the cache: see `forward`."""
        given = (input_ids, attention_mask, past_key_values, inputs_embeds, use_cache)
        hidden, _, columns, cache = self._enter(*given, others)
        laid_out = hidden if columns is None else columns.back(hidden)
        head: Any = self.head
        return BaseModelOutputWithPast(last_hidden_state=head.scaled(laid_out), past_key_values=cache)

    def _enter(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        cache: SyntheCache | None,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
        others: dict[str, Any],
    ) -> tuple[Tensor, Pass, Columns | None, SyntheCache | None]:
        """What the head reads, with real tokens first, the pass, where padding stands, and the cache after it."""
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise InputError("the model reads either input_ids or inputs_embeds", "give one of them")
        if cache is not None and not isinstance(cache, SyntheCache):
            raise InputError(
                f"past_key_values is a {type(cache).__name__}, and this model's is a SyntheCache",
                "leave it out, or give the past_key_values of an earlier pass",
            )
        self._end_step()
        if hasattr(self, "peft_config"):
            adopt(self)
        columns = columns_of(attention_mask, *tokens.shape[:2])
        if cache is None and (self.config.use_cache and not self.training if use_cache is None else use_cache):
            cache = SyntheCache()
        hidden, ctx = self._read(tokens, columns, cache)
        _check_others(others, ctx, columns)
        _check_length(ctx, self.language_model.spec.positions)
        return hidden, ctx, columns, cache

    def _read(self, tokens: Tensor, columns: Columns | None, cache: SyntheCache | None) -> tuple[Tensor, Pass]:
        """The output of the last block, [B, T, D], with real tokens first; the cache is after it."""
        state, lengths = None if cache is None else cache.state, None
        if columns is not None:
            tokens, lengths = columns.front(tokens), columns.lengths
        hidden, after, ctx = self.language_model.hidden(tokens, state, lengths)
        if cache is not None:
            cache.advance(after, tokens.shape[1])
        if self.training and torch.is_grad_enabled() and ctx.buffer_updates:
            self._updates += ctx.buffer_updates
            hidden.register_hook(self._mark_differentiated)
        return hidden, ctx

    def _loss(
        self,
        hidden: Tensor,
        logits: Tensor,
        ctx: Pass,
        columns: Columns | None,
        labels: Tensor,
        count: Tensor | int | None,
    ) -> Tensor:
        """The mean cross-entropy of the next tokens with the auxiliary losses; with `count`, the sum over it. What the
        mask leaves out is not scored."""
        labels = labels.to(logits.device)
        if columns is not None:
            labels, logits = columns.front(labels), columns.front(logits)
            labels = labels.masked_fill(~_mask(ctx), IGNORED)
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        total = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        top = None
        if self._own.get("confidence", self) is not None and "confidence" not in ctx.without:
            max_logprob, predicted = wide.detach().log_softmax(-1).max(-1)
            top = TopPrediction(predicted == targets, max_logprob.masked_fill(targets == IGNORED, 0.0))
        losses = self.language_model.auxiliary_losses(hidden, ctx, targets, top)
        scored = (targets != IGNORED).sum()
        divisor = scored.clamp_min(1) if count is None else torch.as_tensor(count, device=total.device)
        return (total + scored * sum(losses.values())) / divisor

    def _mark_differentiated(self, _: Tensor) -> None:
        self._differentiated = True

    def _end_step(self) -> None:
        """Moves the buffers, if there was a backward pass since they were measured."""
        if self._differentiated:
            apply_buffer_updates(self._updates)
            self._updates, self._differentiated = [], False

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        """The model at a path that synthe takes (a run, a checkpoint, an adapter, a .synapse file), or a folder or hub
        id of transformers with a model of ours. InputError if the weights are not those of the model."""
        loading: Any = super().from_pretrained
        loaded = open_checkpoint(name, options)
        report = options.pop("output_loading_info", False)
        if loaded is None:
            model, missing = loading(name, *arguments, output_loading_info=True, **options)
        else:
            options = {"config": loaded.config} | options | {"state_dict": loaded.tensors, "output_loading_info": True}
            model, missing = loading(None, *arguments, **options)
            model.config._name_or_path = model.name_or_path = str(name)
            if loaded.generation is not None:
                model.generation_config = loaded.generation
        check_loaded(name, missing)
        return (model, missing) if report else model

    def save_pretrained(self, *arguments: Any, **options: Any) -> Any:
        """As in transformers; synthe reads the folder back."""
        self._end_step()
        return super().save_pretrained(*arguments, **options)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: parameters have their initial values when they are built."""

    def initialize_weights(self) -> None:
        """What transformers calls after it has loaded weights into a model without storage: the buffers that no file
        has are built again."""
        super().initialize_weights()
        for learner in self.language_model.learners if self._built else ():
            names = [
                f"{path}.{name}".lstrip(".")
                for path, module in learner.named_modules()
                for name in module._non_persistent_buffers_set
            ]
            if names:
                with skip_init(), torch.device("cpu"):
                    fresh = dict(type(learner)(learner.config, learner.width).named_buffers())
                for name in names:
                    learner.get_buffer(name).copy_(fresh[name])

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        if type(value) is nn.Linear:  # the head with another vocabulary
            value = Head.like(self.get_submodule("head"), value)  # type: ignore[arg-type]
        self.head = value


class Backbone:
    """A model without its head, as trainers call it that compute logits themselves (TRL): with the head's matrix, its
    bias and the config's `final_logit_softcapping`. The auxiliary losses of a recipe's learners are not theirs."""

    def __init__(self, model: SyntheForCausalLM) -> None:
        self._model = model

    def __call__(self, *arguments: Any, **options: Any) -> BaseModelOutputWithPast:
        return self._model.hidden_states(*arguments, **options)


def _check_length(ctx: Pass, limit: int | None) -> None:
    """InputError if a text is longer than the model's learned positions reach."""
    if limit is not None and int(ctx.positions[slice(None) if ctx.mask is None else ctx.mask].max()) >= limit:
        raise InputError(
            f"a text is longer than {limit} tokens, which are all that the model has positions for", "cut it"
        )


def _mask(ctx: Pass) -> Tensor:
    assert ctx.mask is not None
    return ctx.mask


def _check_others(others: dict[str, Any], ctx: Pass, columns: Columns | None) -> None:
    """InputError for arguments of other models' passes that would change the result."""
    positions = others.pop("position_ids", None)
    if positions is not None:
        positions = positions.expand(ctx.positions.shape)
        positions = positions if columns is None else columns.front(positions)
        real = slice(None) if ctx.mask is None else ctx.mask
        if not torch.equal(positions[real], ctx.positions[real].to(positions)):
            raise InputError(
                "position_ids are not those of the tokens that the model has read",
                "leave them out; texts cannot be packed into one row: give each its own, with an attention_mask",
            )
    for name, value in others.items():
        if value is not None and value is not False:
            raise InputError(f"{name} is given, and this model has no such input or output", "leave it out")
