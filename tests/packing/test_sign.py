"""Signatures, and that no bit of a file can change unseen."""

from __future__ import annotations

import codecs
import random
import shutil
from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.packing.archive import Archive
from synthe_core.packing.pack import pack
from synthe_core.packing.sign import sign
from synthe_core.packing.verify import verify
from tests.packing.conftest import result, write_keys
from tests.processes import run_program


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 1 << bit]))


def test_signatures_are_verified_by_key(things, packed, tmp_path):
    values = result(verify(packed, things.public)).values
    assert values["status"] == "signed" and values["signed by"].startswith("SHA256:")
    assert result(verify(packed, things.private)).values["signed by"] == values["signed by"]
    path = result(pack(things.checkpoint, tmp_path / "bare.synapse")).path
    assert result(verify(path)).values["status"] == "unsigned"
    with pytest.raises(InputError, match="is not signed, and not by"):
        list(verify(path, things.public))
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(InputError, match=r"is signed by SHA256:.*, and not by .*other\.pub"):
        list(verify(packed, other))


def test_signing_again_replaces_the_signature(copy, tmp_path):
    private, public = write_keys(tmp_path)
    before = Archive(copy).members.keys()
    result(sign(copy, private))
    assert Archive(copy).members.keys() == before
    assert result(verify(copy, public)).values["status"] == "signed"


def test_openssh_keys(copy, tmp_path):
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen here")
    for name, more in (("k", ["-N", ""]), ("locked", ["-N", "secret"])):
        run_program(["ssh-keygen", "-q", "-t", "ed25519", *more, "-f", tmp_path / name], check=True)
    signed = result(sign(copy, tmp_path / "k")).values["signed by"]
    shown = run_program(["ssh-keygen", "-lf", tmp_path / "k.pub"], capture_output=True, text=True, check=True).stdout
    assert signed in shown  # the same short name as ssh-keygen's
    assert result(verify(copy, tmp_path / "k.pub")).values["status"] == "signed"
    with pytest.raises(InputError, match="is locked with a password"):
        list(sign(copy, tmp_path / "locked"))


@pytest.mark.parametrize("saved", ["mark", "lines", "wide", "spaces", "end"])
def test_keys_that_an_editor_has_saved_again(copy, tmp_path, saved):
    for path in write_keys(tmp_path):
        text = path.read_text()
        content = {
            "mark": codecs.BOM_UTF8 + text.encode(),
            "lines": codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
            "wide": text.replace("\n", "\r\n").encode("utf-16"),
            "spaces": text.replace("\n", " \n").encode(),
            "end": text.rstrip().encode(),
        }
        path.write_bytes(content[saved])
    list(sign(copy, tmp_path / "k.pem"))
    assert result(verify(copy, tmp_path / "k.pub")).values["status"] == "signed"


def test_invalid_keys(things, copy, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    form = serialization.PrivateFormat.PKCS8
    other = generate_private_key(SECP256R1())
    pem = other.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (tmp_path / "ec.pem").write_bytes(pem)
    (tmp_path / "text").write_text("hello")
    for name, message in (("ec.pem", "another algorithm"), ("text", "no private key"), ("none", "no such key")):
        with pytest.raises(InputError, match=message):
            list(sign(copy, tmp_path / name))
    with pytest.raises(InputError, match="is not a public key"):
        list(verify(copy, tmp_path / "text"))


def test_a_flipped_bit_in_every_member_is_detected_and_the_member_named(packed, tmp_path):
    archive = Archive(packed)
    for name, member in archive.members.items():
        path = Path(shutil.copy(packed, tmp_path / "x.synapse"))
        flip(path, member.offset + member.size // 2)
        with pytest.raises(InputError) as refused:
            list(verify(path))
        assert name in refused.value.message, name


def test_a_flipped_bit_anywhere_is_detected(packed, tmp_path):
    """Headers, paddings and directory too: every bit of the first kilobyte and of the end, and a sample between."""
    size = packed.stat().st_size
    rng = random.Random(0)
    path = Path(shutil.copy(packed, tmp_path / "x.synapse"))
    offsets = [*range(0, 300, 3), *range(size - 300, size, 3), *(rng.randrange(size) for _ in range(60))]
    for offset in offsets:
        bit = rng.randrange(8)
        flip(path, offset, bit)
        with pytest.raises(InputError):
            list(verify(path))
        flip(path, offset, bit)
    assert result(verify(path)).values["status"] == "signed"


def test_a_rewritten_manifest_fails_its_signature(things, packed, tmp_path):
    """Somebody who repairs every checksum cannot repair the signature."""
    from synthe_core.packing.contents import Bytes, FileRange, write_archive

    archive = Archive(packed)
    contents = {name: FileRange(*archive.locate(name)) for name in archive}
    text = b"".join(archive.pieces("manifest.json"))
    contents["manifest.json"] = Bytes(text.replace(b'"licence": "mit"', b'"licence": "gpl"'))
    write_archive(tmp_path / "x.synapse", contents)
    with pytest.raises(InputError, match=r"tampered with: manifest\.json is not what SHA256:\S+ signed"):
        list(verify(tmp_path / "x.synapse"))
    with pytest.raises(InputError, match="tampered with"):
        list(verify(tmp_path / "x.synapse", things.public))
