"""A model hub on this machine, for tests of downloads."""

import hashlib
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "c" * 40


class FakeHub(ThreadingHTTPServer):
    """`files` maps "owner/repo/path" to bytes; use in a `with` block, at `endpoint`.

    cut_after: bytes after which every answer stops and the next ones are refused; None never.
    """

    def __init__(self, files: dict[str, bytes], gated: tuple[str, ...] = ()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.gated = gated
        self.hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self.cut_after: int | None = None
        self.served: list[tuple[str, int]] = []  # name, first byte
        self.tokens: list[str | None] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "FakeHub":
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        self.shutdown()
        super().__exit__(*error)


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub = self.server
        repo, name = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path).groups()
        name = f"{repo}/{name}"
        hub.tokens.append(self.headers.get("Authorization"))
        if repo in hub.gated and self.headers.get("Authorization") is None:
            return self._refuse(401, "GatedRepo")
        if name not in hub.files:
            return self._refuse(404, "EntryNotFound")
        if with_body and hub.cut_after == 0:
            return self._refuse(403, "Cut")
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
        data = hub.files[name][start:]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hub.hashes[name]}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            hub.served.append((name, start))
            self.wfile.write(data[: hub.cut_after])
            hub.cut_after = None if hub.cut_after is None else 0

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args) -> None:
        pass
