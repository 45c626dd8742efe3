"""The costs that docs/networks.md shows are those that others counted on the official code."""

from pathlib import Path

import pytest

from bts_lightning import config
from bts_lightning.bench import network_page
from bts_lightning.bench.network_page import cost, main, networks, share_of_one, training_memory


@pytest.mark.parametrize(
    ("experiment", "size", "gflop", "encoders"),
    [
        ("uhemis", 112, 64.5, 0.65),
        ("uhved", 112, 81.5, 0.79),
        ("rfnet", 80, 203.6, 0.59),
        ("mmformer", 128, 256.3, 0.60),
        ("mifpn", 80, 347.5, 0.72),
        ("demoseg", 128, 1_314, 0.36),
        ("gmd", 128, 881.4, 1.0),
        ("imfuse", 128, 272.7, 0.56),
        ("m3ae", 128, 296.0, 0.0),
        ("mfi", 128, 3_671, 0.29),
        ("robustseg", 80, 181.8, 0.66),
        ("a2fseg", 128, 6_120, 0.62),
        ("unet", 128, 966, 0.0),
        ("unet_small", 128, 244, 0.0),
        ("unimrseg", 128, 3_244, 0.0),
    ],
)
def test_arithmetic_is_that_of_the_official_networks(
    experiment: str, size: int, gflop: float, encoders: float
) -> None:
    found = cost(config.load([experiment]).net, size)
    assert found is not None
    # RFNet's fusion is matrix products here, which count, and sums there, which do not.
    assert found.once == pytest.approx(gflop, rel=4e-3)
    assert found.encode / found.once == pytest.approx(encoders, abs=6e-3)


def test_size_that_does_not_fit_has_no_cost() -> None:
    assert cost(config.load(["unet"]).net, 80) is None


def test_one_of_four_unets_is_a_quarter() -> None:
    node = config.load(["a2fseg", "net.variant=base", "net.width=4", "net.poolings=2"]).net
    assert share_of_one(node) == pytest.approx(1 / 4, abs=0.01)


def test_memory_grows_with_the_window() -> None:
    node = config.load(["unet", "net.width=4", "net.poolings=2"]).net
    assert float(training_memory(node, 128).split()[0]) > float(
        training_memory(node, 64).split()[0]
    )


def test_a_network_that_learns_from_its_patch_alone_has_no_memory_elsewhere() -> None:
    node = config.load(["robustseg", "net.width=4"]).net
    assert training_memory(node, 128) == "–"
    assert cost(node, 128) is not None


def test_the_table_is_put_between_its_marks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = {"unet_small": config.load(["unet_small"]).net}
    monkeypatch.setattr(network_page, "networks", lambda: nodes)
    page = tmp_path / "networks.md"
    page.write_text("mine\n<!-- costs -->\nold\n<!-- end of costs -->\nmine too\n")
    main(page)
    nodes["unet"] = config.load(["unet"]).net
    monkeypatch.setattr(network_page, "row", lambda name, _: [f"`{name}`", "anew"])
    main(page, ["unet"])
    text = page.read_text()
    assert text.startswith("mine\n<!-- costs -->\n\nGFLOP")
    assert text.endswith("|\n\n<!-- end of costs -->\nmine too\n")
    assert text.count("| `unet_small` | 5.650 | 244 / 244 | 60 / 60 | 0% |") == 1
    assert text.count("| `unet` | anew |") == 1
    assert "old" not in text


def test_the_page_of_the_project_has_every_network() -> None:
    page = (Path(__file__).parents[2] / "docs/networks.md").read_text(encoding="utf-8")
    missing = [name for name in networks() if f"| `{name}` |" not in page]
    assert not missing, "python -m bts_lightning.bench.network_page docs/networks.md"
