# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
A small server that speaks the Hub's protocol, so that tests run with the real `huggingface_hub` and without a network.

It keeps repositories of models in memory: their creation, uploads (LFS and regular files), commits, branches, and
downloads with redirects and ranges. It can be told to fail.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_the_token_of_the_tests"
USER = "me"


@dataclass
class Repository:
    """Commits by their hash, each the content of all files, and the newest commit of each branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {hash_of(b""): {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": hash_of(b"")})
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hash_of(f"{self.branches[branch]} {time.time_ns()}".encode())
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str | None:
        """The commit that a branch or a hash stands for."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]


@dataclass
class Fault:
    """
    What happens to some requests in place of an answer.

    Args:
        path (`str`): a regular expression that is found in their method and path, such as `"POST .*/commit/"`.
        status (`int`, *optional*): what is answered; without it, the connection breaks.
        delay (`float`): seconds before that.
        times (`int`): requests that it happens to.
        after (`bool`): whether the request takes effect, and the client does not hear of it.
    """

    path: str
    status: int | None = None
    delay: float = 0.0
    times: int = 1
    after: bool = False


class HubServer(ThreadingHTTPServer):
    """The server; `serve()` runs it."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """A connection that broke is what tests ask for; anything else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # what was uploaded by LFS, by its SHA-256
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()


@contextmanager
def serve():
    """Runs a [`HubServer`] in a thread of its own."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hash_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt", ".pth"))


class _Answer(Exception):
    """Ends the handling of a request."""

    def __init__(self, status: int, body=b"", **headers):
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a small answer waits for 40 ms
    server: HubServer

    def log_message(self, *args):
        pass

    def _handle(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {unquote(url.path)}"
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append(request)
            fault = next((fault for fault in self.server.faults if re.search(fault.path, request)), None)
            if fault is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self.server.faults.remove(fault)
        try:
            if fault is not None and not fault.after:
                self._fail(fault)
            for pattern, handler in ROUTES:
                if match := re.fullmatch(pattern, request):
                    with self.server.lock:
                        handler(self, *match.groups())
            raise _Answer(404, {"error": f"no route for {request}"})
        except _Answer as answer:
            if fault is not None and fault.after:
                self._break(fault)
            else:
                self._answer(answer)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _fail(self, fault: Fault):
        if fault.status is None:
            self._break(fault)
        time.sleep(fault.delay)
        raise _Answer(fault.status, {"error": "a fault of the tests"})

    def _break(self, fault: Fault):
        time.sleep(fault.delay)
        self.close_connection = True
        raise ConnectionAbortedError

    def _answer(self, answer: _Answer):
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _check_token(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Answer(401, {"error": "Invalid username or password."})

    def _repository(self, name: str, writes: bool = False) -> Repository:
        repository = self.server.repositories.get(name)
        if writes:
            self._check_token()
        may_read = repository is not None and not repository.private
        if repository is None or not (may_read or self.headers.get("Authorization") == f"Bearer {TOKEN}"):
            raise _Answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.find(revision)
        if commit is None:
            raise _Answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return commit

    def whoami(self):
        self._check_token()
        raise _Answer(200, {"type": "user", "name": USER, "orgs": []})

    def create(self):
        self._check_token()
        settings = json.loads(self.body)
        name = f"{settings.get('organization') or USER}/{settings['name']}"
        found = name in self.server.repositories
        private = settings.get("private", settings.get("visibility") == "private")
        self.server.repositories.setdefault(name, Repository(private=private))
        raise _Answer(409 if found else 200, {"url": f"{self.server.endpoint}/{name}", "name": name})

    def info(self, name: str, revision: str | None = None):
        repository = self._repository(name)
        commit = self._commit_of(repository, revision or "main")
        files = [{"rfilename": path} for path in repository.commits[commit]]
        raise _Answer(
            200,
            {"_id": name, "id": name, "modelId": name, "sha": commit, "private": repository.private, "tags": []}
            | {"downloads": 0, "likes": 0, "siblings": files},
        )

    def tree(self, name: str, revision: str, folder: str | None = None):
        repository = self._repository(name)
        files = repository.commits[self._commit_of(repository, revision)]
        raise _Answer(200, [_describe(path, files[path]) for path in files if path.startswith(folder or "")])

    def paths_info(self, name: str, revision: str):
        repository = self._repository(name)
        files = repository.commits[self._commit_of(repository, revision)]
        given = parse_qs(self.body.decode()) if b"=" in self.body else json.loads(self.body)
        raise _Answer(200, [_describe(path, files[path]) for path in given["paths"] if path in files])

    def branch(self, name: str, branch: str):
        repository = self._repository(name, writes=True)
        if branch in repository.branches:
            raise _Answer(409, {"error": "Reference already exists"})
        repository.branches[branch] = repository.branches["main"]
        raise _Answer(200, {})

    def validate_card(self):
        """A part of what the Hub asks of a card's metadata."""
        content = json.loads(self.body)["content"]
        metadata = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
        errors = [{"message": f'"{key}" must be a string'} for key in ("license",) if not _is_text(metadata, key)]
        raise _Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str):
        repository = self._repository(name, writes=True)
        files = repository.commits[self._commit_of(repository, revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = {"uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False}
            if path in files:  # a client leaves out what has not changed
                described = _describe(path, files[path])
                mode["oid"] = described.get("lfs", described)["oid"]
            answers.append({"path": path, **mode})
        raise _Answer(200, {"files": answers})

    def lfs_batch(self, name: str):
        self._repository(name, writes=True)
        answers = []
        for entry in json.loads(self.body)["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.server.objects:
                answer["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{entry['oid']}"}}
            answers.append(answer)
        raise _Answer(200, {"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Answer(400, {"error": "the content is not what its hash says"})
        self.server.objects[oid] = self.body
        raise _Answer(200)

    def commit(self, name: str, branch: str):
        repository = self._repository(name, writes=True)
        files = dict(repository.commits[self._commit_of(repository, branch)])
        message = ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                files = {path: content for path, content in files.items() if not path.startswith(value["path"])}
        oid = repository.commit(branch, files, message)
        url = f"{self.server.endpoint}/{name}/commit/{oid}"
        raise _Answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def resolve(self, name: str, revision: str, path: str):
        repository = self._repository(name)
        commit = self._commit_of(repository, revision)
        headers = {"X_Repo_Commit": commit}
        if path not in repository.commits[commit]:
            raise _Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **headers)
        content = repository.commits[commit][path]
        if is_large(path):
            oid = hashlib.sha256(content).hexdigest()
            size = str(len(content))
            # Another host, as on the Hub: the client sends its token to the Hub alone.
            location = f"http://localhost:{self.server.server_port}/cdn/{oid}"
            raise _Answer(302, Location=location, X_Linked_Etag=f'"{oid}"', X_Linked_Size=size, **headers)
        self._send(content, ETag=f'"{hash_of(content)}"', **headers)

    def download(self, oid: str):
        if "Authorization" in self.headers:
            raise _Answer(400, {"error": "a token is none of this host's business"})
        self._send(self.server.objects[oid])

    def _send(self, content: bytes, **headers):
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            raise _Answer(200, content, Accept_Ranges="bytes", **headers)
        start, end = int(match[1]), int(match[2] or len(content) - 1)
        part = content[start : end + 1]
        raise _Answer(206, part, Content_Range=f"bytes {start}-{end}/{len(content)}", **headers)


def _is_text(metadata: dict, key: str) -> bool:
    return isinstance(metadata.get(key, ""), str)


def _describe(path: str, content: bytes) -> dict:
    """A file as the Hub lists it: its hash is that of git."""
    size = len(content)
    described = {"type": "file", "path": path, "oid": hash_of(b"blob %d\0" % size + content), "size": size}
    if is_large(path):
        described["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
    return described


_NAME, _REVISION = r"([^/]+/[^/]+)", r"([^/]+)"

ROUTES = (
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_card),
    (rf"GET /api/models/{_NAME}", _Handler.info),
    (rf"GET /api/models/{_NAME}/revision/{_REVISION}", _Handler.info),
    (rf"GET /api/models/{_NAME}/tree/{_REVISION}(?:/(.+))?", _Handler.tree),
    (rf"POST /api/models/{_NAME}/paths-info/{_REVISION}", _Handler.paths_info),
    (rf"POST /api/models/{_NAME}/branch/{_REVISION}", _Handler.branch),
    (rf"POST /api/models/{_NAME}/preupload/{_REVISION}", _Handler.preupload),
    (rf"POST /api/models/{_NAME}/commit/{_REVISION}", _Handler.commit),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(\w+)", _Handler.lfs_upload),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/{_REVISION}/(.+)", _Handler.resolve),
    (r"(?:GET|HEAD) /cdn/(\w+)", _Handler.download),
)
