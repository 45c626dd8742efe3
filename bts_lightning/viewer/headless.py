"""A picture of the page, made by a browser without a window."""

import os
import shutil
import subprocess
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.viewer.server import Viewer

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZE = (1440, 1250)
# WebGL 2 without a graphics card, and no service of the browser's maker.
_FLAGS = (
    *("--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--hide-scrollbars", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-quic"),
)
# Seconds: of the page's own clock, which stands still while it loads, and of ours.
_PAGE, _PATIENCE = 60, 600


def browser() -> str:
    """Find Chromium, or say that it is missing."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UserError(
            f"a picture needs Chromium, and none of {', '.join(BROWSERS)} is on the PATH; install "
            "it (apt-get install chromium), or leave --picture out and look at the page"
        )
    return found


def take_picture(server: Viewer, out: Path, query: str = "") -> Path:
    """Make all label maps of the first case, and photograph the page.

    Args:
        server: not serving yet; it is closed at the end.
        out: a PNG file.
        query: behind `#`, what a link of the page has there.
    """
    command = browser()
    case = server.session.start.case
    server.session.open(case)
    server.session.wait(case)
    threading.Thread(target=server.serve_forever, daemon=True, name="server").start()
    with TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        _run(command, f"{server.address}#{query}" if query else server.address, shot)
        server.shutdown()
        server.server_close()
        server.session.close()
        wanted = len(server.session.makers) * len(server.session.open(case)["subsets"])
        if not shot.is_file() or server.answered["labels"] < wanted:
            raise UserError(
                f"{command} drew {server.answered['labels']} of {wanted} label maps; does it have "
                "WebGL 2? `bts view` without --picture shows the page in your own browser"
            )
        return write_whole(out, shot.read_bytes())


def _run(command: str, address: str, shot: Path) -> None:
    # The browser refuses to shut itself in where it is run by root, as in a container.
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []
    words = [
        *(command, *_FLAGS, *alone, f"--user-data-dir={shot.parent / 'profile'}"),
        *(f"--window-size={SIZE[0]},{SIZE[1]}", f"--virtual-time-budget={1000 * _PAGE}"),
        *(f"--screenshot={shot}", address),
    ]
    try:
        done = subprocess.run(
            words, capture_output=True, timeout=_PATIENCE, check=False, cwd=shot.parent
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command} has drawn nothing in {_PATIENCE} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"{command} ended with {done.returncode}: {said[-1] if said else ''}")
