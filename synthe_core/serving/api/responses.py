"""Schemas of responses, for the OpenAPI document. A test checks every response against them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: Problem


class PromptDetails(BaseModel):
    cached_tokens: int = Field(description="prompt tokens whose state was cached")


class CompletionDetails(BaseModel):
    accepted_prediction_tokens: int = Field(description="drafted tokens that became output")
    rejected_prediction_tokens: int = Field(description="drafted tokens that did not; they are no output tokens")


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | None = Field(
        None, description="where the server drafts tokens (--speculate)"
    )


class Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="where each token begins in the choice's text, in characters")


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class Spelled(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TopSpelled(Spelled):
    top_logprobs: list[Spelled]


class MessageLogprobs(BaseModel):
    content: list[TopSpelled]
    refusal: None


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="a JSON object that obeys the function's schema")


class MessageCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[MessageCall] | None = Field(
        None, description="the complete calls; one that the end of the answer has cut is left out"
    )


class MessageChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: MessageLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class Contradiction(BaseModel):
    kind: str
    sentence: str
    start: int
    end: int
    stated: str
    fact: dict[str, Any]
    score: float


class Routing(BaseModel):
    specialists: list[str]
    fallback: bool
    explored: bool
    domain: str
    why: str
    estimates: dict[str, float]


class SwarmAnswer(BaseModel):
    """How an answer of a swarm came about."""

    answer_id: str = Field(description="under which /api/feedback takes a rating")
    routing: Routing
    facts: list[str] = Field(description="what is known and was in the prompts")
    by: str
    confidence: float = Field(description="calibrated probability that the answer is right")
    drafts: list[dict[str, Any]]
    contradictions: list[Contradiction] = Field(description="of the answer with what is known")


class AgentReport(BaseModel):
    """How an answer with the server's own tools came about."""

    transcript: list[dict[str, Any]] = Field(description="the messages of the run: answers, calls and results")
    ending: str


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[MessageChoice]
    usage: Usage
    synthe: SwarmAnswer | AgentReport | None = Field(
        None, description="of a swarm's answer, or of one with the server's own tools"
    )


class ModelFacts(BaseModel):
    parameters: int
    state_bytes_per_sequence: int
    vocab: int
    digest: str
    chat_template: bool = Field(description="whether the model has a chat template; without one, chats are plain text")
    sampling: dict[str, float] = Field(description="defaults of its generation_config.json, by the names of the fields")
    max_tokens: int | None = Field(description="the default limit of an answer there, if it has one")
    swarm: bool = Field(False, description="whether a swarm answers: it takes no session and gives no logprobs")


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    max_model_len: int
    synthe: ModelFacts


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class EmbeddingRow(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    data: list[EmbeddingRow]
    model: str
    usage: EmbeddingUsage


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    bos_token: str | None
    eos_token: str
    pad_token: str
    bos_token_id: int | None
    eos_token_id: int
    vocab_size: int
    model_max_length: int
    chat_template: str | None


class Health(BaseModel):
    status: Literal["ok"]


class Limits(BaseModel):
    max_prompt: int
    max_tokens: int
    max_n: int
    max_body: int


class Status(BaseModel):
    """Status of the engine and the served models. It can have more fields.

    scope: whether the figures are of all requests, or of those of the API key.
    """

    live: int
    waiting: int
    max_batch: int
    scope: Literal["all", "key"]
    models: list[str]
    limits: Limits


class Introspection(BaseModel):
    model: dict[str, Any]
    left_out: int = Field(description="number of tokens at the end that were not inspected")
    tokens: list[dict[str, Any]]
    series: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    reads: list[dict[str, Any]]


class Session(BaseModel):
    id: str
    object: Literal["session"]
    model: str
    tokens: int
    bytes: int
    created: float
    used: float
    saved: bool


class Sessions(BaseModel):
    object: Literal["list"]
    data: list[Session]


class Rated(BaseModel):
    answer_id: str
    success: float | None = Field(description="how good the answer counts as, 0 to 1; null: the signal does not count")


class SwarmStatus(BaseModel):
    """What a swarm is and has done. It can have more fields. learning: who learns now, and how far it is."""

    specialists: list[dict[str, Any]]
    pathways: list[dict[str, Any]]
    answers: int
    rated: int
    calibration_error: float | None
    learning: dict[str, Any]
    role: Literal["user", "reviewer", "admin"] = Field(description="what the API key may do")


class SwarmHistory(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]] = Field(description="lines of the ledger, oldest first")


class SwarmLearnedVersion(BaseModel):
    specialist: str
    adapter: str
    parent: str | None = Field(description="what a rollback returns to; null: no adapter")
    digest: str
    current: bool = Field(description="whether it answers")
    pairs: dict[str, int] = Field(description="how many were trained on, held out and replayed")
    figures: dict[str, Any] = Field(description="what the promotion gate measured")


class SwarmVersions(BaseModel):
    object: Literal["list"]
    data: list[SwarmLearnedVersion]


class SwarmFact(BaseModel):
    """A fact, which is an edge from its subject to its object."""

    id: int
    subject: str
    predicate: str
    object: str
    negated: bool
    functional: bool = Field(description="whether another object would contradict it")
    confidence: float
    source: Literal["operator", "user", "statement", "model", "imported"]
    trusted: bool = Field(description="whether it enters prompts and checks")
    shared: bool = Field(description="whether it is everybody's, and not the user's own")
    valid_from: float
    valid_until: float | None = Field(description="null: it holds")
    superseded_by: int | None = Field(description="the fact that took its place")
    last_seen: float
    times_seen: int


class SwarmFacts(BaseModel):
    object: Literal["list"]
    data: list[SwarmFact]


class SwarmUserData(BaseModel):
    """Everything that is stored of a user, as `synthe swarm knowledge export` writes it."""

    format: int
    facts: list[dict[str, Any]]
    conversations: dict[str, list[dict[str, Any]]]
    tables: dict[str, list[dict[str, Any]]]


class SwarmDataDeleted(BaseModel):
    deleted: dict[str, int] = Field(description="rows of each table")


class SwarmPair(BaseModel):
    id: int
    user: str
    specialist: str
    source: str
    prompt: str
    chosen: str
    rejected: str
    state: str
    conflicts_with: int | None = Field(description="a pair that prefers what this one rejects")
    created: float


class SwarmPairs(BaseModel):
    object: Literal["list"]
    data: list[SwarmPair]


class SwarmLearning(BaseModel):
    specialists: list[str] = Field(description="those with enough approved pairs, which learn now")


class SwarmVersion(BaseModel):
    specialist: str
    adapter: str | None = Field(description="the version that answers now; null: none")
    digest: str | None


class SwarmProposal(BaseModel):
    name: str
    capabilities: list[str]
    prompt: str
    requests: int
    state: str


class SwarmProposals(BaseModel):
    object: Literal["list"]
    data: list[SwarmProposal]


class Deleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True]
