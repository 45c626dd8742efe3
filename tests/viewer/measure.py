"""Print how fast the viewer is: `python -m tests.viewer.measure RUN [CASE | --t1c FILE …]`.

The words are those of `bts view`. A fresh process serves, a fresh Chromium looks; both use the
processor alone. What an earlier session has left under the run is removed first.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from playwright.sync_api import sync_playwright

from bts_lightning.viewer.headless import BROWSERS

FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--headless=new"]
SWITCHES = 14


def main(words: list[str]) -> None:
    shutil.rmtree(Path(words[0]) / "view", ignore_errors=True)
    began = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "bts_lightning", "view", *words, "--no-open"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = next(line.split()[1] for line in server.stdout if line.startswith("view "))
        show("address printed", time.monotonic() - began)
        look(address, server.pid)
    finally:
        asked = time.monotonic()
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    show("ended after Ctrl-C", time.monotonic() - asked)


def look(address: str, server: int) -> None:
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=command, args=[*FLAGS, *alone])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(1_800_000)
        began = time.monotonic()
        page.goto(address)
        page.wait_for_selector("body:not([data-case=''])[data-case]", state="attached")
        show("page with all 15 label maps", time.monotonic() - began)
        times = page.evaluate("viewer.times")
        show("  first picture, from opening the case", times["picture"] / 1000)
        show("  first segmentation", times["segmentation"] / 1000)
        show("  all 15", times["all"] / 1000)
        taken = []
        for code in range(SWITCHES, 0, -1):
            script = f"viewer.choose({code}).then(() => viewer.times.switch)"
            taken.append(page.evaluate(script))
            time.sleep(0.3)
        taken.sort()
        middle, worst = taken[len(taken) // 2], taken[-1]
        print(f"one switch: {middle:.0f} ms (median of {SWITCHES}), {worst:.0f} ms at most")
        megabytes = memory([server])
        print(f"memory of the server: {megabytes:.0f} MB")
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
        renderers = [p.pid for p in psutil.Process().children(recursive=True) if is_page(p)]
        print(f"memory of the page: {memory(renderers):.0f} MB, of it {heap:.0f} MB of script")
        browser.close()


def is_page(process: psutil.Process) -> bool:
    return "--type=renderer" in process.cmdline()


def memory(processes: list[int]) -> float:
    """Add up what belongs to these processes alone."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in processes) / 2**20


def show(what: str, seconds: float) -> None:
    print(f"{what}: {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
