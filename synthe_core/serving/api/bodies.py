"""Bodies of requests, by endpoint."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from synthe_core.serving.api import neutral_fields
from synthe_core.serving.api.body import (
    IGNORED,
    Body,
    Int,
    Name,
    SessionId,
    Text,
    TokenList,
    Tokens,
    field_error,
)
from synthe_core.serving.api.messages import Message, check_results
from synthe_core.serving.api.structured_output import StructuredBody
from synthe_core.serving.api.tools import ToolBody, Tools

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""An adapter's name; `$` is the very end here, as in JSON Schema."""
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")], Bias], Field(max_length=1024)]
Count = Annotated[Int, Field(ge=0, lt=2**31)]
Prompt = Annotated[
    str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)],
    Field(description="a text, a list of texts, a list of tokens or a list of lists of tokens, none of them empty"),
]
OF_THE_CONVERSATION = ("messages", "add_generation_prompt")


def _template_values(values: dict[str, Any]) -> dict[str, Any]:
    for name in OF_THE_CONVERSATION:
        if name in values:
            raise PydanticCustomError("template_value", "{name} comes from the conversation itself", {"name": name})
    return values


TemplateValues = Annotated[dict[str, Any], Field(max_length=64), AfterValidator(_template_values)]


class StreamOptions(Body):
    NEUTRAL: ClassVar = {"include_obfuscation": IGNORED}

    include_usage: bool | None = Field(None, description="send the usage in a last chunk")
    continuous_usage_stats: bool | None = Field(
        None, description="with include_usage, send the usage so far in every chunk"
    )


class GenerationBody(StructuredBody):
    """Fields of completions and chats. A null field counts as absent."""

    SYNONYMS: ClassVar = neutral_fields.SYNONYMS

    model: Name = Field(description="a name of /v1/models, `base:adapter` for a base with an adapter")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; 1 by default")
    top_p: float | None = Field(
        None, gt=0, le=1, description="sample from the smallest set of tokens whose probability is at least p"
    )
    top_k: Int | None = Field(
        None, ge=-1, lt=2**31, description="sample from the k most likely tokens; 0 and -1 turn it off"
    )
    min_p: float | None = Field(
        None, ge=0, lt=1, description="drop tokens less likely than this share of the most likely one"
    )
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100, description="another name of repetition_penalty")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Biases | None = Field(None, description="values from -100 to 100 that are added to logits, by token id")
    n: Int | None = Field(None, ge=1, le=128, description="choices per prompt; choice i is sampled with seed + i")
    seed: Int | None = Field(
        None, ge=-(2**63), lt=2**63, description="the same seed gives the same text; random by default"
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = Field(
        None, description="a text or up to 16 texts, each of 1 to 1000 characters; the output stops before them"
    )
    stop_token_ids: Annotated[TokenList, Field(max_length=64)] | None = Field(
        None, description="the output stops before these tokens"
    )
    min_tokens: Count | None = Field(None, description="no end before that many tokens; at most max_tokens")
    ignore_eos: bool | None = Field(None, description="continue after the end token")
    truncate_prompt_tokens: Int | None = Field(
        None, ge=-1, lt=2**31, description="read that many tokens of the prompt's end; -1 for as many as fit"
    )
    add_special_tokens: bool | None = Field(
        None, description="add the begin token; by default to a text, and not to messages by a chat template"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="without effect unless stream is true")
    session: SessionId | None = Field(None, description="continue this conversation, and save it")
    confidence: bool | None = Field(None, description="return the model's confidence with each delta")
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for name, other in (("max_tokens", "max_completion_tokens"), ("repeat_penalty", "repetition_penalty")):
            one, two = getattr(self, name), getattr(self, other)
            if None not in (one, two) and one != two:
                raise field_error(name, f"differs from {other}, which it is another name of")
        return self

    @property
    def count(self) -> int | None:
        """The maximum number of tokens."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def with_running_usage(self) -> bool:
        return self.with_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


def _number_of_logprobs(value: Any) -> Any:
    if value is True:
        raise PydanticCustomError("logprobs", "expected a number of tokens (true is for /v1/chat/completions)")
    return None if value is False else value


def _with_logprobs(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise PydanticCustomError("logprobs", "expected true or false (top_logprobs has the number of tokens)")
    return value


class Completion(GenerationBody):
    NEUTRAL: ClassVar = neutral_fields.COMPLETION
    SYNONYMS: ClassVar = {**neutral_fields.SYNONYMS, "messages": "prompt", "input": "prompt", "text": "prompt"}

    prompt: Prompt
    max_tokens: Count | None = Field(
        None, description="16 by default; at most the server's maximum, to which it is cut"
    )
    max_completion_tokens: Count | None = Field(None, description="another name of max_tokens")
    echo: bool | None = Field(None, description="return the prompt before the text, with its logprobs if requested")
    logprobs: Annotated[
        Annotated[Int, Field(ge=0, le=20)] | None,
        BeforeValidator(
            _number_of_logprobs, json_schema_input_type=Annotated[int, Field(ge=0, le=20)] | Literal[False]
        ),
    ] = Field(None, description="number of most likely tokens to return")
    best_of: Int | None = Field(None, ge=1, le=128, description="only n is supported")

    @model_validator(mode="after")
    def _best(self) -> Self:
        if self.best_of not in (None, self.n or 1):
            raise field_error("best_of", "only the value of n is supported")
        return self


class Chat(GenerationBody, ToolBody):
    NEUTRAL: ClassVar = neutral_fields.CHAT
    SYNONYMS: ClassVar = {**neutral_fields.SYNONYMS, "prompt": "messages", "input": "messages", "system": "messages"}

    messages: list[Message] = Field(min_length=1, description="with a session, the new ones only")
    max_completion_tokens: Count | None = Field(
        None, description="the server's maximum by default, to which larger ones are cut"
    )
    max_tokens: Count | None = Field(None, description="former name of max_completion_tokens")
    logprobs: Annotated[bool | None, BeforeValidator(_with_logprobs)] = None
    top_logprobs: Int | None = Field(None, ge=0, le=20)
    add_generation_prompt: bool | None = Field(None, description="add the start of the reply; true by default")
    continue_final_message: bool | None = Field(None, description="continue the last message instead of a new one")
    chat_template_kwargs: TemplateValues | None = Field(None, description="values for the model's chat template")
    reasoning_effort: Text | None = Field(None, description="given to the model's chat template")
    user: Text | None = Field(None, description="whose facts a swarm uses; no effect on other models")
    conversation: Text | None = Field(None, description="a swarm's: keep both turns, and learn facts from them")
    synthesis: Literal["best", "write", "fuse"] | None = Field(
        None, description="a swarm's: how several answers become one"
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "only if logprobs is true")
        if self.continue_final_message and self.add_generation_prompt:
            raise field_error("continue_final_message", "cannot be combined with add_generation_prompt")
        if self.session is None:
            check_results(self.messages)
        if self.calls_tools and self.grammar is not None:
            raise field_error("tools", "cannot be combined with a grammar, regex or choice; tool_choice none can")
        return self

    @property
    def calls_tools(self) -> bool:
        """Whether the answer may have calls."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def template_values(self) -> dict[str, Any]:
        """What the chat template gets beside the messages."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return effort | (self.chat_template_kwargs or {})


class Embedding(Body):
    NEUTRAL: ClassVar = neutral_fields.EMBEDDING
    SYNONYMS: ClassVar = {"prompt": "input", "text": "input", "texts": "input", "messages": "input"}

    model: Name
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int | None = Field(None, ge=1, lt=2**31, description="only the model's width is supported")
    truncate_prompt_tokens: Int | None = Field(
        None, ge=-1, lt=2**31, description="read that many tokens of each text's end; -1 for as many as fit"
    )
    add_special_tokens: bool | None = Field(None, description="add the begin token; true by default")


class Tokenize(Body):
    NEUTRAL: ClassVar = neutral_fields.TOKENIZE

    model: Name | None = Field(None, description="the first served model by default")
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: Tools | None = Field(None, description="functions that are described in the prompt")
    add_special_tokens: bool | None = Field(
        None, description="add the begin token; by default to a text, and not to messages by a chat template"
    )
    add_generation_prompt: bool | None = Field(None, description="add the start of the reply; true by default")
    continue_final_message: bool | None = Field(None, description="leave the last message open")
    chat_template_kwargs: TemplateValues | None = Field(None, description="values for the model's chat template")
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise field_error("prompt", "give either prompt or messages")
        return self


class Detokenize(Body):
    model: Name | None = Field(None, description="the first served model by default")
    tokens: TokenList


class Introspect(Body):
    model: Name
    text: str | None = Field(None, description="text to inspect; the last request of the model by default")


class Fork(Body):
    to: SessionId = Field(description="name of the copy")


class Feedback(Body):
    answer_id: Name = Field(description="`synthe.answer_id` of the reply")
    score: float | None = Field(None, ge=-1, le=1, description="1 is good, -1 is bad")
    signal: Literal["copied", "continued", "regenerated", "stopped"] | None = Field(
        None, description="instead of a score, what the user did; it counts if the swarm's feedback.implicit is true"
    )
    right: Name | None = Field(None, description="the specialist that should have answered")
    correction: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = Field(
        None, description="a better answer; it is reviewed before it is learned"
    )
    user: Text | None = Field(None, description="as in the request")


class Review(Body):
    state: Literal["approved", "rejected"] = Field(description="whether the pair may be learned")
    chosen: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = Field(
        None, description="in place of the better answer"
    )


class Rollback(Body):
    specialist: Name = Field(description="whose adapter returns to the version before")


class FactChange(Body):
    """One of object, trusted and ended."""

    object: Annotated[str, StringConstraints(min_length=1, max_length=1000)] | None = Field(
        None, description="what is right instead; the old fact goes into the history"
    )
    trusted: Literal[True] | None = Field(None, description="let it enter prompts and checks; needs a reviewer")
    ended: Literal[True] | None = Field(None, description="it holds no longer; it stays in the history")
    user: Text | None = Field(None, description="whose fact, as in the request")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(each is not None for each in (self.object, self.trusted, self.ended)) != 1:
            raise field_error("object", "give one of object, trusted and ended")
        return self


class Decision(Body):
    state: Literal["approved", "rejected"] = Field(description="whether the specialist is made")


class AdapterLoad(Body):
    model: Name = Field(description="the base model")
    name: Annotated[str, StringConstraints(pattern=NAME)] = Field(
        description="name of the adapter; requests use `base:name`"
    )
    path: Name = Field(description="name of an entry in a folder of --adapters")
