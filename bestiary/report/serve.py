"""A report that follows its store: served to this machine only, and rebuilt when a run was added or ended."""

import hashlib
import re
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from bestiary.runs.store import Store

HOST = "127.0.0.1"
OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)  # names of this machine alone
WAITING = "<!doctype html><meta http-equiv=refresh content=2><title>Bestiary</title><p>"


def make_server(store: Store, make: Callable[[str], str], *, port: int) -> ThreadingHTTPServer:
    """A server of the page that `make` writes for a version of the store. Raises OSError if the port is taken."""
    kept, lock = ["", ""], Lock()

    def current() -> str:
        """The page for the store as it is now, rebuilt if the store has changed."""
        with lock:
            now = store_version(store)
            if now != kept[0]:
                kept[:] = now, make(now)
            return kept[1]

    class Handler(BaseHTTPRequestHandler):
        """Answers `/` with the page and `/version` with the version of the store."""

        def do_GET(self) -> None:  # the library's name
            """Answer a request."""
            if not OWN_HOST.fullmatch(self.headers.get("Host", "")):  # a page of another site, by DNS rebinding
                return self.send_error(403, "this report is served to localhost only")
            known = {
                "/": ("text/html; charset=utf-8", current),
                "/version": ("text/plain", lambda: store_version(store)),
            }
            if self.path not in known:
                return self.send_error(404)
            kind, body = known[self.path]
            try:
                self.answer(200, kind, body())
            except LookupError as fault:  # nothing is done yet
                self.answer(200, "text/html; charset=utf-8", f"{WAITING}{escape(str(fault.args[0]))}")
            return None

        def answer(self, status: int, kind: str, body: str) -> None:
            """Send a status and a text of a content type."""
            content = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    return ThreadingHTTPServer((HOST, port), Handler)


def store_version(store: Store) -> str:
    """A digest that changes whenever a run begins, fails or ends."""
    marks = []
    for key in store.run_keys():
        for name in ("done", "failure.txt"):
            try:
                mark = (store.folder / key / name).stat().st_mtime_ns
            except FileNotFoundError:  # it is not there yet, or is being removed
                mark = 0
            marks.append(f"{key} {name} {mark}")
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]
