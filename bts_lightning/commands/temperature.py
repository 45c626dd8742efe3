"""What `bts evaluate --fit-temperature` does: fit one temperature, and keep it with the run."""

from pathlib import Path

import torch

from bts_lightning.commands.score import console, open_part
from bts_lightning.config import build
from bts_lightning.data.splits import Part
from bts_lightning.errors import UserError
from bts_lightning.files import sha256
from bts_lightning.inference import Protocol
from bts_lightning.inference.temperature import HIGHEST, LOWEST, fit, held_out, sample
from bts_lightning.memory import keep_freed_memory
from bts_lightning.modalities import subsets_within
from bts_lightning.runs.devices import chosen_device
from bts_lightning.runs.opening import OpenRun, check_scheme, load_task
from bts_lightning.runs.quiet import hush
from bts_lightning.runs.temperature import keep_temperature

# Of all cases and subsets together; about a minute of fitting on one core.
VOXELS = 1_000_000


def fit_temperature(opened: OpenRun, part: Part, device: str | None) -> Path:
    """Fit the temperature of a checkpoint on one part of the split; give the file it is kept in."""
    hush()
    keep_freed_memory()
    where = chosen_device(device)
    run, nodes, checkpoint = opened.run, opened.nodes, opened.checkpoint
    task = load_task(nodes, checkpoint).to(where)
    protocol: Protocol = build(nodes["evaluation"])
    data = open_part(run, build(nodes["data"]), part)
    check_scheme(task, data)
    asked = protocol.subsets_of(getattr(data.split, part))
    shown = {
        case: subsets_within(data.cases[case].available, subsets)
        for case, subsets in asked.items()
        if data.cases[case].is_labelled
    }
    rows = sum(map(len, shown.values()))
    if not rows:
        raise UserError(f"no case of the {part} part has a label and one of the subsets to fit on")
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    patients: list[str] = []
    for name, subsets in shown.items():
        case = data.cases[name]
        parts += sample(
            task.net,
            task.loss,
            case.image,
            case.available,
            case.label,
            protocol,
            subsets,
            max(1, VOXELS // rows),
            where,
            case.origin,
        )
        patients += [case.patient] * (len(parts) - len(patients))
    logits, labels = (torch.cat(some, dim=-1) for some in zip(*parts, strict=True))
    temperature, before, after = fit(task.loss, logits, labels)
    if not 1.01 * LOWEST < temperature < 0.99 * HIGHEST:
        raise UserError(
            f"no temperature between {LOWEST:g} and {HIGHEST:g} is the best for {checkpoint} on "
            f"the {part} part, so none is kept; train longer, or validate on more cases"
        )
    file = keep_temperature(
        run,
        {
            "temperature": temperature,
            "nll": {
                "before": before,
                "after": after,
                "held_out": held_out(task.loss, parts, patients),
            },
            "part": part,
            "split": data.split.lists_fingerprint,
            "cases": len(shown),
            "voxels": len(labels),
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": sha256(checkpoint),
            "loss": type(task.loss).__name__,
        },
    )
    console.print(
        f"temperature {temperature:.4f}: NLL {before:.6f} becomes {after:.6f} over {len(labels)} "
        f"voxels of {len(shown)} cases\nkept in {file}; evaluation.temperature=fitted applies it"
    )
    return file
