"""A local server for the page: only its own files, only for this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import UserError

HOST = "127.0.0.1"
#: types by a file's ending: browsers refuse scripts and modules of others
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".txt": "text/plain; charset=utf-8",
}
#: headers of every answer: the first three give the page memory that threads share
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def open_server(folder: Path, names: Iterable[str], port: int, isolated: bool = True) -> ThreadingHTTPServer:
    """A server of some files of a folder on 127.0.0.1; `serve_forever` runs it.

    Args:
        folder: of the page.
        names: of its files, with slashes; every other file stays hidden.
        port: 0 = any that is free.
        isolated: send the headers with which browsers allow threads.

    Raises:
        UserError: the port cannot be used.
    """
    files = {name: folder / name for name in names}
    headers = {name: value for name, value in HEADERS.items() if isolated or not name.startswith("Cross-")}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            # a name of someone else's that leads to this address must not open the page to that someone
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            name = unquote(urlsplit(self.path).path).removeprefix("/") or "index.html"
            if host not in (HOST, "localhost") or name not in files or not files[name].is_file():
                self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"There is no such file.\n" * body)
                return
            kind = TYPES.get(Path(name).suffix, "application/octet-stream")
            self._send(HTTPStatus.OK, kind, files[name].read_bytes(), body)

        def _send(self, status: HTTPStatus, kind: str, content: bytes, body: bool = True) -> None:
            self.send_response(status)
            for header, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(header, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a line a file helps nobody."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(f"--port {port} cannot be used: {error.strerror or error}; choose another.") from error
    server.daemon_threads = True
    return server


def address_of(server: ThreadingHTTPServer) -> str:
    """The address of the page."""
    return f"http://{HOST}:{server.server_address[1]}/"


def serve(folder: Path, names: Iterable[str], port: int, tell: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        folder: of the page.
        names: of its files.
        port: 0 = any that is free.
        tell: called with the address.

    Raises:
        UserError: the port cannot be used.
    """
    with open_server(folder, names, port) as server:
        tell(f"{address_of(server)} shows the page until Ctrl-C.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            tell("stopped.")
