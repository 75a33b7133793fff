"""A small hub on this machine: the HTTP API by which repositories are made and files committed, and what was sent."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_of_a_test"


@dataclass
class Hub:
    """What the stand-in holds. `status`, where it is not 200, is what it answers to everything."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)  # by repository
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by repository and name
    branches: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # beside main, with their files
    commits: list[str] = field(default_factory=list)  # their messages
    blobs: dict[str, bytes] = field(default_factory=dict)  # large files, by digest
    status: int = 200


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that runs as long as the context lasts."""
    hub = Hub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: Hub

    def do_GET(self) -> None:
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/revision/main)?", self.path)
        if self._refused():
            return
        if match is None or match[1] not in self.held.private:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        self._answer(200, {"id": match[1], "private": self.held.private[match[1]], "siblings": [], "sha": "0" * 40})

    def do_PUT(self) -> None:
        self.held.blobs[self.path.rpartition("/")[2]] = self._body()
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        if self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/(.+)/branch/([\w.-]+)", self.path):
            self._branch(match[1], match[2])
        elif re.fullmatch(r"/api/models/(.+)/preupload/([\w.-]+)", self.path):
            names = [entry["path"] for entry in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".bin")) else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self._answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.held.url}/blob/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/([\w.-]+)", self.path):
            self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": f"the stand-in has no {self.path}"})

    def _refused(self) -> bool:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif self.held.status != 200:
            self._answer(self.held.status, {"error": "You have been refused."})
        else:
            return False
        return True

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        is_new = name not in self.held.private
        if is_new:
            self.held.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.held.files[name] = {}
        self._answer(200 if is_new else 409, {"url": f"{self.held.url}/{name}"})

    def _branch(self, name: str, branch: str) -> None:
        """A new branch begins with what is on main, as on the hub."""
        branches = self.held.branches.setdefault(name, {})
        is_new = branch not in branches
        if is_new:
            branches[branch] = dict(self.held.files[name])
        self._answer(200 if is_new else 409, {"error": "" if is_new else "Reference already exists"})

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        if branch != "main" and branch not in self.held.branches.get(name, {}):
            self._answer(404, {"error": f"Invalid rev id: {branch}"}, {"X-Error-Code": "RevisionNotFound"})
            return
        files = self.held.files[name] if branch == "main" else self.held.branches[name][branch]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.held.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.held.blobs[value["oid"]]
        address = f"{self.held.url}/{name}/commit/{'0' * 40}"
        self._answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": address})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
