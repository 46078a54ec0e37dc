"""The members that a .synapse file may have, and their size limits. Any other member is refused."""

from __future__ import annotations

import re

from synthe_core.data.tokenizer_config import CHAT, CONFIG, GENERATION
from synthe_core.errors import InputError

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
BASE = "base.json"
KNOWLEDGE = "knowledge/graph.sqlite"
AGENT = "agent.yaml"
README = "README.md"
SPECIALIST = "specialist.json"
FACTS = "knowledge/facts.jsonl"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

KIB, MIB, ANY = 1 << 10, 1 << 20, 1 << 62
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?"
SHARD = r"model[A-Za-z0-9._-]{0,80}\.safetensors"
MEMBERS = [
    (MANIFEST, 4 * MIB),
    (README, MIB),
    ("recipe.yaml", 256 * KIB),
    ("config.json", MIB),
    (AGENT, 256 * KIB),
    (BASE, MIB),
    (re.escape(SPECIALIST), MIB),
    ("tokenizer.json", 256 * MIB),
    (re.escape(CONFIG), 16 * MIB),
    (re.escape(CHAT), MIB),
    (re.escape(GENERATION), MIB),
    (rf"adapters/{NAME}/{re.escape(ADAPTER_CONFIG)}", MIB),
    (rf"adapters/{NAME}/{re.escape(ADAPTER_WEIGHTS)}", ANY),
    (KNOWLEDGE, ANY),
    (re.escape(FACTS), 256 * MIB),
    (r"documents/[1-9]\d?", 64 * MIB),
    (rf"sessions/{NAME}\.safetensors", ANY),
    (r"model\.safetensors\.index\.json", 64 * MIB),
    (SHARD, ANY),
    (SIGNATURE, 64 * KIB),
]
"""(pattern, size limit in bytes), in the order of members in a file."""
COUNT = 10_000
DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)


def member_index(name: str) -> int:
    """The index in MEMBERS of a member's pattern. InputError with the reason if none matches."""
    for number, (pattern, _) in enumerate(MEMBERS):
        if re.fullmatch(pattern, name) and not any(DEVICES.match(part) for part in name.split("/")):
            return number
    raise InputError(f"the member {quoted(name)} {_fault(name)}", "this file is not to be trusted")


def size_limit(name: str) -> int:
    """The size limit of a member, in bytes."""
    return MEMBERS[member_index(name)][1]


def member_order(name: str) -> tuple[int, str]:
    """The sorting key of members in a file."""
    return member_index(name), name


def quoted(name: str) -> str:
    """An untrusted name, quoted and shortened for messages."""
    return ascii(name if len(name) <= 100 else f"{name[:97]}...")


def is_weights(name: str) -> bool:
    """Whether a member contains the model's weights, or is their index."""
    return name.startswith("model")


def _fault(name: str) -> str:
    parts = re.split(r"[/\\]", name)
    if ".." in parts:
        return "points out of its folder (path traversal)"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if re.search(r"\.(?:bin|pt|pth|ckpt|pkl|pickle)$", name):
        return "is a pickle by its name, and pickles are never read"
    return "is not a member of a .synapse file"
