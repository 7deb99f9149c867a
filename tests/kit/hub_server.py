"""A hub on this machine: the calls that an upload makes, over HTTP, by the real client."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

TOKEN = "hf_" + "a" * 34


class HubServer(ThreadingHTTPServer):
    """files: path -> content of what was committed. calls: the paths that were asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802  the library's name
        self.server.calls.append(self.path)
        if not self.path.endswith("/whoami-v2"):
            self._reply({"error": "no such repository"}, 404)
        elif self.headers["Authorization"] == f"Bearer {TOKEN}":
            self._reply({"name": "me"})
        else:
            self._reply({"error": "who?"}, 401)

    def do_POST(self):  # noqa: N802
        self.server.calls.append(self.path)
        if self.headers["Transfer-Encoding"] == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/repos/create"):
            asked = json.loads(body)
            if asked["organization"] == "others":
                self._reply({"error": "You have no rights to write to others"}, 403)
            else:
                url = f"{self.server.endpoint}/{asked['organization']}/{asked['name']}"
                self._reply({"url": url})
        elif "/preupload/" in self.path:
            rules = {"uploadMode": "regular", "shouldIgnore": False}
            asked = json.loads(body)["files"]
            self._reply({"files": [{"path": file["path"], **rules} for file in asked]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            oid, repo = "0" * 40, "/".join(self.path.split("/")[3:5])
            url = f"{self.server.endpoint}/{repo}/commit/{oid}"
            self._reply({"commitUrl": url, "commitOid": oid})
        else:
            self._reply({"errors": [], "warnings": []})

    def _chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def _reply(self, value: dict, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub_server():
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
