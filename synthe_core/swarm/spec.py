"""`swarm.yaml`: the base, the specialists, and how requests are routed and answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from synthe_core.errors import InputError, closest
from synthe_core.layers.learner import Spec
from synthe_core.storage.yaml_reader import YamlSource, read_yaml

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""Of a specialist. It is a folder, and a model's name of the API."""
RESERVED = frozenset({"swarm", "base"})
"""Names of the API that are no specialist's."""
MAX_SPECIALISTS = 64
MAX_TEXT = 20_000
"""Characters of a system prompt."""

Text = Annotated[str, Field(max_length=1000)]


def _listed(value: Any) -> Any:
    """`python, debugging` is a list too."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class SpecialistSpec(Spec):
    """A specialist: what it is for, and what makes it one."""

    description: Text = Field("", description="a sentence about it, for people and for the router")
    capabilities: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], BeforeValidator(_listed)] = (
        Field([], max_length=64, description="what it is good at, in words: the router begins with them")
    )
    prompt: str = Field("", max_length=MAX_TEXT, description="its system prompt")
    documents: list[str] = Field(
        [],
        max_length=32,
        description="text, Markdown, HTML, PDF or Word files that follow the system prompt",
    )
    remember: bool | None = Field(
        None,
        description="whether the state after its prompt and documents is stored in a file, and nothing is read again; "
        "by default if it has documents",
    )
    adapter: str | None = Field(None, description="a LoRA adapter of the base, or of `model`")
    model: str | None = Field(None, description="another model than the base; with url, its name there")
    url: str | None = Field(
        None, max_length=2000, description="of a server with OpenAI's protocol, such as https://api.example.org/v1"
    )
    key_from: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$", description="the environment variable with the key of url"
    )
    priority: float = Field(
        0.0, ge=-1, le=1, description="is added to its estimated success when specialists are compared"
    )

    @property
    def remembers(self) -> bool:
        """Whether the state after its prompt and documents is stored."""
        return self.url is None and (bool(self.documents) if self.remember is None else self.remember)


class RouterSpec(Spec):
    """How requests find their specialists."""

    max_specialists: int = Field(2, ge=1, le=8, description="that answer one request together, at most")
    margin: float = Field(
        0.1, ge=0, le=1, description="another specialist joins if its estimated success is within this of the best"
    )
    threshold: float = Field(
        0.15, ge=0, le=1, description="if nobody's estimated success reaches this, the fallback answers"
    )
    fallback: str = Field("base", description="who answers then: `base`, or a specialist")
    explore: float = Field(
        0.1, ge=0, le=1, description="the largest share of requests that go to another than the best, to learn about it"
    )
    noise: float = Field(0.35, gt=0, le=10, description="standard deviation of success about its estimate")
    prior: float = Field(
        0.4, gt=0, le=100, description="standard deviation of the weights of the embedding before anything is learned"
    )
    window: int = Field(20_000, ge=1, description="the newest observations that the estimate is made of")


class PathwaySpec(Spec):
    """How combinations of specialists that succeed together are strengthened."""

    rate: float = Field(0.2, gt=0, le=1, description="how far one success moves a weight towards 1")
    half_life: float = Field(200.0, gt=0, description="after that many answers an unused weight is half of what it was")
    influence: float = Field(
        0.05, ge=0, le=1, description="what a combination of weight 1 adds to the estimate of one that would join"
    )


class ConfidenceSpec(Spec):
    """How sure a specialist may be of an answer."""

    prior_successes: float = Field(1.0, gt=0, description="of a specialist that has answered nothing")
    prior_failures: float = Field(1.0, gt=0, description="of a specialist that has answered nothing")
    pooling: float = Field(
        4.0, ge=0, description="answers that a specialist's overall success counts in a domain that is new to it"
    )


class SynthesisSpec(Spec):
    """How several answers become one."""

    type: Literal["best", "write", "fuse"] = Field(
        "best",
        description="best: the one of the highest calibrated confidence; write: the base writes one from all of them; "
        "fuse: one text from the mixture of their next-token distributions",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, values: Any) -> Any:
        return {"type": values} if isinstance(values, str) else values


class AnswerSpec(Spec):
    """How answers are generated, where a request does not say."""

    max_tokens: int = Field(400, ge=1, le=131_072)
    temperature: float | None = Field(None, ge=0, le=100, description="by default the base's own")


class KnowledgeSpec(Spec):
    """What the swarm remembers of its users, and checks answers against."""

    enabled: bool = True
    budget_tokens: int = Field(256, ge=0, le=131_072, description="tokens of a prompt that facts may take; 0 for none")
    check: bool = Field(True, description="whether answers are checked against what is known")
    embeddings: bool = Field(True, description="whether facts are searched by meaning too, with the base's embedding")
    extraction: Literal["patterns", "model"] = Field(
        "patterns",
        description="how facts are read in what users say. model: by patterns at once, and by the base while it is "
        "idle; what it reads waits for a review",
    )
    judge: Literal["verifier", "model", "none"] = Field(
        "verifier",
        description="what checks a sentence where no rule does. verifier: the classifier that `knowledge verifier` "
        "trained, if it did; model: the base, which should be a large one",
    )
    trust_users: bool = Field(
        True, description="whether what a named user says of themself enters that user's prompts without a review"
    )
    max_facts: int = Field(100_000, ge=0, description="of one user, superseded ones included")
    database: str | None = Field(
        None,
        max_length=2000,
        description="the URL of a Postgres database in place of swarm.db, where several machines share it: "
        "postgresql://USER@HOST/DATABASE, with the password in PGPASSWORD or a .pgpass file",
    )
    max_megabytes: int = Field(4096, ge=1, le=1 << 24, description="of swarm.db, in MiB: what needs more is not stored")


class FeedbackSpec(Spec):
    """What is learned from users."""

    implicit: bool = Field(
        False, description="whether copying an answer, or asking again, counts as a rating; never beside a real one"
    )
    max_pairs: int = Field(100_000, ge=0, description="preference pairs in all")
    max_pairs_per_user: int = Field(10_000, ge=0)


class LearningSpec(Spec):
    """How specialists learn from approved pairs: in a process of its own, at low priority."""

    automatic: bool = Field(
        True, description="whether a server begins by itself when it is idle; `synthe swarm learn` does it by hand"
    )
    min_pairs: int = Field(50, ge=2, description="approved pairs of a specialist that are enough to begin")
    idle_seconds: float = Field(30.0, ge=0, description="a server begins after so long without a request")
    objective: Literal["dpo", "sft", "orpo"] = Field(
        "dpo", description="dpo and orpo: prefer the chosen answer; sft: write the chosen answer"
    )
    epochs: int = Field(2, ge=1, le=1000, description="times that every pair is read")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    batch: int = Field(8, ge=1, description="pairs of a step")
    rank: int = Field(16, ge=1, description="of the adapter of a specialist that has none yet")
    sequence: int = Field(
        1024, ge=16, description="the most tokens of a prompt with an answer; longer pairs are left out"
    )
    held_out: float = Field(0.2, gt=0, lt=1, description="the share of prompts that is measured on and never learned")
    versions: int = Field(10, ge=1, description="versions of an adapter that stay on the disk, for a way back")
    replay: float = Field(0.5, ge=0, le=10, description="pairs learned earlier that are read again, for each new one")


class PromotionSpec(Spec):
    """What a newly learned adapter must show before it answers: it is compared with the current one, on pairs that were
    held out, and with the one that swarm.yaml names, on other text."""

    min_held_out: int = Field(5, ge=1, description="new held-out pairs; fewer say nothing")
    min_wins: float = Field(
        0.6,
        ge=0,
        le=1,
        description="the share of new held-out pairs of which it prefers the chosen answer more than before",
    )
    max_earlier_loss: float = Field(
        0.05, ge=0, le=1, description="how much less often it may be right on pairs that were held out earlier"
    )
    max_earlier_margin_loss: float = Field(
        0.3, ge=0, description="how much weaker it may prefer their chosen answers, on average, as a share"
    )
    max_canary_increase: float = Field(
        0.03, ge=0, description="how much more bits per byte, as a share, other text may take"
    )
    max_task_loss: float = Field(
        0.1, ge=0, le=1, description="how many more questions of the tasks it may get wrong, as a share"
    )
    canary: str = Field("stdlib", description="other text: a file, a folder, or `stdlib`, Python's reference as prose")
    canary_bytes: int = Field(65_536, ge=1024, description="how much of it is read")
    tasks: str | None = Field(
        None, description="JSON lines with question, choices and answer (an index); by default a few general questions"
    )
    pairs: str | None = Field(
        None, description="JSON lines with prompt, chosen and rejected that count as held out earlier: checked by hand"
    )


class SpawnSpec(Spec):
    """How specialists are proposed for requests that keep failing, or are answered with little confidence."""

    mode: Literal["propose", "auto", "off"] = Field(
        "propose", description="propose: `synthe swarm spawn --approve` makes them; auto: a server makes them itself"
    )
    min_requests: int = Field(20, ge=3, description="similar failing requests that call for a specialist")
    min_hours: float = Field(24.0, ge=0, description="between the first and the last of them, at least")
    max_confidence: float = Field(0.4, ge=0, le=1, description="unrated answers below it count as failing")
    similarity: float = Field(0.3, gt=0, lt=1, description="least cosine of similar requests with their mean")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, values: Any) -> Any:
        return {"mode": values} if isinstance(values, str) else values


class RemoteSpec(Spec):
    """How specialists on other servers are called. What fails is answered here instead."""

    connect_seconds: float = Field(5.0, gt=0, le=600)
    silence_seconds: float = Field(30.0, gt=0, le=3600, description="without a piece of the answer")
    total_seconds: float = Field(120.0, gt=0, le=3600, description="of an answer, with all tries")
    retries: int = Field(1, ge=0, le=10, description="after 429 and 5xx, as long as nothing has come")
    private_redirects: bool = Field(
        False, description="whether a server may redirect to an address of a private network or of this machine"
    )


class SwarmSpec(Spec):
    """The whole file. Paths are relative to its folder."""

    base: str = Field(min_length=1, description="any model: a run, a .synapse or GGUF file, a folder, or ORG/NAME")
    specialists: dict[str, SpecialistSpec] = Field({}, max_length=MAX_SPECIALISTS)
    router: RouterSpec = RouterSpec()
    pathways: PathwaySpec = PathwaySpec()
    confidence: ConfidenceSpec = ConfidenceSpec()
    synthesis: SynthesisSpec = SynthesisSpec()
    answers: AnswerSpec = AnswerSpec()
    knowledge: KnowledgeSpec = KnowledgeSpec()
    feedback: FeedbackSpec = FeedbackSpec()
    learning: LearningSpec = LearningSpec()
    promotion: PromotionSpec = PromotionSpec()
    spawn: SpawnSpec = SpawnSpec()
    remote: RemoteSpec = RemoteSpec()

    @model_validator(mode="before")
    @classmethod
    def _empty_keys(cls, values: Any) -> Any:
        """A key without a value, as `specialists:`, counts as absent."""
        return {key: each for key, each in values.items() if each is not None} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _names(self) -> SwarmSpec:
        for name in self.specialists:
            if fault := name_fault(name):
                raise _fault(("specialists", name), fault)
        fallback = self.router.fallback
        if fallback != "base" and fallback not in self.specialists:
            near = closest(fallback, ["base", *self.specialists])
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(['base', *self.specialists])}"
            raise _fault(("router", "fallback"), f"no specialist is named '{fallback}'", hint)
        for name, each in self.specialists.items():
            if each.url is not None and (each.adapter or each.documents):
                raise _fault(("specialists", name), "a specialist with url has no adapter and no documents")
            if each.url is not None and not each.model:
                raise _fault(("specialists", name), "a specialist with url has a model, its name there")
            if each.url is not None and each.remember:
                raise _fault(("specialists", name), "a specialist with url remembers no state")
            if each.url is None and each.key_from is not None:
                raise _fault(("specialists", name), "key_from goes with url")
        other = next((name for name, each in self.specialists.items() if each.model and not each.url), None)
        if self.synthesis.type == "fuse" and other is not None:
            fault = f"fuse mixes answers of one model, and '{other}' has another"
            raise _fault(("synthesis",), fault, "take best or write")
        return self

    @classmethod
    def load(cls, path: Path) -> SwarmSpec:
        """Reads a swarm.yaml. InputError with line and column of every fault."""
        return cls.from_source(read_yaml(path))

    @classmethod
    def from_source(cls, source: YamlSource) -> SwarmSpec:
        try:
            return cls.model_validate(source.values)
        except ValidationError as error:
            raise _explain(error, source) from None


def name_fault(name: str) -> str | None:
    """What is wrong with a specialist's name; None if nothing is."""
    if name in RESERVED:
        return f"'{name}' is a name of the API"
    if not NAME.fullmatch(name):
        return f"'{name[:50]}' is no name: use up to 32 lower-case letters, digits, dashes and underscores"
    return None


def _fault(path: tuple[str, ...], message: str, hint: str | None = None) -> PydanticCustomError:
    facts = {"path": path, "message": message, "hint": hint}
    return PydanticCustomError("field", "{message}", facts)


def _explain(error: ValidationError, source: YamlSource) -> InputError:
    """The first few faults, each with its position, as one InputError."""
    faults = error.errors(include_url=False)
    lines, hints = [], []
    for fault in faults[:5]:
        path, context = tuple(fault["loc"]), fault.get("ctx", {})
        shown = ".".join(map(str, path))
        if fault["type"] == "extra_forbidden":
            known = _keys_at(path[:-1])
            near = closest(str(path[-1]), known)
            message = f"unknown key '{shown}'"
            hints.append(f"did you mean '{near}'?" if near else f"known: {', '.join(known)}")
        elif fault["type"] == "missing":
            message = f"missing key '{shown}'"
        elif fault["type"] == "field":
            path = (*path, *context["path"])
            message = f"{'.'.join(map(str, path))}: {fault['msg']}"
            hints += [context["hint"]] if context.get("hint") else []
        else:
            message = f"{shown or 'swarm.yaml'}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
        lines.append(f"{source.locate(path)}: {message}")
    if len(faults) > 5:
        lines.append(f"and {len(faults) - 5} more")
    return InputError(lines, hints[0] if hints else "`synthe swarm init` writes a file with every key")


def _keys_at(path: Sequence[str | int]) -> list[str]:
    """The known keys of the mapping at `path`."""
    spec: Any = SwarmSpec
    for key in path:
        if isinstance(key, str) and key in spec.model_fields:
            inner = _specs(spec.model_fields[key].annotation)
            spec = inner[0] if inner else spec
    return list(spec.model_fields)


def _specs(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for part in get_args(annotation) for spec in _specs(part)]
