"""The hub, against a stand-in on this machine: push, pull, resume, search, list, and what can go wrong."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.events import Notice, Progress
from synthe_core.packing.hub import listing, pull, push, search
from synthe_core.packing.pack import PackOptions, pack
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.hub import download as module
from tests.hub_standin import Hub, hub_on_this_machine, surroundings
from tests.packing.conftest import result
from tests.processes import run_program, start


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_on_this_machine(monkeypatch, tmp_path) as server:
        yield server


def test_a_pushed_file_is_pulled(hub, packed, tmp_path):
    pushed = result(push(packed, "acme/small", private=True)).values
    assert pushed["file"] == "full.synapse" and pushed["url"].startswith(hub.url)
    files = hub.find("acme/small", "main")[1]
    assert files["full.synapse"] == packed.read_bytes()
    assert b"library_name: synthe" in files["README.md"] and b"- synapse" in files["README.md"]
    pulled = result(pull("acme/small"))
    assert pulled.path == Path("full.synapse") and pulled.path.read_bytes() == packed.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        list(pull("acme/small"))
    assert (
        result(pull("acme/small", tmp_path / "as.synapse", revision=pushed["commit"])).path == tmp_path / "as.synapse"
    )


def test_revisions_are_separate(hub, packed, things, tmp_path):
    other = result(pack(things.checkpoint, tmp_path / "full.synapse")).path
    result(push(packed, "acme/small"))
    result(push(other, "acme/small", revision="v2", message="without the rest"))
    assert result(pull("acme/small", tmp_path / "a" / "x.synapse")).path.read_bytes() == packed.read_bytes()
    assert result(pull("acme/small", tmp_path / "y.synapse", revision="v2")).path.read_bytes() == other.read_bytes()
    files = result(listing("acme/small")).values["files"]
    assert [(each["revision"], each["bytes"]) for each in files] == [
        ("main", packed.stat().st_size),
        ("v2", other.stat().st_size),
    ]


def test_search_and_list(hub, packed):
    result(push(packed, "acme/small"))
    assert [r["repository"] for r in result(search("sma")).values["repositories"]] == ["acme/small"]
    assert result(search("large")).values["repositories"] == []
    assert [r["repository"] for r in result(listing("acme")).values["repositories"]] == ["acme/small"]


def test_progress_is_reported_and_a_failed_pull_resumes(hub, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50_000)
    hub.put("acme/small", {"full.synapse": packed.read_bytes()})
    events = pull("acme/small")
    for event in events:
        if isinstance(event, Progress) and event.done >= 100_000:
            events.close()  # as Ctrl-C would leave it
            break
    (part,) = tmp_path.glob(".*.part")
    assert part.stat().st_size == 100_000 and not Path("full.synapse").exists()
    hub.ranges.clear()
    events = list(pull("acme/small"))
    assert any(isinstance(event, Notice) and "resuming at 97.7 KiB of " in event.message for event in events)
    assert hub.ranges[0].startswith("bytes=100000-")
    assert Path("full.synapse").read_bytes() == packed.read_bytes() and not list(tmp_path.glob(".*.part"))


def test_a_killed_pull_resumes(hub, packed, tmp_path):
    """Two processes of the real command, with HF_ENDPOINT: the first is killed without warning."""
    hub.put("acme/small", {"full.synapse": packed.read_bytes()})
    hub.slow = 0.3
    environment = surroundings(hub, tmp_path)
    program = (
        "from synthe_core.storage.hub import download; download.BLOCK = 60_000\nfrom synthe_cli.app import main; main()"
    )
    command = [sys.executable, "-c", program, "hub", "pull", "acme/small"]
    first = start(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (parts := [p for p in tmp_path.glob(".*.part") if p.stat().st_size >= 120_000]):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    came = parts[0].stat().st_size
    assert 0 < came < packed.stat().st_size
    hub.ranges.clear()
    hub.slow = 0
    done = run_program(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "full.synapse\n", done.stderr
    assert (tmp_path / "full.synapse").read_bytes() == packed.read_bytes()
    starts = [int(re.findall(r"\d+", each)[0]) for each in hub.ranges]
    assert min(starts) == came, "nothing that had come was requested again"


def test_a_server_without_range_requests(hub, packed, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50_000)
    hub.put("acme/small", {"full.synapse": packed.read_bytes()})
    hub.whole = True
    result(pull("acme/small"))
    assert Path("full.synapse").read_bytes() == packed.read_bytes()


def test_damaged_or_hostile_downloads_are_deleted(hub, packed, tmp_path):
    hub.put("acme/small", {"full.synapse": packed.read_bytes()})
    hub.damage = True
    with pytest.raises(WorkError, match="is damaged"):
        list(pull("acme/small"))
    hub.damage = False
    hub.put("acme/evil", {"evil.synapse": b"PK\3\4" + b"\0" * 500})
    with pytest.raises(InputError, match="is refused"):
        list(pull("acme/evil"))
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("acme/none", "is not on the hub, or is private"),
        ("acme", "is not a repository name"),
        ("../x/y", "is not a repository name"),
        ("acme/bare", "has no .synapse file"),
        ("acme/two", "has 2 .synapse files"),
    ],
)
def test_repositories_that_cannot_be_pulled(hub, repo, message):
    hub.put("acme/bare", {"README.md": b""})
    hub.put("acme/two", {"a.synapse": b"", "b.synapse": b""})
    with pytest.raises(InputError) as refused:
        list(pull(repo))
    assert message in refused.value.message and refused.value.hint
    if repo == "acme/two":
        with pytest.raises(InputError, match=r"unknown \.synapse file of acme/two 'c\.synapse'"):
            list(pull(repo, name="c.synapse"))


def test_a_push_without_permission_points_to_the_login(hub, packed, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="the hub refuses 'acme/small'") as refused:
        list(push(packed, "acme/small"))
    assert "hf auth login" in refused.value.hint


def test_offline(hub, packed, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for verb in (pull("acme/small"), push(packed, "acme/small"), search("x"), listing("acme"), listing("acme/small")):
        with pytest.raises(SyntheError, match="offline mode is on"):
            list(verb)


def test_a_base_on_the_hub_is_downloaded_once(hub, things, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    base = result(pack(things.checkpoint, tmp_path / "elsewhere" / "base.synapse")).path
    commit = hub.put("acme/base", {"base.synapse": base.read_bytes()})
    alone = tmp_path / "alone.synapse"
    result(pack(things.checkpoint, alone, PackOptions(base=f"acme/base@{commit}", adapters=[f"code={things.adapter}"])))
    own, other = Checkpoint.open(alone).model(), Checkpoint.open(things.checkpoint).model()
    assert (own.embedding.weight == other.embedding.weight).all()
    hub.ranges.clear()
    Checkpoint.open(alone).model()
    assert hub.ranges == []
    hub.put("acme/other", {"full.synapse": result(_other(tmp_path)).path.read_bytes()})
    result(pack(things.checkpoint, alone, PackOptions(base="acme/other@main")))
    with pytest.raises(InputError, match="acme/other holds other weights"):
        Checkpoint.open(alone)


def _other(folder: Path):  # type: ignore[no-untyped-def]
    from tests.packing.conftest import write_checkpoint

    return pack(write_checkpoint(folder / "elsewhere" / "other", seed=5), folder / "elsewhere" / "other.synapse")
