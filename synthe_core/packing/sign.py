"""Signatures: Ed25519 over the manifest, which contains the SHA-256 of every other member.

signature.json contains algorithm, public key and signature. The signed message is DSSE's pre-authentication encoding of
the manifest's bytes, so that the signature is valid for nothing else. The package model-signing was not used: it signs
folders, and depends on sigstore, a dozen packages and a network protocol.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from synthe_core.errors import InputError
from synthe_core.events import Event, Result
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.contents import Bytes, Content, FileRange, write_archive
from synthe_core.packing.members import MANIFEST, SIGNATURE
from synthe_core.storage.claim import claim
from synthe_core.storage.json_reader import UNTRUSTED, canonical_json, parse_untrusted_json

ALGORITHM = "ed25519"
TYPE = b"application/vnd.synthe.synapse.manifest+json"
MAKE = "make a pair: ssh-keygen -t ed25519 -N '' -f k.pem (k.pem.pub is the public one)"


def sign(path: Path, key: Path) -> Iterator[Event]:
    """Adds a signature to a file, or replaces it, atomically."""
    private = _private(key)
    if path.is_dir():
        raise InputError(f"{path} is a folder", "sign the .synapse file")
    with claim(path):
        bundle = Bundle(path)
        for name in bundle.pack_manifest.files:
            bundle.check(name)  # a damaged file is not signed
        contents: dict[str, Content] = {name: FileRange(*bundle.container.locate(name)) for name in bundle.container}
        contents[SIGNATURE] = Bytes(signature(bundle.manifest_bytes, private))
        write_archive(path, contents, claimed=True)
    yield Result({"signed by": fingerprint(private.public_key())}, path)


def signature(manifest: bytes, private: Ed25519PrivateKey) -> bytes:
    """The content of signature.json."""
    public = private.public_key().public_bytes_raw()
    values = {"algorithm": ALGORITHM, "signed": MANIFEST, "public_key": _text(public)}
    return canonical_json({**values, "signature": _text(private.sign(_message(manifest)))})


def signer(bundle: Bundle) -> Ed25519PublicKey | None:
    """The public key that signed a file's manifest; None if it is unsigned. InputError for an invalid signature."""
    if SIGNATURE not in bundle.container:
        return None
    name = str(bundle.path / SIGNATURE)
    values = parse_untrusted_json(b"".join(bundle.container.pieces(SIGNATURE)), name)
    try:
        if values["algorithm"] != ALGORITHM or values["signed"] != MANIFEST:
            raise ValueError
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(values["public_key"], validate=True))
        signature = base64.b64decode(values["signature"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{name} is not a signature of a known kind", UNTRUSTED) from None
    try:
        public.verify(signature, _message(bundle.manifest_bytes))
    except InvalidSignature:
        raise InputError(
            f"{bundle.path} has been tampered with: {MANIFEST} is not what {fingerprint(public)} signed", UNTRUSTED
        ) from None
    return public


def read_public(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM or OpenSSH file, or that of the private key in it."""
    content = _content(path)
    for load in (serialization.load_pem_public_key, serialization.load_ssh_public_key):
        try:
            key = load(content)
        except (ValueError, UnsupportedAlgorithm):
            continue
        if isinstance(key, Ed25519PublicKey):
            return key
        raise InputError(f"{path} is a key of another algorithm", MAKE)
    if b"PRIVATE KEY" in content:
        return _private(path).public_key()
    raise InputError(f"{path} is not a public key", MAKE)


def fingerprint(public: Ed25519PublicKey) -> str:
    """The fingerprint of a key, as `ssh-keygen -l` prints it."""
    raw = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).split()[1]
    return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(raw)).digest()).decode().rstrip("=")


def _private(path: Path) -> Ed25519PrivateKey:
    content = _content(path)
    for load in (serialization.load_pem_private_key, serialization.load_ssh_private_key):
        try:
            key = load(content, password=None)
        except TypeError:
            raise InputError(f"{path} is locked with a password", "write an unlocked copy, or " + MAKE) from None
        except (ValueError, UnsupportedAlgorithm) as error:
            if "encrypted" in str(error) or "password" in str(error).lower():
                raise InputError(f"{path} is locked with a password", "write an unlocked copy, or " + MAKE) from None
            continue
        if isinstance(key, Ed25519PrivateKey):
            return key
        raise InputError(f"{path} is a key of another algorithm", MAKE)
    raise InputError(f"{path} is no private key", MAKE)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(1 << 16)
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            content = content.decode("utf-16", "replace").encode()
        lines = content.removeprefix(codecs.BOM_UTF8).splitlines()  # an editor of another system may have changed both
        return b"".join(line.rstrip() + b"\n" for line in lines)
    except FileNotFoundError:
        raise InputError(f"no such key: {path}", MAKE) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", MAKE) from None


def _message(manifest: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE, len(manifest), manifest)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
