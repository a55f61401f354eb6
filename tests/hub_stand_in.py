"""As much of the Hugging Face Hub as an upload and a download of small files need."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "a" * 40


class _Hub(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        home = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{home}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": f["path"], **modes} for f in json.loads(body)["files"]]
            self._json({"files": files})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[found[1]][line["value"]["path"]] = content
            url = f"{home}/{found[1]}/commit/{COMMIT}"
            self._json({"commitOid": COMMIT, "commitUrl": url, "success": True})
        else:
            self._answer(404)

    def do_GET(self):
        found = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)", self.path)
        if found is None or found[1] not in self.server.repositories:
            self._answer(404, x_error_code="RepoNotFound")
        elif (content := self.server.repositories[found[1]].get(found[2])) is None:
            self._answer(404, x_error_code="EntryNotFound", x_repo_commit=COMMIT)
        else:
            tag = hashlib.sha256(content).hexdigest()
            self._answer(200, content, etag=f'"{tag}"', x_repo_commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), content_type="application/json")

    def _answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextmanager
def hub():
    """Serve a hub on this machine; yields its address and the files of each repository."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.repositories = {}
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.repositories
    finally:
        server.shutdown()
        server.server_close()
