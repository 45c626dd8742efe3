"""Say what each network costs.

`python -m bts_lightning.bench.network_page docs/networks.md [EXPERIMENT …]`
"""

import inspect
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bts_lightning import config
from bts_lightning.bench.arithmetic import Cost, count
from bts_lightning.config.merge import experiments
from bts_lightning.files import write_whole
from bts_lightning.networks.backbone import Backbone, Output

SIZES = (128, 80)
MILLION, GIB = 1e6, 2**30
LICENCE = re.compile(r"\(([^()]*(?:Apache|MIT|GPL|no licence)[^();,]*)")
COLUMNS = (
    "experiment",
    "weights (M)",
    *(f"{size}³: four / one" for size in SIZES),
    "in encoders",
    f"training step at {SIZES[0]}³ (GiB)",
    "original's licence",
)
HEAD = f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"
# Of the part of a page that this program writes.
BEGIN, END = "<!-- costs -->\n", "<!-- end of costs -->\n"


def main(file: Path, only: Sequence[str] = ()) -> int:
    """Put the table into a page between its two marks; `only` these rows are measured anew."""
    before, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    old, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{file} has no line {BEGIN.strip()} with {END.strip()} below it")
    known = {line.split("`")[1]: line for line in old.splitlines() if line.startswith("| `")}
    nodes = networks()
    if unknown := set(only) - set(nodes):
        raise SystemExit(f"no experiment {', '.join(sorted(unknown))} with a network")
    lines = [_explanation(), *HEAD]
    for name, node in nodes.items():
        is_kept = only and name not in only and name in known
        lines.append(known[name] if is_kept else f"| {' | '.join(row(name, node))} |")
    table = "\n".join(lines)
    write_whole(file, f"{before}{BEGIN}\n{table}\n\n{END}{after}")
    return 0


def networks() -> dict[str, Any]:
    """Find the experiments that name a network."""
    trees = {name: config.load([name]) for name in experiments()}
    return {name: t.task.net for name, t in trees.items() if "_target_" in (t.get("net") or {})}


def row(name: str, node: Any) -> list[str]:
    """Describe one network."""
    net = on_meta(node)
    costs = [cost(node, size) for size in SIZES]
    some = next(found for found in costs if found is not None)
    single = share_of_one(node)
    licence = LICENCE.search(inspect.getdoc(type(net)) or "")
    return [
        f"`{name}`",
        f"{sum(p.numel() for p in net.parameters()) / MILLION:,.3f}",
        *("–" if c is None else f"{c.once:,.0f} / {c.once * single:,.0f}" for c in costs),
        f"{some.encode / some.once:.0%}",
        training_memory(node, SIZES[0]),
        licence[1] if licence else "–",
    ]


def on_meta(node: Any) -> Backbone:
    """Build a network without memory for its weights."""
    with torch.device("meta"):
        net: Backbone = config.build(node)
    return net


def cost(node: Any, size: int) -> Cost | None:
    """Count the arithmetic of a window; None where none fits."""
    try:
        return count(partial(config.build, node), size)
    except ValueError:
        return None


def share_of_one(node: Any) -> float:
    """Measure, on the smallest window, which share of the arithmetic one modality alone takes.

    What is skipped depends on the content of `present`, which tensors without content have not.
    """
    if not on_meta(node).skip_absent:
        return 1.0
    net: Backbone = config.build(node).eval()
    # Two voxels remain at the bottom: of one there is nothing to normalise.
    image = torch.zeros(1, 4, net.divisor, net.divisor, 2 * net.divisor)
    counts = []
    for present in (torch.tensor([[True] * 4]), torch.tensor([[True, False, False, False]])):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(image, present)
        counts.append(counter.get_total_flops())
    return counts[1] / counts[0]


def training_memory(node: Any, size: int) -> str:
    """Measure a training step on a GPU; without one, add up what it has to hold.

    Some networks learn from no other size than their patch.
    """
    net = on_meta(node).train()
    try:
        net.check_size((size,) * 3)
    except ValueError:
        return "–"
    if torch.cuda.is_available():
        return f"{measured_memory(node, size):.1f} measured"
    image = torch.empty(1, 4, size, size, size, device="meta")
    present = torch.ones(1, 4, dtype=torch.bool, device="meta")
    weights = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output: Output = net(image, present, present)
    held = sum(storage.nbytes() for storage in saved.values())
    del output
    # Weights, gradients and two moments of Adam.
    held += 4 * sum(p.numel() * p.element_size() for p in net.parameters())
    return f"{held / GIB:.1f}"


def measured_memory(node: Any, size: int) -> float:
    """Run a training step in bfloat16 and read the peak, in GiB."""
    net: Backbone = config.build(node).cuda().train()
    optimizer = torch.optim.Adam(net.parameters())
    image = torch.randn(1, 4, size, size, size, device="cuda")
    present = torch.ones(1, 4, dtype=torch.bool, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        output: Output = net(image, present, present)
    predictions = [output.logits, *(extra.logits for extra in output.auxiliary)]
    terms = [x.float().square().mean() for x in predictions] + list(output.penalties.values())
    torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return torch.cuda.max_memory_allocated() / GIB


def _explanation() -> str:
    memory = (
        "The training step was measured on a GPU: bfloat16 autocast, batch 1, all four modalities"
        if torch.cuda.is_available()
        else "The memory of a training step is counted, not measured: fp32, batch 1, all four "
        "modalities; weights, gradients, Adam's moments and what the backward pass keeps. Half "
        "precision needs about half of it; temporary tensors and losses come on top"
    )
    return (
        "GFLOP of an evaluation pass over one window, two for a multiply-add, in convolutions and "
        "matrix products; with all four modalities and with one. A network whose two numbers are "
        "equal computes absent modalities too. – : the network does not take that size. "
        "*In encoders*: what 15 subsets share when a window is encoded once. "
        f"{memory}.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))
