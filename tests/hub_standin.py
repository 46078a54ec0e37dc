"""A hub on this machine: as much of the Hugging Face hub's interface as pushing, fetching and searching ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.paths import ROOT

Files = dict[str, bytes]
PIECE = 60_000
LARGE = (".synapse", ".safetensors", ".gguf", ".bin")
"""Files that are stored by their SHA-256 (Git LFS), as the hub does with large ones."""


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def hub_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Within the block the hub's library in this process asks a new stand-in, and its cache is tmp_path/hub."""
    from huggingface_hub import constants

    server = Hub()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def surroundings(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of a program that asks the stand-in, with the same cache."""
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN": hub.token}
    return {**os.environ, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}


class Hub(ThreadingHTTPServer):
    """repos: name -> branch -> commits, oldest first, each (id, files). token: who may write. gated: repositories whose
    files may be listed, but not read. listed: name -> changed entries of a listing's files. slow: seconds before each
    PIECE is sent. cut: bytes after which a connection is closed, for so many `cuts`. damage: whether the last byte is
    wrong. whole: whether ranges are not known. ranges: those of the requests; requests: their paths."""

    daemon_threads = True

    def __init__(self, token: str = "hf_test") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, list[tuple[str, Files]]]] = {}
        self.blobs: dict[str, bytes] = {}
        self.token, self.slow, self.damage, self.whole = token, 0.0, False, False
        self.gated: set[str] = set()
        self.listed: dict[str, dict[str, Any]] = {}
        self.cut, self.cuts = 0, 0
        self.ranges: list[str] = []
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, repo: str, files: Files, branch: str = "main") -> str:
        """A commit with these files in place of those of their names; its id."""
        commits = self.repos.setdefault(repo, {"main": []}).setdefault(branch, [])
        files = {**(commits[-1][1] if commits else {}), **files}
        digest = hashlib.sha1(repr([(n, hashlib.sha1(c).hexdigest()) for n, c in sorted(files.items())]).encode())
        commits.append((digest.hexdigest(), files))
        return digest.hexdigest()

    def find(self, repo: str, revision: str) -> tuple[str, Files] | None:
        branches = self.repos.get(repo, {})
        if branches.get(revision):
            return branches[revision][-1]
        return next((c for commits in branches.values() for c in commits if c[0] == revision), None)


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def _send(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not self.path.startswith("/api/") and self.server.cuts and len(body) > self.server.cut:
            self.server.cuts -= 1
            self.wfile.write(body[: self.server.cut])
            self.close_connection = True
            return
        for start in range(0, len(body), PIECE):
            time.sleep(self.server.slow)
            try:
                self.wfile.write(body[start : start + PIECE])
            except OSError:  # the client was killed
                return

    def _missing(self, repo: str, code: str = "RepoNotFound") -> None:
        self._send({"error": f"{repo} not found"}, 404, X_Error_Code=code, X_Error_Message="not found")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if path == "/api/models":
            self._models(query)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path):
            self._refs(match[1])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        else:
            self._missing(path, "EntryNotFound")

    do_HEAD = do_GET

    def _models(self, query: dict[str, list[str]]) -> None:
        word, author = query.get("search", [""])[0], query.get("author", [None])[0]
        assert "synapse" in query["filter"]
        names = [n for n in self.server.repos if word in n and (author is None or n.startswith(f"{author}/"))]
        self._send([{"id": name, "downloads": 7, "tags": ["synapse"]} for name in names])

    def _refs(self, repo: str) -> None:
        if repo not in self.server.repos:
            return self._missing(repo)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1][0]}
            for name, commits in self.server.repos[repo].items()
            if commits
        ]
        self._send({"branches": branches, "tags": [], "converts": []})

    def _info(self, repo: str, revision: str) -> None:
        if repo not in self.server.repos:
            return self._missing(repo)
        if (commit := self.server.find(repo, revision)) is None:
            return self._missing(revision, "RevisionNotFound")
        siblings = []
        for name, content in commit[1].items():
            entry: dict[str, Any] = {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
            }
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            else:
                entry["blobId"] = git_digest(content)
            siblings.append(entry | self.server.listed.get(name, {}))
        self._send({"id": repo, "sha": commit[0], "siblings": siblings, "tags": ["synapse"]})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        commit = self.server.find(repo, revision)
        if commit is None or name not in commit[1]:
            return self._missing(repo, "EntryNotFound" if commit else "RepoNotFound")
        if repo in self.server.gated:
            return self._send({"error": "gated"}, 403, X_Error_Code="GatedRepo", X_Error_Message="gated")
        content = commit[1][name]
        digest = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_digest(content)
        headers = {"X_Repo_Commit": commit[0], "ETag": f'"{digest}"', "Accept_Ranges": "bytes"}
        if self.server.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.ranges.append(self.headers.get("Range", ""))
        if byte_range is None or self.server.whole:
            return self._send(content, **headers)
        first, last = int(byte_range[1]), min(int(byte_range[2]), len(content) - 1)
        if first >= len(content):
            return self._send(b"", 416, Content_Range=f"bytes */{len(content)}")
        span = f"bytes {first}-{last}/{len(content)}"
        self._send(content[first : last + 1], 206, Content_Range=span, **headers)

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server.token}":
            return True
        self._send({"error": "unauthorized"}, 401)
        return False

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if not self._may_write():
            return
        if path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
            if name in self.server.repos:
                return self._send({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            self.server.repos[name] = {"main": []}
            self._send({"url": f"{self.server.url}/{name}", "id": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = self.server.repos[match[1]]
            branches.setdefault(match[2], list(branches["main"]))
            self._send({})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/.+", path):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".synapse") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            self._send({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._send({"transfer": "basic", "objects": [self._upload(each) for each in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        else:
            self._missing(path)

    def _upload(self, each: dict[str, Any]) -> dict[str, Any]:
        return {**each, "actions": {"upload": {"href": f"{self.server.url}/blobs/{each['oid']}", "header": {}}}}

    def _commit(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files: Files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        commit = self.server.put(repo, files, branch)
        self._send({"commitOid": commit, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "hookOutput": ""})

    def do_PUT(self) -> None:
        body = self._body()
        digest = urlsplit(self.path).path.removeprefix("/blobs/")
        assert hashlib.sha256(body).hexdigest() == digest
        self.server.blobs[digest] = body
        self._send({})
