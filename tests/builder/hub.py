"""Two hubs on the loopback, as the real clients `huggingface_hub` and `modelscope_hub` ask them; faults to order."""

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000  # bytes from which on a file is known by its SHA-256


class Hub:
    """Serves a folder as `model` at `main`. `trouble`: file name -> a fault; `calls`: what was asked how often.

    Faults: `missing`, `truncated`, `changed`, `dropped` (the connection breaks in the middle, once), `401`, `gated`.
    The last two are for the name `model`.
    """

    def __init__(self, folder: Path, model: str = "tiny/tiny-qwen3-vl", licence: str = "apache-2.0") -> None:
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        self.files["README.md"] = b"not wanted"
        self.files["weights.bin"] = b"a pickle"
        self.model, self.licence = model, licence
        self.trouble: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, has_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, has_body=False)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler, *, has_body: bool) -> None:
        if "Authorization" in request.headers:
            self.tokens.add(request.headers["Authorization"])
        path = request.path.partition("?")[0]
        told = re.fullmatch(rf"/api/models/{self.model}(?:/revision/([^/]+))?", path)
        tree = re.fullmatch(rf"/api/models/{self.model}/tree/([^/]+)", path)
        asked = re.fullmatch(rf"/{self.model}/resolve/([^/]+)/(.+)", path)
        refusal = self.trouble.get("model")
        if refusal == "401":
            self._refuse(request, 401, "RepoNotFound")
        elif refusal == "gated":
            self._refuse(request, 403, "GatedRepo")
        elif told and told[1] in (None, "main", COMMIT):
            self.calls["info"] += 1
            self._send(request, json.dumps(self._info()).encode(), {"Content-Type": "application/json"}, has_body)
        elif tree and tree[1] == COMMIT:
            self._send(request, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"}, has_body)
        elif asked and asked[1] in ("main", COMMIT) and asked[2] in self.files:
            self.calls[asked[2]] += has_body
            self._file(request, asked[2], has_body)
        else:
            self._refuse(request, 404, "RevisionNotFound" if told or asked else "RepoNotFound")

    def _info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git}
            if len(data) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": self.model, "modelId": self.model, "sha": COMMIT, "private": False, "tags": [], "downloads": 0,
            "siblings": siblings, "cardData": {"license": self.licence},
        }  # fmt: skip

    def _tree(self) -> list[dict[str, Any]]:
        rows = []
        for one in self._info()["siblings"]:
            row = {"type": "file", "path": one["rfilename"], "size": one["size"], "oid": one["blobId"]}
            if "lfs" in one:
                row["lfs"] = {"oid": one["lfs"]["sha256"], "size": one["size"], "pointerSize": 130}
            rows.append(row)
        return rows

    def _file(self, request: BaseHTTPRequestHandler, name: str, has_body: bool) -> None:
        data, fault = self.files[name], self.trouble.get(name)
        if fault == "missing":
            self._refuse(request, 404, "EntryNotFound")
            return
        tag = hashlib.sha256(data).hexdigest()
        if fault == "truncated":
            data = data[: len(data) // 2]
        if fault == "changed":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        status, first = 200, 0
        if wanted:
            self.ranges.append(f"{name} {wanted[0]}")
            first, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        if fault == "dropped" and has_body:
            del self.trouble[name]
            request.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data) - first)}.items():
                request.send_header(key, value)
            request.end_headers()
            request.wfile.write(data[first : first + (len(data) - first) // 2])
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True
            return
        self._send(request, data[first:], headers, has_body, status)

    def _send(
        self, request: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str], has_body: bool, status: int = 200
    ) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if has_body:
            with contextlib.suppress(ConnectionError):  # a client may leave when the headers have told it enough
                request.wfile.write(body)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", code)
        request.send_header("Content-Length", "0")
        request.end_headers()


class ModelScopeHub(Hub):
    """The same as the other hub tells it: paths, envelopes and errors of ModelScope's API, branch `master`."""

    def answer(self, request: BaseHTTPRequestHandler, *, has_body: bool) -> None:
        if "Authorization" in request.headers:
            self.tokens.add(request.headers["Authorization"])
        url = urlsplit(request.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        if self.trouble.get("model") == "401":
            self._say(request, 401, {"Code": 401, "Message": "token is invalid", "Success": False})
        elif url.path == f"/openapi/v1/models/{self.model}":
            self._say(request, 200, {"success": True, "data": {"id": self.model, "license": self.licence}})
        elif self.model not in url.path or asked.get("Revision") != "master":
            self._say(request, 404, {"Code": 10010205001, "Message": "revision not found", "Success": False})
        elif url.path == f"/api/v1/models/{self.model}/repo/files":
            self.calls["info"] += 1
            self._say(request, 200, {"Code": 200, "Data": {"Files": self._rows()}, "Success": True})
        elif self.trouble.get(name := asked["FilePath"]) == "missing" or name not in self.files:
            self._say(request, 404, {"Code": 10010203002, "Message": f"{name} not found", "Success": False})
        else:
            self.calls[name] += has_body
            self._file(request, name, has_body)

    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"Type": "tree", "Path": "figures", "Name": "figures", "Size": 0, "Sha256": ""}]
        for name, data in self.files.items():
            told = {"Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "IsLFS": len(data) >= LARGE}
            rows.append({"Type": "blob", "Path": name, "Name": name, "Revision": COMMIT, **told})
        return rows

    def _say(self, request: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
        self._send(request, json.dumps(body).encode(), {"Content-Type": "application/json"}, True, status)
