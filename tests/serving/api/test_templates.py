"""Chat templates, end tokens and sampling defaults of a model, over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from synthe_core.adapters.spec import LoraSpec
from synthe_core.adapters.targets import new_adapter
from synthe_core.data import chat_template
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.data.templates import GEMMA

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
WAITS = "{# waits for the test #}{{ messages[0].content }}"
CHAT = [{"role": "user", "content": "hello"}]
END = 256


class PatientWorkers(chat_template.Workers):
    """Renders WAITS only when it may."""

    def __init__(self) -> None:
        super().__init__(cpu_seconds=0.4)
        self.waiting, self.may = threading.Event(), threading.Event()

    def render(self, source: str, variables: Mapping[str, Any], limit: int = chat_template.MAX_TEXT) -> str:
        if source == WAITS:
            self.waiting.set()
            assert self.may.wait(60)
        return super().render(source, variables, limit)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[PatientWorkers]:
    made = PatientWorkers()
    monkeypatch.setattr(chat_template, "WORKERS", made)
    yield made
    made.close()


@pytest.fixture
def serve(checkpoints: Path) -> Iterator[Callable[..., str]]:
    """The address of a server of models that these functions change, by name."""
    running: list[Any] = []

    def start(**changes: Callable[[LoadedModel], None]) -> str:
        models = [LoadedModel.load(checkpoints / "plain", name) for name in changes]
        for model, change in zip(models, changes.values(), strict=True):
            change(model)
        running.append(AsyncEngine(models, max_num_seqs=4).__enter__())
        running.append(Server(running[0], Settings(max_prompt=400, max_tokens=50)).__enter__())
        return str(running[1].url)

    yield start
    for each in reversed(running):
        each.__exit__(None, None, None)


def template(source: str) -> Callable[[LoadedModel], None]:
    def change(model: LoadedModel) -> None:
        model.tokenizer.chat_template = source

    return change


def unchanged(model: LoadedModel) -> None:
    pass


def chat(url: str, model: str, messages: Any = CHAT, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": messages, "max_tokens": 2, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def complete(url: str, model: str, **more: Any) -> Any:
    body = {"model": model, "prompt": "the sea", "max_tokens": 6, **more}
    answered = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert answered.status_code == 200, answered.text
    return answered.json()["choices"][0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ENDLESS, "takes more than 0.4 s"),
        ("{{ 'a' * 10**9 }}", "too much memory"),
        ("{{ 1/0 }}", "division by zero"),
        ('{{ "\\ud800" }}', "surrogate"),
        ("{{ messages[0].nothing.more }}", "no attribute 'nothing'"),
        ("{% if %}", "line 1"),
    ],
)
def test_a_bad_template_fails_its_requests_in_one_line(
    serve: Any, workers: PatientWorkers, source: str, message: str
) -> None:
    url = serve(bad=template(source), good=unchanged)
    for path, body in (("/v1/chat/completions", {}), ("/tokenize", {})):
        answered = httpx.post(url + path, json={"model": "bad", "messages": CHAT, **body}, timeout=120)
        assert answered.status_code == 500, answered.text
        assert message in answered.json()["error"]["message"] and "defect" not in answered.text
    assert chat(url, "good").status_code == 200
    assert complete(url, "bad")["finish_reason"] in ("length", "stop")


def test_a_template_refuses_in_its_own_words(serve: Any) -> None:
    url = serve(gemma=template(GEMMA))
    refused = chat(url, "gemma", [{"role": "system", "content": "x"}, *CHAT])
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "the chat template refuses these messages: System role not supported"
    assert chat(url, "gemma").status_code == 200


def test_a_slow_template_delays_no_other_model(serve: Any, workers: PatientWorkers) -> None:
    url = serve(slow=template(WAITS), other=template("{{ messages[0].content }}"), plain=unchanged)
    with ThreadPoolExecutor(40) as threads:
        slow = [threads.submit(chat, url, "slow") for _ in range(40)]  # more than there are background threads
        assert workers.waiting.wait(60)
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        assert chat(url, "other").status_code == 200
        assert chat(url, "plain").status_code == 200
        assert not any(each.done() for each in slow)
        workers.may.set()
        assert {each.result(120).status_code for each in slow} == {200}


def test_every_end_token_ends_an_answer(serve: Any) -> None:
    def change(model: LoadedModel) -> None:
        model.tokenizer.stops = frozenset({65, 66})

    url = serve(ends=change, plain=unchanged)
    for token in (65, 66, END):
        biases = {str(token): 100}
        assert complete(url, "ends", logit_bias=biases)["finish_reason"] == "stop"
        assert complete(url, "ends", logit_bias=biases, ignore_eos=True)["finish_reason"] == "length"
    assert complete(url, "plain", logit_bias={"65": 100})["finish_reason"] == "length"


def test_the_name_of_a_special_token_is_a_stop_string(serve: Any) -> None:
    url = serve(plain=unchanged)
    bias = {"logit_bias": {str(END): 100}, "ignore_eos": True}
    assert complete(url, "plain", **bias)["finish_reason"] == "length"
    for stop in ("<|endoftext|>", ["\n", "<|endoftext|>"]):
        choice = complete(url, "plain", stop=stop, **bias)
        assert (choice["finish_reason"], choice["text"]) == ("stop", "")
        answered = chat(url, "plain", stop=stop, **bias).json()
        assert answered["choices"][0]["finish_reason"] == "stop" and answered["usage"]["completion_tokens"] == 1


def test_generation_config_gives_the_defaults(serve: Any) -> None:
    def greedy(model: LoadedModel) -> None:
        model.tokenizer.sampling = {"do_sample": False, "max_new_tokens": 3, "temperature": 0.7}

    def ignored(model: LoadedModel) -> None:
        greedy(model)
        model.recommended = False

    url = serve(greedy=greedy, ignored=ignored)
    sampled = [complete(url, "greedy", ignore_eos=True)["text"] for _ in range(4)]
    assert set(sampled) == {complete(url, "greedy", temperature=0, ignore_eos=True)["text"]}
    assert len({complete(url, "ignored", ignore_eos=True, seed=n)["text"] for n in range(8)}) > 1
    assert len({complete(url, "greedy", temperature=1, ignore_eos=True, seed=n)["text"] for n in range(8)}) > 1
    body = {"model": "greedy", "messages": CHAT, "ignore_eos": True}
    answered = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
    assert answered["usage"]["completion_tokens"] == 3
    facts = {each["id"]: each["synthe"] for each in httpx.get(f"{url}/v1/models").json()["data"]}
    assert facts["greedy"]["sampling"] == {"temperature": 0.0} and facts["greedy"]["max_tokens"] == 3
    assert facts["ignored"]["sampling"] == {} and facts["ignored"]["max_tokens"] is None


def test_a_model_has_the_same_figures_after_any_request(serve: Any) -> None:
    def change(model: LoadedModel) -> None:
        adapter = new_adapter(model.model, LoraSpec(rank=2))
        model.adapters["small"] = adapter

    url = serve(base=change)
    before = httpx.get(f"{url}/v1/models").json()["data"]
    complete(url, "base:small")
    after = httpx.get(f"{url}/v1/models").json()["data"]
    assert before == after
    base, small = (each["synthe"]["parameters"] for each in after)
    assert small > base


def test_detokenize_gives_back_what_was_tokenized(serve: Any) -> None:
    url = serve(plain=unchanged)
    for text in (" a  b\n", "<|endoftext|>", "é 🙂"):
        tokens = httpx.post(f"{url}/tokenize", json={"prompt": text}).json()["tokens"]
        assert httpx.post(f"{url}/detokenize", json={"tokens": tokens}).json() == {"prompt": text}
