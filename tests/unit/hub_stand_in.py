"""A model hub's HTTP interface, as far as huggingface_hub uses it to upload and to load an adapter. It is all in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_stand_in"
OWNER = "me"


@dataclass
class Model:
    """A repository: files of each branch, by name."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str) -> str:
        """A hash of what is there."""
        return hashlib.sha1(repr(sorted(self.branches[branch].items())).encode(), usedforsecurity=False).hexdigest()

    def branch(self, revision: str) -> str | None:
        """The branch of that name or commit."""
        return next((name for name in self.branches if revision in (name, self.commit(name))), None)


@dataclass
class Hub:
    """What the server holds, and the requests that came."""

    models: dict[str, Model] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    address: str = ""


@contextmanager
def standing_in() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        own = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    own: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *words: object) -> None: ...

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, said: str, code: str = "") -> None:
        self.answer({"error": said}, status, X_Error_Message=said, **({"X_Error_Code": code} if code else {}))

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def model(self, name: str) -> Model | None:
        """The model, if it is there and this login may see it."""
        found = self.own.models.get(name)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        return found

    def may_write(self, owner: str) -> bool:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "Invalid credentials in Authorization header")
        elif owner != OWNER:
            self.refuse(403, "You don't have the rights to create a model under this namespace")
        else:
            return True
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.own.requests.append(f"{self.command} {path}")
        if path == "/":
            self.answer({})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            if model := self.model(found[1]):
                self.info(found[1], model, model.branch(found[2] or "main"))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            if (model := self.model(found[1])) and (branch := model.branch(found[2])):
                files = model.branches[branch].items()
                self.answer([{"type": "file", "path": name, "size": len(each), "oid": _blob(each)} for name, each in files])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if model := self.model(found[1]):
                self.file(model, model.branch(found[2]), found[3])
        else:
            self.refuse(404, f"the stand-in has no {path}")

    def info(self, name: str, model: Model, branch: str | None) -> None:
        if branch is None:
            return self.refuse(404, "Revision not found", "RevisionNotFound")
        files = [{"rfilename": each} for each in model.branches[branch]]
        return self.answer({"id": name, "sha": model.commit(branch), "private": model.private, "siblings": files, "tags": []})

    def file(self, model: Model, branch: str | None, name: str) -> None:
        if branch is None or name not in model.branches[branch]:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        content = model.branches[branch][name]
        return self.answer(content, ETag=f'"{_blob(content)}"', X_Repo_Commit=model.commit(branch))

    def do_POST(self) -> None:
        path, content = self.path.partition("?")[0], self.body()
        self.own.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.checked(json.loads(content)["content"])
        if path == "/api/repos/create":
            return self.create(json.loads(content))
        name = re.match(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/(branch|preupload|commit|info/lfs)/", path)
        if name is None or not self.may_write(name[1].partition("/")[0]) or (model := self.model(name[1])) is None:
            return None if name else self.refuse(404, f"the stand-in has no {path}")
        branch = path.rpartition("/")[2]
        if name[2] == "branch":
            there = branch in model.branches
            model.branches.setdefault(branch, dict(model.branches["main"]))
            return self.refuse(409, "Reference already exists") if there else self.answer({})
        if name[2] == "preupload":
            files = json.loads(content)["files"]
            modes = [{"path": each["path"], "uploadMode": _mode(each["path"]), "shouldIgnore": False} for each in files]
            return self.answer({"files": modes})
        if name[2] == "commit":
            return self.commit(name[1], model, branch, [json.loads(line) for line in content.splitlines()])
        wanted = json.loads(content)["objects"]
        address = self.own.address
        actions = [{**each, "actions": {"upload": {"href": f"{address}/objects/{each['oid']}"}}} for each in wanted]
        return self.answer({"transfer": "basic", "objects": actions})

    def do_PUT(self) -> None:
        content = self.body()
        self.own.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or OWNER
        if not self.may_write(owner):
            return None
        name = f"{owner}/{wanted['name']}"
        if name in self.own.models:
            return self.answer({"error": "You already created this model repo", "url": f"{self.own.address}/{name}"}, 409)
        self.own.models[name] = Model(bool(wanted.get("private")) or wanted.get("visibility") == "private")
        return self.answer({"url": f"{self.own.address}/{name}", "name": name})

    def checked(self, card: str) -> None:
        """The front matter must be YAML; model-index as the hub documents it."""
        errors = []
        try:
            data = yaml.safe_load(card.split("---\n")[1])
            for each in data.get("model-index", []):
                for result in each["results"]:
                    assert {"task", "dataset", "metrics"} <= set(result) and result["dataset"]["name"] and result["metrics"][0]["type"]
        except (yaml.YAMLError, LookupError, AssertionError, AttributeError) as error:
            errors = [{"message": f"the card's metadata is not valid: {error}"}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def commit(self, name: str, model: Model, branch: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                model.messages.append(value["summary"])
            elif line["key"] == "file":
                model.branches[branch][value["path"]] = base64.b64decode(value["content"])
            else:
                model.branches[branch][value["path"]] = self.own.objects[value["oid"]]
        commit = model.commit(branch)
        self.answer({"success": True, "commitOid": commit, "commitUrl": f"{self.own.address}/{name}/commit/{commit}"})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def _blob(content: bytes) -> str:
    """The hash of git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
