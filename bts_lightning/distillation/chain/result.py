"""Write the result of a finished chain: joint tables, modality gaps, Markdown and HTML."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.distillation import Teacher
from bts_lightning.distillation.chain.claim import judge
from bts_lightning.distillation.chain.gap import Gap, measure_gaps
from bts_lightning.distillation.chain.joint import join_students
from bts_lightning.distillation.chain.pages import document, summary
from bts_lightning.distillation.chain.plan import ALIGNED_TEACHER, TEACHER, ChainPlan
from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.report.screen import Screen
from bts_lightning.report.table import EvaluationTable
from bts_lightning.runs.checkpoints import read_checkpoint


def write_result(plan: ChainPlan, part: str, device: torch.device, console: Screen) -> Path:
    """Compute everything again from the tables and checkpoints, and give the Markdown file."""
    check_teachers(plan)
    arms = {
        arm: join_students(students, plan.folder / arm, part) for arm, students in plan.arms.items()
    }
    teachers = {
        name: EvaluationTable.read(plan.folder / name / "evaluation" / part)
        for name in (TEACHER, ALIGNED_TEACHER)
    }
    gaps = {name: teacher_gaps(plan.folder / name, part, device) for name in teachers}
    claim = judge(arms, teachers, gaps)
    for said in summary(plan, claim):
        console.print(said)
    return document(plan, claim).write(plan.folder / "result").with_suffix(".md")


def check_teachers(plan: ChainPlan) -> None:
    """Refuse students of a teacher that has been trained again since."""
    names = (TEACHER, ALIGNED_TEACHER)
    now = {name: Teacher.of(plan.stage(name).run).sha256 for name in names}
    stale = [
        str(stage.run)
        for stage in plan.stages
        for name in stage.needs
        if _taught_by(stage.run) != now[name]
    ]
    if stale:
        raise UserError(
            f"the teacher of {', '.join(stale)} has been trained again since; delete these "
            "students, and the same command trains them beside the new one"
        )


def _taught_by(run: Path) -> str | None:
    teacher = read_checkpoint(runs.best_checkpoint(run)).get("teacher")
    return teacher["sha256"] if teacher else None


def teacher_gaps(run: Path, part: str, device: torch.device) -> dict[str, Gap]:
    """Measure the modality gap of a teacher on the complete cases of a part, once."""
    teacher = Teacher.of(run)
    file = run / "evaluation" / part / "modality_gap.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["checkpoint_sha256"] == teacher.sha256:
            return {place: Gap(**gap) for place, gap in kept["gaps"].items()}
    data = configuration.build(teacher.config.data)
    data.prepare_data()
    data.setup("test")
    cases = [data.cases[name] for name in getattr(data.split, part)]
    protocol = configuration.build(teacher.config.evaluation)
    gaps = measure_gaps(teacher.net, cases, protocol, device)
    content = {
        "checkpoint_sha256": teacher.sha256,
        "gaps": {place: asdict(gap) for place, gap in gaps.items()},
    }
    write_whole(file, json.dumps(content, indent=2) + "\n")
    return gaps
