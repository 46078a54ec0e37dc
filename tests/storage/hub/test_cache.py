"""Listing and removing the models of the hub's cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from synthe_core.errors import InputError
from synthe_core.storage.claim import Busy
from synthe_core.storage.hub.cache import cached_models, list_models, remove_model
from synthe_core.storage.hub.model_id import HubId
from synthe_core.storage.hub.snapshot import cached, model_name, origin_of, repo_folder, source_name
from tests.hub_standin import Hub, surroundings
from tests.processes import start
from tests.storage.hub.conftest import CONFIG, model_files, outside, path_of


def listed() -> dict[str, Any]:
    (done,) = list_models()
    return {each["name"]: each for each in done.values["models"]}  # type: ignore[attr-defined]


def removed(name: str) -> dict[str, Any]:
    (done,) = remove_model(name)
    return done.values  # type: ignore[attr-defined, no-any-return]


def test_an_empty_cache(hub: Hub, tmp_path: Path) -> None:
    assert listed() == {} and outside(tmp_path) == []


def test_models_are_listed_with_size_source_and_last_use(hub: Hub) -> None:
    commit = hub.put("acme/small", model_files())
    hub.put("acme/gguf", {f"m-{kind}.gguf": kind.encode() * 100 for kind in ("Q4_K_M", "Q8_0")})
    hub.put("acme/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w"})
    before = time.time()
    for text in ("acme/small", "acme/gguf:Q8_0", "acme/gguf:Q4_K_M", "acme/lora"):
        path = path_of(text)
    models = listed()
    assert list(models) == ["acme/lora", "acme/gguf/m-Q4_K_M.gguf", "acme/gguf/m-Q8_0.gguf", "acme/small"]
    small = models["acme/small"]
    assert small["kind"] == "safetensors" and small["source"] == f"acme/small@{commit}"
    assert small["bytes"] == sum(file.stat().st_size for file in Path(small["path"]).iterdir())
    assert models["acme/gguf/m-Q8_0.gguf"]["kind"] == "gguf" and models["acme/gguf/m-Q8_0.gguf"]["bytes"] == 400
    assert models["acme/lora"]["kind"] == "adapter" and models["acme/lora"]["path"] == str(path)
    assert all(each.used >= before - 1 for each in cached_models())
    for name in models:  # a name is what commands take
        assert path_of(name) == Path(models[name]["path"])


def test_other_commits_and_unfinished_downloads_are_listed(hub: Hub) -> None:
    first = hub.put("acme/small", model_files())
    path_of("acme/small")
    second = hub.put("acme/small", {"tokenizer.json": b"{ }"})
    path_of("acme/small", update=True)
    hub.put("acme/part", {"config.json": CONFIG, "tokenizer.json": b"{}"})
    from huggingface_hub import hf_hub_download

    hf_hub_download("acme/part", "tokenizer.json")
    part = repo_folder("acme/gguf") / "blobs" / ("a" * 64 + ".synthe.incomplete")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    models = listed()
    assert models["acme/small"]["source"] == f"acme/small@{second}"
    assert models[f"acme/small@{first}"]["kind"] == "safetensors"
    assert models["acme/part"]["kind"] == models["acme/gguf"]["kind"] == "incomplete"
    assert models["acme/gguf"]["bytes"] == 4
    for revision in (first[:6], "v1"):
        with pytest.raises(InputError, match="unknown model in the cache"):
            removed(f"acme/small@{revision}")
    assert removed(f"acme/small@{first[:12]}")["removed"] == [f"acme/small@{first}"]
    assert cached(HubId("acme/small")) is not None and f"acme/small@{first}" not in listed()
    assert removed("acme/gguf")["bytes"] == 4 and not repo_folder("acme/gguf").exists()


def test_a_removed_model_frees_its_bytes(hub: Hub, tmp_path: Path) -> None:
    hub.put("acme/small", model_files())
    hub.put("acme/gguf", {f"m-{kind}.gguf": kind.encode() * 100 for kind in ("Q4_K_M", "Q8_0")})
    for text in ("acme/small", "acme/gguf:Q8_0", "acme/gguf:Q4_K_M"):
        path_of(text)
    assert removed("acme/gguf:Q8_0") == {"removed": ["acme/gguf/m-Q8_0.gguf"], "bytes": 400}
    assert path_of("acme/gguf").name == "m-Q4_K_M.gguf" and len(list(repo_folder("acme/gguf").glob("blobs/*"))) == 1
    assert removed("acme/small")["bytes"] > 100_000
    assert not repo_folder("acme/small").exists()
    removed("acme/gguf")
    assert listed() == {} and outside(tmp_path) == []
    with pytest.raises(InputError, match="unknown model in the cache 'acme/small'"):
        removed("acme/small")
    for name in ("../x", "acme", "acme/small/../../x", ""):
        with pytest.raises(InputError, match="unknown model in the cache"):
            removed(name)


@pytest.mark.parametrize("by_path", [False, True])
def test_a_model_in_use_stays(hub: Hub, tmp_path: Path, by_path: bool) -> None:
    """Another process has resolved the model, by its id or its path: it is not removed before that process ends."""
    hub.put("acme/small", {"m.gguf": b"G" * 1000})
    name = path_of("acme/small") if by_path else "acme/small"
    program = (
        "import sys\nfrom synthe_core.interop.hub import local_path\n"
        f"print(local_path('{name}'), flush=True)\nsys.stdin.read()\n"
    )
    if not by_path:
        path_of("acme/small")
    reader = start([sys.executable, "-c", program], env=surroundings(hub, tmp_path), cwd=tmp_path, text=True,
                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert reader.stdout is not None and reader.stdin is not None
    path = Path(reader.stdout.readline().strip())
    with pytest.raises(Busy, match="another process is using") as refused:
        removed("acme/small")
    assert refused.value.hint == "end it first" and path.read_bytes() == b"G" * 1000
    reader.stdin.close()
    reader.wait()
    reader.stdout.close()
    assert removed("acme/small")["bytes"] == 1000 and not path.exists()


def test_a_killed_removal_leaves_no_half_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small", "other"):
        hub.put(f"acme/{name}", model_files())
        path_of(f"acme/{name}")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if killed before the first file is gone
        removed("acme/small")
    folder = repo_folder("acme/small").parent
    assert list(listed()) == ["acme/other"] and len(list(folder.glob(".models--*.partial"))) == 1
    removed("acme/other")
    assert not list(folder.glob(".models--*")), "the next removal removes what is left"


def test_names_of_paths_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    commit = hub.put("acme/small-7B", model_files() | {"x.Q8_0.gguf": b"q"})
    folder, file = path_of("acme/small-7B"), path_of("acme/small-7B:Q8_0")
    assert model_name(folder) == "small-7B" and model_name(file) == "x.Q8_0"
    assert source_name(folder) == f"acme/small-7B@{commit}"
    assert source_name(file) == f"acme/small-7B/x.Q8_0.gguf@{commit}"
    own = tmp_path / "models" / "mine.gguf"
    assert origin_of(own) is None and source_name(own) == str(own) and model_name(own) == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_only_be_read_serves(hub: Hub) -> None:
    hub.put("acme/small", model_files())
    path = path_of("acme/small")
    folders = [p for p in [repo_folder("acme/small"), *repo_folder("acme/small").rglob("*")] if p.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert path_of("acme/small") == path
    finally:
        for folder in folders:
            folder.chmod(0o755)
