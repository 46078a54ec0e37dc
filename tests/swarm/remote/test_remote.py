"""A specialist on another server: its whole answers are answers and pairs; whatever fails is answered from here."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from synthe_core.errors import InputError
from synthe_core.swarm.events import Answered, AnswerToken, DraftToken
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.generation import Cancelled
from synthe_core.swarm.remote.addresses import Address, is_private
from synthe_core.swarm.remote.chat import RemoteChat, RemoteModel
from synthe_core.swarm.remote.connection import MAX_BYTES, RemoteError
from synthe_core.swarm.spec import RemoteSpec, SpecialistSpec, SwarmSpec
from synthe_core.swarm.team import open_swarm
from tests.swarm.remote import mock
from tests.swarm.remote.mock import ANSWER, Mock
from tests.swarm.test_team import OPTIONS, said, set_keys

KEY = "a-key-of-the-tutor"
SPEC = RemoteSpec(connect_seconds=2, silence_seconds=1, total_seconds=6, retries=1)


def silent(handler: Any, _: int) -> None:
    handler.server.shutdown_request = lambda request: None
    time.sleep(4)


def silent_midway(handler: Any, _: int) -> None:
    mock.half(handler, 1)
    time.sleep(4)


def slow(handler: Any, _: int) -> None:
    """A byte now and then: never silent for long, and never at an end."""
    mock.begin(handler)
    for _ in range(200):
        handler.wfile.write(b":\n")
        handler.wfile.flush()
        time.sleep(0.1)


FAULTS = {
    "500": (mock.status(500), "answered 500"),
    "429": (mock.status(429, Retry_After="0"), "answered 429"),
    "401": (mock.status(401), "answered 401"),
    "garbage": (mock.sends(b"\x00\xff\xfe not http at all\n\n"), "no event"),
    "no JSON": (mock.sends(b"data: {nothing}\n\n"), "no JSON"),
    "deep JSON": (mock.sends(b"data: " + b"[" * 100_000 + b"\n\n"), "no JSON"),
    "no answer": (mock.sends(b'data: {"choices": 3}\n\n'), "no answer"),
    "no text": (mock.sends(b'data: {"choices": [{"delta": {"content": 7}}]}\n\n'), "no answer"),
    "an error": (mock.sends(b'data: {"error": {"message": "overloaded"}}\n\n'), "reported an error"),
    "a page": (mock.sends(b"<html>Welcome</html>", "text/html"), "no event"),
    "nothing": (mock.sends(b""), "before it was whole"),
    "half": (mock.half, "before it was whole"),
    "half a line": (mock.cut_off, "no JSON"),
    "an early end": (mock.early_end, "before it was whole"),
    "endless": (mock.sends((b'data: {"choices": []}' + b" " * 4000 + b"\n\n") * (MAX_BYTES // 4000)), "MiB"),
    "silence": (silent, "in time"),
    "silence midway": (silent_midway, "in time"),
    "slow": (slow, "too long|in time"),
}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTOR_KEY", KEY)


def model_at(url: str, key: str | None = KEY) -> RemoteModel:
    return RemoteModel(Address.parse(url), "large", key)


def ask(url: str, spec: RemoteSpec = SPEC, key: str | None = KEY) -> RemoteChat:
    chat = RemoteChat(model_at(url, key), [{"role": "user", "content": "Which capital?"}], 50, 0.5, spec)
    for _ in chat:
        pass
    return chat


@pytest.mark.parametrize("behaviour", [mock.whole, mock.unstreamed], ids=["streamed", "whole"])
def test_an_answer_is_read(behaviour: Any) -> None:
    with Mock(behaviour) as server:
        chat = ask(server.url)
        assert (chat.text, chat.reason) == ("".join(ANSWER), "stop")
        ((path, headers, body),) = server.requests
        assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
        assert body["model"] == "large" and body["max_tokens"] == 50 and body["stream"] is True


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_an_error_in_time(name: str) -> None:
    behaviour, word = FAULTS[name]
    with Mock(behaviour) as server, pytest.raises(RemoteError, match=word):
        ask(server.url, SPEC if name != "slow" else SPEC.model_copy(update={"total_seconds": 2.0}))


def test_a_second_try_follows_where_a_first_may_be_repeated() -> None:
    def busy_once(handler: Any, number: int) -> None:
        (mock.whole if number > 1 else mock.status(429, Retry_After="0"))(handler, number)

    with Mock(busy_once) as server:
        assert ask(server.url).text == "".join(ANSWER) and len(server.requests) == 2
    for behaviour, tries in (
        (mock.status(401), 1),
        (mock.status(503), 2),
        (mock.half, 1),
        (mock.status(429, Retry_After="9999"), 1),
    ):
        with Mock(behaviour) as server, pytest.raises(RemoteError):
            ask(server.url)
        assert len(server.requests) == tries


def test_no_server_is_an_error_too() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(RemoteError, match="cannot be reached"):
            ask(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
    with pytest.raises(Exception, match="there is no host"):
        ask("http://nowhere.invalid/v1")


def test_redirects_keep_the_request_and_the_key_at_its_origin() -> None:
    def moved(handler: Any, number: int) -> None:
        (mock.whole if number > 1 else mock.redirects("/v2/chat/completions"))(handler, number)

    with Mock(moved) as server:
        assert ask(server.url).text == "".join(ANSWER)
        assert [path for path, *_ in server.requests] == ["/v1/chat/completions", "/v2/chat/completions"]
        assert server.requests[1][1]["Authorization"] == f"Bearer {KEY}"
    with Mock(mock.whole) as other, Mock(mock.redirects(f"{other.url}/chat/completions")) as server:
        with pytest.raises(RemoteError, match="redirects to a private address"):
            ask(server.url)
        assert other.requests == []
        chat = ask(server.url, SPEC.model_copy(update={"private_redirects": True}))
        assert chat.text == "".join(ANSWER)
        ((_, headers, body),) = other.requests
        assert "Authorization" not in headers and body["model"] == "large"


@pytest.mark.parametrize(
    ("where", "code", "word"),
    [
        ("http://169.254.169.254/latest", 307, "private address"),
        ("http://localhost:1/", 308, "private address"),
        ("http://[::1]:1/", 307, "private address"),
        ("file:///etc/passwd", 307, "no URL"),
        ("http://a:b@127.0.0.1/", 307, "no URL"),
        ("/elsewhere", 302, "loses the request"),
        ("", 307, "more than 3 times"),
    ],
)
def test_other_redirects_are_refused(where: str, code: int, word: str) -> None:
    with Mock(mock.redirects(where, code)) as server, pytest.raises(RemoteError, match=word):
        ask(server.url)


def test_private_addresses_are_known() -> None:
    private = ("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1%eth0", "fd00::1")
    assert all(map(is_private, (*private, "::ffff:127.0.0.1", "224.0.0.1", "100.64.0.1")))
    assert not any(map(is_private, ("1.1.1.1", "2606:4700::1111")))


def test_a_cancelled_answer_ends_at_once() -> None:
    with Mock(silent) as server:
        chat = RemoteChat(model_at(server.url), [], 5, None, RemoteSpec(silence_seconds=600, total_seconds=600))
        threading.Timer(0.3, chat.cancel).start()
        with pytest.raises(RemoteError, match="cancelled"):
            list(chat)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"url": "ftp://x/"}, "no http or https URL"),
        ({"url": "https://a:b@x/v1"}, "no user"),
        ({"url": "https://x/v1?key=1"}, "query"),
        ({"url": "https://x /v1"}, "spaces"),
        ({"url": "http://1.1.1.1/v1", "key_from": "TUTOR_KEY"}, "unencrypted"),
        ({"url": "https://x/v1", "key_from": "NO_SUCH_KEY"}, "the environment has no NO_SUCH_KEY"),
    ],
)
def test_a_url_or_key_that_cannot_be_used_is_refused(values: dict[str, str], word: str) -> None:
    with pytest.raises(InputError, match=word):
        RemoteModel.of("tutor", SpecialistSpec.model_validate({"model": "m", **values}))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"url": "https://x"}, "has a model"),
        ({"key_from": "A"}, "goes with url"),
        ({"url": "https://x", "model": "m", "adapter": "a"}, "no adapter"),
    ],
)
def test_a_specialist_that_is_half_remote_is_refused(values: dict[str, str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        SwarmSpec.model_validate({"base": "x", "specialists": {"tutor": values}})


@pytest.fixture
def tutored(folder: SwarmFolder) -> Iterator[Any]:
    """A swarm whose fallback is a mock, and who opens it with that behaviour."""
    servers: list[Mock] = []

    def make(behaviour: Any) -> tuple[SwarmFolder, Mock]:
        server = Mock(behaviour)
        server.__enter__()
        servers.append(server)
        spec = {"url": server.url, "model": "large", "key_from": "TUTOR_KEY", "prompt": "You teach."}
        folder.add("tutor", SpecialistSpec.model_validate(spec))
        set_keys(folder, fallback="tutor", threshold="1", explore="0", silence_seconds="1", total_seconds="6")
        return folder, server

    yield make
    for each in servers:
        each.__exit__()


def answer(swarm: Any, text: str = "Which capital?", **more: Any) -> tuple[list[Any], Answered]:
    *events, end = swarm.answer(said(text, **more))
    assert isinstance(end, Answered)
    return events, end


def test_the_fallback_on_another_server_answers_and_teaches(tutored: Any) -> None:
    folder, server = tutored(mock.whole)
    with open_swarm(folder, **OPTIONS) as swarm:
        list(swarm.answer(said("I live in Paris.", user="ann", conversation="one")))
        events, end = answer(swarm, "Where do I live? Write to ann@example.org", user="ann")
        assert (end.text, end.by, end.degraded, end.reason) == ("".join(ANSWER), "tutor", "", "stop")
        drafts = {each.specialist for each in events if isinstance(each, DraftToken)}
        assert "tutor" in drafts and len(drafts) == 2
        assert "".join(each.text for each in events if isinstance(each, AnswerToken)) == end.text
        body = server.requests[-1][2]
        assert body["messages"][0] == {"role": "system", "content": "You teach."}
        assert "Paris" not in str(body), "what is known of a user stays here"
        pair = swarm.feedback.pairs()[-1]
        local = next(each for each in end.drafts if each.specialist != "tutor")
        assert (pair.chosen, pair.rejected, pair.specialist) == (end.text, local.text, local.specialist)
        assert (pair.source, pair.state, pair.answer) == ("tutor", "new", end.answer_id)
        assert "ann@example.org" not in pair.prompt
        stored = swarm.record.answers.get(end.answer_id)
        assert stored.by == "tutor" and stored.specialists == ("tutor",)
        swarm.rate(end.answer_id, 1.0)
        assert swarm.record.records.overall("tutor").mean > 0.5
        assert "tutor" not in {each.name for each in events[0].decision.candidates}
        assert answer(swarm, specialist="tutor")[1].by == "tutor"


@pytest.mark.parametrize("name", ["500", "429", "garbage", "half", "silence", "silence midway", "early end"])
def test_what_fails_there_is_answered_here(tutored: Any, name: str) -> None:
    behaviour, word = FAULTS["an early end" if name == "early end" else name]
    folder, _ = tutored(behaviour)
    with open_swarm(folder, **OPTIONS) as swarm:
        events, end = answer(swarm)
        assert end.by != "tutor" and word in end.degraded and end.degraded.startswith("tutor: ")
        assert end.text and end.json()["degraded"] == end.degraded
        assert "".join(each.text for each in events if isinstance(each, AnswerToken)) == end.text
        assert swarm.feedback.pairs() == [], "half an answer teaches nothing"


def test_a_remote_answer_is_passed_on_as_it_comes(tutored: Any) -> None:
    shown = threading.Event()

    def waits(handler: Any, _: int) -> None:
        """The rest comes when the beginning was seen, as nobody could who waits for the whole."""
        mock.begin(handler)
        mock.chunk(handler, ANSWER[0])
        assert shown.wait(30)
        for text in ANSWER[1:]:
            mock.chunk(handler, text)
        mock.chunk(handler, reason="stop")
        handler.wfile.write(b"data: [DONE]\n\n")

    folder, _ = tutored(waits)
    set_keys(folder, silence_seconds="60", total_seconds="120")
    with open_swarm(folder, **OPTIONS) as swarm:
        texts, drafts = list[str](), set[str]()
        for event in swarm.answer(said("Which capital?", stream=True, user="ann")):
            if isinstance(event, AnswerToken):
                texts.append(event.text)
                shown.set()
            elif isinstance(event, DraftToken):
                drafts.add(event.specialist)
        assert texts == ANSWER and "tutor" not in drafts and len(drafts) == 1
        assert isinstance(event, Answered) and (event.text, event.by) == ("".join(ANSWER), "tutor")
        assert not event.degraded and swarm.feedback.pairs()[-1].chosen == event.text


def contradicts(handler: Any, _: int) -> None:
    mock.begin(handler)
    for text in ("You live", " in London."):
        mock.chunk(handler, text)


@pytest.mark.parametrize("name", ["500", "garbage", "half", "silence midway", "early end", "contradicts"])
def test_what_breaks_off_after_its_beginning_is_followed_by_the_answer_from_here(tutored: Any, name: str) -> None:
    known = {"early end": "an early end"}.get(name, name)
    behaviour, word = (contradicts, "before it was whole") if name == "contradicts" else FAULTS[known]
    folder, _ = tutored(behaviour)
    with open_swarm(folder, **OPTIONS) as swarm:
        swarm.recollection.knowledge.add("ann", "user", "lives in", "Paris")
        events, end = answer(swarm, stream=True, user="ann")
        assert end.by != "tutor" and word in end.degraded and end.degraded.startswith("tutor: ")
        assert "".join(each.text for each in events if isinstance(each, AnswerToken)) == end.text
        (draft,) = end.drafts
        passed = end.text.removesuffix(draft.text)
        if name in ("500", "garbage"):
            assert passed == "" and "stands before" not in end.degraded
        else:
            assert passed.endswith("\n\n") and passed.strip() and "stands before" in end.degraded
        assert [each["stated"] for each in end.contradictions] == (["London"] if name == "contradicts" else [])
        assert swarm.feedback.pairs() == [], "half an answer teaches nothing"


def test_an_answer_that_was_cut_off_by_its_limit_teaches_nothing(tutored: Any) -> None:
    folder, _ = tutored(lambda handler, number: mock.whole(handler, number, "length"))
    with open_swarm(folder, **OPTIONS) as swarm:
        _, end = answer(swarm)
        assert (end.by, end.reason) == ("tutor", "length") and swarm.feedback.pairs() == []


def test_a_client_that_leaves_ends_the_remote_answer_too(tutored: Any) -> None:
    folder, _ = tutored(silent)
    set_keys(folder, silence_seconds="600", total_seconds="600")
    with open_swarm(folder, **OPTIONS) as swarm:
        request = said("x", max_tokens=2)
        events = swarm.answer(request)
        next(events), next(events)
        threading.Timer(0.3, request.cancellation.cancel).start()
        with pytest.raises(Cancelled):
            list(events)
        assert swarm.record.answers.count() == 0
