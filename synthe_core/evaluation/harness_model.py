"""A checkpoint as a model of lm-evaluation-harness: `lm-eval run --model synthe --model_args path=runs/60m`."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from synthe_core.data import chat_template as chat
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, unknown
from synthe_core.evaluation.answers import Answers, request_key
from synthe_core.evaluation.continuations import METHOD, Pair, no_tokens, split_pairs
from synthe_core.evaluation.opened_model import open_model
from synthe_core.evaluation.reading import Reader
from synthe_core.evaluation.scoring import Continuation, score
from synthe_core.evaluation.writing import Prompt, write
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import probe
from synthe_core.inference.sampling_params import SamplingParams

PREFIXES = ("auto", "begin", "end", "none")
GENERATED = 256  # tokens, if a task names no limit
IGNORED = ("num_beams", "use_cache", "pad_token_id", "eos_token_id", "decoder_start_token_id")

ReportProgress = Callable[[str, int, int, float | None], None]


class SpecialTokens(NamedTuple):
    """The special tokens and the chat template, as the harness records them."""

    pad_token: str | None
    pad_token_id: int | None
    eos_token: str
    eos_token_id: int
    bos_token: str | None
    bos_token_id: int | None
    chat_template: str | None
    default_chat_template: str | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialTokens:
        begin = None if tokenizer.begin is None else tokenizer.spelling(tokenizer.begin)
        end = tokenizer.spelling(tokenizer.end)
        return cls(None, None, end, tokenizer.end, begin, tokenizer.begin, tokenizer.chat_template)


class Synthe(TemplateLM):
    """Answers the harness's requests. A context that several requests share is read once (see `reading`).

    path:       a checkpoint or run folder. device: cpu, cuda, mps or auto. batch_size: rows, or auto.
    prefix:     the token before every context: `begin` (of text), `end` (of document), `none`, or `auto`: begin if the
                tokenizer has one. An empty context is always one token: begin, or else end.
    max_length: tokens of a request; a longer one is cut into windows. By default unlimited for a model whose state does
                not grow, and for others the length that they were trained on.
    seed:       of sampling, for tasks that sample. weights: the format of the matrices; see `inference.weights`.
    memory:     the bytes that this process may take, None for no limit.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        prefix: str = "auto",
        max_length: int | None = None,
        max_gen_toks: int = GENERATED,
        seed: int = 0,
        weights: str = "float32",
        memory: int | None = None,
    ) -> None:
        super().__init__()
        if prefix not in PREFIXES:
            raise unknown("prefix", prefix, PREFIXES)
        self._device = _device(device or "auto")
        self.opened = open_model(
            Path(str(path)), self._device, weights, memory
        )  # the harness makes a number of path=2024
        self.text, self.model, self.context = self.opened.tokenizer, self.opened.model, self.opened.context
        if self.text.vocab_size > self.model.vocab:
            raise InputError(
                f"the tokenizer has {self.text.vocab_size} tokens, and the model knows {self.model.vocab}",
                f"the tokenizer of {self.opened.path} is not the one that it was trained with",
            )
        self.tokenizer = SpecialTokens.of(self.text)
        self.prefix = _prefix(prefix, self.text)
        self.reader = Reader(self.model, _rows(batch_size, max_batch_size))
        self.trained = self.opened.trained
        self.limit = max_length or (self.trained if self.opened.grows else None)
        self.max_gen_toks, self.seed = int(max_gen_toks), int(seed)
        self.longer = 0  # requests longer than the training sequences
        self.answers = Answers(None)
        self.report: ReportProgress = lambda kind, done, total, eta: None
        self._chat = False
        self._named: dict[Pair, Instance] = {}  # the first request of each pair
        self._eta: float | None = None  # seconds

    # The harness's interface of a model.

    @property
    def eot_token_id(self) -> int:
        return self.text.end

    @property
    def prefix_token_id(self) -> int:
        return self.text.end if self.text.begin is None else self.text.begin

    @property
    def max_length(self) -> int | None:
        return self.limit

    @property
    def tokenizer_name(self) -> str:
        return self.text.digest

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        (tokens,) = self._encode([string])
        return tokens if add_special_tokens is False else self._with_prefix(tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        self._chat = True
        text = chat.render(self.text, chat_history, answer=add_generation_prompt)
        return text if add_generation_prompt else text.rstrip("\n")  # the last message is to be continued

    def get_model_info(self) -> dict[str, Any]:
        """What the harness records of a model."""
        return {
            "model_num_parameters": self.model.parameter_count(),
            "model_dtype": str(next(self.model.parameters()).dtype),
            "model_revision": self.opened.recipe_digest,
            "model_sha": self.digest(),
        }

    def digest(self) -> str:
        """A digest of everything that answers depend on."""
        settings = [self.prefix, self.limit, self.max_gen_toks, self.seed, METHOD]
        return hashlib.sha256("\n".join([*self.opened.files, repr(settings)]).encode()).hexdigest()[:16]

    # Requests.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        self._named = dict(zip(reversed(pairs), reversed(requests), strict=True))
        scores = self._answered("loglikelihood", pairs, self._score_pairs)
        return [(loglikelihood, bool(greedy)) for loglikelihood, greedy in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._answered("loglikelihood_rolling", [request.args for request in requests], self._score_texts)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._answered("generate_until", [request.args for request in requests], self._write)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        scores = dict(self._score([[Continuation(context, rest)] for _, context, rest in requests]))
        return [scores[index] for index in range(len(requests))]

    def _answered(self, kind: str, requests: list[Any], compute: Callable[..., Iterator[tuple[int, Any]]]) -> list[Any]:
        """The answer to each request: a stored one, or one from `compute(requests, keys)` of those without."""
        repeats: Counter[str] = Counter()
        keys = []
        for arguments in requests:
            key = request_key(kind, arguments)
            if kind == "generate_until" and repeats[key]:  # several samples of one request
                keys.append(request_key(kind, arguments, repeats[key]))
            else:
                keys.append(key)
            repeats[key] += 1
        todo = [index for index, key in enumerate(keys) if key not in self.answers]
        done, self._eta = len(requests) - len(todo), None
        self.report(kind, done, len(requests), None)
        with self.context.activate():
            for position, answer in compute([requests[index] for index in todo], [keys[index] for index in todo]):
                self.answers[keys[todo[position]]] = answer
                self.cache_hook.add_partial(kind, requests[todo[position]], answer)
                done += 1
                self.report(kind, done, len(requests), self._eta)
        return [self.answers[key] for key in keys]

    def _timed(self, parts: Iterator[tuple[int, Any]], work: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Passes `parts` on and estimates the remaining time from `work`, the tokens of each."""
        began, done, total = time.monotonic(), 0, sum(work)
        for index, answer in parts:
            done += work[index]
            elapsed = time.monotonic() - began
            self._eta = elapsed * (total - done) / done if done and elapsed > 1 else None
            yield index, answer

    def _score_pairs(self, pairs: list[Pair], keys: list[str]) -> Iterator[tuple[int, tuple[float, bool]]]:
        return self._score([[request] for request in self._split(pairs)])

    def _score_texts(self, texts: list[tuple[str]], keys: list[str]) -> Iterator[tuple[int, float]]:
        first = [self.prefix_token_id]
        requests = [[Continuation(first, tokens)] for tokens in self._encode([text for (text,) in texts])]
        for index, (loglikelihood, _) in self._score(requests):
            yield index, loglikelihood

    def _score(self, requests: list[list[Continuation]]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Each request's score, summed over its windows."""
        windows = [[part for each in request for part in self._windows(each)] for request in requests]
        remaining = [len(parts) for parts in windows]
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        owner = [index for index, parts in enumerate(windows) for _ in parts]
        flat = [part for parts in windows for part in parts]
        work = [len(part.context) + len(part.continuation) for part in flat]
        for position, part in self._timed(score(self.reader, flat), work):
            index = owner[position]
            totals[index] += part.loglikelihood
            greedy[index] = greedy[index] and part.greedy
            remaining[index] -= 1
            if not remaining[index]:
                yield index, (totals[index], greedy[index])

    def _windows(self, request: Continuation) -> list[Continuation]:
        """The request, or windows of it that read at most `limit` tokens, as the harness cuts them."""
        context, rest = request
        read = len(context) + len(rest) - 1
        self.longer += read > self.trained
        if self.limit is None or read <= self.limit:
            return [request]
        if len(rest) <= self.limit:
            return [Continuation(context[len(rest) - self.limit - 1 :], rest)]
        rolling = get_rolling_token_windows(rest, context[-1], self.limit, context_len=1)
        return [Continuation(*window) for window in map(make_disjoint_window, rolling)]

    def _split(self, pairs: list[Pair]) -> list[Continuation]:
        """The tokens of each context and continuation (see `split_pairs`). InputError that names the question of a
        continuation without tokens."""
        split = split_pairs(pairs, self._encode, self._with_prefix, self.prefix_token_id)
        for pair, continuation in zip(pairs, split, strict=True):
            if not pair[1] or not continuation.continuation:
                raise no_tokens(pair, self._named.get(pair))
        return split

    def _write(self, requests: list[tuple[str, dict[str, Any]]], keys: list[str]) -> Iterator[tuple[int, str]]:
        """Generates the texts; requests with equal settings form batches."""
        groups: dict[str, list[int]] = {}
        for index, (_, settings) in enumerate(requests):
            groups.setdefault(repr(sorted(settings.items(), key=str)), []).append(index)
        contexts = self._encode([context for context, _ in requests])

        def parts() -> Iterator[tuple[int, str]]:
            for indices in groups.values():
                limit, stop, sampling = self._settings(requests[indices[0]][1])
                prompts = []
                for index in indices:
                    tokens = self._with_prefix(contexts[index]) or [self.prefix_token_id]
                    self.longer += len(tokens) + limit > self.trained
                    if self.limit is not None:
                        tokens = tokens[-max(1, self.limit - limit) :]
                    prompts.append(Prompt(tokens, int(keys[index][:12], 16) + self.seed))
                for position, text in write(self.reader, self.text, prompts, limit, stop, sampling):
                    yield indices[position], text

        return self._timed(parts(), [1] * len(requests))

    def _settings(self, settings: dict[str, Any]) -> tuple[int, list[str], SamplingParams]:
        """The token limit, stop strings and sampling parameters of a task's generation_kwargs."""
        values: dict[str, Any] = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        until = values.pop("until", None) or []
        stop = [until] if isinstance(until, str) else [text for text in until if text]
        limit, sampled = int(values.pop("max_gen_toks")), bool(values.pop("do_sample", False))
        keys = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        chosen = {key: values.pop(key) for key in keys if values.get(key) is not None}
        if not sampled:
            chosen = {"temperature": 0.0} | {key: chosen[key] for key in chosen if key == "repetition_penalty"}
        for key in values:
            if key not in IGNORED:
                raise unknown("generation setting", key, [*keys, "until", "max_gen_toks", "do_sample"])
        return limit, [*stop, self.tokenizer.eos_token], SamplingParams(**chosen)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self._chat:
            return [self.text.encode_marked(text) for text in texts]
        return [tokens.tolist() for tokens in self.text.encode_batch(texts)]

    def _with_prefix(self, tokens: list[int]) -> list[int]:
        """The prefix and the tokens, which may begin with it already (from a chat template)."""
        return [*self.prefix, *tokens] if tokens[: len(self.prefix)] != self.prefix else tokens


def _device(name: str) -> str:
    """The device called `name`, such as `cuda:1`; the best one if the harness's default `cuda:0` does not exist."""
    kind, colon, number = name.partition(":")
    if colon and kind != probe().device:
        kind, colon, number = "auto", "", ""
    return choose_device(kind, probe()).value + colon + number


def _prefix(kind: str, tokenizer: Tokenizer) -> list[int]:
    if kind == "begin" and tokenizer.begin is None:
        raise InputError("the tokenizer has no token that begins a text", "choose the prefix end, none or auto")
    if kind == "end":
        return [tokenizer.end]
    return [] if kind == "none" or tokenizer.begin is None else [tokenizer.begin]


def _rows(batch_size: int | str | None, largest: int | None) -> int | None:
    """The rows of a batch; None for `auto`."""
    text = str(batch_size or "auto")
    if text.startswith("auto"):
        return largest
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"no batch size: '{batch_size}'", "a whole number, or auto")
    return int(text)
