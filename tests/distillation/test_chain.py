"""`bts distill`: plans, joint tables, the modality gap, the claim's numbers, and a whole chain."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bts_lightning import runs
from bts_lightning.__main__ import main
from bts_lightning.config.build import build
from bts_lightning.data.module import BratsDataModule
from bts_lightning.distillation import DistillationTask, Teacher
from bts_lightning.distillation.chain.claim import Verdict, judge
from bts_lightning.distillation.chain.gap import Gap, Moments, measure_gaps
from bts_lightning.distillation.chain.joint import join_students
from bts_lightning.distillation.chain.pages import document
from bts_lightning.distillation.chain.plan import ChainPlan, make_plan
from bts_lightning.distillation.chain.result import check_teachers
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.inference import Protocol
from bts_lightning.modalities import REGIONS
from bts_lightning.networks.adaptor import InputAdaptor
from bts_lightning.networks.rfnet import RFNet
from bts_lightning.networks.unet import UNet
from bts_lightning.report.table import KEYS, VALUES, EvaluationTable

COMPLETE = "t1+t1c+t2+flair"
TINY = [
    *["smoke", "net.width=4", "net.poolings=2", "net.width_limit=8", "data.patch=16"],
    *["data.steps_per_epoch=2", "trainer.max_epochs=1", "trainer.accelerator=cpu"],
    *["trainer.devices=1", "callbacks.overlays=null", "evaluation.window=48"],
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.RUN_VARIABLE, raising=False)


def plan(*words: str, subsets: Sequence[str] = ("flair", "t1c"), **options: Any) -> ChainPlan:
    return make_plan(words, folder=Path("distill/test"), subsets=subsets, **options)


# Plans


def test_a_chain_trains_two_teachers_and_three_students_for_each_subset() -> None:
    made = plan("kd_unet", *TINY)
    assert [stage.name for stage in made.stages] == [
        *["teacher", "aligned_teacher", "alone/flair", "taught/flair", "aligned/flair"],
        *["alone/t1c", "taught/t1c", "aligned/t1c"],
    ]
    for name in ("teacher", "aligned_teacher"):
        config = made.stage(name).config
        assert config.data.availability._target_.endswith("Complete")
        assert config.evaluation.subsets == [COMPLETE]
        assert config.task.teacher is None
    assert isinstance(build(made.stage("teacher").config.task).net, UNet)
    assert isinstance(build(made.stage("aligned_teacher").config.task).net, InputAdaptor)
    beside = {"alone": None, "taught": "teacher", "aligned": "aligned_teacher"}
    for arm, teacher in beside.items():
        stage = made.stage(f"{arm}/t1c")
        assert stage.needs == ((teacher,) if teacher else ())
        config = stage.config
        assert config.task.teacher == (f"distill/test/{teacher}" if teacher else None)
        assert config.data.availability.subset == "t1c"
        assert config.evaluation.subsets == ["t1c"]
        assert isinstance(build(config.task).net, UNet)


def test_late_fusion_is_aligned_by_medmap_and_one_student_serves_all() -> None:
    made = plan("kd_rfnet", "net.width=4", students="shared")
    assert [s.name for s in made.stages] == [
        *["teacher", "aligned_teacher", "alone/shared", "taught/shared", "aligned/shared"]
    ]
    assert made.align == ("medmap",)
    taught = made.stage("taught/shared")
    assert taught.config.data.availability._target_.endswith("Uniform15")
    assert taught.config.evaluation.subsets == ["flair", "t1c"]
    assert made.arms["taught"] == dict.fromkeys(("flair", "t1c"), taught.run)
    # The recipe of one modality would starve a student of all.
    single = plan("kd_unet", *TINY, students="shared").stage("alone/shared").config
    assert single.data.availability._target_.endswith("Uniform15")


def test_any_experiment_can_be_distilled() -> None:
    made = plan("unet", *TINY)
    assert made.stage("alone/t1c").config.task._target_ == "bts_lightning.task.SegmentationTask"
    task = build(made.stage("aligned/t1c").config.task)
    assert isinstance(task, DistillationTask)
    assert set(task.terms) == {"logits", "prototypes"}
    assert task.loss.channels == 3


def test_words_go_to_whom_they_are_for() -> None:
    made = plan(
        *["kd_unet", *TINY],
        align=["task.net.weight=0.5"],
        for_teachers=["trainer.max_epochs=7"],
        for_students=["kd_anchor", "adaptor"],
    )
    assert made.align == ("adaptor", "task.net.weight=0.5")
    assert build(made.stage("aligned_teacher").config.task).net.weight == 0.5
    epochs = {stage.name: stage.config.trainer.max_epochs for stage in made.stages}
    assert epochs["teacher"] == epochs["aligned_teacher"] == 7
    assert epochs["taught/t1c"] == 1
    assert isinstance(build(made.stage("alone/t1c").config.task).net, InputAdaptor)
    # Only an aligned teacher has an anchor.
    assert "anchor" in build(made.stage("aligned/t1c").config.task).terms
    assert "anchor" not in build(made.stage("taught/t1c").config.task).terms


def test_the_pull_alone_can_be_taken_away() -> None:
    made = plan("kd_unet", *TINY, align=["no_alignment"])
    assert made.align == plan("kd_unet", *TINY, align=["adaptor", "no_alignment"]).align
    net = build(made.stage("aligned_teacher").config.task).net
    assert isinstance(net, InputAdaptor)
    assert net.weight == 0


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"something around the network already.*--align"):
        plan("rfnet_medmap", "net.width=4")
    for word in ("nnunet", "base"):
        with pytest.raises(ConfigError, match="net has no value yet; name an experiment"):
            plan(word)
    with pytest.raises(ConfigError, match=r"did you mean net\.width"):
        plan("kd_unet", *TINY, "net.widht=4")
    with pytest.raises(ConfigError, match="needs no input adaptor"):
        plan("kd_rfnet", "net.width=4", align=["adaptor"])
    with pytest.raises(ConfigError, match="reads 4 channels"):
        plan("kd_unet", *TINY, for_students=["net.out_channels=3"])
    # Two teachers and two students would have been trained before this one cannot.
    with pytest.raises(ConfigError, match=r"student UNet has no features.*mix-in adaptor"):
        plan("kd_unet", "kd_anchor", *TINY)
    with pytest.raises(ConfigError, match="train both with the same widths"):
        plan("kd_rfnet", "kd_anchor", "net.width=4", for_students=["net.width=8"])


def test_another_recipe_needs_another_name() -> None:
    first = plan("kd_unet", *TINY).stage("taught/t1c")
    runs.save_config(first.run, first.config)
    plan("kd_unet", *TINY, "net.width=6")  # nothing has been learnt yet
    (first.run / "checkpoints").mkdir()
    (first.run / "checkpoints" / "epoch_0000.ckpt").touch()
    plan("kd_unet", *TINY)
    with pytest.raises(UserError, match=r"t1c began with net\.width=4, now it is 6; .*--name"):
        plan("kd_unet", *TINY, "net.width=6")


@pytest.mark.slow  # a student is planned for each mistake
def test_the_command_line_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in {
        (): "name an experiment, as in: bts distill kd_unet",
        ("kd_unet", "--subsets", "t1,t9"): "unknown modality 't9'",
        ("kd_unet", "--student", "shared"): "unknown option --student",
        ("kd_unet", "--agents", "0"): "--agents is 0; give 1 or more",
        ("kd_unet", "--device", "cuda"): "--device=cuda, but torch",
        ("kd_unot",): "did you mean kd_unet?",
        ("kd_unet", "data.root=nowhere"): "data.root is nowhere, which does not exist",
    }.items():
        if "cuda" in words and torch.cuda.is_available():
            continue
        assert main(["distill", *words]) == 2
        printed = capsys.readouterr().err.strip()
        assert line in printed
        assert len(printed.splitlines()) == 1
    assert main(["distill", "kd_unet", "--plan", "--subsets", "all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + 3 * 15
    # One student for all is scored on all.
    for students, subsets in {"shared": 15, "per_subset": 4}.items():
        assert main(["distill", "kd_unet", "--plan", "--students", students]) == 0
        assert capsys.readouterr().out.splitlines()[0].count(",") == subsets - 1
    assert not Path("distill").exists()


# The modality gap


def gap_of(*modalities: torch.Tensor) -> Gap:
    moments = Moments()
    x = torch.stack(modalities)  # M C V
    for part in x.split(100, dim=2):
        moments.add(part)
    return moments.gap()


def noise(seed: int, voxels: int = 20_000) -> torch.Tensor:
    return torch.randn(3, voxels, generator=torch.Generator().manual_seed(seed))


def test_equal_modalities_have_no_gap_and_unrelated_ones_a_distance_of_one() -> None:
    x = noise(0)
    same = gap_of(x, x, x, x)
    assert same.distance == pytest.approx(0, abs=1e-9)
    assert same.frechet == pytest.approx(0, abs=1e-9)
    unrelated = gap_of(*(noise(seed) for seed in range(4)))
    assert unrelated.distance == pytest.approx(1, abs=0.03)
    assert unrelated.frechet == pytest.approx(0, abs=0.01)


def test_a_shift_is_measured_in_the_spread_of_all() -> None:
    x = noise(0)
    # Two modalities at -1 and two at +1: variance 1 + 1; four of six pairs are 2 apart.
    found = gap_of(x - 1, x - 1, x + 1, x + 1)
    assert found.distance == pytest.approx(4 / 6 * 4 / (2 * 2), rel=0.02)
    assert found.frechet == pytest.approx(4 / 6 * 4 / 2, rel=0.02)
    # Where nothing but the modality decides, the distance is at its largest.
    assert gap_of(x - 1e3, x - 1e3, x + 1e3, x + 1e3).distance == pytest.approx(4 / 3, rel=1e-3)


def test_a_wider_distribution_is_a_gap_too() -> None:
    x = noise(0)
    # Standard deviations 1, 1, 3, 3 of mean variance 5: four of six pairs differ by 2.
    assert gap_of(x, x, 3 * x, 3 * x).frechet == pytest.approx(4 / 6 * 4 / 5, rel=0.02)


def test_features_that_shrink_come_no_closer() -> None:
    parts = [noise(seed) + seed for seed in range(4)]
    plain, small = gap_of(*parts), gap_of(*(1e-3 * part for part in parts))
    assert small.distance == pytest.approx(plain.distance)
    assert small.frechet == pytest.approx(plain.frechet)


def test_a_dead_channel_is_left_out() -> None:
    parts = [torch.cat([noise(seed), torch.full((1, 20_000), 0.7)]) for seed in range(4)]
    assert gap_of(*parts).distance == pytest.approx(1, abs=0.03)
    assert gap_of(*(torch.zeros(2, 10),) * 4) == Gap(0.0, 0.0)


@pytest.mark.slow
def test_every_kind_of_teacher_has_its_places(phantom: Path) -> None:
    data = BratsDataModule(phantom)
    data.prepare_data()
    data.setup("test")
    cases = [data.cases[name] for name in data.split.test]
    torch.manual_seed(0)
    early = UNet(width=4, poolings=2)
    nets = {
        "early": (early, {"images", "head"}),
        "adapted": (InputAdaptor(early), {"images", "level 0", "head"}),
        "late": (RFNet(width=4), {"images", "head", *(f"level {i}" for i in range(4))}),
    }
    found = {
        name: measure_gaps(net, cases, Protocol(window=48), torch.device("cpu"))
        for name, (net, _) in nets.items()
    }
    assert {name: set(gaps) for name, gaps in found.items()} == {n: p for n, (_, p) in nets.items()}
    images = {gaps["images"] for gaps in found.values()}
    assert len(images) == 1, "what the data have is no matter of the network"
    # Images are normalised one by one, so their distributions agree and their values do not.
    assert images.pop().distance > 0.5


# Joint tables


def rows(cases: Sequence[str], subsets: Sequence[str], dice: Any) -> pd.DataFrame:
    """Make a table of Dice values given by case, subset and region."""
    return pd.DataFrame(
        [
            dict.fromkeys((*KEYS, *VALUES), 1.0)
            | {"case": c, "subset": s, "region": r, "dice": dice(c, s, r)}
            for c in cases
            for s in subsets
            for r in REGIONS
        ]
    )


def write_evaluation(run: Path, table: pd.DataFrame, **facts: Any) -> None:
    folder = run / "evaluation" / "test"
    folder.mkdir(parents=True)
    table.to_csv(folder / "cases.csv", index=False)
    common = {"window": [48, 48, 48], "hd95": "pooled", "empty": "brats", "cases": 2}
    protocol = {"run": str(run), "checkpoint_sha256": run.name, "experiment": "x"}
    (folder / "protocol.json").write_text(json.dumps(common | protocol | facts))


def test_each_subset_of_a_joint_table_comes_from_its_own_student() -> None:
    students = {name: Path("alone/students") / name for name in ("flair", "t1c")}
    for number, run in enumerate(students.values()):
        # Each was scored on both; what it says about the other's subset must not be taken.
        write_evaluation(run, rows(["a", "b"], list(students), lambda *_, n=number: 0.5 + n / 4))
    joined = join_students(students, Path("alone"), "test")
    assert joined.subsets == ("flair", "t1c")
    assert joined.grid("dice")[:, 0].tolist() == [[0.5] * 3] * 2
    assert joined.grid("dice")[:, 1].tolist() == [[0.75] * 3] * 2
    folder = Path("alone/evaluation/test")
    assert json.loads((folder / "protocol.json").read_text())["students"] == {
        "flair": "flair",
        "t1c": "t1c",
    }
    assert (folder / "report.html").stat().st_size > 10_000
    assert EvaluationTable.read(folder).rows.equals(joined.rows)


def test_a_shared_student_fills_the_table_of_its_arm() -> None:
    run = Path("alone/students/shared")
    table = rows(["a", "b"], ["flair", "t1c"], lambda c, s, _: (c == "a") / 2 + (s == "t1c") / 4)
    write_evaluation(run, table)
    joined = join_students(dict.fromkeys(("flair", "t1c"), run), Path("alone"), "test")
    assert (joined.grid("dice") == EvaluationTable.from_rows(table).grid("dice")).all()


def test_students_that_were_scored_differently_are_not_joined() -> None:
    students = {name: Path("alone/students") / name for name in ("flair", "t1c")}
    for name, run in students.items():
        overlap = 0.5 if name == "flair" else 0.25
        write_evaluation(run, rows(["a"], [name], lambda *_: 0.5), overlap=overlap)
    with pytest.raises(UserError, match="for flair and t1c were evaluated with another overlap"):
        join_students(students, Path("alone"), "test")


# The claim


def claim(cases: int = 8, aligned: float = 0.02, scans: int = 1) -> Verdict:
    """Let the teacher give nothing and the aligned one the same to each case."""
    names = [f"case{i}" for i in range(cases)]
    patients = {name: f"p{i // scans}" for i, name in enumerate(names)}

    def dice(arm: str) -> EvaluationTable:
        gain = {"alone": 0.0, "taught": 0.0, "aligned": aligned}[arm]

        def value(case: str, subset: str, region: str) -> float:
            return 0.5 + gain * (2 if subset == "t1c" else 1) + int(case[4:]) / 100

        made = rows(names, ["flair", "t1c"], value)
        return EvaluationTable.from_rows(made.assign(patient=made["case"].map(patients)))

    teacher = EvaluationTable.from_rows(rows(names, [COMPLETE], lambda *_: 0.9))
    arms = {arm: dice(arm) for arm in ("alone", "taught", "aligned")}
    return judge(arms, {"teacher": teacher}, {"teacher": {"images": Gap(1.0, 0.25)}})


def test_gains_are_paired_differences_in_points() -> None:
    taught, aligned, more = claim().pairs
    assert (taught.mean.mean, taught.mean.p) == (0, 1)
    assert [gain.mean for gain in aligned.subsets] == pytest.approx([2, 4])
    # The same in each case: an interval of no width, and the smallest p that eight cases can give.
    assert (aligned.mean.mean, aligned.mean.low, aligned.mean.high) == pytest.approx((3, 3, 3))
    assert aligned.mean.p == pytest.approx(3 * 2 / 2**8)
    assert aligned.subsets[0].p == pytest.approx(6 * 2 / 2**8)
    assert more.mean.mean == pytest.approx(3)
    assert claim().teachers["teacher"].tolist() == pytest.approx([90, 90, 90])


def test_scans_of_a_patient_are_one_pair() -> None:
    aligned = claim(cases=32, scans=4).pairs[1]
    assert aligned.mean.p == pytest.approx(3 * 2 / 2**8)
    assert aligned.subsets[0].p == pytest.approx(6 * 2 / 2**8)
    text = document(plan("kd_unet", *TINY), claim(cases=32, scans=4)).markdown()
    assert "32 cases of 8 patients; 2 subsets" in text


def test_arms_of_other_cases_are_not_compared() -> None:
    tables = [EvaluationTable.from_rows(rows([c], ["t1c"], lambda *_: 0.5)) for c in "ab"]
    with pytest.raises(UserError, match="scored on other cases"):
        judge({"alone": tables[0], "taught": tables[1], "aligned": tables[0]}, {}, {})


def test_the_page_says_what_came_out_whichever_way() -> None:
    made = plan("kd_unet", *TINY)
    text = document(made, claim()).markdown()
    assert "+ aligned teacher against alone: +3.00* [3.00, 3.00] points" in text
    assert "(p 0.023), more than the choice of cases can explain" in text
    assert "(p 1.000), no more than the choice of cases can explain" in text
    assert "\n- + " not in text, "a list in the list, whose plus a page swallows"
    assert "+ teacher against alone: +0.00 [0.00, 0.00] points" in text
    assert "| ○ ● ○ ○ | +0.00 [0.00, 0.00] | 1.000 | +4.00* [4.00, 4.00] | 0.047 |" in text
    assert "| images | 1.000 | 0.250 |" in text
    assert "| mean: alone | mean: + teacher | mean: + aligned teacher | WT: alone |" in text
    worse = document(made, claim(cases=3, aligned=-0.02)).markdown()
    assert "−3.00 [−3.00, −3.00] points of mean Dice over the subsets (p 0.750)" in worse
    assert "which 3 patients cannot tell from chance" in worse
    assert "With 3 patients no cell can reach p < 0.05" in worse
    assert "that takes at least 8." in worse
    page = document(made, claim()).html()
    assert page.count("<table>") == 4
    longer = plan("kd_unet", *TINY, for_teachers=["trainer.max_epochs=7"], for_students=["seed=3"])
    words = "with adaptor; teachers with trainer.max_epochs=7; students with seed=3. kd_unet"
    assert words in document(longer, claim()).markdown()
    assert "teachers with" not in text
    assert "<script" not in page


# The whole chain


def test_students_of_a_teacher_that_was_trained_again_make_no_table() -> None:
    made = plan("kd_unet", *TINY, subsets=["t1c"])
    for stage in made.stages:
        runs.save_config(stage.run, stage.config)
        task = build(stage.config.task)
        content: dict[str, Any] = {"state_dict": task.state_dict()}
        if stage.needs:
            teacher = Teacher.of(made.stage(stage.needs[0]).run)
            content["teacher"] = {"run": str(teacher.run), "sha256": teacher.sha256}
        (stage.run / "checkpoints").mkdir()
        torch.save(content, stage.run / "checkpoints" / "best.ckpt")
    check_teachers(made)
    again = made.stage("aligned_teacher").run / "checkpoints" / "best.ckpt"
    torch.save({**torch.load(again), "epoch": 1}, again)
    with pytest.raises(UserError, match=r"^the teacher of distill/test/aligned/students/t1c has"):
        check_teachers(made)


@pytest.mark.slow
def test_a_chain_is_killed_goes_on_and_ends_in_the_table(phantom: Path) -> None:
    words = ["kd_unet", *TINY, f"data.root={phantom}", "--subsets", "t1c"]
    command = [sys.executable, "-m", "bts_lightning", "distill", *words]
    folder = Path("distill/kd_unet+smoke")
    with Path("first.log").open("w") as log:
        chain = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: (folder / "teacher" / "evaluation/test/cases.csv").exists())
        until(lambda: (folder / "aligned_teacher" / "worker.json").exists())
    os.kill(chain.pid, signal.SIGKILL)
    chain.wait()
    trained = (folder / "teacher" / "trained.txt").stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "1 of 5 stages are done already" in again.stdout
    assert (folder / "teacher" / "trained.txt").stat().st_mtime_ns == trained
    assert "points of mean Dice over the subsets" in again.stdout
    text = (folder / "result.md").read_text()
    assert "| ○ ● ○ ○ |" in text
    assert "level 0" in text
    assert EvaluationTable.read(folder / "aligned/evaluation/test").subsets == ("t1c",)
    third = subprocess.run(command, capture_output=True, text=True)
    assert "5 of 5 stages are done already" in third.stdout
    assert (folder / "result.md").read_text() == text
    assert main(["compare", str(folder / "alone"), str(folder / "aligned")]) == 0


@pytest.mark.slow
def test_a_stage_that_fails_is_named_with_its_reason(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kd_unet", *TINY, f"data.root={phantom}", "data.split=fold 9 of 9"]
    assert main(["distill", *words, "--subsets", "t1c"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: teacher could not be trained: ")
    assert line.endswith("teacher/output.log; the same command goes on")


def until(holds: Any, seconds: float = 300) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        time.sleep(0.2)
