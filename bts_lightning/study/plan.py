"""What a study trains: experiments × seeds × folds."""

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.config.merge import is_override
from bts_lightning.data.splits import Part
from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.runs.jobs import is_evaluated, is_trained

STUDIES = Path("studies")
PART: Part = "test"
SEVERAL = (
    "name the experiments in one word, as: bts study \"rfnet a2fseg 'rfnet medmap'\"; or pairs, a "
    "word each: bts study \"rfnet 'rfnet medmap'\" \"mmformer 'mmformer medmap'\""
)


@dataclass(frozen=True)
class Training:
    """One training of a study with its evaluation; `words` are those of `bts train`."""

    experiment: str
    seed: int
    fold: int | None
    run: Path
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Say which one it is."""
        return f"{self.experiment}, seed {self.seed}" + (f", fold {self.fold}" if self.fold else "")

    @property
    def evaluation(self) -> Path | None:
        """Name its evaluation, once that is whole."""
        return self.run / "evaluation" / PART if is_evaluated(self.run, PART) else None


def plan_study(args: argparse.Namespace) -> tuple[Path, list[Training], list[list[str]]]:
    """List the trainings of a study, after all that can be wrong with them was looked for.

    Last come the names of its experiments, those of each word by themselves: the first of them is
    the reference of the others.
    """
    overrides = [word for word in args.words if is_override(word)]
    words = [word for word in args.words if word not in overrides]
    if not words or not all(word.strip() for word in words):
        raise UserError(SEVERAL)
    given = [_experiments(word) for word in words]
    if len(words) > 1:
        for word, groups in reversed(list(zip(words, given, strict=True))):
            if len(groups) == 1:
                raise UserError(f"{word} is no key=value; {SEVERAL}")
    for word in overrides:
        key = word.lstrip("-").partition("=")[0]
        if key == "seed" or (key == "data.split" and args.folds):
            raise UserError(f"{word}: a study sets {key} itself; use --seeds and --folds")
    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}; give 1 or more")
    if args.folds is not None and args.folds < 3:
        raise UserError(f"--folds is {args.folds}; one tests, one validates, so give 3 or more")
    for word, groups in zip(words, given, strict=True):
        if len({_file_name("+".join(group)) for group in groups}) < len(groups):
            raise UserError(f"{word}: an experiment stands there twice")
    # Two words may share one, as a reference.
    experiments = list(dict.fromkeys(group for groups in given for group in groups))
    names = [_file_name("+".join(group)) for group in experiments]
    for group in experiments:
        config = configuration.load([*group, *overrides], allow=args.allow)
        configuration.check(config, supplied=configuration.SUPPLIED)
        if not args.slurm:
            runs.require_data(config)
    folder = args.folder / _file_name(args.name or "_".join(names))
    # What all trainings share.
    facts = {"overrides": overrides, "folds": args.folds}
    runs.refuse_another(folder / "study.yaml", facts, runs.OTHER_NAME)
    write_whole(folder / "study.yaml", OmegaConf.to_yaml(facts))
    # Seeds outermost: after the first round each experiment has been trained on every fold.
    trainings = [
        _training(folder, group, seed, fold, args.folds, tuple(overrides))
        for seed in range(args.seeds)
        for group in experiments
        for fold in (range(1, args.folds + 1) if args.folds else [None])
    ]
    return folder, trainings, [["+".join(group) for group in groups] for groups in given]


def _experiments(word: str) -> list[tuple[str, ...]]:
    """Take a word apart into experiments, each of one or several words."""
    try:
        return [tuple(group.split()) for group in shlex.split(word)]
    except ValueError:
        raise UserError(f"{word}: a quote is not closed; {SEVERAL}") from None


def _training(
    folder: Path,
    group: tuple[str, ...],
    seed: int,
    fold: int | None,
    folds: int | None,
    overrides: tuple[str, ...],
) -> Training:
    own = [f"seed={seed}", *([f"data.split=fold {fold} of {folds}"] if fold else [])]
    name = f"seed-{seed}" + (f"_fold-{fold}" if fold else "")
    experiment = "+".join(group)
    run = folder / _file_name(experiment) / name
    return Training(experiment, seed, fold, run, (*group, *own, *overrides))


def trained(folder: Path) -> dict[str, list[Training]]:
    """Give the trainings of a study by experiment, as far as all experiments have come.

    So every experiment has the same seeds and folds, in the same order.
    """
    found: dict[str, dict[tuple[int, int | None], Training]] = {}
    for run in sorted(folder.glob("*/seed-*")):
        match = re.fullmatch(r"seed-(\d+)(?:_fold-(\d+))?", run.name)
        own = found.setdefault(run.parent.name, {})
        if match and is_trained(run):
            seed, fold = int(match[1]), int(match[2]) if match[2] else None
            own[seed, fold] = Training(run.parent.name, seed, fold, run, ())
    if not any(found.values()):
        raise UserError(f"{folder} has no training that has come to its end; see bts study --help")
    common = set.intersection(*(set(own) for own in found.values()))
    if not common:
        raise UserError(
            f"the experiments in {folder} have no seed and fold in common that are trained; go on "
            "with the study, or choose among a study of its own"
        )
    order = sorted(common, key=lambda one: (one[1] or 0, one[0]))
    return {name: [own[which] for which in order] for name, own in found.items()}


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text)
