"""Who may ask the viewer, and for what: everything else is refused, and the server lives on."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bts_lightning.viewer.opening import open_session
from bts_lightning.viewer.server import Viewer


@pytest.fixture(scope="module")
def viewer(trained: Path) -> Iterator[Viewer]:
    session = open_session([trained], device="cpu")
    server = Viewer(session, b"export const Niivue = null;")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    session.close()


def ask(
    viewer: Viewer, word: str = "session", *, method: str = "GET", path: str = "", **headers: str
) -> http.client.HTTPResponse:
    """Ask as a browser does, unless told otherwise; a header of no text is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=30)
    connection.putrequest(method, path or f"/{viewer.token}/{word}", skip_host=True)
    given = {
        "Host": f"127.0.0.1:{viewer.port}",
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    for name, value in given.items():
        if value:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    answer.body = answer.read()
    connection.close()
    return answer


def lives(viewer: Viewer) -> bool:
    answer = ask(viewer)
    return answer.status == 200 and "cases" in json.loads(answer.body)


def test_the_page_comes_with_its_parts_and_may_load_nothing_else(viewer: Viewer) -> None:
    kinds = {"": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
    for word, kind in {**kinds, "niivue.js": "text/javascript"}.items():
        answer = ask(viewer, word)
        assert answer.status == 200
        assert answer.getheader("Content-Type").startswith(kind)
        policy = answer.getheader("Content-Security-Policy")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_page_names_no_other_host(viewer: Viewer) -> None:
    for word in ("", "page.js", "page.css"):
        assert b"http" not in ask(viewer, word).body


def test_it_listens_on_loopback_alone(viewer: Viewer) -> None:
    assert viewer.server_address[0] == "127.0.0.1"
    assert viewer.address.startswith("http://127.0.0.1:")


def test_a_second_viewer_takes_another_port(viewer: Viewer) -> None:
    other = Viewer(viewer.session, b"")
    try:
        assert other.port != viewer.port
        assert other.token != viewer.token
    finally:
        other.server_close()


WRONG_HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1",
    "127.0.0.1:1",
    "0.0.0.0:{port}",
    "",
]
WRONG_ORIGINS = ["http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "null"]


@pytest.mark.parametrize("host", WRONG_HOSTS)
def test_another_host_is_refused(viewer: Viewer, host: str) -> None:
    assert ask(viewer, Host=host.format(port=viewer.port)).status == 421
    assert lives(viewer)


@pytest.mark.parametrize("origin", WRONG_ORIGINS)
def test_another_origin_is_refused(viewer: Viewer, origin: str) -> None:
    assert ask(viewer, Origin=origin.format(port=viewer.port)).status == 403
    assert ask(viewer, Origin=viewer.origin).status == 200


def test_a_script_of_another_page_is_refused(viewer: Viewer) -> None:
    assert ask(viewer, Sec_Fetch_Site="cross-site").status == 403
    assert ask(viewer, "niivue.js", Sec_Fetch_Site="same-site").status == 403
    assert ask(viewer, Sec_Fetch_Site="same-origin").status == 200
    # A link to the page, as in a message, is the user's own.
    assert ask(viewer, "", Sec_Fetch_Site="cross-site").status == 200


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/session",
            "/wrong/session",
            "//session",
            "*",
            "/?token={token}",
            "/{token}x/session",
        ),
        *("http://127.0.0.1:{port}/{token}/session", "/%7Btoken%7D/session", "/../{token}/session"),
    ],
)
def test_without_the_token_there_is_nothing(viewer: Viewer, path: str) -> None:
    answer = ask(viewer, path=path.format(port=viewer.port, token=viewer.token))
    assert answer.status == 403
    assert viewer.token.encode() not in answer.body


@pytest.mark.parametrize(
    "word",
    [
        *("../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd"),
        *("/etc/passwd", "page.js/..", "%70age.js", "page.js%00.css", "./page.js", "//page.js"),
        *("..\\..\\windows", "maps.py", "__init__.py", "open/", "labels/../page.js"),
    ],
)
def test_a_path_is_no_file(viewer: Viewer, word: str) -> None:
    answer = ask(viewer, word)
    assert answer.status == 404
    assert b"root:" not in answer.body


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("open", 400),
        ("open?case=../../etc", 400),
        ("open?case=-1", 400),
        ("open?case=1e3", 400),
        ("open?case=%31%30%30%30", 404),
        ("open?case=99999999999999999999", 400),
        ("open?case=٣", 400),
        ("labels?case=0&run=0&subset=16", 404),
        ("labels?case=0&run=0&subset=0", 404),
        ("labels?case=0&run=7&subset=1", 404),
        ("labels?case=0&run=0&subset=1", 404),
        ("picture?case=0&modality=4", 404),
        ("open?case", 400),
        ("open?" + "&".join(f"k{i}=1" for i in range(100)), 400),
    ],
)
def test_a_query_holds_small_numbers_alone(viewer: Viewer, word: str, status: int) -> None:
    path = f"/{viewer.token}/{word}".encode().decode("latin-1")
    line = f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{viewer.port}\r\n\r\n"
    assert raw(viewer, line.encode("latin-1")).startswith(f"HTTP/1.0 {status} ".encode())


def raw(viewer: Viewer, sent: bytes) -> bytes:
    """Send bytes and read whatever comes, until the end or a reset."""
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError:
            pass
        return received


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]
)
def test_nothing_but_reading_is_answered(viewer: Viewer, method: str) -> None:
    assert ask(viewer, method=method).status == 405


def test_a_gigabyte_is_not_read(viewer: Viewer) -> None:
    for method, status in (("POST", 405), ("GET", 413)):
        answer = ask(viewer, method=method, Content_Length=str(2**30))
        assert answer.status == status
    assert ask(viewer, Transfer_Encoding="chunked").status == 413
    assert lives(viewer)


def test_a_body_that_is_really_sent_ends_with_the_connection(viewer: Viewer) -> None:
    head = f"POST /{viewer.token}/open HTTP/1.1\r\nHost: 127.0.0.1:{viewer.port}\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", viewer.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {2**30}\r\n\r\n".encode())
        try:
            for _ in range(2**10):
                connection.sendall(bytes(2**20))
                sent += 2**20
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert sent < 2**25, "what the system keeps in between, and no more"
    assert lives(viewer)


def test_a_line_or_headers_without_end_are_refused(viewer: Viewer) -> None:
    host = f"Host: 127.0.0.1:{viewer.port}\r\n"
    assert b" 414 " in raw(viewer, b"GET /" + b"a" * 70000 + b" HTTP/1.0\r\n\r\n")
    many = "".join(f"X-{i}: 1\r\n" for i in range(200))
    assert b" 431 " in raw(viewer, f"GET / HTTP/1.0\r\n{host}{many}\r\n".encode())
    assert lives(viewer)


def test_two_hundred_at_once_are_answered(viewer: Viewer) -> None:
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda _: ask(viewer).status, range(200)))
    assert found == [200] * 200
    assert threading.active_count() < 100


def test_a_browser_that_goes_away_in_mid_request_harms_nobody(
    viewer: Viewer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"/{viewer.token}/picture?case=0&modality=3"
    whole = f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{viewer.port}\r\n\r\n"
    for cut in (0, 5, 40, len(whole)):
        connection = socket.create_connection(("127.0.0.1", viewer.port))
        connection.sendall(whole[:cut].encode())
        # A reset, as of a process that is killed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()
    assert lives(viewer)
    assert "Traceback" not in capsys.readouterr().err
