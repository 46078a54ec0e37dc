"""A hub on this machine: as much of the Hugging Face hub's interface as pushing, pulling and searching ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """repos: name -> branch -> commits, oldest first, each (id, files). token: who may write. slow: seconds before a
    block is sent. damage: whether the last byte is wrong. whole: whether ranges are not known. ranges: those of
    the requests."""

    daemon_threads = True

    def __init__(self, token: str = "hf_test") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, list[tuple[str, Files]]]] = {}
        self.blobs: dict[str, bytes] = {}
        self.token, self.slow, self.damage, self.whole = token, 0.0, False, False
        self.ranges: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

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
        if self.command != "HEAD":
            self.wfile.write(body)

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
            if name.endswith(".synapse"):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        self._send({"id": repo, "sha": commit[0], "siblings": siblings, "tags": ["synapse"]})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        commit = self.server.find(repo, revision)
        if commit is None or name not in commit[1]:
            return self._missing(repo)
        content = commit[1][name]
        if self.server.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.ranges.append(self.headers.get("Range", ""))
        if byte_range is None or self.server.whole:
            return self._send(content)
        first, last = int(byte_range[1]), min(int(byte_range[2]), len(content) - 1)
        time.sleep(self.server.slow)
        span = f"bytes {first}-{last}/{len(content)}"
        self._send(content[first : last + 1], 206, Content_Range=span)

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
