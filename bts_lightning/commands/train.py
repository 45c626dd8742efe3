"""`bts train`: open a run, new or begun, and fit its task."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.commands.words import names_among, takes_words
from bts_lightning.config.merge import experiments
from bts_lightning.config.schema import Node
from bts_lightning.config.table import print_experiments, print_keys
from bts_lightning.config.targets import is_kind
from bts_lightning.errors import ConfigError, Parser, UserError
from bts_lightning.report.screen import Screen
from bts_lightning.runs.opening import tell_if_edited
from bts_lightning.runs.processes import LOG

# Arguments of the trainer that are filled in when a run begins.
SET_ELSEWHERE = {
    "callbacks": "name each in the section callbacks",
    "logger": "name each in the section logger, or take one out: logger.wandb=null",
    "default_root_dir": f"set {runs.RUN_VARIABLE}=FOLDER in the environment",
    "enable_progress_bar": "take the bar out: callbacks.progress=null",
    "enable_model_summary": "there is one in a terminal only",
}
console = Screen()
# What NumPy takes.
MOST_SEED = 2**32 - 1
# Lightning's own searches train, and write, in ways that a run does not go on from.
TUNERS = ("BatchSizeFinder", "LearningRateFinder")


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "EXPERIMENT|RUN|KEY=VALUE", "as: a2fseg smoke net.width=8")
    parser.add_argument("-h", "--help", action="store_true", help="with an experiment: its keys")


def run(args: argparse.Namespace) -> int:
    if not args.help:
        return train(args.words, allow=args.allow)
    if args.words:
        print_keys(args.words, allow=args.allow)
    else:
        args.parser.print_help()
        print()
        print_experiments()
    return 0


def train(words: Sequence[str], allow: Sequence[str] = ()) -> int:
    """Train the experiment that the words describe, or continue the run that they name."""
    told = os.environ.get(runs.RUN_VARIABLE)
    try:
        run, config, nodes = _open(words, allow)
        if isinstance(OmegaConf.select(config, "task.pretraining"), str):
            run, config, nodes = _after_first_stage(run, config, words, allow)
        # Lightning is imported once nothing is wrong with what was typed.
        from bts_lightning.commands.fit import fit

        fit(run, config, nodes)
    finally:
        # It is for the processes of this training; the next one, in a notebook, has its own run.
        if told is None:
            os.environ.pop(runs.RUN_VARIABLE, None)
    return 0


def _open(words: Sequence[str], allow: Sequence[str]) -> tuple[Path, DictConfig, dict[str, Any]]:
    """Tell a run to resume from an experiment to start."""
    names = names_among(words)
    folders = [name for name in names if runs.is_run(Path(name))]
    if len(folders) > 1:
        raise UserError(f"{folders[0]} and {folders[1]} are both runs; continue one at a time")
    if folders:
        runs.refuse_links(Path(folders[0]))
        tell_if_edited(Path(folders[0]))
        words = [str(runs.config_file(Path(w))) if w in folders else w for w in words]
    config = configuration.load(words, allow=allow)
    nodes = configuration.check(config, supplied=configuration.SUPPLIED)
    _check_values(config)
    _refuse_tuners(nodes["callbacks"])
    runs.require_data(config)
    if folders:
        return Path(folders[0]), config, nodes
    told = runs.RUN_VARIABLE in os.environ
    run = runs.new_run("+".join(Path(name).stem for name in names) or "base")
    # A job that was requeued says what it said before, but for what has been mended.
    if not told and not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        advice = (
            f"it belongs to this job: give each training of a job a folder, as "
            f"{runs.RUN_VARIABLE}={run}-2, or go on with that one: bts train {run}"
        )
        tree = OmegaConf.to_container(config, resolve=False)
        runs.refuse_another(runs.config_file(run), tree, advice)
    return run, config, nodes


def _after_first_stage(
    run: Path, config: DictConfig, words: Sequence[str], allow: Sequence[str]
) -> tuple[Path, DictConfig, dict[str, Any]]:
    """Let a training begin from another one: find that one or train it, and keep which it is."""
    from bts_lightning.distillation.chain.before import bring_to_end, first_stage

    named, is_begun = config.task.pretraining, runs.is_run(run)
    if is_begun and not runs.is_run(Path(named)):
        # Another process of a training whose first one has chosen already.
        named = OmegaConf.load(runs.config_file(run)).task.get("pretraining") or named
    is_chosen = named not in experiments()
    if not is_chosen:
        words = [str(runs.config_file(Path(w))) if runs.is_run(Path(w)) else w for w in words]
        named = str(first_stage(words, named, allow))
    config.task.pretraining = named
    if not is_chosen:
        runs.save_config(run, config)
        console.print(f"begins from {named}")
    # One that the user has chosen is taken as it is; one that we have begun keeps its output.
    is_ours = is_begun and (Path(named) / LOG).is_file()
    if not is_chosen or (is_ours and not runs.checkpoint_files(run)):
        try:
            bring_to_end(Path(named), allow, console)
        except KeyboardInterrupt as stop:
            raise UserError(f"stopped in {named}; continue with: bts train {run}") from stop
    return run, config, configuration.check(config, supplied=configuration.SUPPLIED)


def _refuse_tuners(callbacks: Mapping[str, Node]) -> None:
    for name, node in callbacks.items():
        for tuner in TUNERS:
            if is_kind(node.cls, f"lightning.pytorch.callbacks.{tuner}"):
                raise ConfigError(
                    f"callbacks.{name}: {tuner} does not work here; search with `bts sweep`"
                )


def _check_values(config: DictConfig) -> None:
    """Refuse values that Lightning takes, and over which the training stumbles later."""
    for name, instead in SET_ELSEWHERE.items():
        if name in config.trainer:
            raise ConfigError(f"trainer.{name} has no effect here; {instead}")
    least = {
        "seed": 0,
        "trainer.accumulate_grad_batches": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.gradient_clip_val": 0,
    }
    for key, lowest in least.items():
        value = OmegaConf.select(config, key)
        if value is not None and value < lowest:
            raise ConfigError(f"{key} is {value}; the smallest is {lowest}")
    if (config.get("seed") or 0) > MOST_SEED:
        raise ConfigError(f"seed is {config.seed}; the largest is {MOST_SEED}")
    precision = str(config.trainer.get("precision"))
    if precision in ("bf16-true", "16-true", "64-true", "64"):
        raise ConfigError(
            f"trainer.precision is {precision}; images and losses are in single precision here, so "
            "take bf16-mixed, 16-mixed or 32-true"
        )
