"""Write how the ONNX graph of each network agrees with it: `python -m tests.networks.graphs PAGE`.

Names of networks behind the page write their rows again and keep the others.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.inference import Protocol
from bts_lightning.inference.graph import Agreement, Window, compare, record
from bts_lightning.losses import LabelLoss, RegionLoss
from bts_lightning.modalities import SUBSETS, parse_subset, subset_name
from bts_lightning.networks.backbone import Backbone
from tests.networks.parts import build, image_for, networks

CHOSEN = [parse_subset(name) for name in ("flair", "t2+flair")] + [SUBSETS[-1]]
BEGIN, END = "<!-- graphs -->\n", "<!-- end of graphs -->\n"
HEAD = "| network | subset | worst | MB | ms a window | ms in torch |\n|---|---|---|--:|--:|--:|\n"


def export(net: Backbone, subset: tuple[bool, bool, bool, bool]) -> tuple[Agreement, int]:
    """Record a small network and compare the graph; also give its bytes."""
    d, h, w = image_for(net).shape[2:]
    loss = RegionLoss() if net.out_channels == RegionLoss().channels else LabelLoss()
    window = Window(net, loss, subset, Protocol(window=[d, h, w]))
    graph: bytes = record(window, (d, h, w)).model_proto.SerializeToString()
    return compare(window, graph, (d, h, w)), len(graph)


def rows(name: str) -> Iterator[str]:
    """Give the rows of a network; an operator that stands in the way fills them all."""
    net = build(networks()[name])
    for subset in CHOSEN:
        start = f"| `{name}` | {subset_name(subset)} |"
        try:
            found, size = export(net, subset)
        except UserError as error:
            yield f"{start} {error} | | | |"
            continue
        times = (f"{1000 * seconds:.0f}" for seconds in (found.seconds, found.torch_seconds))
        yield f"{start} {found.worst:.1e} | {size / 1e6:.1f} | {' | '.join(times)} |"


def write(page: str, names: list[str]) -> str:
    """Put new rows between the two marks of a page, sorted by network."""
    before, _, rest = page.partition(BEGIN)
    old, end, after = rest.partition(END)
    assert end, f"the page has no {BEGIN.strip()} with {END.strip()} below it"
    kept: dict[str, list[str]] = {name: [] for name in networks()}
    for line, name in re.findall(r"^(\| `(\w+)` .*)", old, re.MULTILINE):
        if name in kept:
            kept[name].append(line)
    for name in names:
        kept[name] = list(rows(name))
        print(*kept[name], sep="\n", flush=True)
    for name, lines in kept.items():
        missing = CHOSEN if not lines else ()
        lines += [f"| `{name}` | {subset_name(s)} | not measured | | | |" for s in missing]
    table = "".join(f"{line}\n" for lines in kept.values() for line in lines)
    return f"{before}{BEGIN}\n{HEAD}{table}\n{END}{after}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    page = Path(sys.argv[1])
    for name in sys.argv[2:] or networks():
        # The page as it is then: a network takes minutes, and whoever stops keeps what there is.
        write_whole(page, write(page.read_text(encoding="utf-8"), [name]))
