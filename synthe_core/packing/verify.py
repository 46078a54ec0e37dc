"""The verb `pack verify`: checks every member by its digest, every header, and the signature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synthe_core.errors import InputError
from synthe_core.events import Event, Progress, Result
from synthe_core.packing.adapters import adapters_in, check_adapter
from synthe_core.packing.agent import read_agent
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.knowledge import tables
from synthe_core.packing.members import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AGENT, BASE, KNOWLEDGE, SPECIALIST
from synthe_core.packing.sign import fingerprint, read_public, signer
from synthe_core.packing.specialist import read_facts, read_specialist
from synthe_core.quantization.tensor_file import open_tensors
from synthe_core.storage.finite import check_finite
from synthe_core.storage.json_reader import UNTRUSTED, parse_untrusted_json


def verify(path: Path, key: Path | None = None) -> Iterator[Event]:
    """Checks a file; the last event is a Result with the signer, or None if it is unsigned.

    key: a public key; InputError if the file is not signed with it. InputError names every damaged member, and the
    first tensor that is not finite.
    """
    expected = read_public(key) if key is not None else None
    bundle = Bundle(path)
    total, done, damaged = sum(digest.bytes for digest in bundle.pack_manifest.files.values()), 0, []
    for name, digest in bundle.pack_manifest.files.items():
        try:
            bundle.check(name)
        except InputError:
            damaged.append(name)
        done += digest.bytes
        yield Progress("verify", done, total, "bytes")
    if damaged:
        raise InputError(f"{path} has been tampered with or damaged, in {', '.join(damaged)}", UNTRUSTED)
    check_contents(bundle)
    for name in bundle.pack_manifest.files:
        if name.endswith(".safetensors"):
            tensors = open_tensors(*bundle.locate(name), f"{bundle.path / name}")
            for count, tensor in enumerate(tensors, start=1):
                check_finite(tensor, tensors[tensor], bundle.path / name)
                yield Progress("read", count, len(tensors), "tensors")
    public = signer(bundle)
    signed_by = None if public is None else fingerprint(public)
    if expected is not None and signed_by != fingerprint(expected):
        actual = "not signed" if signed_by is None else f"signed by {signed_by}"
        raise InputError(
            f"{path} is {actual}, and not by {key} ({fingerprint(expected)})",
            "whoever gave you the file is not whom that key belongs to",
        )
    yield Result(
        {
            "status": "unsigned" if signed_by is None else "signed",
            "signed by": signed_by,
            "key": None if expected is None else str(key),
            "members": len(bundle.pack_manifest.files),
            "bytes": total,
        }
    )


def check_contents(bundle: Bundle) -> None:
    """Checks that every member has the format that its name implies: tensors, JSON, YAML, tables."""
    names = bundle.pack_manifest.files
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
    if SPECIALIST in names:
        read_specialist(bundle)
        read_facts(bundle)
    if BASE in names:
        _ = bundle.reference
    if KNOWLEDGE in names:
        tables(bundle)
