"""Serve a session to a browser on this machine, and to nobody else."""

import hmac
import json
import re
import secrets
import socket
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qsl

from bts_lightning.errors import UserError
from bts_lightning.files import content
from bts_lightning.modalities import MODALITIES, SUBSETS
from bts_lightning.viewer.session import Session

LOOPBACK = "127.0.0.1"
# Requests that are answered at a time; more wait in the system's queue.
AT_ONCE = 32
_QUEUE = 256
# Seconds that a browser may take to say what it wants, or to take an answer.
_PATIENCE = 20
# Everything comes from here. NiiVue draws letters from a picture inside its own text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_JSON, _NIFTI, _PACKED = "application/json", "application/octet-stream", "application/gzip"
_NUMBER = re.compile(r"[0-9]{1,6}")


class Refused(Exception):  # noqa: N818 (an answer, no error)
    """What is asked for is not given."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Viewer(ThreadingHTTPServer):
    """A server on loopback with a secret in its address.

    Each address that it answers begins with the secret; what comes after is looked up in a list of
    words, and never is a path. Only GET and HEAD without a body are answered.

    Args:
        session: what is served.
        niivue: the module that the page imports, see `niivue_module`.
        port: by default one that is free.
    """

    daemon_threads = True
    request_queue_size = _QUEUE

    def __init__(self, session: Session, niivue: bytes, port: int = 0) -> None:
        self.session, self.token = session, secrets.token_urlsafe(24)
        self.page = {
            "": ("text/html; charset=utf-8", _asset("page.html")),
            "page.js": ("text/javascript; charset=utf-8", _asset("page.js")),
            "page.css": ("text/css; charset=utf-8", _asset("page.css")),
            "niivue.js": ("text/javascript; charset=utf-8", niivue),
        }
        # How often each word was answered.
        self.answered: Counter[str] = Counter()
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UserError(
                f"--port {port}: {error.strerror}; leave it out to take a free one"
            ) from error
        self.port = int(self.server_address[1])
        self.origin = f"http://{LOOPBACK}:{self.port}"

    @property
    def address(self) -> str:
        """Give what a browser is to open."""
        return f"{self.origin}/{self.token}/"

    def server_bind(self) -> None:
        """Bind, without asking a name server who we are, as `HTTPServer` does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is one; who waits longer than anybody's patience goes."""
        if self._slots.acquire(timeout=_PATIENCE):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let the next one in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Take a browser that went away as it is; anything else is a fault of ours."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError | socket.timeout):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    server_version, sys_version = "bts", ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered")

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_CONNECT = do_TRACE = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name in the base)
        """Say nothing: the address holds the secret, and the terminal belongs to the user."""

    def _respond(self) -> None:
        try:
            self._check()
            kind, body = self._answer()
        except Refused as refused:
            self._refuse(refused.status, str(refused))
            return
        except UserError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return
        self._send(HTTPStatus.OK, kind, body)
        self.server.answered[self._word() or ""] += 1

    def _check(self) -> None:
        """Refuse whoever is not the page that we opened."""
        hosts = self.headers.get_all("Host", [])
        # A name that leads here, but is not ours, is a page of somebody else (DNS rebinding).
        allowed = {f"{name}:{self.server.port}" for name in (LOOPBACK, "localhost")}
        if len(hosts) != 1 or hosts[0] not in allowed:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this is no host of that name")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in allowed}:
            raise Refused(HTTPStatus.FORBIDDEN, "another page may not ask")
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request has no body here")
        first = self.path.split("?", 1)[0].removeprefix("/").split("/", 1)[0]
        if not hmac.compare_digest(first.encode("utf-8", "replace"), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "the address lacks the token that bts view printed")
        if self._word() and self.headers.get("Sec-Fetch-Site", "same-origin") not in (
            "same-origin",
            "none",
        ):
            raise Refused(HTTPStatus.FORBIDDEN, "another page may not ask")

    def _word(self) -> str | None:
        """Give what stands behind the token; None where not even a slash does."""
        path = self.path.split("?", 1)[0]
        start = f"/{self.server.token}/"
        return path[len(start) :] if path.startswith(start) else None

    def _answer(self) -> tuple[str, bytes]:
        word = self._word()
        if word in self.server.page:
            return self.server.page[word]
        if word == "session":
            return _JSON, _plain(self.server.session.facts())
        if word not in _ANSWERS:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing of that name")
        return _ANSWERS[word](self.server.session, self._numbers())

    def _numbers(self) -> Mapping[str, int]:
        """Read the query, which holds nothing but small numbers."""
        query = self.path.partition("?")[2]
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=8)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "the query cannot be read") from error
        if not all(_NUMBER.fullmatch(value) for _, value in pairs):
            raise Refused(HTTPStatus.BAD_REQUEST, "the query holds something else than numbers")
        return {key: int(value) for key, value in pairs}

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _case(session: Session, asked: Mapping[str, int]) -> int:
    return _one("case", asked, len(session.patients))


def _one(name: str, asked: Mapping[str, int], count: int) -> int:
    """Take a number below a count."""
    if name not in asked:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the query lacks {name}")
    if asked[name] >= count:
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no such {name}")
    return asked[name]


def _places(session: Session, asked: Mapping[str, int]) -> tuple[int, int, Any]:
    """Take case, run and subset."""
    case, run = _case(session, asked), _one("run", asked, len(session.makers))
    code = _one("subset", asked, len(SUBSETS) + 1)
    if code == 0:
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such subset")
    return case, run, SUBSETS[code - 1]


def _open(session: Session, asked: Mapping[str, int]) -> tuple[str, bytes]:
    return _JSON, _plain(session.open(_case(session, asked)))


def _state(session: Session, asked: Mapping[str, int]) -> tuple[str, bytes]:
    return _JSON, _plain(session.state(_case(session, asked)))


def _picture(session: Session, asked: Mapping[str, int]) -> tuple[str, bytes]:
    case, modality = _case(session, asked), _one("modality", asked, len(MODALITIES))
    return _NIFTI, _there(session.picture(case, modality))


def _truth(session: Session, asked: Mapping[str, int]) -> tuple[str, bytes]:
    return _PACKED, _there(session.truth(_case(session, asked)))


def _label_map(session: Session, asked: Mapping[str, int]) -> tuple[str, bytes]:
    return _PACKED, _file(session.label_map(*_places(session, asked)))


def _entropy(session: Session, asked: Mapping[str, int]) -> tuple[str, bytes]:
    return _PACKED, _file(session.entropy(*_places(session, asked)))


def _disagreement(session: Session, asked: Mapping[str, int]) -> tuple[str, bytes]:
    case, run = _case(session, asked), _one("run", asked, len(session.makers))
    return _PACKED, _file(session.disagreement(case, run))


_ANSWERS = {
    "open": _open,
    "state": _state,
    "picture": _picture,
    "truth": _truth,
    "labels": _label_map,
    "entropy": _entropy,
    "disagreement": _disagreement,
}


def _there(body: bytes | None) -> bytes:
    if body is None:
        raise Refused(HTTPStatus.NOT_FOUND, "it is not there, or not yet")
    return body


def _file(file: Path | None) -> bytes:
    if file is None:
        raise Refused(HTTPStatus.NOT_FOUND, "it is not there yet")
    try:
        return content(file)
    except OSError as error:
        raise Refused(HTTPStatus.NOT_FOUND, "its file is gone; open the case again") from error


def _plain(facts: Any) -> bytes:
    return json.dumps(facts, separators=(",", ":")).encode()


def _asset(name: str) -> bytes:
    return files("bts_lightning.viewer").joinpath(name).read_bytes()
