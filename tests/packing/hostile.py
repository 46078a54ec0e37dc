"""Files that mean harm or were harmed: mutations of real ones, and what is done with each of them."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from synthe_core.errors import SyntheError
from synthe_core.packing.archive import Archive, Member, layout
from synthe_core.packing.contents import Bytes, digest_and_crc
from synthe_core.packing.diff import diff
from synthe_core.packing.inspect import inspect
from synthe_core.packing.members import MANIFEST, SIGNATURE
from synthe_core.packing.unpack import unpack
from synthe_core.packing.verify import verify
from synthe_core.storage.checkpoint import Checkpoint

BOMB = b"a0: &a0 x\n" + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30))
HOSTILE: list[Any] = [
    0, -1, 1, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308, True, None, "", "a", "../../x", "/etc/passwd",
    "a" * 5000, "\x00", "\ud800", "é", [], {}, [[]], [1, 2, 3], {"a": {}}, "1e999", "nan", "int4", "synapse", "2.0",
]  # fmt: skip


def members(path: Path) -> dict[str, bytes]:
    archive = Archive(path)
    return {name: b"".join(archive.pieces(name)) for name in archive}


def rebuild(path: Path, contents: dict[str, bytes], *, rehash: bool = True) -> Path:
    """Writes members as their author would: with the right digests in the manifest, whatever they hold."""
    if rehash:
        try:
            about = json.loads(contents[MANIFEST])
            about["files"] = {
                name: digest_and_crc(Bytes(content))[0].model_dump()
                for name, content in contents.items()
                if name not in (MANIFEST, SIGNATURE)
            }
            contents = {**contents, MANIFEST: json.dumps(about).encode("utf-8", "surrogatepass")}
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
    plan = layout(Member(name, len(c), zlib.crc32(c)) for name, c in contents.items())
    path.write_bytes(b"".join(head + c for head, c in zip(plan.heads, contents.values(), strict=True)) + plan.tail)
    return path


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 30, 500))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + length] = bytes(
                    rng.choice((0, 255, 0x7B, 0x22)) for _ in range(min(length, len(data) - at))
                )
            case 4:
                number = rng.choice((0, 1, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                data[at : at + 8] = number.to_bytes(8, "little")
            case _:
                data[at:] = b""
        if not data:
            break
    return bytes(data)


def spoil_tree(rng: random.Random, value: Any) -> Any:
    """JSON or YAML with one value replaced, removed or renamed, anywhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {(rng.choice(("x", "../x", "", "__metadata__")) if k == key else k): v for k, v in value.items()}
        return {k: spoil_tree(rng, v) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], spoil_tree(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 7, -value, value, 10**6))
    return rng.choice(HOSTILE)


def spoil_member(rng: random.Random, name: str, content: bytes) -> bytes:
    if rng.random() < 0.02:
        return rng.choice((b"[" * 200_000, b"{}", b"", b"a: &a [*a]\n", BOMB))
    try:
        if name.endswith(".json") and rng.random() < 0.8:
            return json.dumps(spoil_tree(rng, json.loads(content))).encode("utf-8", "surrogatepass")
        if name.endswith(".yaml") and rng.random() < 0.8:
            return yaml.safe_dump(spoil_tree(rng, yaml.safe_load(content)), sort_keys=False).encode("utf-8", "replace")
        if name.endswith(".safetensors") and rng.random() < 0.7:
            length = int.from_bytes(content[:8], "little")
            header = json.dumps(spoil_tree(rng, json.loads(content[8 : 8 + length]))).encode("utf-8", "surrogatepass")
            return len(header).to_bytes(8, "little") + header + content[8 + length :]
    except (ValueError, yaml.YAMLError):
        pass
    return spoil_bytes(rng, content)


def case(rng: random.Random, original: Path, target: Path) -> Path:
    """One hostile file: the bytes of a real one spoilt, or its members spoilt and its digests put right."""
    if rng.random() < 0.4:
        target.write_bytes(spoil_bytes(rng, original.read_bytes()))
        return target
    contents = members(original)
    if rng.random() < 0.7:
        contents.pop(SIGNATURE, None)  # which no longer fits
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(list(contents))
        match rng.randrange(12):
            case 0 if name != MANIFEST:
                del contents[name]
            case 1:
                new = rng.choice(
                    ("../evil", "/evil", "model.bin", "x", "sessions/con.safetensors", "model.safetensors")
                )
                contents = {(new if key == name else key): value for key, value in contents.items()}
            case 2:
                contents[rng.choice(("extra.txt", "adapters/a/adapter_config.json", "base.json"))] = b"{}"
            case _:
                contents[name] = spoil_member(rng, name, contents[name])
        if not contents:
            return case(rng, original, target)
    return rebuild(target, contents, rehash=rng.random() < 0.9)


def exercise(path: Path, folder: Path) -> int:
    """Everything that may be done with a file. Gives how many of the verbs refused it; anything but a refusal in words
    is raised."""
    out = folder / "out"

    def use() -> None:
        opened = Checkpoint.open(path)
        opened.tokenizer().encode("text")
        model = opened.model().eval()
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]))
        opened.session(Path("chat"), model)

    verbs: list[Callable[[], Any]] = [
        lambda: list(inspect(path)),
        lambda: list(verify(path)),
        lambda: list(unpack(path, out)),
        lambda: list(diff(path, path)),
        use,
    ]
    refused = 0
    for verb in verbs:
        try:
            verb()
        except SyntheError as error:
            # A recipe's faults are told a line each, the first five of them.
            assert error.message.count("\n") <= 5 and len(error.message) < 2000, error.message
            refused += 1
    if out.exists():
        shutil.rmtree(out)
    return refused


def tree(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        yield str(path), path.lstat().st_size if path.is_file() else -1
