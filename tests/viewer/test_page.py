"""The page in a real browser: what NiiVue holds is what `bts predict` writes, and keys suffice."""

import base64
import gzip
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bts_lightning.commands.segment import Segmenter
from bts_lightning.data.layouts.find import find_cases
from bts_lightning.modalities import MODALITIES, SUBSETS, subset_name
from bts_lightning.runs.opening import open_runs
from bts_lightning.viewer.headless import BROWSERS, take_picture
from bts_lightning.viewer.niivue import niivue_module
from bts_lightning.viewer.opening import open_session
from bts_lightning.viewer.server import Viewer
from bts_lightning.viewer.session import CODES
from tests.tiny_training import another

CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--headless=new"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ipyniivue") is None, reason="needs the extra `view`"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH"),
]
needs_playwright = pytest.mark.skipif(find_spec("playwright") is None, reason="needs playwright")
FIRST = 352  # bytes before the voxels
LOST, INVENTED, OUTLINE = 201, 202, 203  # as the page draws them, beside labels


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return another(trained, tmp_path_factory.mktemp("runs") / "uhemis" / "1", 1)


@contextmanager
def serving(*runs: Path, **settings: Any) -> Iterator[Viewer]:
    session = open_session(list(runs), device="cpu", **settings)
    server = Viewer(session, niivue_module())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    session.close()


@dataclass
class Watched:
    """A page, what it complained of, and what it asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector("body[data-case*=BraTS]", state="attached", timeout=300_000)

    def js(self, script: str) -> Any:
        return self.page.evaluate(script)

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait; Playwright's own waiting would evaluate text, which the page's policy forbids."""
        end = time.monotonic() + seconds
        while not self.js(script):
            assert time.monotonic() < end, f"{script}\n{self.js('document.body.innerText')}"
            time.sleep(0.05)

    def heat(self) -> bytes:
        """Give the voxels of the heat map that NiiVue holds."""
        return self.bytes_of("viewer.panes[0].heat.img")

    def drawn(self, file: Path, pane: int = 0) -> np.ndarray:
        """Give what NiiVue draws over the picture, on the grid of a file of this case.

        NiiVue's own axes are those of the patient; nibabel, which knows nothing of the page's way
        there, leads back.
        """
        shape = self.js(f"viewer.panes[{pane}].nv.back.dims.slice(1)")
        raw = self.bytes_of(f"viewer.panes[{pane}].nv.drawBitmap")
        grid = np.frombuffer(raw, np.uint8).reshape(shape, order="F")
        own = nib.io_orientation(nib.load(file).affine)
        patient = nib.orientations.axcodes2ornt("RAS")
        turned = nib.apply_orientation(grid, nib.orientations.ornt_transform(patient, own))
        return np.asarray(turned)

    def bytes_of(self, array: str) -> bytes:
        script = f"""(() => {{
            const img = {array};
            const bytes = new Uint8Array(img.buffer, img.byteOffset, img.byteLength);
            let text = '';
            for (let i = 0; i < bytes.length; i += 8192)
              text += String.fromCharCode(...bytes.subarray(i, i + 8192));
            return btoa(text); }})()"""
        return base64.b64decode(self.js(script))

    def pixels(self) -> bytes:
        """Give what the canvas shows."""
        return self.page.locator(".picture canvas").first.screenshot()


@contextmanager
def browsing(width: int = 1440, height: int = 900) -> Iterator[Watched]:
    from playwright.sync_api import sync_playwright

    alone = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *alone])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        watched = Watched(page)
        page.on("console", lambda m: watched.complaints.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("request", lambda request: watched.hosts.add(urlsplit(request.url).netloc))
        yield watched
        browser.close()


def calm(watched: Watched, viewer: Viewer) -> None:
    """Nothing was complained of, and nobody else was asked."""
    assert watched.complaints == []
    assert watched.hosts <= {f"127.0.0.1:{viewer.port}", ""}


def written_by_predict(run: Path, phantom: Path, name: str, out: Path) -> dict[int, bytes]:
    """Give the voxels of the file that `bts predict` writes for each subset, by its code."""
    (case,) = (one for one in find_cases(phantom).cases if one.name == name)
    segmenter = Segmenter(open_runs(run), "cpu", with_probabilities=False)
    found = {}
    for subset in SUBSETS:
        folder = out / subset_name(subset) / name
        folder.mkdir(parents=True)
        for modality, here in zip(MODALITIES, subset, strict=True):
            if here:
                shutil.copy(case.images[modality], folder)
        (file,) = segmenter.folder(folder.parent, out / "maps" / subset_name(subset))
        found[CODES[subset]] = gzip.decompress(file.read_bytes())[FIRST:]
    return found


@needs_playwright
def test_the_label_volume_of_each_subset_is_what_predict_writes(
    run: Path, phantom: Path, tmp_path: Path
) -> None:
    with serving(run) as viewer, browsing() as watched:
        watched.open(viewer.address)
        name = watched.js("document.body.dataset.case")
        truth = written_by_predict(run, phantom, name, tmp_path)
        seen = {}
        # A Gray code: each step throws one switch, but for the one from T1 to FLAIR.
        for code in (15, 13, 12, 14, 10, 11, 9, 8, 1, 3, 2, 6, 7, 5, 4):
            changed = watched.js("viewer.view.subset") ^ code
            if changed in (8, 4, 2, 1):
                watched.page.locator("#switches input").nth((8, 4, 2, 1).index(changed)).click()
            elif changed:
                watched.page.locator(f".strip button[aria-label='see {title(code)}']").click()
            watched.until(f"viewer.panes[0].element.dataset.ready === '{code}'")
            file = viewer.session.label_map(0, 0, SUBSETS[code - 1])
            seen[code] = watched.drawn(file).tobytes(order="F")
        assert sorted(seen) == list(range(1, 16))
        assert seen == truth
        assert len(set(truth.values())) > 8, "subsets that say the same would prove little"
        calm(watched, viewer)


def title(code: int) -> str:
    shown = {8: "T1", 4: "T1c", 2: "T2", 1: "FLAIR"}
    return " + ".join(name for bit, name in shown.items() if code & bit)


@needs_playwright
def test_keys_alone_reach_everything(run: Path, phantom: Path) -> None:
    with serving(run, part="train") as viewer, browsing() as watched:
        page = watched.page
        watched.open(viewer.address)
        for key, code in (("2", 11), ("4", 10), ("1", 2), ("3", 2), ("2", 6), ("1", 14)):
            # 3 would switch the last one off, so it does nothing.
            page.keyboard.press(key)
            watched.until(f"viewer.view.subset === {code}")
        start = watched.js("viewer.view.at")
        # Left in the picture is the patient's right; where that is in the file, its axes say.
        moves = {"ArrowLeft": 0, "ArrowUp": 1, "PageUp": 2}
        for key, axis in moves.items():
            page.keyboard.press(key)
            watched.until(f"viewer.view.at[{axis}] !== {start[axis]}")
        for key in ("ArrowRight", "ArrowDown", "PageDown"):
            page.keyboard.press(key)
        watched.until(f"viewer.view.at.join() === '{','.join(map(str, start))}'")
        shown = watched.pixels()
        page.keyboard.press(" ")
        watched.until("viewer.panes[0].nv.drawOpacity === 0")
        assert watched.pixels() != shown
        page.keyboard.press(" ")
        watched.until("viewer.panes[0].nv.drawOpacity > 0")
        for key, what in (("c", "layer === 'changes'"), ("o", "outline"), ("p", "picture === 0")):
            page.keyboard.press(key)
            watched.until(f"viewer.view.{what}")
        page.keyboard.press("j")
        watched.until("viewer.view.case === 1")
        watched.until("document.body.dataset.case", 300)
        page.keyboard.press("k")
        watched.until("viewer.view.case === 0")
        # By Tab alone to the first switch, and Space throws it.
        for _ in range(60):
            page.keyboard.press("Tab")
            if watched.js("document.activeElement.closest('#switches') !== null"):
                break
        before = watched.js("viewer.view.subset")
        page.keyboard.press(" ")
        watched.until(f"viewer.view.subset === {before ^ 8}")
        # Letters go into the search while it is written in.
        page.keyboard.press("Shift+Tab")
        page.locator("#search").focus()
        page.keyboard.type("00002c1")
        assert page.locator("#cases li").count() == 0
        assert watched.js("viewer.view.subset") == before ^ 8
        calm(watched, viewer)


@needs_playwright
def test_changes_are_counted_voxel_by_voxel_and_heat_is_the_file(run: Path) -> None:
    with serving(run) as viewer, browsing() as watched:
        page, session = watched.page, viewer.session
        watched.open(viewer.address)
        page.locator("#switches input").nth(1).click()
        page.locator("#layers input[value=changes]").click()
        page.locator("#region").select_option("WT")
        watched.until("viewer.panes[0].element.dataset.ready === '11'")
        maps = {code: loaded(session.label_map(0, 0, SUBSETS[code - 1])) for code in (11, 15)}

        def marks() -> np.ndarray:
            return watched.drawn(session.label_map(0, 0, SUBSETS[14]))

        lost, invented = (maps[15] > 0) & (maps[11] == 0), (maps[15] == 0) & (maps[11] > 0)
        watched.until("viewer.panes[0].nv.drawBitmap.includes(201)")
        np.testing.assert_array_equal(marks() == LOST, lost)
        np.testing.assert_array_equal(marks() == INVENTED, invented)
        page.locator("#against").select_option("truth")
        truth = session.patients[0].views[0].label
        full = session.patients[0].views[0].geometry.uncrop(np.asarray(truth)) > 0
        watched.until("viewer.view.against === 'truth'")
        np.testing.assert_array_equal(marks() == LOST, full & (maps[11] == 0))
        page.locator("#layers input[value=labels]").click()
        page.locator("#outline").click()
        watched.until("viewer.view.outline && viewer.view.layer === 'labels'")
        inner = full.copy()
        for axis in range(3):
            for step in (1, -1):
                shifted = np.roll(full, step, axis)
                edge = [slice(None)] * 3
                edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
                shifted[tuple(edge)] = False
                inner &= shifted
        np.testing.assert_array_equal(marks() == OUTLINE, full & ~inner)
        for layer, file in (
            ("entropy", session.entropy(0, 0, SUBSETS[10])),
            ("disagreement", session.disagreement(0, 0)),
        ):
            page.locator(f"#layers input[value={layer}]").click()
            watched.until(f"viewer.view.layer === '{layer}' && viewer.panes[0].heat?.opacity > 0")
            assert watched.heat() == gzip.decompress(file.read_bytes())[FIRST:]
        calm(watched, viewer)


def loaded(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


@needs_playwright
def test_what_is_saved_is_what_is_seen(run: Path, tmp_path: Path) -> None:
    with serving(run) as viewer, browsing() as watched:
        page, session = watched.page, viewer.session
        watched.open(viewer.address)
        page.keyboard.press("4")
        watched.until("viewer.panes[0].element.dataset.ready === '14'")
        with page.expect_download() as download:
            page.locator("a.save").click()
        assert download.value.suggested_filename.endswith("_t1+t1c+t2.nii.gz")
        saved = Path(download.value.path()).read_bytes()
        assert saved == session.label_map(0, 0, SUBSETS[13]).read_bytes()
        with page.expect_download() as download:
            page.locator("#save-picture").click()
        picture = np.asarray(Image.open(download.value.path()).convert("RGB"))
        assert picture.shape[1] > 500
        assert picture.std() > 5, "a picture, and not a black sheet"
        for key, axis in (("ArrowUp", 1), ("PageUp", 2)):
            before = watched.js(f"viewer.view.at[{axis}]")
            page.keyboard.press(key)
            watched.until(f"viewer.view.at[{axis}] !== {before}")
        watched.until("decodeURIComponent(location.hash).endsWith(`at=${viewer.view.at}`)")
        address, seen = watched.js("location.href"), watched.js("JSON.stringify(viewer.view)")
        page.goto("about:blank")
        watched.open(address)
        assert watched.js("JSON.stringify(viewer.view)") == seen
        calm(watched, viewer)


@needs_playwright
def test_two_runs_have_one_crosshair(run: Path, trained: Path) -> None:
    with serving(run, trained) as viewer, browsing() as watched:
        watched.open(viewer.address)
        watched.page.locator(".picture canvas").first.click(position={"x": 150, "y": 120})
        same = "viewer.panes.map((p) => [...p.nv.scene.crosshairPos].join())"
        watched.until(f"new Set({same}).size === 1")
        for key in ("PageUp", "ArrowLeft"):
            watched.page.keyboard.press(key)
            watched.until(f"new Set({same}).size === 1")
        for pane, folder in enumerate((run, trained)):
            file = viewer.session.label_map(0, pane, SUBSETS[-1])
            assert file.is_relative_to(folder)
            np.testing.assert_array_equal(watched.drawn(file, pane), loaded(file))
        calm(watched, viewer)


@needs_playwright
@pytest.mark.parametrize("width", [1440, 800, 390])
def test_nothing_is_wider_than_the_window(run: Path, trained: Path, width: int) -> None:
    with serving(run, trained) as viewer, browsing(width) as watched:
        watched.open(viewer.address)
        assert watched.js("document.documentElement.scrollWidth") <= width
        assert watched.js("Math.min(...viewer.panes.map((p) => p.canvas.clientWidth))") > 300


@needs_playwright
def test_a_browser_that_is_killed_at_work_harms_nobody(trained: Path, phantom: Path) -> None:
    images = {"t1": next(phantom.glob("BraTS2021_00003/*_t1.nii.gz"))}
    with serving(trained, images=images) as viewer:
        with browsing() as watched:
            watched.page.goto(viewer.address)
        viewer.session.open(0)
        viewer.session.wait(0)
        with browsing() as watched:
            watched.page.goto(viewer.address)
            watched.page.wait_for_selector("body[data-case=case]", state="attached")
            assert watched.page.locator("#switches input:enabled").count() == 0
            calm(watched, viewer)


def test_a_picture_is_taken_without_a_screen(run: Path, tmp_path: Path) -> None:
    session = open_session([run], device="cpu")
    out = take_picture(Viewer(session, niivue_module()), tmp_path / "new" / "view.png")
    picture = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert picture.shape == (1250, 1440, 3)
    # Pictures are grey, label maps are not.
    assert (np.ptp(picture[300:700, 400:1400], axis=2) > 60).mean() > 0.02
