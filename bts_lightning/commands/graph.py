"""What `bts export` does: the graph of a window, with all that a program around it must know."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bts_lightning.config import build
from bts_lightning.data.cache.normalise import Recipe
from bts_lightning.errors import ConfigError
from bts_lightning.files import sha256, write_whole
from bts_lightning.inference import Protocol
from bts_lightning.inference.graph import Window, compare, record
from bts_lightning.inference.windows import window_size
from bts_lightning.modalities import TISSUES, Subset, subset_name
from bts_lightning.report.screen import Screen
from bts_lightning.runs.facts import commit, versions
from bts_lightning.runs.opening import check_scheme, load_task, recipe_of
from bts_lightning.runs.temperature import with_temperature

console = Screen()
# Of what `Protocol.facts` lists, what a program around the graph repeats.
REPEATED = ("window", "overlap", "weighting", "mirror", "skip_empty")


def write_graph(
    run: Path, nodes: dict[str, Any], checkpoint: Path, subset: Subset, out: Path
) -> Path:
    """Record, compare and write; print how well graph and network agree."""
    task = load_task(nodes, checkpoint)
    protocol = with_temperature(build(nodes["evaluation"]), run, checkpoint)
    data = build(nodes["data"])
    check_scheme(task, data)
    if protocol.shrink_window:
        raise ConfigError(
            "evaluation.shrink_window=true chooses a window for each case, and a graph has one; "
            "give evaluation.shrink_window=false"
        )
    size = window_size(protocol.size, protocol, task.net)
    window = Window(task.net, task.loss, subset, protocol)
    program = record(window, size)
    proto = program.model_proto
    told = facts(window, protocol, recipe_of(run, data)) | {
        "run": run.name,
        "checkpoint_sha256": sha256(checkpoint),
        "commit": commit(),
        "version": versions()["bts_lightning"],
    }
    proto.metadata_props.add(key="bts_lightning", value=json.dumps(told))
    graph = proto.SerializeToString()
    agreement = compare(window, graph, size)
    write_whole(out, graph)
    console.print(
        f"{out}  {len(graph) / 1e6:.1f} MB, {subset_name(subset)}, window "
        f"{'×'.join(map(str, size))}\nworst difference {agreement.worst:.1e} in a probability, "
        f"{agreement.seconds:.2f} s a window in onnxruntime, {agreement.torch_seconds:.2f} s in "
        "torch"
    )
    return out


def facts(window: Window, protocol: Protocol, recipe: Recipe) -> dict[str, Any]:
    """List what the graph leaves to the program around it."""
    scheme, said = window.loss.scheme, protocol.facts()
    return {
        "format": 1,
        "subset": subset_name(window.subset),
        "network": type(window.net).__name__,
        "inputs": window.inputs,
        "output": window.output,
        "activation": window.loss.activation,
        "labelling": window.loss.labelling,
        "channels": window.loss.channel_classes,
        **{key: said[key] for key in REPEATED},
        "windows": protocol.windows,
        "temperature": protocol.divisor,
        "et_minimum": protocol.et_minimum,
        "et_small": protocol.et_small,
        "component_minimum": protocol.component_minimum,
        "normalisation": recipe.normalisation,
        "crop": recipe.crop,
        "image_type": np.dtype(np.float16).name,
        "scheme": recipe.scheme,
        "regions": {name: list(classes) for name, classes in scheme.regions.items()},
        "paint": dict(scheme.paint),
        "tissues": {
            stored: TISSUES[tissue] for tissue, stored in reversed([*scheme.stored.items()])
        },
    }
