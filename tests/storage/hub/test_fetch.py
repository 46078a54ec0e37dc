"""Fetching into the hub's cache: what is fetched, resumed, reused and refused."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from synthe_core.errors import InputError, SyntheError, WorkError
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.storage.hub import download
from synthe_core.storage.hub.fetch import fetch
from synthe_core.storage.hub.model_id import HubId
from synthe_core.storage.hub.snapshot import origin_of
from tests.hub_standin import Hub, surroundings
from tests.processes import run_program, start
from tests.storage.hub.conftest import CONFIG, events_of, model_files, outside, path_of, shards

PULL = "from synthe_core.storage.hub import download; download.BLOCK = 20_000\nfrom synthe_cli.app import main; main()"


def notices(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice)]


def test_a_model_folder_is_fetched_with_progress(hub: Hub, tmp_path: Path) -> None:
    commit = hub.put("acme/small", model_files())
    events = events_of("acme/small")
    last = events[-1]
    assert isinstance(last, Result) and last.path is not None and last.values["commit"] == commit
    names = sorted(path.name for path in last.path.iterdir())
    assert names == ["chat_template.jinja", "config.json", "model-00001-of-00002.safetensors",
                     "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
                     "tokenizer_config.json"]  # fmt: skip
    for path in last.path.iterdir():
        assert path.read_bytes() == hub.find("acme/small", "main")[1][path.name]  # type: ignore[index]
    progress = [event for event in events if isinstance(event, Progress)]
    assert all(event.what == "pull acme/small" and event.unit == "bytes" for event in progress)
    done = [event.done for event in progress if event.total == progress[-1].total]
    assert done == sorted(done) and progress[-1].done == progress[-1].total == sum(map(len, shards().values())) - len(
        shards()["model.safetensors.index.json"]
    )
    assert str(origin_of(last.path)) == f"acme/small@{commit}"
    assert outside(tmp_path) == []


def test_the_layout_is_that_of_the_hubs_own_library(hub: Hub) -> None:
    """Its functions take what is fetched here from the cache, and what they fetched is used here."""
    from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

    hub.put("acme/small", model_files())
    path = path_of("acme/small")
    assert Path(snapshot_download("acme/small", local_files_only=True)) == path
    scanned = scan_cache_dir()
    (repo,) = scanned.repos
    assert scanned.warnings == [] and repo.repo_id == "acme/small"
    assert [len(revision.files) for revision in repo.revisions] == [7] and set(repo.refs) == {"main"}
    assert Path(hf_hub_download("acme/small", "config.json", local_files_only=True)) == path / "config.json"
    commit = hub.put("acme/theirs", model_files())
    for name in model_files():
        hf_hub_download("acme/theirs", name, revision="main")
    hub.requests.clear()
    assert path_of("acme/theirs").name == commit
    assert hub.requests == [], "everything was there"


def test_what_another_tool_fetched_in_part_is_completed(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hub.put("acme/small", model_files())
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        hf_hub_download("acme/small", name, revision="main")
    hub.requests.clear()
    path_of("acme/small")
    fetched = {each.rpartition("/")[2] for each in hub.requests if "/resolve/" in each}
    assert "config.json" not in fetched and "model-00001-of-00002.safetensors" not in fetched
    assert {"tokenizer.json", "model-00002-of-00002.safetensors"} <= fetched


def test_a_cached_model_is_used_without_a_request_until_it_is_pulled(hub: Hub) -> None:
    first = hub.put("acme/small", model_files())
    assert path_of("acme/small").name == first
    second = hub.put("acme/small", {"tokenizer.json": b'{"new": 1}'})
    hub.requests.clear()
    assert path_of("acme/small").name == first and hub.requests == []
    assert path_of("acme/small", update=True).name == second
    assert not any("model-0000" in each for each in hub.requests), "files that did not change are not fetched again"
    assert path_of("acme/small").name == second
    assert path_of(f"acme/small@{first}").name == first


def test_offline_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("acme/small", model_files())
    path = path_of("acme/small")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert path_of("acme/small") == path
    assert notices(events_of("acme/small", update=True)) == ["offline mode is on: the copy in the cache is used"]
    with pytest.raises(WorkError, match="'acme/other' cannot be read: offline mode is on") as refused:
        path_of("acme/other")
    assert "no local path acme/other" in str(refused.value.hint)


def test_without_a_network_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.put("acme/small", model_files())
    path = path_of("acme/small")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    assert path_of("acme/small") == path
    (notice,) = notices(events_of("acme/small", update=True))
    assert notice.endswith("the copy in the cache is used")
    with pytest.raises(WorkError, match="cannot be reached"):
        path_of("acme/other")


def test_a_cut_connection_is_continued(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BLOCK", 10_000)
    hub.put("acme/small", model_files())
    hub.cut, hub.cuts = 30_000, 2
    path = path_of("acme/small")
    assert (path / "model-00001-of-00002.safetensors").read_bytes() == shards()["model-00001-of-00002.safetensors"]
    starts = [int(re.findall(r"\d+", each)[0]) for each in hub.ranges]
    assert any(0 < each <= 30_000 for each in starts)


def test_a_server_that_sends_no_more_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("acme/small", model_files())
    monkeypatch.setattr(download, "DELAY", 0.001)
    hub.cut, hub.cuts = 0, 100
    with pytest.raises(WorkError, match=r"cannot be reached: .*closed connection"):
        path_of("acme/small")


def test_an_interrupted_download_resumes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BLOCK", 10_000)
    hub.put("acme/small", {"small.gguf": b"GGUF" + bytes(range(256)) * 400})
    events = fetch(HubId("acme/small"))
    for event in events:
        if isinstance(event, Progress) and event.done >= 40_000:
            events.close()  # type: ignore[attr-defined]  # as Ctrl-C would leave it
            break
    hub.ranges.clear()
    events = events_of("acme/small")
    assert any(re.match(r"resuming at \S+ KiB of ", each) for each in notices(events))
    assert hub.ranges[0].startswith("bytes=40000-")
    assert events[-1].path.read_bytes() == hub.find("acme/small", "main")[1]["small.gguf"]  # type: ignore


def test_a_killed_pull_resumes(hub: Hub, tmp_path: Path) -> None:
    """Two processes of the command: the first is killed without warning, the second fetches the rest."""
    hub.put("acme/small", {"small.gguf": b"GGUF" + os.urandom(500_000)})
    hub.slow = 0.3
    command = [sys.executable, "-c", PULL, "pull", "acme/small"]
    environment = surroundings(hub, tmp_path)
    first = start(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (parts := [p for p in tmp_path.rglob("*.incomplete") if p.stat().st_size >= 100_000]):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    came = parts[0].stat().st_size
    hub.ranges.clear()
    hub.slow = 0
    done = run_program(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.read_bytes() == hub.find("acme/small", "main")[1]["small.gguf"]  # type: ignore[index]
    assert hub.ranges[0].startswith(f"bytes={came}-"), "nothing that had come is fetched again"
    assert not list(tmp_path.rglob("*.incomplete")) and outside(tmp_path) in ([], ["cache"])


def test_ctrl_c_says_that_the_pull_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.put("acme/small", {"small.gguf": b"GGUF" + os.urandom(500_000)})
    hub.slow = 0.5
    command = [sys.executable, "-c", PULL, "pull", "acme/small"]
    pulling = start(command, cwd=tmp_path, env=surroundings(hub, tmp_path), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(p.stat().st_size >= 60_000 for p in tmp_path.rglob("*.incomplete")):
        assert pulling.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    pulling.send_signal(signal.SIGINT)
    _, errors = pulling.communicate(timeout=60)
    assert pulling.returncode == 130 and "Traceback" not in errors
    assert "repeat the command to resume" in errors


def test_two_pulls_at_once_fetch_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BLOCK", 20_000)
    hub.put("acme/small", {"small.gguf": b"GGUF" + bytes(range(256)) * 1000})
    hub.slow = 0.1
    outcomes: list[list[Event]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(events_of("acme/small"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    one, other = (events[-1].path for events in outcomes)  # type: ignore[attr-defined]
    assert one == other and one.read_bytes() == hub.find("acme/small", "main")[1]["small.gguf"]  # type: ignore[index]
    assert len(hub.ranges) == 1
    assert sum("another process is downloading small.gguf" in each for e in outcomes for each in notices(e)) == 1


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        ("acme/none", None, "'acme/none' is not on the hub, or is private"),
        ("acme/x@v9", model_files(), "'acme/x' at v9 has no such revision"),
        ("acme/x", {"config.json": CONFIG, "pytorch_model.bin": b"."}, r"weights as pickle \(pytorch_model.bin\)"),
        ("acme/x", {"README.md": b""}, "has no model that synthe reads"),
        ("acme/x", {"a.Q8_0.gguf": b"G", "a.Q4_0.gguf": b"G"}, r"has 2 \.gguf files"),
        ("acme/x:Q5_0", {"a.Q8_0.gguf": b"G"}, "unknown type of the .gguf files of acme/x 'Q5_0'"),
        ("acme/x:Q5_0", model_files(), "has no .gguf file"),
        ("acme/x/b.gguf", {"a.gguf": b"G"}, "unknown file of acme/x 'b.gguf'"),
        ("acme/x:Q8_0", {"a-Q8_0-00001-of-00002.gguf": b"G"}, "is split into 2 files"),
        ("acme/x", {**model_files(), "model.safetensors.index.json": b'{"weight_map": {"w": "../w.safetensors"}}'},
         "there is no ../w.safetensors, which"),
        ("acme/x", {**model_files(), "model.safetensors.index.json": b"{"}, "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_fetched_is_one_line(hub: Hub, tmp_path, text, files, message) -> None:  # type: ignore
    if files is not None:
        hub.put("acme/x", files)
    with pytest.raises(InputError, match=message) as refused:
        path_of(text)
    assert refused.value.hint and "\n" not in refused.value.message
    assert outside(tmp_path) == []


def test_one_file_is_chosen(hub: Hub) -> None:
    files = {f"m-{kind}.gguf": kind.encode() for kind in ("Q4_K_M", "Q8_0", "IQ4_NL", "BF16")}
    hub.put("acme/gguf", files | {"mmproj-m-Q8_0.gguf": b"projector", "config.json": CONFIG})
    assert path_of("acme/gguf").name == "m-Q4_K_M.gguf", "the type that llama.cpp takes"
    assert path_of("acme/gguf:q8_0").name == "m-Q8_0.gguf"
    assert path_of("acme/gguf:BF16").read_bytes() == b"BF16"
    assert path_of("acme/gguf/mmproj-m-Q8_0.gguf").read_bytes() == b"projector"
    hub.put("acme/both", model_files() | {"m-Q8_0.gguf": b"q8"})
    assert (path_of("acme/both") / "config.json").is_file()
    assert path_of("acme/both:Q8_0").read_bytes() == b"q8"


def test_what_is_in_the_cache_of_several_files_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("acme/gguf", {f"m-{kind}.gguf": kind.encode() for kind in ("Q4_K_M", "Q8_0")})
    path_of("acme/gguf:Q8_0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert path_of("acme/gguf").name == "m-Q8_0.gguf"
    with pytest.raises(WorkError):
        path_of("acme/gguf:Q4_K_M")


def test_a_gated_repository(hub: Hub) -> None:
    hub.put("acme/gated", model_files())
    hub.gated.add("acme/gated")
    with pytest.raises(InputError, match="'acme/gated' is gated") as refused:
        path_of("acme/gated")
    assert "hf auth login" in str(refused.value.hint)


def test_space_is_checked_before_the_weights(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("acme/small", model_files())
    usage = shutil.disk_usage(".")._replace(free=60_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WorkError, match=r"acme/small needs \S+ KiB more, and .* has \S+ KiB free") as refused:
        path_of("acme/small")
    assert "HF_HOME" in str(refused.value.hint)
    assert not any("model-0000" in each for each in hub.requests)


def test_a_disk_that_fills_up_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.put("acme/small", model_files())
    with monkeypatch.context() as patch:
        patch.setattr(download.PartFile, "append", fail)
        with pytest.raises(WorkError, match="the disk is full"):
            path_of("acme/small")
    assert (path_of("acme/small") / "config.json").is_file()


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "C:\\x.json", "..\\x.json", "x\0.json"])
def test_hostile_names_are_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.put("acme/evil", model_files())
    hub.listed["tokenizer.json"] = {"rfilename": name}
    with pytest.raises(InputError, match="which is not inside of it"):
        path_of("acme/evil")
    assert outside(tmp_path) == [] and not list(tmp_path.rglob("x.json"))


@pytest.mark.parametrize(
    "entry", [{"size": -1}, {"size": None}, {"size": "1"}, {"blobId": "../../x"}, {"blobId": None, "lfs": None}]
)
def test_hostile_listings_are_refused(hub: Hub, tmp_path: Path, entry: dict[str, object]) -> None:
    hub.put("acme/evil", model_files())
    hub.listed["tokenizer.json"] = entry
    with pytest.raises(SyntheError) as refused:
        path_of("acme/evil")
    assert "tokenizer.json" in refused.value.message and outside(tmp_path) == []


@pytest.mark.parametrize(("size", "message"), [(10, "is damaged"), (10**6, "ends after|sends no more")])
def test_a_server_that_lies_about_sizes(hub: Hub, tmp_path: Path, size: int, message: str) -> None:
    hub.put("acme/liar", {"m.gguf": b"G" * 1000})
    digest = hub.put("acme/liar", {}) and hub.find("acme/liar", "main")
    assert digest is not None
    hub.listed["m.gguf"] = {"size": size}
    with pytest.raises(WorkError, match=message):
        path_of("acme/liar")
    assert not list(tmp_path.rglob("m.gguf"))


@pytest.mark.parametrize("whole", [False, True])
def test_a_damaged_file_is_removed(hub: Hub, tmp_path: Path, whole: bool) -> None:
    hub.put("acme/small", model_files())
    hub.damage, hub.whole = True, whole
    with pytest.raises(WorkError, match=r"config\.json of acme/small is damaged"):
        path_of("acme/small")
    assert not list(tmp_path.rglob("*.incomplete")) and not list(tmp_path.rglob("config.json"))
    hub.damage = False
    assert (path_of("acme/small") / "config.json").read_bytes() == CONFIG


def test_a_shard_of_another_size_is_fetched_again(hub: Hub) -> None:
    """A copy that a full disk or another tool cut short is mended by `pull`."""
    hub.put("acme/small", model_files())
    shard = path_of("acme/small") / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    os.truncate(shard, 100)
    path_of("acme/small", update=True)
    assert shard.read_bytes() == whole


def test_a_check_comes_before_the_weights(hub: Hub) -> None:
    hub.put("acme/code", model_files(**{"config.json": json.dumps({"auto_map": {}}).encode()}))

    def refuse(name: str, config: dict[str, object]) -> None:
        assert name == "acme/code" and "auto_map" in config
        raise InputError("refused", "why")

    with pytest.raises(InputError, match="refused"):
        path_of("acme/code", check=refuse)
    assert not any("model-0000" in each for each in hub.requests)


def test_a_checkpoint_of_ours_comes_with_every_file_that_it_lists(hub: Hub) -> None:
    listed = {"recipe.yaml": {}, "config.json": {}, "model.safetensors": {}, "training/state.json": {}}
    files = {"manifest.json": json.dumps({"files": listed}).encode(), "config.json": CONFIG, "recipe.yaml": b"",
             "model.safetensors": b"w", "training/state.json": b"{}", "training/other.pt": b"."}  # fmt: skip
    hub.put("acme/run", files)
    path = path_of("acme/run")
    assert (path / "training" / "state.json").is_file() and not (path / "training" / "other.pt").exists()
    (path / "training" / "state.json").unlink()
    assert (path_of("acme/run") / "training" / "state.json").is_file()
