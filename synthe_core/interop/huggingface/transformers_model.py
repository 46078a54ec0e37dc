"""Model folders of Hugging Face, run by the library transformers (extra `hf`) and served like our own."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthe_core.adapters.lora_linear import lora_linears
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.huggingface.import_tokenizer import tokenizer_of
from synthe_core.interop.huggingface.invariant_modules import ForeignCalls, angles_depend_on_batch, use_primitives
from synthe_core.interop.huggingface.published import CONFIG, Published, check_depth
from synthe_core.layers.adapter_batch import current_adapters, per_adapter
from synthe_core.layers.learner import Pass
from synthe_core.layers.trace import Trace
from synthe_core.model.head_chunks import logits_in_chunks
from synthe_core.model.language_model import LanguageModel, Loss, ModelState
from synthe_core.model.session import tensors_digest
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.ops.dispatch import batch_invariant_on
from synthe_core.ops.linear import products_are_batch_invariant
from synthe_core.storage.finite import check_finite

SLACK = 1 << 30  # bytes of tables that a model may have beside its weights
TRIAL = 11  # tokens of the check, when a model is loaded, that chunks and batches do not change its logits
TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}  # of the standard deviation of its logits; 0.2 in narrower types


class LayerCache(NamedTuple):
    """The keys and values of every token so far, [B, n, H, K] each and the newest last. Shorter rows have padding in
    front."""

    keys: Tensor
    values: Tensor


class Spec(NamedTuple):
    """The identity of a model: its config and a digest of its weights."""

    config: dict[str, Any]
    digest: str

    def model_dump(self, mode: str = "json") -> dict[str, Any]:
        return self._asdict()


class TransformersModel:
    """A causal language model of transformers with an explicit state: the interface that the engine uses of a
    `LanguageModel`.

    Its state grows by keys and values with every token, up to `limit` of them. The engine refuses longer texts; in a
    longer text the oldest tokens are dropped. Any architecture works whose state is keys and values, which is checked
    on a few tokens when a model is loaded; InputError otherwise.
    """

    confidence = None
    router = None
    without: frozenset[str] = frozenset()
    signals: tuple[str, ...] = ()

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.base: Any = getattr(inner, inner.base_model_prefix, None)
        known = set() if self.base is None else set(inspect.signature(self.base.forward).parameters)
        name = type(inner).__name__
        if missing := {"position_ids", "attention_mask", "past_key_values", "use_cache"} - known:
            raise InputError(f"{name} cannot be served: it takes no {min(missing)}", _OTHERS)
        config = inner.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if not isinstance(limit, int) or limit < 1:
            raise InputError(
                f"{name} cannot be served: its config.json does not limit the length of a text",
                "put in its max_position_embeddings, in tokens",
            )
        self.limit, self.vocab = limit, int(config.vocab_size)
        self.embedding = inner.get_input_embeddings()
        self.spec = Spec(json.loads(inner.config.to_json_string(use_diff=False)), tensors_digest(inner.state_dict()))
        try:
            self._measure()
            difference, spread = self._check_chunks()
        except Exception as error:  # an architecture may raise anything for these arguments
            raise InputError(f"{name} cannot be served: {' '.join(str(error).split())[:200]}", _OTHERS) from error
        if not difference <= TOLERANCE.get(self._dtype, 0.2) * spread:
            raise InputError(
                f"{name} cannot be served: its logits differ by {difference:.2g} if texts are read in chunks",
                _OTHERS,
            )

    def init_state(self, batch: int, *, device: torch.device | str | None = None) -> ModelState:
        """The initial state of `batch` texts."""
        device = self.embedding.weight.device if device is None else device
        caches = [
            LayerCache(*(torch.zeros(batch, 0, *shape, dtype=self._dtype, device=device) for shape in pair))
            for pair in self._shapes
        ]
        return ModelState(torch.zeros(batch, dtype=torch.int64, device=device), [[seen] for seen in caches])

    def state_bytes(self, time: int = 1) -> int:
        """Bytes of one text's state after `time` tokens."""
        numbers = sum(heads * size for pair in self._shapes for heads, size in pair)
        return 8 + min(time, self.limit) * numbers * self._dtype.itemsize

    @torch.inference_mode()
    def hidden(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None, trace: Trace | None = None
    ) -> tuple[Tensor, ModelState, Pass]:
        """The normalised output of the last block, [B, T, D], before the head. Nothing is traced.

        An architecture may call its maps with any shape: rows with different adapters are computed apart.
        """
        state = state or self.init_state(tokens.shape[0])
        ctx = Pass.over(tokens, lengths, state.position, trace)
        inputs = (tokens, state) if lengths is None else (tokens, state, lengths)
        batch = current_adapters()
        apart = batch is not None and len(set(batch.indices)) > 1
        hidden, after = per_adapter(lora_linears(self.inner).values() if apart else (), self._hidden, *inputs)
        return hidden, after, ctx

    def _hidden(self, tokens: Tensor, state: ModelState, lengths: Tensor | None = None) -> tuple[Tensor, ModelState]:
        """The pass of rows with one adapter."""
        ctx = Pass.over(tokens, lengths, state.position)
        position = (state.position + (tokens.shape[1] if lengths is None else lengths)).clamp_max(self.limit)
        stored = state.blocks[0][0].keys.shape[1]
        past = min(stored, int(state.position.max()))  # more is padding
        seen = [LayerCache(*(t[:, stored - past :] for t in layer[0])) for layer in state.blocks]
        ages = torch.arange(past, 0, -1, device=tokens.device)
        real = ages <= state.position[:, None]
        now = torch.ones_like(tokens, dtype=torch.bool) if ctx.mask is None else ctx.mask
        mask = torch.cat([real, now], 1)
        cache = _cache(seen)
        outputs = self.base(
            input_ids=tokens,
            attention_mask=None if bool(mask.all()) else mask.long(),
            position_ids=ctx.positions.clamp_max(self.limit - 1),  # padding may lie past the end
            past_key_values=cache,
            use_cache=True,
        )
        retained = min(past + tokens.shape[1], int(position.max()))
        after = [
            [LayerCache(*(ctx.last(t.transpose(1, 2), retained) for t in (layer.keys, layer.values)))]
            for layer in cache.layers
        ]
        return outputs.last_hidden_state, ModelState(position, after)

    def __call__(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None, trace: Trace | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits [B, T, V] of the token after each of `tokens` int64 [B, T], and the state after them."""
        hidden, after, _ = self.hidden(tokens, state, lengths, trace)
        return self.head(hidden), after

    def next_logits(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits [B, V] after the last real token only."""
        hidden, after, ctx = self.hidden(tokens, state, lengths)
        return self.head(ctx.last(hidden, 1))[:, 0], after

    @torch.inference_mode()
    def loss(
        self, tokens: Tensor, targets: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Loss, ModelState]:
        """Cross-entropy of `targets` int64 [B, T] (-100 = not scored) given the tokens up to each."""
        hidden, after, _ = self.hidden(tokens, state, lengths)
        chunks = logits_in_chunks(cast(LanguageModel, self), hidden, targets)
        each = torch.cat(
            [F.cross_entropy(logits.transpose(1, 2), part, reduction="none") for logits, part in chunks], 1
        )
        return Loss(each.sum(), (targets != IGNORED).sum(), {}, each, {}, 0.0), after

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Its modules under the names of transformers, which adapters use."""
        return self.inner.named_modules(*args, **kwargs)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.inner.parameters()

    def flops(self, time: int) -> float:
        """Floating-point operations per token: two for each entry of a matrix that is not an embedding alone. What
        attention reads of the text is not counted."""
        tied = self.inner.get_output_embeddings().weight is self.embedding.weight
        matrices = sum(each.numel() for each in self.parameters() if each.dim() >= 2)
        return 2.0 * (matrices if tied else matrices - self.embedding.weight.numel())

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.inference_mode()
    def _measure(self) -> None:
        """Finds the shape of each layer's keys and values and their dtype by reading one token."""
        outputs = self.base(input_ids=_trial(self, 1), past_key_values=_cache([]), use_cache=True)
        self.head = _head(self.inner, type(outputs))
        pairs = [(layer.keys, layer.values) for layer in outputs.past_key_values.layers]
        self._shapes = [tuple((t.shape[1], t.shape[3]) for t in pair) for pair in pairs]
        self._dtype: torch.dtype = pairs[0][0].dtype

    @torch.inference_mode()
    def is_batch_invariant(self) -> bool:
        """Whether a row's numbers do not depend on the other rows, in the active context. The model calls no product or
        activation that may not be batch-invariant, and a short row has the same bits alone and beside longer ones."""
        if angles_depend_on_batch(self.inner) or not products_are_batch_invariant(self._dtype):
            return False
        text = _trial(self, 3 * TRIAL).view(3, TRIAL)
        lengths = torch.tensor([TRIAL, 3, TRIAL // 2], device=text.device)
        try:
            with ForeignCalls() as calls:
                together = self._read_and_continue(text, lengths)
            alone = self._read_and_continue(text[1:2], lengths[1:2])
        except Exception:  # an architecture may pass what the primitives do not take; transformers' own functions do
            return False
        return not calls.names and torch.equal(alone[0], together[1])

    def _read_and_continue(self, text: Tensor, lengths: Tensor) -> Tensor:
        """Logits [B, 2, V] after the first `lengths` [B] tokens of `text` [B, T], and after another one."""
        first, state = self.next_logits(text, lengths=lengths)
        second, _ = self.next_logits(text[:, :1], state)
        return torch.stack([first, second], 1)

    @torch.inference_mode()
    def _check_chunks(self) -> tuple[float, float]:
        """The largest difference of logits between a text read at once, and in two chunks in a batch with a shorter
        one; and the standard deviation of the logits."""
        text = _trial(self, TRIAL)
        alone = self.inner(input_ids=text).logits[0].float()
        both = torch.cat([text, text.flip(1)])
        cut = TRIAL // 2
        early, state = self(both[:, :cut], lengths=torch.tensor([cut, 1], device=text.device))
        late, _ = self(both[:, cut:], state)
        pieces = torch.cat([early[0], late[0]]).float()
        return float((pieces - alone).abs().max()), float(alone.std())


_OTHERS = "synthe import hf reads Mamba, Mamba-2, Llama, Mistral and Qwen; others with keys and values are served as is"


class _Identity(nn.Module):
    """Replaces the blocks: returns its input in the type of their output."""

    def __init__(self, form: type[Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return self.form(last_hidden_state=inputs_embeds)


def _head(inner: Any, form: type[Any]) -> Any:
    """The function from hidden [B, ..., D] to logits [B, ..., V]: the architecture's own code without its blocks. Its
    matrices are the model's, with the adapters attached at the time of the call."""
    bare, identity = copy.copy(inner), _Identity(form)

    def head(hidden: Tensor) -> Tensor:
        bare._modules = dict(inner._modules) | {inner.base_model_prefix: identity}
        rows = hidden.reshape(len(hidden), -1, hidden.shape[-1])
        return bare(inputs_embeds=rows, use_cache=False).logits.view(*hidden.shape[:-1], -1)

    return head


def _cache(layers: list[LayerCache]) -> Any:
    """transformers' cache of these keys and values, without a copy."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for each in layers:
        keys, values = (t.transpose(1, 2) for t in each)
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _trial(model: TransformersModel, length: int) -> Tensor:
    tokens = torch.randint(model.vocab, (1, length), generator=torch.Generator().manual_seed(0))
    return tokens.to(model.embedding.weight.device)


def load(path: Path, name: str | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """The model folder at `path`, in the dtype of its weights. Nothing is downloaded, no pickle is read and no code of
    the folder runs."""
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"{path} is a model of transformers, which is not installed", "pip install 'synthe[hf]' brings it"
        ) from None
    published = Published(path)
    check_depth(published.config, len(published))  # opens the files too, and says in one line what is wrong with them
    context = _context(torch.device(device))  # before the first product
    inner = _from_pretrained(transformers, path, published).to(device).eval().requires_grad_(False)
    if context.batch_invariant:
        use_primitives(inner)
    model = TransformersModel(inner)
    with context.activate():
        if context.batch_invariant and not model.is_batch_invariant():
            context = replace(context, batch_invariant=False)
    steps = tokenizer_of(published, model.vocab)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        tokenizer = end.value
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer.json", "fetch it as well")
    return LoadedModel(
        name or path.resolve().name,
        cast(LanguageModel, model),  # it has the interface that the engine uses
        tokenizer,
        path,
        model.spec.digest,
        int((path / CONFIG).stat().st_mtime),
        max_length=model.limit,
        context=context,
    )


def _context(device: torch.device) -> ExecutionContext:
    """A batch-invariant context where the device has such kernels."""
    return ExecutionContext(device=device, batch_invariant=batch_invariant_on(device.type, {}))


def _from_pretrained(transformers: Any, path: Path, published: Published) -> Any:
    """The model with every weight from its files."""
    log = transformers.utils.logging
    before, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        _check_sizes(transformers, path, published)
        inner, info = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except InputError:
        raise
    except Exception as error:  # the library raises errors of many kinds
        raise InputError(
            f"{path} cannot be loaded: {' '.join(str(error).split())[:200]}", "does transformers load it?"
        ) from None
    finally:
        log.set_verbosity(before)
        if shown:
            log.enable_progress_bar()
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{path} has no tensor {missing[0]}, which its config.json asks for", "fetch every file")
    if info.get("mismatched_keys"):
        raise InputError(f"{path}: config.json and the weights are of two models", "copy the folder again")
    for name, tensor in inner.state_dict().items():
        check_finite(name, tensor, path)
    return inner


def _check_sizes(transformers: Any, path: Path, published: Published) -> None:
    """InputError if config.json describes a model that is much larger than the weights: memory is allocated only for
    what the files hold. Its own tables, such as masks, may take as much, and SLACK."""
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    with torch.device("meta"):
        sketch = transformers.AutoModelForCausalLM.from_config(config)
    stored = sum(math.prod(published.shape(name)) for name in published)
    own = sum(parameter.numel() for parameter in sketch.parameters())
    tables = sum(buffer.numel() * buffer.element_size() for buffer in sketch.buffers())
    if own > 2 * stored or tables > SLACK + 4 * stored:
        raise InputError(
            f"{path}: config.json describes a model of {own:,} numbers and {tables:,} bytes of tables, and the files "
            f"hold {stored:,} numbers",
            "config.json and the weights are of two models: copy the folder again",
        )
