"""The verbs of `hub`: .synapse files on the Hugging Face hub, through its own client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, Interrupted, SyntheError, unknown
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.packing.bundle import Bundle
from synthe_core.packing.members import README
from synthe_core.storage.claim import claim
from synthe_core.storage.hub.access import explain, offline, unreachable
from synthe_core.storage.hub.download import RemoteFile, download
from synthe_core.storage.hub.model_id import HubId
from synthe_core.storage.hub.repository import SYNAPSE as SUFFIX
from synthe_core.storage.hub.repository import Repository
from synthe_core.units import format_size

TAG = "synapse"
LISTED = 30


def push(
    path: Path, repo: str, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> Iterator[Event]:
    """Uploads a file and its model card, creating the repository if needed; a Result with its URL."""
    check_name(repo)
    bundle = Bundle(path)
    if not path.is_file():
        raise InputError(f"{path} is a folder", "pack it first: synthe pack FOLDER -o FILE")
    for name in bundle.pack_manifest.files:
        bundle.check(name)
    what = f"'{repo}'"
    _online(what)
    from huggingface_hub import CommitOperationAdd, HfApi

    size = path.stat().st_size
    name = path.name if path.suffix == SUFFIX else f"{path.name}{SUFFIX}"
    yield Progress(f"push {name}", 0, size, "bytes")
    try:
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        files: list[Any] = [CommitOperationAdd(name, path)]
        if README in bundle.pack_manifest.files:
            files.append(CommitOperationAdd(README, bundle.read(README)))
        commit_message = message or f"{bundle.pack_manifest.name} by {bundle.pack_manifest.created_by}"
        commit = api.create_commit(repo, files, commit_message=commit_message, revision=revision)
    except Exception as error:  # the hub's library raises errors of many packages
        raise _explain(what, error) from error
    yield Progress(f"push {name}", size, size, "bytes")
    yield Result({"repository": repo, "file": name, "commit": commit.oid, "url": commit.commit_url})


def pull(
    repo: str, out: Path | None = None, *, revision: str | None = None, name: str | None = None
) -> Iterator[Event]:
    """Downloads a file and checks it; the last event is a Result with its path. Resumes an interrupted download."""
    remote = find(repo, revision, name)
    out = Path(Path(remote.name).name) if out is None else out
    if out.is_dir():
        out = out / Path(remote.name).name
    with claim(out, "downloading", parents=True):
        if out.exists():
            raise InputError(f"{out} is there already", "name another file with -o, or remove it")
        yield Notice(f"{repo} at {remote.commit[:12]}: {remote.name}")
        try:
            yield from _download(remote, out)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the part that was downloaded is kept", "repeat the command to resume") from None
        try:
            about = Bundle(out).pack_manifest
        except SyntheError:
            out.unlink()
            raise
    yield Result({"name": about.name, "bytes": remote.size, "commit": remote.commit}, out)


def check_name(repo: str) -> None:
    """InputError for what is no name of a repository."""
    if (parsed := HubId.parse(repo)) is None or parsed != HubId(repo):
        raise InputError(f"'{repo}' is not a repository name of the hub", "a name is ORG/NAME")


def find(repo: str, revision: str | None = None, name: str | None = None) -> RemoteFile:
    """The .synapse file of a repository of the hub, `name` if it has several."""
    check_name(repo)
    listed = Repository.read(HubId(repo, revision=revision)).files
    files = {each: file for each, file in listed.items() if each.endswith(SUFFIX)}
    if not files:
        raise InputError(f"{repo} has no {SUFFIX} file", "`synthe hub search` finds repositories that do")
    if name is None and len(files) > 1:
        raise InputError(f"{repo} has {len(files)} {SUFFIX} files", f"name one with --file: {', '.join(sorted(files))}")
    name = name or next(iter(files))
    if name not in files:
        raise unknown(f"{SUFFIX} file of {repo}", name, files)
    return files[name]


def _download(remote: RemoteFile, out: Path) -> Iterator[Event]:
    """Downloads a file to `out`, which is claimed."""
    part = out.with_name(f".{out.name}.{remote.blob[:16]}.part")
    first = True
    for done in download(remote, part):
        if first and done:
            yield Notice(f"resuming at {format_size(done)} of {format_size(remote.size)}")
        first = False
        yield Progress(f"pull {remote.name}", done, remote.size, "bytes")
    part.replace(os.path.realpath(out))


def search(words: str) -> Iterator[Event]:
    """A Result with the matching repositories that have .synapse files."""
    yield Result({"repositories": _models(words, search=words)})


def listing(name: str) -> Iterator[Event]:
    """A Result: of ORG/NAME its .synapse files at every branch and tag, of ORG its repositories."""
    if "/" not in name:
        yield Result({"repositories": _models(name, author=name)})
        return
    check_name(name)
    what = f"'{name}'"
    _online(what)
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        refs = api.list_repo_refs(name)
        listed = []
        for ref in [*refs.branches, *refs.tags]:
            info = api.model_info(name, revision=ref.name, files_metadata=True)
            files = {f.rfilename: f.size or 0 for f in info.siblings or [] if f.rfilename.endswith(SUFFIX)}
            listed += [{"revision": ref.name, "commit": info.sha, "file": file, "bytes": files[file]} for file in files]
    except Exception as error:  # the hub's library raises errors of many packages
        raise _explain(what, error) from error
    yield Result({"files": listed})


def _models(what: str, **filters: Any) -> list[dict[str, Any]]:
    _online(f"'{what}'")
    from huggingface_hub import HfApi

    try:
        models = list(islice(HfApi().list_models(filter=TAG, limit=LISTED, **filters), LISTED))
    except Exception as error:  # the hub's library raises errors of many packages
        raise _explain(f"'{what}'", error) from error
    return [{"repository": each.id, "downloads": each.downloads or 0, "tags": list(each.tags or [])} for each in models]


def _online(what: str) -> None:
    if offline():
        raise unreachable(what)


def _explain(what: str, error: Exception) -> SyntheError:
    """The hub's error in words: most often the user is not logged in."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return InputError(f"the hub refuses {what}: you may not", "log in with a token that may write: hf auth login")
    return explain(what, error)
