"""Which members a .synapse file may have, and how large each may be. Whatever is not here is refused by name."""

from __future__ import annotations

import re

from synthe_core.data.tokenizers import CHAT
from synthe_core.errors import InputError

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
BASE = "base.json"
KNOWLEDGE = "knowledge/graph.sqlite"
AGENT = "agent.yaml"
README = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

KIB, MIB, ANY = 1 << 10, 1 << 20, 1 << 62
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?"
MEMBERS = [
    (MANIFEST, 16 * MIB),
    (README, MIB),
    ("recipe.yaml", 256 * KIB),
    ("config.json", MIB),
    (AGENT, 256 * KIB),
    (BASE, MIB),
    ("tokenizer.json", 256 * MIB),
    (re.escape(CHAT), MIB),
    (rf"adapters/{NAME}/{re.escape(ADAPTER_CONFIG)}", MIB),
    (rf"adapters/{NAME}/{re.escape(ADAPTER_WEIGHTS)}", ANY),
    (KNOWLEDGE, ANY),
    (rf"sessions/{NAME}\.safetensors", ANY),
    (r"model\.safetensors\.index\.json", 64 * MIB),
    (r"model\.safetensors|model-\d{5}-of-\d{5}\.safetensors", ANY),
    (SIGNATURE, 64 * KIB),
]
"""(pattern, largest size in bytes), in the order in which they stand in a file."""
COUNT = 10_000
DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)


def place(name: str) -> int:
    """The row of MEMBERS that a member belongs to; InputError, saying what is wrong with it, where it has none."""
    for number, (pattern, _) in enumerate(MEMBERS):
        if re.fullmatch(pattern, name) and not any(DEVICES.match(part) for part in name.split("/")):
            return number
    raise InputError(f"the member {shown(name)} {_fault(name)}", "this file is not to be trusted")


def limit(name: str) -> int:
    """The most bytes that a member may have."""
    return MEMBERS[place(name)][1]


def order(name: str) -> tuple[int, str]:
    """The sorting key that puts members into their order."""
    return place(name), name


def shown(name: str) -> str:
    """A name from a stranger, fit for a line of a terminal."""
    return ascii(name if len(name) <= 100 else f"{name[:97]}...")


def weights(name: str) -> bool:
    """Whether a member holds the model's weights, or says in which file they are."""
    return name.startswith("model")


def _fault(name: str) -> str:
    parts = re.split(r"[/\\]", name)
    if ".." in parts:
        return "points out of its folder (path traversal)"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if re.search(r"\.(?:bin|pt|pth|ckpt|pkl|pickle)$", name):
        return "is a pickle by its name, and none is ever read"
    return "is none that a .synapse file may have"
