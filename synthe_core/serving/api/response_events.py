"""The items and the streaming events of /v1/responses."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from synthe_core.serving.api.completion_job import OutputDelta, Usage
from synthe_core.serving.api.response_bodies import CreateResponse
from synthe_core.serving.api.tool_call_job import CallDelta, ToolDelta

Event = dict[str, Any]
SERVER = "synthe"
"""The label of the server in its own calls."""
PREFIXES = {"function_call": "fc", "mcp_call": "mcp"}
ECHOED = ("instructions", "max_output_tokens", "previous_response_id", "temperature", "top_p")


class ResponseWriter:
    """A response while it comes about. `push` returns the events of each delta; `value` is the response itself.

    runs_tools: whether the server runs the calls, which are then items of type `mcp_call`, with the result in them.
    """

    def __init__(self, body: CreateResponse, *, runs_tools: bool = False) -> None:
        self.id = f"resp_{secrets.token_hex(24)}"
        self.status = "in_progress"
        self.usage: Usage | None = None
        self.output: list[dict[str, Any]] = []
        self._body, self._created, self._runs_tools = body, int(time.time()), runs_tools
        self._places: dict[str, int] = {}  # of the calls whose result is missing
        self._numbers = itertools.count()
        self._reason: str | None = None
        self._error: dict[str, Any] | None = None
        self._open: dict[str, Any] | None = None

    @property
    def value(self) -> dict[str, Any]:
        """The response."""
        body = self._body
        chosen = body.tool_choice
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self.status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self._reason == "length" else None,
            "model": body.model,
            "output": [each for each in self.output if each["status"] != "incomplete" or each["type"] == "message"],
            "tools": [each.model_dump(exclude_none=True) | {"strict": True} for each in body.tools or ()],
            "tool_choice": chosen if isinstance(chosen, str) else chosen.model_dump() if chosen else "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "text": {"format": self._format()},
            "metadata": body.metadata or {},
            "usage": None if self.usage is None else _usage(self.usage),
            **{name: getattr(body, name) for name in ECHOED},
        }

    def _format(self) -> dict[str, Any]:
        if self._body.text is None or self._body.text.format is None:
            return {"type": "text"}
        return self._body.text.format.model_dump(by_alias=True, exclude_none=True)

    def begin(self) -> list[Event]:
        return [self._event(f"response.{name}", response=self.value) for name in ("created", "in_progress")]

    def push(self, delta: OutputDelta) -> list[Event]:
        """The events of new output."""
        events: list[Event] = []
        if delta.text:
            events += self._text(delta.text)
        for call in delta.calls if isinstance(delta, ToolDelta) else ():
            events += self._call(call)
        if delta.reason is not None:
            self._reason = delta.reason
            if delta.reason == "length":
                events += self._close("incomplete")
        return events

    def push_result(self, call: str, text: str) -> list[Event]:
        """The events of the result of a call, given by its id."""
        place = self._places.pop(call)
        item = self.output[place]
        item |= {"output": text, "status": "completed"}
        done = self._event("response.mcp_call.completed", item_id=item["id"], output_index=place)
        return [done, self._event("response.output_item.done", output_index=place, item=dict(item))]

    def end(self, usage: Usage, *, cut: bool = False) -> list[Event]:
        """The last events. cut: whether a limit has ended the response between two answers."""
        events = list(self._close("completed"))
        self._reason = "length" if cut else self._reason
        self.usage = usage
        self.status = "incomplete" if self._reason == "length" else "completed"
        return [*events, self._event(f"response.{self.status}", response=self.value)]

    def fail(self, error: dict[str, Any]) -> list[Event]:
        self.status = "failed"
        self._error = {"code": "server_error", "message": str(error.get("message", ""))}
        return [self._event("response.failed", response=self.value)]

    def _event(self, kind: str, **values: Any) -> Event:
        return {"type": kind, "sequence_number": next(self._numbers), **values}

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _add(self, item: dict[str, Any]) -> Event:
        self.output.append(item)
        self._open = item
        return self._event("response.output_item.added", output_index=len(self.output) - 1, item=dict(item))

    def _text(self, text: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close()
            message = {"id": f"msg_{secrets.token_hex(24)}", "type": "message", "status": "in_progress"}
            yield self._add({**message, "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self.output[-1]["content"] = [part]
            yield self._event("response.content_part.added", **self._place, content_index=0, part=dict(part))
        self.output[-1]["content"][0]["text"] += text
        kind = "response.output_text.delta"
        yield self._event(kind, **self._place, content_index=0, delta=text, logprobs=[])

    def _call(self, call: CallDelta) -> Iterator[Event]:
        if call.name is not None:
            yield from self._close()
            kind, more = ("function_call", {"call_id": call.id})
            if self._runs_tools:
                kind, more = "mcp_call", {"server_label": SERVER, "output": None, "error": None}
            item = {"id": f"{PREFIXES[kind]}_{secrets.token_hex(24)}", "type": kind, "status": "in_progress"}
            yield self._add({**item, **more, "name": call.name, "arguments": ""})
            if self._runs_tools:
                self._places[call.id or ""] = len(self.output) - 1
                yield self._event("response.mcp_call.in_progress", **self._place)
        if call.arguments:
            item = self.output[-1]
            item["arguments"] += call.arguments
            yield self._event(f"response.{item['type']}_arguments.delta", **self._place, delta=call.arguments)
        if call.complete:
            yield from self._close()

    def _close(self, status: str = "completed") -> Iterator[Event]:
        """Ends the item that is under way."""
        item, self._open = self._open, None
        if item is None:
            return
        if item["type"] == "mcp_call" and status == "completed":  # until its result comes
            yield self._event("response.mcp_call_arguments.done", **self._place, arguments=item["arguments"])
            return
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            place = {**self._place, "content_index": 0}
            yield self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
            yield self._event("response.content_part.done", **place, part=dict(part))
        elif status == "completed":
            values = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **self._place, **values)
        yield self._event("response.output_item.done", output_index=len(self.output) - 1, item=dict(item))

    def messages(self) -> list[dict[str, Any]]:
        """The response as a message of the assistant, for the next one."""
        text = "".join(each["content"][0]["text"] for each in self.output if each["type"] == "message")
        message: dict[str, Any] = {"role": "assistant", "content": text}
        calls = [
            {
                "id": each["call_id"],
                "type": "function",
                "function": {"name": each["name"], "arguments": each["arguments"]},
            }
            for each in self.output
            if each["type"] == "function_call" and each["status"] == "completed"
        ]
        return [message | ({"tool_calls": calls} if calls else {})]


def server_sent(event: Event) -> dict[str, str]:
    return {"event": event["type"], "data": json.dumps(event, ensure_ascii=False, allow_nan=False)}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.written,
    }
