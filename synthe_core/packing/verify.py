"""The verb `pack verify`: every member against its digest, every header against the format, and who signed it all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.events import Event, Progress, Result
from synthe_core.packing.adapters import adapters_in, check_adapter
from synthe_core.packing.agent import read_agent
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.knowledge import tables
from synthe_core.packing.members import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AGENT, BASE, KNOWLEDGE
from synthe_core.packing.sign import fingerprint, read_public, signer
from synthe_core.quantization.formats import open_tensors
from synthe_core.storage.json_reader import UNTRUSTED, parse_untrusted_json


def verify(path: Path, key: Path | None = None) -> Iterator[Event]:
    """Checks all of a file; the last event is a Result that says who signed it, or that nobody did.

    key: a public key; InputError where the file is not signed with it. InputError names every member that has been
    tampered with.
    """
    wanted = read_public(key) if key is not None else None
    bundle = Bundle(path)
    total, done, bad = sum(facts.bytes for facts in bundle.about.files.values()), 0, []
    for name, facts in bundle.about.files.items():
        try:
            bundle.check(name)
        except InputError:
            bad.append(name)
        done += facts.bytes
        yield Progress("verify", done, total, "bytes")
    if bad:
        raise InputError(f"{path} has been tampered with or damaged, in {', '.join(bad)}", UNTRUSTED)
    check_contents(bundle)
    public = signer(bundle)
    who = None if public is None else fingerprint(public)
    if wanted is not None and who != fingerprint(wanted):
        found = "not signed" if who is None else f"signed by {who}"
        raise InputError(
            f"{path} is {found}, and not by {key} ({fingerprint(wanted)})",
            "whoever gave you the file is not whom that key belongs to",
        )
    yield Result(
        {
            "status": "unsigned" if who is None else "signed",
            "signed by": who,
            "key": None if wanted is None else str(key),
            "members": len(bundle.about.files),
            "bytes": total,
        }
    )


def check_contents(bundle: Bundle) -> None:
    """Every member is what its name says: headers of tensors, JSON, YAML, tables; whoever wrote the digests."""
    names = bundle.about.files
    for name in names:
        if name.endswith(".safetensors"):
            open_tensors(*bundle.locate(name), f"{bundle.path / name}")
        elif name.endswith(".json") and name != "tokenizer.json":
            parse_untrusted_json(bundle.read(name), str(bundle.path / name))
    for adapter in adapters_in(names):
        for part in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if f"adapters/{adapter}/{part}" not in names:
                raise InputError(f"{bundle.path}: the adapter {adapter} has no {part}", UNTRUSTED)
        config = parse_untrusted_json(bundle.read(f"adapters/{adapter}/{ADAPTER_CONFIG}"), ADAPTER_CONFIG)
        weights = bundle.open(f"adapters/{adapter}/{ADAPTER_WEIGHTS}")
        check_adapter(adapter, config, weights, None)
    if AGENT in names:
        read_agent(bundle.read(AGENT), str(bundle.path / AGENT), adapters_in(names))
    if BASE in names:
        _ = bundle.reference
    if KNOWLEDGE in names:
        tables(bundle)
