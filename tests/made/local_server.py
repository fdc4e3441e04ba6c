"""A server on 127.0.0.1 for one test: plain files, a small Hugging Face Hub, a Zenodo."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Served:
    """Files of a server, and its received requests.

    Attributes:
        files: content by path.
        cut_after: bytes after which the next answers end too early, one entry an answer.
        resumable: whether `Range` is heeded.
        asked: (path, Range) of every GET of a file.
        hub: by repository: content by path within it.
        broken: paths in repositories whose content is not what the Hub's checksum says.
        gated: repositories that ask for consent.
        made: what was asked of each new repository.
        closed: owners in whose name nobody may write.
        lfs: large files that were sent, by SHA-256.
        revisions: commits of tags, by name; None for one that does not exist.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    resumable: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    hub: dict[str, dict[str, bytes]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    made: list[dict[str, object]] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    lfs: dict[str, bytes] = field(default_factory=dict)
    revisions: dict[str, str | None] = field(default_factory=dict)
    url: str = ""

    def add_record(self, number: int, files: dict[str, bytes], **metadata: object) -> None:
        """Add a record as Zenodo's API describes it."""
        entries = []
        for name, content in files.items():
            self.files[f"/zenodo/{name}"] = content
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            links = {"self": f"{self.url}/zenodo/{name}"}
            entries.append({"key": name, "size": len(content), "checksum": f"md5:{digest}", "links": links})
        self.files[f"/api/records/{number}"] = json.dumps({"metadata": metadata, "files": entries}).encode()


COMMIT = "c" * 40


def hub_entry(path: str, content: bytes) -> dict[str, object]:
    """Describe a file as the Hub's tree does; those of more than 100 bytes are LFS files."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if len(content) > 100:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def local_server() -> Iterator[Served]:
    """Serve until the block ends."""
    served = Served()
    handler = type("Handler", (_Handler,), {"served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def do_PUT(self) -> None:
        content = self._body()
        digest = hashlib.sha256(content).hexdigest()
        assert self.path == f"/lfs/{digest}"
        self.served.lfs[digest] = content
        self._json({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        content = self._body()
        if path == "/api/repos/create":
            self._create(json.loads(content))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(content))
        elif "/preupload/" in path:
            found = [{**file, "shouldIgnore": False} for file in json.loads(content)["files"]]
            self._json({"files": [{**f, "uploadMode": "lfs" if f["size"] > 100 else "regular"} for f in found]})
        elif "/commit/" in path:
            self._commit(path, [json.loads(line) for line in content.splitlines()])
        else:
            self._paths_info(path, content)

    def _create(self, asked: dict[str, object]) -> None:
        owner, name = str(asked["organization"]), str(asked["name"])
        self.served.made.append(asked)
        if owner in self.served.closed:
            self._json({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif f"{owner}/{name}" in self.served.hub:
            self._json({"error": "exists", "url": f"{self.served.url}/{owner}/{name}"}, 409)
        else:
            self.served.hub[f"{owner}/{name}"] = {}
            self._json({"url": f"{self.served.url}/{owner}/{name}"})

    def _batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
        there = [(one, str(one["oid"])) for one in asked["objects"]]
        actions = [{**one, "actions": {"upload": {"href": f"{self.served.url}/lfs/{oid}"}}} for one, oid in there]
        self._json({"transfer": "basic", "objects": actions})

    def _commit(self, path: str, rows: list[dict[str, Any]]) -> None:
        repository, _, _ = self._repository(path, "/api/")
        for row in rows:
            value = row["value"]
            if row["key"] == "file":
                self.served.hub[repository][value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                self.served.hub[repository][value["path"]] = self.served.lfs[value["oid"]]
        self._json({"commitUrl": f"{self.served.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

    def _paths_info(self, path: str, content: bytes) -> None:
        body = parse_qs(content.decode())
        repository, _, _ = self._repository(path, "/api/")
        held = self.served.hub[repository]
        self._json([hub_entry(name, held[name]) for name in body["paths"] if name in held])

    def _answer(self, head: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/") and not path.startswith("/api/records"):
            self._api(path)
        elif "/resolve/" in path:
            self._resolve(path, head)
        elif path in self.served.files:
            self._file(path, self.served.files[path], {}, head)
        else:
            self._json({"error": "not found"}, 404)

    def _repository(self, path: str, prefix: str) -> tuple[str, str, list[str]]:
        parts = path.removeprefix(prefix).strip("/").split("/")
        if parts[0] in ("datasets", "models"):
            parts = parts[1:]
        return "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", parts[3:]

    def _api(self, path: str) -> None:
        repository, action, rest = self._repository(path, "/api/")
        if repository not in self.served.hub:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif repository in self.served.gated:
            self._json({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        elif action == "tree":
            folder = "/".join(rest[1:])
            self.served.listed.append(folder)
            names = [n for n in self.served.hub[repository] if not folder or n.startswith(folder + "/")]
            if not names:
                self._json({"error": "no such folder"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._json([hub_entry(name, self.served.hub[repository][name]) for name in names])
        elif (commit := self.served.revisions.get(rest[0] if rest else "", COMMIT)) is None:
            self._json({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self._json({"id": repository, "sha": commit, "cardData": {"license": "cc-by-4.0"}, "siblings": []})

    def _resolve(self, path: str, head: bool) -> None:
        repository, _, rest = self._repository(path, "/")
        name = "/".join(rest[1:])
        content = self.served.hub[repository][name]
        entry = hub_entry(name, content)
        lfs = entry.get("lfs")
        tag = lfs["oid"] if isinstance(lfs, dict) else entry["oid"]
        if name in self.served.broken:
            content = bytes(len(content))
        self._file(path, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'}, head)

    def _file(self, path: str, content: bytes, headers: dict[str, str], head: bool) -> None:
        wanted = self.headers.get("Range")
        if not head:
            self.served.asked.append((path, wanted))
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"', **headers}
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and self.served.resumable else 0
        if self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            start = 0
        if start and start >= len(content):
            self._json({}, 416)
            return
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if head:
            return
        if self.served.cut_after:
            self.wfile.write(content[start : start + self.served.cut_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
