"""Which trainings a chain is made of, each with its whole configuration, checked beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig, OmegaConf

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.availability import Only, Uniform15
from bts_lightning.config.targets import find_class
from bts_lightning.distillation import AnchorTerm, DistillationTask
from bts_lightning.distillation.answer import Answer
from bts_lightning.errors import ConfigError
from bts_lightning.modalities import COMPLETE, MODALITIES, subset_name
from bts_lightning.networks.backbone import Backbone, Output
from bts_lightning.task import SegmentationTask

Students = Literal["per_subset", "shared"]
TEACHER, ALIGNED_TEACHER = "teacher", "aligned_teacher"
# What a student is trained beside, and how tables call it.
ARMS = {"alone": "alone", "taught": "+ teacher", "aligned": "+ aligned teacher"}
_TEACHER_OF = {"alone": None, "taught": TEACHER, "aligned": ALIGNED_TEACHER}


@dataclass(frozen=True)
class Stage:
    """One training and its evaluation; `needs` names the stages that must have finished."""

    name: str
    run: Path
    config: DictConfig
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChainPlan:
    """All stages of a chain in the order in which they may run.

    Attributes:
        folder: of the chain.
        words: experiments and overrides as given.
        align: the words that make the aligned teacher of the plain one.
        for_teachers: words for both teachers alone.
        for_students: words for all students alone.
        arms: per arm the run of each subset; the same for all where one student is shared.
    """

    folder: Path
    words: tuple[str, ...]
    align: tuple[str, ...]
    students: Students
    subsets: tuple[str, ...]
    stages: tuple[Stage, ...]
    arms: dict[str, dict[str, Path]]
    for_teachers: tuple[str, ...] = ()
    for_students: tuple[str, ...] = ()

    def stage(self, name: str) -> Stage:
        """Find a stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)


def make_plan(
    words: Sequence[str],
    *,
    folder: Path,
    subsets: Sequence[str],
    students: Students = "per_subset",
    align: Sequence[str] = (),
    for_teachers: Sequence[str] = (),
    for_students: Sequence[str] = (),
    allow: Sequence[str] = (),
) -> ChainPlan:
    """Write the configuration of every stage, and refuse what an earlier chain did otherwise."""
    fitting = _alignment(words, allow)
    align = (fitting, *(word for word in align if word != fitting))
    stages = [
        _teacher(TEACHER, [*words, *for_teachers], folder, allow),
        _teacher(ALIGNED_TEACHER, [*words, *align, *for_teachers], folder, allow),
    ]
    arms: dict[str, dict[str, Path]] = {arm: {} for arm in _TEACHER_OF}
    groups = {name: [name] for name in subsets}
    if students == "shared":
        groups = {"shared": list(subsets)}
    # All arms of a student before the next one: what cannot work shows early.
    for student, group in groups.items():
        for arm, teacher in _TEACHER_OF.items():
            run = folder / arm / "students" / student
            config = _student([*words, *for_students], group, students, allow)
            _give_teacher(config, folder / teacher if teacher else None, teacher == ALIGNED_TEACHER)
            stages.append(Stage(f"{arm}/{student}", run, config, (teacher,) if teacher else ()))
            arms[arm] |= dict.fromkeys(group, run)
    _check(stages, allow)
    return ChainPlan(
        folder,
        tuple(words),
        align,
        students,
        tuple(subsets),
        tuple(stages),
        arms,
        tuple(for_teachers),
        tuple(for_students),
    )


def _alignment(words: Sequence[str], allow: Sequence[str]) -> str:
    """Choose the mix-in that aligns a network: by where it mixes the modalities."""
    config = configuration.load(words, allow=allow)
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    for name in ("net", "task"):
        if raw.get(name, "???") == "???":
            raise ConfigError(
                f"{name} has no value yet; name an experiment that sets it, as in: bts distill unet"
            )
    raw = raw["task"]
    if isinstance(raw, dict) and isinstance(raw.get("net"), dict):
        raise ConfigError(
            f"task.net of {' '.join(words)} is something around the network already; name the "
            "plain experiment, and what makes the aligned teacher of it with --align"
        )
    return "medmap" if configuration.build(config.net).fused_levels else "adaptor"


def _teacher(name: str, words: list[str], folder: Path, allow: Sequence[str]) -> Stage:
    config = configuration.load(words, allow=allow)
    config.data.availability = {"_target_": "bts_lightning.availability.Complete"}
    _score(config, [subset_name(COMPLETE)])
    _give_teacher(config, None)
    return Stage(name, folder / name, config)


def _student(
    words: list[str], subsets: list[str], students: Students, allow: Sequence[str]
) -> DictConfig:
    config = configuration.load(words, allow=allow)
    if students == "per_subset":
        config.data.availability = {"_target_": _place(Only), "subset": subsets[0]}
    elif config.data.availability._target_ == _place(Only):
        config.data.availability = {"_target_": _place(Uniform15)}
    _score(config, subsets)
    return config


def _score(config: DictConfig, subsets: list[str]) -> None:
    """Choose and score a network by what it is for."""
    config.evaluation.subsets = subsets
    overlays = (config.callbacks or {}).get("overlays")
    if overlays is not None and "subsets" not in overlays:
        overlays.subsets = subsets[:4]


def _give_teacher(config: DictConfig, run: Path | None, is_aligned: bool = False) -> None:
    """Train beside a teacher; a plain experiment becomes one that distils, with ProtoKD's terms."""
    task = find_class(config.task._target_, "task._target_")
    if not issubclass(task, DistillationTask):
        if run is None:
            return
        if task is not SegmentationTask:
            raise ConfigError(
                f"task={task.__name__} cannot have a teacher; derive it from DistillationTask"
            )
        config.task._target_ = "bts_lightning.distillation.DistillationTask"
    config.task.teacher = str(run) if run else None
    terms = config.task.get("terms")
    if run is not None and not is_aligned and terms and terms.get("anchor") is not None:
        # A teacher that was never aligned has no anchor to give.
        terms.anchor = None


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _check(stages: Sequence[Stage], allow: Sequence[str]) -> None:
    """Find what is wrong before the first training, which may take days."""
    for stage in stages:
        configuration.check(stage.config, allow=allow, supplied=configuration.SUPPLIED)
        # What failed before its first epoch, for want of data perhaps, may begin again otherwise.
        if runs.checkpoint_files(stage.run):
            tree = OmegaConf.to_container(stage.config, resolve=False)
            advice = "give this chain a name of its own with --name, or delete that folder"
            runs.refuse_another(runs.config_file(stage.run), tree, advice)
    teachers = {stage.name: stage.config.task for stage in stages if not stage.needs}
    tasks = {OmegaConf.to_yaml(s.config.task, resolve=True): s for s in stages}
    for stage in tasks.values():
        task = configuration.build(stage.config.task)
        terms = getattr(task, "terms", {}).values()  # a teacher has none
        for term in (term for term in terms if isinstance(term, AnchorTerm)):
            for name in stage.needs:
                _check_anchor(term, task.net, configuration.build(teachers[name]).net)


def _check_anchor(term: AnchorTerm, student: Backbone, teacher: Backbone) -> None:
    """Let the anchor's term compare features of a small image; the others fit any two networks."""
    step = 2 * lcm(student.divisor, teacher.divisor)
    size = (max(step, 16 // step * step),) * 3
    image = torch.zeros(1, len(MODALITIES), *size)
    complete = torch.ones(1, len(MODALITIES), dtype=torch.bool)
    try:
        own, theirs = (
            Answer(net, Output(image, features=net.eval().encode(image, complete)))
            for net in (student, teacher)
        )
    except ValueError:
        return  # one of them takes the size of its own patch alone
    term.check(own, theirs)
