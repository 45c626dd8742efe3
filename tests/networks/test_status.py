"""docs/status.md says what the golden files and the records say, of every network."""

from pathlib import Path

from bts_lightning import config
from bts_lightning.config.merge import experiments
from tests.networks import status

PAGE = Path(__file__).parents[2] / "docs" / "status.md"


def test_the_page_is_generated() -> None:
    told = "python -m tests.networks.status docs/status.md"
    assert PAGE.read_text(encoding="utf-8") == status.page(), told


def test_every_network_has_a_row() -> None:
    nodes = [config.load([name]).get("net") or {} for name in experiments()]
    classes = {str(node["_target_"]).rpartition(".")[2] for node in nodes if "_target_" in node}
    assert len(classes) > 10
    assert classes <= {name for name, _, _ in status.NETWORKS.values()}
