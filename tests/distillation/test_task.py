"""A student's task, beside a teacher that stands still."""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from bts_lightning.distillation import (
    AnchorTerm,
    DistillationTask,
    LogitTerm,
    PrototypeTerm,
    Teacher,
    Term,
)
from bts_lightning.errors import ConfigError
from bts_lightning.losses import RegionLoss
from bts_lightning.networks.adaptor import InputAdaptor
from bts_lightning.networks.backbone import Backbone
from bts_lightning.networks.unet import UNet
from tests.distillation.parts import COMPLETE, random_label


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
