"""The terms by hand, the frozen teacher, and what a student's training refuses."""

import copy
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from bts_lightning import config, runs
from bts_lightning.__main__ import main
from bts_lightning.data.cached_case import CachedCase
from bts_lightning.data.module import BratsDataModule
from bts_lightning.data.splits import PARTS, Split
from bts_lightning.distillation import (
    AnchorTerm,
    DistillationTask,
    LogitTerm,
    PrototypeTerm,
    Teacher,
    Term,
)
from bts_lightning.distillation.answer import Answer, HeadWatch
from bts_lightning.distillation.terms import neighbourhood, similarities
from bts_lightning.errors import ConfigError
from bts_lightning.losses import LabelLoss, RegionLoss, SegmentationLoss
from bts_lightning.networks.adaptor import InputAdaptor
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.medmap import MedMAP
from bts_lightning.networks.rfnet import RFNet
from bts_lightning.networks.unet import UNet

LOSSES = [RegionLoss(), LabelLoss()]
COMPLETE = torch.ones(2, 4, dtype=torch.bool)


def answer(
    logits: Tensor | None = None, embedding: Tensor | None = None, net: Backbone | None = None
) -> Answer:
    """Make an answer of what a test is about."""
    nothing = torch.zeros(1, 1, 1, 1, 1)
    features = Features((), (), COMPLETE)
    return Answer(
        nothing if logits is None else logits, embedding, features, net or UNet(**UNet.small())
    )


def random_label(*shape: int) -> Tensor:
    return torch.randint(4, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


# Terms


def test_divergence_of_labels_is_what_a_calculator_says() -> None:
    # One voxel, logits scaled by T = 2: the teacher says ½, ½, 0, 0 and the student ¼ each.
    far = -2000.0
    teacher = torch.tensor([0.0, 0.0, far, far]).view(1, 4, 1, 1, 1)
    student = torch.zeros(1, 4, 1, 1, 1)
    label = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    term = LogitTerm(temperature=2)
    found = term(answer(student), answer(teacher), label, LabelLoss())
    # Two classes with ½ log(½ / ¼), two with 0, averaged over the four.
    assert found.item() == pytest.approx(2 * 0.5 * math.log(2) / 4)


def test_temperature_softens_before_the_comparison() -> None:
    teacher = torch.tensor([2 * math.log(3), 0.0, 0.0, 0.0]).view(1, 4, 1, 1, 1)
    student = torch.zeros(1, 4, 1, 1, 1)
    label = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    # At T = 2 the teacher says ½, 1/6, 1/6, 1/6.
    by_hand = (0.5 * math.log(2) + 3 / 6 * math.log(2 / 3)) / 4
    plain = LogitTerm(temperature=2)(answer(student), answer(teacher), label, LabelLoss())
    assert plain.item() == pytest.approx(by_hand)
    scaled = LogitTerm(temperature=2, scale_by_t2=True)
    found = scaled(answer(student), answer(teacher), label, LabelLoss())
    assert found.item() == pytest.approx(4 * by_hand)


def test_divergence_of_regions_is_that_of_coins() -> None:
    teacher = torch.tensor([math.log(3), 0.0, 0.0]).view(1, 3, 1, 1, 1)  # ¾, ½, ½
    student = torch.zeros(1, 3, 1, 1, 1)  # ½ each
    label = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    found = LogitTerm(temperature=1)(answer(student), answer(teacher), label, RegionLoss())
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found.item() == pytest.approx(by_hand / 3)


def test_near_the_tumour_only_its_neighbourhood_counts() -> None:
    label = torch.zeros(2, 9, 9, 9, dtype=torch.uint8)
    label[0, 4, 4, 4] = 2
    near = neighbourhood(label, margin=2)
    assert near[0].sum() == 5**3
    assert not near[1].any()
    teacher, student = torch.zeros(2, 3, 9, 9, 9), torch.zeros(2, 3, 9, 9, 9)
    teacher[:, :, 0, 0, 0] = 50.0  # far away from the tumour
    term = LogitTerm(temperature=1, where="tumour", margin=2)
    assert term(answer(student), answer(teacher), label, RegionLoss()).tolist() == [0, 0]
    teacher[:, :, 4, 4, 5] = 50.0  # beside it: one of 125 voxels is sure, log 2 away from ½
    found = term(answer(student), answer(teacher), label, RegionLoss())
    assert found.tolist() == pytest.approx([math.log(2) / 125, 0])


def test_prototypes_are_what_a_calculator_says() -> None:
    # Four voxels in two dimensions: two of label 0 along x, one of 1 along y, one of 1 along x.
    label = torch.tensor([0, 0, 1, 1], dtype=torch.uint8).view(1, 4, 1, 1)
    teacher = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 0.0, 3.0, 0.0]]).view(1, 2, 4, 1, 1)
    cosines, shown = similarities(teacher, label)
    assert shown.tolist() == [[True, True, False, False]]
    half = math.sqrt(0.5)
    torch.testing.assert_close(cosines[0, 0], torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(cosines[0, 1], torch.full((4,), half))
    # The student has one feature, equal everywhere: all its cosines are 1.
    student = torch.full((1, 1, 4, 1, 1), 0.3)
    term = PrototypeTerm()
    found = term(answer(embedding=student), answer(embedding=teacher), label, LabelLoss())
    assert found.item() == pytest.approx((1 / 4 + (1 - half) ** 2) / 2)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("term", [LogitTerm(), LogitTerm(where="tumour"), PrototypeTerm()])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(
    term: Term, loss: SegmentationLoss
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, loss.channels, 8, 8, 8, requires_grad=True)
    embedding = torch.randn(2, 5, 8, 8, 8, requires_grad=True)
    frozen = answer(logits.detach(), embedding.detach())
    value = term(answer(logits, embedding), frozen, random_label(2, 8, 8, 8), loss)
    assert value.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(value.sum(), embedding if term.reads_embedding else logits)
    assert gradient.abs().max() < 1e-6


def test_the_anchor_term_is_half_the_mean_square_over_what_is_present() -> None:
    teacher = MedMAP(RFNet(width=4), levels="finest").eval()
    student = RFNet(width=4)
    shape = (1, 4, 4, 2, 2, 2)
    seen = torch.tensor([[True, True, False, False]])
    theirs = Features((torch.full(shape, 3.0),) * 4, (torch.ones_like(seen),) * 4, seen)
    own = torch.zeros(shape)
    own[:, 1] = 2.0
    own[:, 2:] = math.nan  # absent
    ours = Features((own,) * 4, (seen,) * 4, seen)
    nothing = torch.zeros(1, 3, 2, 2, 2)
    pair = Answer(nothing, None, ours, student), Answer(nothing, None, theirs, teacher)
    term = AnchorTerm()
    term.check(*pair)
    found = term(*pair, torch.zeros(1, 2, 2, 2, dtype=torch.uint8), LabelLoss())
    assert found.tolist() == [0.5 * (3**2 + 1**2) / 2]


def test_an_anchor_needs_a_teacher_that_has_one_and_a_student_that_can_follow() -> None:
    image = torch.randn(2, 4, 16, 16, 16)
    nets = [
        UNet(**UNet.small()),
        InputAdaptor(UNet(**UNet.small())),
        RFNet(width=4),
        MedMAP(RFNet(width=4)),
        MedMAP(RFNet(width=8)),
    ]
    early, adapted, late, aligned, wide = (
        Answer(out.logits, None, out.features, net)
        for net in nets
        for out in [net.eval()(image, COMPLETE)]
        if out.features is not None
    )
    term = AnchorTerm()
    for student, teacher in ((late, aligned), (adapted, adapted)):
        term.check(student, teacher)
    with pytest.raises(ConfigError, match=r"teacher RFNet has no anchor.*medmap"):
        term.check(late, late)
    with pytest.raises(ConfigError, match=r"student UNet has no features.*mix-in adaptor"):
        term.check(early, adapted)
    with pytest.raises(ConfigError, match=r"shape \(4, 16, 16, 16\), the teacher's anchor \(8, "):
        term.check(late, wide)


# What the head reads


def every_network() -> list[Any]:
    folder = Path(__file__).parents[1] / "experiments"
    nodes = {path.stem: config.load([str(path)]).get("net") for path in folder.glob("*.yaml")}
    nodes = {n: node for n, node in nodes.items() if OmegaConf.is_dict(node) and "_target_" in node}
    return [pytest.param(node, id=name) for name, node in sorted(nodes.items())]


@pytest.mark.parametrize("node", every_network())
@pytest.mark.parametrize("training", [True, False])
def test_the_head_of_every_network_is_found(node: Any, training: bool) -> None:
    from bts_lightning.targets import find_class

    small = find_class(node._target_, "net").small()
    net: Backbone = config.build(OmegaConf.merge(node, small)).train(training)
    size = max(16, 2 * net.divisor, small.get("patch", 0))
    image = torch.randn(2, 4, size, size, size)
    watch = HeadWatch(net)
    watch.watch(image, COMPLETE)
    assert all(module.training == training for module in net.modules())
    read = watch.take(net(image, COMPLETE))
    assert read.shape[0] == 2
    assert read.shape[2:] == image.shape[2:]
    # Nobody asked: nothing is kept.
    net(image, COMPLETE)
    assert not watch._caught


# The task


def distilling(
    teacher: Backbone | None = None, student: Backbone | None = None, **settings: Any
) -> DistillationTask:
    """Make a task whose teacher needs no run."""
    torch.manual_seed(0)
    student = student or UNet(width=4, poolings=2, deep_supervision=False)
    task = DistillationTask(
        student,
        teacher=None,
        loss=RegionLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        **settings,
    )
    net = teacher or UNet(width=6, poolings=2)
    task.teacher = Teacher(Path("teacher"), net, RegionLoss(), OmegaConf.create(), "sum")
    task.log = lambda *_, **__: None
    task.log_dict = lambda *_, **__: None
    return task


def batch(available: Tensor = COMPLETE, present: Tensor | None = None) -> dict[str, Any]:
    size = 16
    draw = torch.Generator().manual_seed(3)
    if present is None:
        present = torch.tensor([[True, False, False, False], [False, False, True, True]])
    return {
        "image": torch.randn(2, 4, size, size, size, generator=draw),
        "label": random_label(2, size, size, size),
        "present": present,
        "available": available,
        "case": ["a", "b"],
    }


def test_the_teacher_gets_no_gradient_and_does_not_change() -> None:
    teacher = InputAdaptor(
        UNet(width=4, poolings=2)
    )  # batch normalisation would change in training
    task = distilling(teacher)
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD((p for p in task.parameters() if p.requires_grad), lr=0.1)
    task.train()
    for _ in range(2):
        optimizer.zero_grad()
        task.training_step(batch(), 0).backward()
        optimizer.step()
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is not None for p in task.net.parameters())


def test_the_teacher_is_no_part_of_the_task() -> None:
    task = distilling()
    assert task.teacher is not None
    theirs = {id(p) for p in task.teacher.net.parameters()}
    assert not theirs & {id(p) for p in task.parameters()}
    assert set(task.state_dict()) == {f"net.{name}" for name in task.net.state_dict()}
    averaged = torch.optim.swa_utils.AveragedModel(task)
    assert averaged.module.teacher is task.teacher
    assert len(list(averaged.parameters())) == len(list(task.net.parameters()))


def test_the_teacher_follows_to_another_precision() -> None:
    task = distilling().double()
    assert task.teacher is not None
    assert all(p.dtype == torch.float64 for p in task.teacher.net.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_what_a_case_does_not_have_changes_nothing(value: float) -> None:
    present = torch.tensor([[True, False, False, False], [False, False, True, True]])
    available = torch.tensor([[True, True, True, True], [False, True, True, True]])
    found = []
    for filling in (0.0, value):
        torch.manual_seed(5)
        task = distilling(InputAdaptor(UNet(width=4, poolings=2))).train()
        data = batch(available, present)
        data["image"][1, 0] = filling
        total = task.training_step(data, 0)
        total.backward()
        found.append([total.detach(), *(p.grad for p in task.net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_a_student_does_not_see_reaches_it_through_the_teacher_only() -> None:
    found = []
    for filling in (0.0, math.nan):
        task = distilling().train()
        data = batch()
        data["image"][0, 1] = filling  # the case has it, the student's subset does not
        found.append(task._step(data))
    clean, spoilt = found
    assert torch.equal(clean["main"], spoilt["main"])
    assert spoilt["distillation/logits"].isnan()


def test_incomplete_cases_are_not_distilled_and_counted() -> None:
    task = distilling().train()
    logged: dict[str, float] = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    available = COMPLETE.clone()
    available[0, 3] = False
    mixed = task._step(batch(available))
    assert logged["train/distilled_share"] == 0.5
    alone = {name: value[1:] for name, value in batch().items()}
    # A sample weighs the same whatever stands beside it, as on ranks of their own.
    term = "distillation/logits"
    torch.testing.assert_close(mixed[term], task._step(alone)[term] / 2)
    nobody = task._step(batch(~torch.eye(4, dtype=torch.bool)[:2]))
    assert nobody["distillation/logits"] == 0
    assert logged["train/distilled_share"] == 0
    assert nobody["distillation/prototypes"].requires_grad, "every rank needs each gradient"


def test_a_second_look_at_dense_maps_is_no_step_of_batch_normalisation() -> None:
    student = InputAdaptor(UNet(width=4, poolings=2), mixing="dense")
    teacher = InputAdaptor(UNet(width=4, poolings=2), mixing="dense")
    task = distilling(teacher, student, terms={"anchor": AnchorTerm()}).train()
    task._step(batch())["distillation/anchor"].backward()
    looks = [value for name, value in student.adapt.named_buffers() if "batches" in name]
    assert [int(count) for count in looks] == [1, 1], "the look that checks shapes counts nothing"
    assert all(p.grad is not None for p in student.adapt.parameters())


def test_terms_have_weights_and_switches() -> None:
    def terms(**chosen: Term | None) -> dict[str, Tensor]:
        return distilling(terms=chosen).train()._step(batch())

    single = terms(logits=LogitTerm(weight=1), prototypes=None)
    assert set(single) == {"main", "distillation/logits"}
    triple = terms(logits=LogitTerm(weight=3), prototypes=PrototypeTerm(weight=0))
    torch.testing.assert_close(triple["distillation/logits"], 3 * single["distillation/logits"])
    assert triple["distillation/prototypes"] == 0
    late = distilling(main_loss_from_epoch=5).train()._step(batch())
    assert late["main"] == late["distillation/logits"] == late["distillation/prototypes"] == 0
    with pytest.raises(ConfigError, match="nothing to learn"):
        DistillationTask(
            UNet(**UNet.small()),
            teacher="somewhere",
            terms={"logits": None},
            loss=RegionLoss(),
            optimizer=partial(torch.optim.SGD, lr=0.1),
        )


def test_a_compiled_student_gives_the_same_terms() -> None:
    plain = distilling().train()._step(batch()), distilling().train()
    task = plain[1]
    task.net.compile(backend="eager")
    assert task.teacher is not None
    task.teacher.net.compile(backend="eager")
    compiled = task._step(batch())
    torch._dynamo.reset()
    for name, value in plain[0].items():
        torch.testing.assert_close(compiled[name], value)


# Training with a run as teacher

TINY = [
    *["kd_unet", "smoke", "net.width=4", "net.poolings=2", "net.width_limit=8"],
    *["data.patch=16", "data.steps_per_epoch=2", "trainer.max_epochs=1", "trainer.devices=1"],
    *["trainer.accelerator=cpu", "trainer.deterministic=true", "callbacks.overlays=null"],
    *["evaluation.window=32", "evaluation.overlap=0"],
]
TEACH = ["no_distillation", "data.availability.subset=t1+t1c+t2+flair"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BTS_RUN", "SLURM_JOB_ID", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def teacher(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a teacher with an adaptor for one epoch."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(runs.RUN_VARIABLE, str(folder))
        words = [*TINY, "adaptor", *TEACH, f"data.root={phantom}"]
        assert main(["train", *words]) == 0
    return folder


def train(*words: str) -> int:
    runs.os.environ.pop(runs.RUN_VARIABLE, None)
    return main(["train", *words])


def the_run() -> Path:
    (found,) = Path("runs").glob("*/*/config.yaml")
    return found.parent


def test_a_student_trains_stops_and_resumes_with_its_teacher(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={phantom}", f"task.teacher={teacher}", "kd_anchor", "adaptor"]
    assert train(*words, "trainer.max_epochs=2") == 0, capsys.readouterr().err
    straight = the_run().rename("straight")
    assert train(*words) == 0
    run = the_run()
    assert train(str(run), "trainer.max_epochs=2") == 0, capsys.readouterr().err
    last = [runs.read_checkpoint(max((r / "checkpoints").glob("epoch_*"))) for r in (straight, run)]
    assert all("teacher" not in name for name in last[0]["state_dict"])
    assert last[1]["teacher"]["run"] == str(teacher)
    assert all(torch.equal(v, last[1]["state_dict"][n]) for n, v in last[0]["state_dict"].items())
    curves = (run / "logs" / "metrics.csv").read_text()
    for name in ("distillation/logits", "distillation/prototypes", "distillation/anchor"):
        assert f"train/{name}" in curves
    assert "train/distilled_share,1" in curves


def test_a_student_is_evaluated_without_its_teacher(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = teacher.rename(teacher.with_name("lent"))
    try:
        assert train(*TINY, f"data.root={phantom}", f"task.teacher={teacher}") == 0
    finally:
        teacher = teacher.rename(teacher.with_name("run"))
    run = the_run()
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0, capsys.readouterr().err
    assert (run / "evaluation" / "test" / "cases.csv").is_file()
    assert train(str(run), "trainer.max_epochs=2") == 2
    assert "lent is not a run" in capsys.readouterr().err


def test_another_teacher_than_at_the_start_is_refused(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}", f"task.teacher={teacher}") == 0
    run = the_run()
    assert train(str(run), "trainer.max_epochs=2", "no_distillation") == 2
    assert f"began with the weights of {teacher}" in capsys.readouterr().err


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert train(*words) == 2
    *progress, line = capsys.readouterr().err.strip().splitlines()
    assert all(said.startswith("Preparing") for said in progress)
    assert line.startswith("error: ")
    assert not list(Path().glob("runs/*/*/checkpoints/*")), "nothing was trained"
    return line


def test_a_missing_or_foreign_teacher_is_one_line(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={phantom}"]
    assert "task.teacher has no value yet" in refused(words, capsys)
    line = refused([*words, "task.teacher=runs/nowhere"], capsys)
    assert "teacher runs/nowhere is not a run: it has no config.yaml; train one first" in line
    untrained = Path("untrained")
    runs.save_config(untrained, config.load([str(runs.config_file(teacher))]))
    line = refused([*words, f"task.teacher={untrained}"], capsys)
    assert "has no checkpoint" in line
    other = [*words, f"task.teacher={teacher}", "net.out_channels=3"]
    region = ["task.loss._target_=bts_lightning.losses.RegionLoss"]
    line = refused([*other, *region], capsys)
    assert "trained with LabelLoss on 4 channels, the student has RegionLoss on 3" in line
    line = refused([*words, f"task.teacher={teacher}", "data.normalisation=legacy_rfnet"], capsys)
    assert "saw data.normalisation=zscore, the student has legacy_rfnet" in line


@pytest.mark.parametrize(
    ("theirs", "ours", "line"),
    [
        ("train", "test", "trained on 1 of the student's 1 test cases"),
        ("train", "val", "trained on 1 of the student's 1 val cases"),
        ("val", "test", "was chosen by its score on 1 of the student's 1 test cases"),
    ],
)
def test_a_teacher_that_saw_what_scores_the_student_is_refused(
    theirs: str,
    ours: str,
    line: str,
    teacher: Path,
    phantom: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    split = Split.load(teacher / "split.json")
    names = [*split.train, *split.val, *split.test]
    leaked = getattr(split, theirs)[0]
    rest = [name for name in split.train if name != leaked]
    own = {"train": rest[:3], "val": split.val, "test": split.test}
    if theirs == "val":
        own["val"] = [name for name in split.test if name != leaked][:1]
    own[ours] = [leaked]
    used = [name for part in own.values() for name in part]
    assert len(set(used)) == len(used) <= len(names)
    lists = {part: Path(f"{part}.txt") for part in own}
    for part, file in lists.items():
        file.write_text("\n".join(own[part]))
    words = [f"data.split.{part}={file}" for part, file in lists.items()]
    found = refused([*TINY, f"data.root={phantom}", f"task.teacher={teacher}", *words], capsys)
    assert line in found
    assert f"such as {leaked}; give the student the teacher's split, data.split=" in found


def scans(root: Path, *names: str) -> BratsDataModule:
    """Describe cases of patients who came back, without a voxel."""
    data = BratsDataModule(root, split="random")
    for name in names:
        case = CachedCase(root / name)
        case.folder.mkdir(parents=True)
        told = {"name": name, "patient": name[:-4], "volumes_ml": {"WT": 1}}
        (case.folder / "case.json").write_text(json.dumps(told))
        data.cases[name] = case
    return data


@pytest.mark.parametrize(("seen", "is_refused"), [("BraTS-GLI-00000-000", True), ("other", False)])
def test_a_teacher_that_saw_another_scan_of_a_test_patient_is_refused(
    seen: str, is_refused: bool
) -> None:
    # The student's data set has a later scan of patient 0, and not the one that the teacher saw.
    data = scans(Path("data"), *(f"BraTS-GLI-0000{i}-001" for i in range(3)))
    parts = {part: (name,) for part, name in zip(PARTS, sorted(data.cases)[::-1], strict=True)}
    data._split = Split(**parts, name="ours", fingerprint="")
    assert data._split.test == ("BraTS-GLI-00000-001",)
    node = {"data": {"_target_": "bts_lightning.data.module.BratsDataModule", "root": "data"}}
    net, config = UNet(**UNet.small()), OmegaConf.create(node)
    teacher = Teacher(Path("teacher"), net, RegionLoss(), config, "sum")
    train = (seen, *data._split.train)
    Split(train, data._split.val, (), "theirs", "").save(teacher.run / "split.json")
    if not is_refused:
        teacher.check_data(data)
        return
    with pytest.raises(ConfigError, match="trained on 1 of the student's 1 test cases"):
        teacher.check_data(data)


def test_a_patch_that_the_teacher_cannot_take_is_refused(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={phantom}", f"task.teacher={teacher}"]
    line = refused([*words, "net.poolings=1", "data.patch=18"], capsys)
    assert "cannot take data.patch: UNet needs sizes that are multiples of 4" in line


def test_a_teacher_of_another_data_set_is_refused(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("copy").mkdir()
    for file in teacher.iterdir():
        (Path("copy") / file.name).symlink_to(file)
    Path("copy/split.json").unlink()
    Split(("x",), ("y",), ("z",), "theirs", "other").save(Path("copy/split.json"))
    found = refused([*TINY, f"data.root={phantom}", "task.teacher=copy"], capsys)
    assert "knows none of the cases" in found


# The adaptor


def test_the_adaptor_pulls_each_map_to_a_mix_that_does_not_follow() -> None:
    net = InputAdaptor(UNet(width=4, poolings=2))
    maps = torch.tensor([0.0, 1.0, 2.0, 5.0]).view(1, 4, 1, 1, 1, 1).requires_grad_()
    present = torch.ones(1, 4, dtype=torch.bool)
    value = net.pull(maps, present)
    # The mean is 2: squares 4, 1, 0, 9.
    assert value.item() == pytest.approx(0.5 * 14 / 4)
    value.backward()
    assert maps.grad is not None
    # Of each map alone, (f - p) / 4, as the anchor stands still.
    assert maps.grad.flatten().tolist() == pytest.approx([-0.5, -0.25, 0.0, 0.75])
    # Equal weights are where the weights want to be.
    assert net.theta.grad is not None
    assert net.theta.grad.abs().max() < 1e-6
    net.theta.data[3] = 1.0
    net.theta.grad = None
    net.pull(maps, present).backward()
    assert net.theta.grad is not None
    assert net.theta.grad[3] > 0


def test_the_adaptor_aligns_what_is_present() -> None:
    net = InputAdaptor(UNet(width=4, poolings=2))
    maps = torch.tensor([0.0, 2.0, math.nan, math.nan]).view(1, 4, 1, 1, 1, 1)
    present = torch.tensor([[True, True, False, False]])
    assert net.pull(maps, present).item() == pytest.approx(0.5 * (1 + 1) / 2)
    assert net.mix(maps, present).item() == 1.0


@pytest.mark.parametrize("mixing", ["grouped", "dense"])
def test_an_adapted_network_obeys_the_laws(mixing: Any) -> None:
    torch.manual_seed(0)
    net = InputAdaptor(UNet(width=4, poolings=2, deep_supervision=False), mixing=mixing)
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    own = sum(p.numel() for p in net.adapt.parameters()) + net.theta.numel()
    assert own == {"grouped": 2 * (4 * 27 + 8) + 4, "dense": 880 + 4}[mixing]
    image = torch.randn(2, 4, 16, 16, 16)
    output = net(image, COMPLETE)
    (output.logits.mean() + output.penalties["align"]).backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    present = torch.tensor([[True, False, True, False], [False, True, True, True]])
    spoilt = torch.where(present.view(2, 4, 1, 1, 1), image, math.nan)
    with torch.no_grad():
        clean = net(image, present).logits
        assert torch.equal(net(spoilt, present).logits, clean)
        once = net.decode(net.encode(image, COMPLETE).restrict(present)).logits
        torch.testing.assert_close(once, clean)
        for row in range(2):
            alone = net(image[row : row + 1], present[row : row + 1]).logits
            torch.testing.assert_close(alone[0], clean[row])


def test_only_early_fusion_takes_an_adaptor() -> None:
    with pytest.raises(ConfigError, match=r"RFNet encodes each modality alone.*medmap"):
        InputAdaptor(RFNet(width=4))


def test_a_linear_student_and_a_linear_teacher_meet() -> None:
    """Descend the logit term alone: the student ends with the teacher's predictions."""
    torch.manual_seed(0)
    teacher, student = nn.Conv3d(1, 4, 1), nn.Conv3d(1, 4, 1)
    x, label = torch.randn(1, 1, 6, 6, 6), random_label(1, 6, 6, 6)
    term, loss = LogitTerm(temperature=1), LabelLoss()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        term(answer(student(x)), answer(teacher(x).detach()), label, loss).sum().backward()
        optimizer.step()
    torch.testing.assert_close(
        student(x).softmax(dim=1), teacher(x).softmax(dim=1), atol=2e-2, rtol=0
    )
