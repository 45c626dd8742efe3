"""Draw viewer.gif: `bts view` on a patient of a run, one modality after the other switched off.

`python docs/pictures/viewer.py RUN [CASE]`; it needs the extra `view`, Chromium and playwright.
"""

import io
import os
import sys
import threading
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from bts_lightning.viewer.headless import browser
from bts_lightning.viewer.niivue import niivue_module
from bts_lightning.viewer.opening import open_session
from bts_lightning.viewer.server import Viewer

FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--headless=new"]
SIZE = {"width": 1240, "height": 1110}
SHOWN = 880  # pixels across in the README
COLOURS = 160
OUT = Path(__file__).with_suffix(".gif")
LARGEST = 3 * 2**20

# What is pressed, and for how many seconds the result is looked at.
KEYS = (
    *(
        ("", 2.0),
        ("2", 1.6),
        ("o", 1.6),
        ("c", 2.0),
        ("c", 1.6),
        ("c", 1.6),
        ("c", 0.6),
        ("o", 0.8),
    ),
    *(("1", 1.2), ("3", 1.4), ("PageUp", 0.3), ("PageUp", 0.3), ("PageUp", 0.8)),
    *(("2", 1.4), ("4", 1.4), ("1", 0.8), ("3", 0.8), ("4", 1.4)),
)


def main(run: Path, case: str | None = None) -> None:
    session = open_session([run], case)
    server = Viewer(session, niivue_module())
    session.open(session.start.case)
    session.wait(session.start.case)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser(), args=[*FLAGS, *alone])
        page = chromium.new_page(viewport=SIZE)
        page.goto(server.address)
        page.wait_for_selector("body:not([data-case=''])[data-case]", state="attached")
        frames = [frame(page, key) for key, _ in KEYS]
        chromium.close()
    server.shutdown()
    session.close()
    first, *others = frames
    first.save(
        OUT,
        save_all=True,
        append_images=others,
        duration=[round(1000 * seconds) for _, seconds in KEYS],
        loop=0,
        optimize=True,
    )
    size = OUT.stat().st_size
    print(f"{OUT}: {size / 2**20:.2f} MB, {len(frames)} frames")
    if size > LARGEST:
        raise SystemExit(f"{OUT} is larger than {LARGEST / 2**20:.0f} MB; draw fewer frames")


def frame(page: Page, key: str) -> Image.Image:
    if key:
        page.keyboard.press(key)
    time.sleep(1.0)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    height = round(picture.height * SHOWN / picture.width)
    small = picture.resize((SHOWN, height), Image.Resampling.LANCZOS)
    return small.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
