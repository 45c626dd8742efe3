"""A graph of every network, for three subsets, says what the network says."""

from pathlib import Path

import pytest

from bts_lightning.errors import UserError
from bts_lightning.inference.graph import TOLERANCE
from bts_lightning.modalities import Subset, subset_name
from tests.networks.graphs import BEGIN, CHOSEN, export, write
from tests.networks.parts import build, networks

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.slow
@pytest.mark.parametrize("subset", CHOSEN, ids=subset_name)
@pytest.mark.parametrize("name", networks())
def test_the_graph_of_a_network_agrees_with_it(name: str, subset: Subset) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    try:
        found, size = export(build(networks()[name]), subset)
    except UserError:
        # Torch and the graph are each 6e-5 from double precision in M2FTrans: the two may add up.
        row = f"| `{name}` | {subset_name(subset)} | the graph of "
        assert row in PAGE.read_text(encoding="utf-8"), "a graph that is refused stands on the page"
        return
    assert found.worst <= TOLERANCE
    assert size > 1000


def test_the_page_tells_of_every_network_and_subset() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = page.partition(BEGIN)[2]
    assert all(f"| `{n}` | {subset_name(s)} |" in table for n in networks() for s in CHOSEN)
    assert write(page, []) == page
