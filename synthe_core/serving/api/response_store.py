"""Responses of /v1/responses, for those that continue them."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from synthe_core.serving.api.errors import HttpError

MAX_BYTES = 64 << 20
"""Of all stored responses; the oldest are dropped. They are in memory, and end with the server."""


@dataclass(frozen=True)
class StoredResponse:
    """value: as it was sent. messages: the whole conversation, the response's own messages last."""

    value: dict[str, Any]
    messages: list[dict[str, Any]]


class ResponseStore:
    """Responses by owner and id."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._responses: OrderedDict[tuple[str, str], tuple[StoredResponse, int]] = OrderedDict()

    def put(self, owner: str, response: StoredResponse) -> None:
        size = len(json.dumps([response.value, response.messages]))
        self._responses[owner, response.value["id"]] = response, size
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, dropped) = self._responses.popitem(last=False)
            self._bytes -= dropped

    def get(self, owner: str, name: str) -> StoredResponse:
        """Raises 404."""
        try:
            return self._responses[owner, name][0]
        except KeyError:
            raise HttpError(404, "no response has this id, or it is stored no longer", code="not_found") from None

    def delete(self, owner: str, name: str) -> None:
        """Raises 404."""
        self.get(owner, name)
        self._bytes -= self._responses.pop((owner, name))[1]
