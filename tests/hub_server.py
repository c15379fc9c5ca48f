"""A server that answers as the Hugging Face hub does, for sets and models in memory with all their commits."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """The commits of a data set or a model: the files of each, and what the branches and tags mean."""

    def __init__(self, name: str, gated: bool = False, kind: str = "datasets") -> None:
        self.name, self.gated, self.kind = name, gated, kind
        self.commits: dict[str, Mapping[str, bytes]] = {}
        self.names: dict[str, str] = {}
        self.read: list[tuple[str, str]] = []  # commit and file of each file that was read

    def push(self, files: Mapping[str, bytes], *names: str) -> str:
        """Add a commit, and let branches or tags mean it."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = files
        self.names |= dict.fromkeys(names, commit)
        return commit

    def answer(self, path: str, query: str) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body for a GET."""
        inside = "" if self.kind == "models" else f"/{self.kind}"
        api, files = f"/api/{self.kind}/{self.name}", f"{inside}/{self.name}/resolve/"
        if path in (f"{api}/auth-check", api, f"{api}/") or path.startswith(f"{api}/revision/"):
            return self._info(path, path.removeprefix(f"{api}/revision/") if "/revision/" in path else "main")
        if path.startswith(f"{api}/tree/"):
            revision, _, folder = path.removeprefix(f"{api}/tree/").partition("/")
            return self._tree(unquote(revision), unquote(folder), "recursive=true" in query.lower())
        if path.startswith(files) and not self.gated:
            revision, _, name = path.removeprefix(files).partition("/")
            commit = self.names.get(unquote(revision), revision)
            if commit not in self.commits:
                return _error("RevisionNotFound", 404)
            if unquote(name) not in self.commits[commit]:
                return _error("EntryNotFound", 404)
            self.read.append((commit, unquote(name)))
            content = self.commits[commit][unquote(name)]
            return 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit}, content
        return _error("GatedRepo", 403, "Accept the terms") if self.gated else _error("RepoNotFound", 404)

    def _info(self, path: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if path.endswith("auth-check"):
            return _error("GatedRepo", 403, "Accept the terms") if self.gated else (200, {}, b"{}")
        commit = self.names.get(unquote(revision), unquote(revision))
        if commit not in self.commits:
            return _error("RevisionNotFound", 404)
        siblings = [{"rfilename": name} for name in self.commits[commit]]
        gated = "manual" if self.gated else False
        return _json({"id": self.name, "sha": commit, "gated": gated, "siblings": siblings})

    def _tree(self, revision: str, folder: str, recursive: bool) -> tuple[int, dict[str, str], bytes]:
        commit = self.names.get(revision, revision)
        inside = f"{folder}/" if folder else ""
        names = [name[len(inside) :] for name in self.commits[commit] if name.startswith(inside)]
        if not names:
            return _error("EntryNotFound", 404)
        folders = {name[:end] for name in names for end, letter in enumerate(name) if letter == "/"}
        entries = [
            {"type": "directory", "path": f"{inside}{name}", "oid": commit, "size": 0} for name in sorted(folders)
        ]
        entries += [
            {"type": "file", "path": f"{inside}{name}", "oid": _oid(content), "size": len(content)}
            for name, content in ((name, self.commits[commit][inside + name]) for name in names)
        ]
        return _json([one for one in entries if recursive or "/" not in str(one["path"])[len(inside) :]])


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(code: str, status: int, message: str = "") -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": message or code}, b"{}"


@contextmanager
def serve(*hubs: Hub) -> Iterator[str]:
    """Serve data sets and models on loopback; yields the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            answers = [hub.answer(url.path, url.query) for hub in hubs]
            of_hub = (one for one in answers if one[1].get("X-Error-Code") != "RepoNotFound")
            status, headers, body = next(of_hub, answers[0])
            if (part := self.headers.get("Range")) and status == 200:
                first, last = part.removeprefix("bytes=").split("-")
                status, body = 206, body[int(first) : int(last) + 1]
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # quiet
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
