"""A server on this machine that answers as a test wants, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


@dataclass
class Server:
    """A server that is running."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Path, Authorization (None without it) and body (None without it) of each request."""


@contextlib.contextmanager
def serving(answer: Callable[[Any], tuple[int, Any]]) -> Iterator[Server]:
    """Yield a server that answers a request's body, read as JSON, with a status and a value to write as JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
            server.requests.append({"path": self.path, "authorization": self.headers["Authorization"], "body": body})
            status, value = answer(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(json.dumps(value).encode())

        do_GET = do_HEAD = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        server = Server(f"http://127.0.0.1:{listening.server_port}")
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            listening.shutdown()
