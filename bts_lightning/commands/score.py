"""What `bts evaluate` does: score cases in all subsets, one pass, and write the report."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar

from bts_lightning import runs
from bts_lightning.callbacks.case_scorer import CaseScorer
from bts_lightning.config import build
from bts_lightning.config.schema import Node
from bts_lightning.data.splits import Part
from bts_lightning.errors import UserError
from bts_lightning.files import sha256
from bts_lightning.loggers import Wandb
from bts_lightning.memory import keep_freed_memory
from bts_lightning.report.facts import LEFT_OUT, short
from bts_lightning.report.folder import finish_folder, making, open_folder
from bts_lightning.report.screen import Screen
from bts_lightning.report.summary import means_by_name
from bts_lightning.report.table import EvaluationTable
from bts_lightning.runs.devices import check_accelerator, chosen_device
from bts_lightning.runs.ensemble import Ensemble, load_ensemble
from bts_lightning.runs.facts import commit, versions
from bts_lightning.runs.limits import devices_here
from bts_lightning.runs.lock import only_one
from bts_lightning.runs.opening import OpenRun
from bts_lightning.runs.quiet import hush
from bts_lightning.runs.ranks import together
from bts_lightning.runs.seen import warnings

console = Screen()


def score(
    folder: Path,
    opened: Sequence[OpenRun],
    part: Part,
    device: str | None,
    *,
    predictions: bool,
    seen: bool = False,
) -> None:
    """Score the cases that have no row in the folder yet, and write its table and report.

    Args:
        folder: of this evaluation.
        opened: the run where the network was trained, or several; data and devices are those of
            the first.
        part: which part of the split.
        device: `cpu`, `cuda` or `cuda:1`; what the configuration says by default.
        predictions: also write the label maps of all subsets as NIfTI.
        seen: of several runs, also score cases that one of them was trained on, and say so.
    """
    hush()
    keep_freed_memory()
    ensemble = load_ensemble(opened)
    ensemble.admit()
    run, nodes = opened[0].run, opened[0].nodes
    trainer = _trainer(nodes["trainer"].arguments, device)
    data = prepared_part(ensemble.data[0], part)
    cases = getattr(data.split, part)
    leak = None
    if len(opened) == 1:
        runs.check_split(run, data, [part])
    else:
        leak = _seen(opened, data, part, allowed=seen)
    facts = evaluation_facts(ensemble, data, part) | ({"seen": leak} if leak else {})
    scorer = CaseScorer(
        folder, ensemble, ensemble.prepared(data), cases, making(facts), predictions=predictions
    )
    trainer.callbacks.append(scorer)  # type: ignore[attr-defined]
    with (
        only_one(folder, "evaluating") if trainer.is_global_zero else nullcontext(),
        together(trainer, "the same command goes on"),
    ):
        if trainer.is_global_zero:
            facts = open_folder(folder, facts)
        trainer.test(ensemble, dataloaders=data.case_dataloader(part), verbose=False)
        trainer.strategy.barrier("evaluated")
        if trainer.is_global_zero:
            names = sorted(cases)
            labelled = {name for name in names if data.cases[name].is_labelled}
            table = finish_folder(folder, facts, scorer.made, names, labelled, console)
            if len(opened) == 1:
                _send_to_wandb(run, nodes["logger"].get("wandb"), folder, table, facts)
            if leak:
                console.print(f"leak: {leak}", style="yellow")
            console.print(f"table   {folder / 'cases.csv'}\nreport  {folder / 'report.html'}")


def open_part(run: Path, data: Any, part: Part) -> Any:
    """Prepare the data of a run, and refuse a part that is empty or was another part before."""
    runs.check_split(run, prepared_part(data, part), [part])
    names = [(name, data.cases[name].patient) for name in getattr(data.split, part)]
    for text in warnings(run, names, part):
        console.print(text, style="yellow")
    return data


def prepared_part(data: Any, part: Part) -> Any:
    """Prepare data, and refuse a part that is empty."""
    data.prepare_data()
    data.setup("test")
    if not getattr(data.split, part):
        raise UserError(f"the {part} part of split {data.split.name} has no case; choose another")
    return data


def _seen(opened: Sequence[OpenRun], data: Any, part: Part, *, allowed: bool) -> str | None:
    """Refuse, or name, cases that a run was trained on or chosen by: they score too well."""
    each = [runs.seen_cases(one.run, data, part) for one in opened]
    cases = sorted(set.union(*each))
    if not cases:
        return None
    of = f"{len(cases)} of {len(getattr(data.split, part))} cases"
    by = [one.run for one, known in zip(opened, each, strict=True) if known]
    if not allowed:
        raise UserError(
            f"{of} of the {part} part of {opened[0].run}, {cases[0]} first, have trained or chosen "
            f"{by[0]}{f' and {len(by) - 1} more' if len(by) > 1 else ''}; give data.root or "
            "data.split with cases that no run has seen, or --seen to score them all the same"
        )
    return f"{of} have trained or chosen {len(by)} of the {len(opened)} networks"


def _send_to_wandb(
    run: Path, node: Node | None, folder: Path, table: EvaluationTable, facts: Mapping[str, Any]
) -> None:
    """Add the evaluation to the W&B run of the training, if that had one."""
    if node and issubclass(node.cls, Wandb):
        logger: Wandb = build(node, save_dir=str(run / "logs"))
        logger.add_evaluation(folder, table.rows, means_by_name(table), facts)


def _trainer(given: dict[str, Any], device: str | None) -> Trainer:
    """Keep what the configuration says about devices, and nothing about training."""
    kept = ("accelerator", "devices", "num_nodes", "strategy")
    settings = {name: given[name] for name in kept if given.get(name) is not None}
    if device is None:
        check_accelerator(settings.get("accelerator"), key="--device")
        # A run may come from a larger machine; scores are the same on any number.
        if held := devices_here(settings):
            asked = ", ".join(f"trainer.{name}={settings[name]}" for name in held)
            console.print(f"{asked} is more than is here; evaluating on one machine's devices")
            settings |= held
    else:
        chosen = chosen_device(device)
        one = [chosen.index] if chosen.type == "cuda" and chosen.index else 1
        settings |= {"accelerator": chosen.type, "devices": one}
    trainer: Trainer = build(
        Node("trainer", Trainer, settings, is_partial=False),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[RichProgressBar()] if console.is_terminal else [],
        enable_progress_bar=console.is_terminal,
        use_distributed_sampler=False,
    )
    return trainer


def evaluation_facts(ensemble: Ensemble, data: Any, part: str) -> dict[str, Any]:
    """Say everything that can change the table, so that tables are only compared if they may be."""
    split = {"name": data.split.name, "fingerprint": data.split.lists_fingerprint, "part": part}
    each = [
        {
            "run": str(one.run),
            "experiment": one.experiment,
            "network": one.nodes["task"].arguments["net"].cls.__name__,
            "checkpoint": one.checkpoint.name,
            "checkpoint_sha256": sha256(one.checkpoint),
            "seed": one.nodes["seed"],
            # It changes nothing, but rows of the one pass would prove nothing in its place.
            "naive": member.protocol.naive,
            **member.protocol.facts(),
        }
        for one, member in zip(ensemble.runs, ensemble.members, strict=True)
    ]
    facts = {
        "commit": commit(),
        "versions": versions(),
        "split": split,
        "data_fingerprint": data.fingerprint,
        **(each[0] if len(each) == 1 else _of_several(ensemble, each)),
    }
    scheme = ensemble.loss.scheme_name
    # Tables from before there were schemes read as they did.
    return facts | ({"scheme": scheme} if scheme != "brats" else {})


def _of_several(ensemble: Ensemble, each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Say once what all members share, in their order what differs, and whence each comes."""
    facts: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in each for key in one):
        values = [one.get(key, LEFT_OUT.get(key)) for one in each]
        same = all(value == values[0] for value in values)
        facts[key] = values[0] if same else " | ".join(short(key, value) for value in values)
    own = [getattr(recipe, "name", None) for recipe in ensemble.recipes]
    names = ", ".join(dict.fromkeys(one["experiment"] for one in each))
    return facts | {
        "experiment": f"{names}: mean of {len(each)} runs",
        "prepared": own[0] if len(set(own)) == 1 else " | ".join(map(str, own)),
        "mean_read_by": type(ensemble.loss).__name__,
        "members": [
            {key: one[key] for key in ("run", "network", "checkpoint", "checkpoint_sha256", "seed")}
            | runs.provenance(opened.run)
            for opened, one in zip(ensemble.runs, each, strict=True)
        ],
    }
