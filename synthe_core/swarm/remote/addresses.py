"""Where a remote server is: its URL, and whether an address is one of a private network."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from synthe_core.errors import InputError, WorkError

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A URL in parts. path: without a slash at its end."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """InputError for what is no plain http or https URL."""
        hint = "for example https://api.example.org/v1"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InputError(f"'{url[:200]}' is no URL", hint) from None
        if parts.scheme not in PORTS or not parts.hostname:
            raise InputError(f"'{url[:200]}' is no http or https URL", hint)
        if parts.username is not None or parts.query or parts.fragment:
            raise InputError(f"'{parts.hostname}': a URL has no user, query or fragment here", hint)
        if any(character.isspace() or not character.isprintable() for character in url):
            raise InputError(f"{url[:200]!r} has spaces", hint)
        return cls(parts.scheme, parts.hostname, port or PORTS[parts.scheme], parts.path.rstrip("/"))

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    def resolve(self) -> list[tuple[Any, ...]]:
        """The addresses of the host, as `socket.getaddrinfo` gives them. WorkError if it has none."""
        try:
            return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise WorkError(f"there is no host {self.host}") from None

    @property
    def is_private(self) -> bool:
        """Whether any address of the host is not one of the public internet."""
        return any(is_private(entry[4][0]) for entry in self.resolve())


def is_private(address: str) -> bool:
    """Whether an IP address is of this machine, a private network, or none that a server on the internet has."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    return not ip.is_global or ip.is_multicast or (mapped is not None and is_private(str(mapped)))
