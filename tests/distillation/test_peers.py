"""Modalities that teach each other: the term, the election, and weights that learn."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bts_lightning.config import build, load
from bts_lightning.distillation.peers import Elected, PeerTask, Teaching, Weighed, apart
from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol
from bts_lightning.losses import RegionLoss, regions_of
from bts_lightning.modalities import COMPLETE, MODALITIES, Subset
from bts_lightning.networks.backbone import Backbone, Features, Output
from bts_lightning.networks.lckd import LCKD
from bts_lightning.networks.medmap import MedMAP
from bts_lightning.networks.rfnet import RFNet
from bts_lightning.networks.unet import UNet
from tests.data.arrays import ArrayCase
from tests.networks.parts import batch_for
from tests.tiny_training import NOT_VALIDATED, final, the_run, train

T1, T1C, T2, FLAIR = range(4)
# T1, T1c, T2, FLAIR; each once constant, and so far apart.
VALUES = torch.tensor([0.0, 1.0, 3.0, 7.0])


class Shown(Backbone):
    """Take the image of a modality for its logits, shared by all regions."""

    fused_levels = (0,)

    def __init__(self) -> None:
        super().__init__(3)
        self.scale = nn.Parameter(torch.ones(()))

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        return (image.unsqueeze(2),)

    def decode(self, features: Features) -> Output:
        x = features.selected(0).sum(dim=1) * self.scale
        return Output(x.expand(-1, 3, -1, -1, -1))


def task(teaching: Teaching, net: Backbone | None = None) -> PeerTask:
    return PeerTask(net or Shown(), teaching=teaching, loss=RegionLoss(), optimizer=torch.optim.SGD)


def features(*present: bool) -> Features:
    x = VALUES.view(1, 4, 1, 1, 1, 1).expand(1, 4, 2, 3, 3, 3).clone().requires_grad_()
    flags = torch.tensor([present])
    return Features((x,), (flags,), flags)


def term(teaching: Teaching, seen: Features) -> Tensor:
    output = Output(torch.zeros(1, 3, 3, 3, 3), features=seen)
    return task(teaching).extra_terms(torch.zeros(0), output, {})["peers"]


def test_each_elected_modality_pulls_all_that_are_there() -> None:
    both = Elected(Protocol(), first=["flair", "t1c"])
    seen = features(True, True, False, True)
    found = term(both, seen)
    # FLAIR to T1 and T1c, T1c to T1 and FLAIR; T2 is absent.
    assert float(found.detach()) == pytest.approx(0.1 * (7 + 6 + 1 + 6))
    found.backward()
    pulls = seen.levels[0].grad[0].flatten(1).sum(dim=1)  # type: ignore[index]
    # T1 is drawn by both, T1c by FLAIR, FLAIR by T1c: one unit each, of the mean and of the weight.
    torch.testing.assert_close(pulls, 0.1 * torch.tensor([-2.0, -1.0, 0.0, 1.0]))


@pytest.mark.parametrize("present", [(True, False, True, False), (False, False, False, True)])
def test_without_a_teacher_or_a_second_modality_nothing_is_learnt(present: Subset) -> None:
    assert float(term(Elected(Protocol()), features(*present)).detach()) == 0


def test_weights_say_how_much_a_modality_teaches() -> None:
    teaching = Weighed()
    teaching.theta.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).log())
    torch.testing.assert_close(teaching.told(), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    found = term(teaching, features(True, False, True, False))
    # 0.3/0.1 from T2 to T1, 0.1/0.3 back, over a distance of 3.
    assert float(found.detach()) == pytest.approx(0.1 * 3 * (3 + 1 / 3))


def test_absent_features_change_nothing() -> None:
    x = torch.randn(2, 4, 3, 2, 2, 2)
    present = torch.tensor([[True, False, True, True], [False, True, False, True]])
    spoilt = torch.where(present.view(2, 4, 1, 1, 1, 1), x, torch.nan).requires_grad_()
    assert torch.equal(apart(x, present), apart(spoilt, present))
    apart(spoilt, present).sum().backward()
    assert spoilt.grad is not None
    assert spoilt.grad.isfinite().all()


def test_a_sample_learns_the_same_in_any_batch() -> None:
    torch.manual_seed(0)
    own = task(Elected(Protocol()), RFNet(width=4, out_channels=3)).train()
    batch = batch_for(16, [[True, False, True, True], [False, True, False, True]])
    with torch.no_grad():
        together = own._step(batch)["peers"]
        rows = ({k: v[row : row + 1] for k, v in batch.items()} for row in (0, 1))
        each = [own._step(row)["peers"] for row in rows]
    torch.testing.assert_close(together, sum(each) / 2)


@pytest.mark.parametrize("net", [LCKD(**LCKD.small()), MedMAP(LCKD(**LCKD.small()), levels="all")])
def test_features_are_those_before_an_alignment(net: Backbone) -> None:
    own = task(Elected(Protocol()), net).train()
    batch = batch_for(64, [[True, False, True, True]])
    with torch.no_grad():
        found = own._step(batch)["peers"]
        backbone = net.backbone if isinstance(net, MedMAP) else net
        deep = backbone.encode(batch["image"], batch["present"]).levels[-1]
    pairs = [(deep[:, FLAIR] - deep[:, m]).abs().mean() for m in (T1, T2)]
    torch.testing.assert_close(found, 0.1 * sum(pairs))


@dataclass
class Data:
    """What a lesson asks of the data."""

    cases: dict[str, ArrayCase]
    place: tuple[int, int] = (0, 1)
    held_out: tuple[str, ...] = ()

    @property
    def split(self) -> Any:
        return SimpleNamespace(train=list(self.cases))

    def shows(self, name: str) -> Subset:
        return self.cases[name].available


def case(name: str, available: Subset = COMPLETE) -> ArrayCase:
    """Show WT in FLAIR, TC in T1, ET in T1c, and in T2 everything."""
    label = torch.zeros(8, 8, 8, dtype=torch.uint8)
    label[1:7, 1:7, 1:7], label[2:6, 2:6, 2:6], label[3:5, 3:5, 3:5] = 2, 1, 3
    whole, core, enhancing = regions_of(label.unsqueeze(0))[0]
    shown = torch.stack([core, enhancing, torch.ones_like(core), whole])
    image = torch.where(shown, 9.0, -9.0)
    return ArrayCase(name, image.half().numpy(), label.numpy(), available)


def elect(data: Data, **options: Any) -> list[str]:
    teaching = Elected(Protocol(window=8), **options)
    teaching.learn(Shown().eval(), RegionLoss(), data)  # type: ignore[arg-type]
    return [name for name, is_one in zip(MODALITIES, teaching.teachers, strict=True) if is_one]


def test_the_best_of_each_region_teaches() -> None:
    assert elect(Data({"a": case("a"), "b": case("b")})) == ["t1", "t1c", "flair"]


def test_a_modality_is_judged_by_the_cases_that_have_it() -> None:
    without = {name: case(name, (False, True, True, True)) for name in "abc"}
    assert elect(Data({**without, "d": case("d")})) == ["t1", "t1c", "flair"]
    # Nobody shows T1: of those left the ET in T1c is nearest to TC.
    assert elect(Data(without)) == ["t1c", "flair"]


def test_as_many_vote_as_are_asked_to() -> None:
    asked = []

    class Spied(dict[str, ArrayCase]):
        def __getitem__(self, name: str) -> ArrayCase:
            asked.append(name)
            return super().__getitem__(name)

    data = Data(Spied({name: case(name) for name in "abcdef"}))
    elect(data, voters=3)
    asked = [name for i, name in enumerate(asked) if asked.index(name) == i]
    assert len(asked) == 3
    shares = []
    for rank in range(2):
        asked.clear()
        data.place = (rank, 2)
        elect(data, voters=3)
        shares.append(set(asked))
    assert not shares[0] & shares[1]
    assert sorted(map(len, shares)) == [1, 2]


def test_weights_move_as_the_loss_of_scaled_features_asks() -> None:
    torch.manual_seed(0)
    teaching, net, batch = Weighed().double(), Shown().double().train(), batch_for(8, [[True] * 4])
    batch["image"] = batch["image"].double()
    value, gradient = teaching.gradient(net, RegionLoss(), batch)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    for m in range(4):
        near = []
        for step in (1e-5, -1e-5):
            other = Weighed().double()
            other.theta.copy_(teaching.theta).add_(step * torch.eye(4)[m])
            near.append(other.gradient(net, RegionLoss(), batch)[0])
        assert float(near[0] - near[1]) / 2e-5 == pytest.approx(float(gradient[m]), rel=1e-5)
    # Adding the same to all changes no share.
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)
    assert value > 0


def test_adam_remembers_from_lesson_to_lesson() -> None:
    teaching = Weighed(lr=0.1, weight_decay=0.05)
    own = nn.Parameter(teaching.theta.clone())
    adam = torch.optim.Adam([own], lr=0.1, weight_decay=0.05)
    for gradient in torch.randn(3, 4):
        teaching.step(gradient)
        again = Weighed(lr=0.1, weight_decay=0.05)
        again.load_state_dict(teaching.state_dict())  # as a training that goes on
        teaching = again
        own.grad = gradient
        adam.step()
    assert torch.equal(teaching.theta, own)


class Counted(Teaching):
    """Count the lessons."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.steps: list[int] = []

    def shares(self) -> Tensor:
        return torch.zeros(4, 4)

    def told(self) -> Tensor:
        return torch.zeros(4)

    def learn(self, *_: Any) -> None:
        self.steps.append(int(self.taught_after))


@pytest.mark.parametrize(("every", "steps"), [(3, [1, 4, 7]), (0, [])])
def test_lessons_follow_the_first_step_and_then_every_few(
    every: int, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    teaching = Counted(every)
    own = task(teaching)
    monkeypatch.setattr(PeerTask, "_data", None)
    monkeypatch.setattr(PeerTask, "current_epoch", 0)
    for step in range(8):
        monkeypatch.setattr(PeerTask, "global_step", step)
        for _ in range(2):  # two batches a step
            own.on_train_batch_start({"seed": [1]}, 0)
    assert teaching.steps == steps


def test_lessons_are_fewer_in_the_second_stage() -> None:
    teaching = build(load(["metakd"]).task.teaching | {"first_epochs": 320})
    assert (teaching.pause(319), teaching.pause(320)) == (100, 500)


def test_what_cannot_teach_is_refused() -> None:
    with pytest.raises(ConfigError, match="UNet mixes the modalities in its first layer"):
        task(Elected(Protocol()), UNet(**UNet.small()))
    with pytest.raises(ConfigError, match=r"data\.held_out is 0; set data\.held_out=5"):
        Weighed().check(Data({}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="first names 't3'"):
        Elected(Protocol(), first=["t3"])  # type: ignore[list-item]
    for options in ({"every": -1}, {"voters": 0}):
        with pytest.raises(ConfigError, match=r"is (-1|0)"):
            Elected(Protocol(), **options)  # type: ignore[arg-type]


WORDS = [
    *("smoke", "data.patch=32", "data.steps_per_epoch=3", "trainer.max_epochs=2"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.deterministic=true"),
    *("callbacks.overlays=null", *NOT_VALIDATED, "task.teaching.every=2"),
]
OWN = {
    "lckd": ["task.teaching.voters=1"],
    "metakd": ["data.held_out=1", "task.teaching.crops=2"],
}


@pytest.mark.slow
@pytest.mark.usefixtures("in_an_empty_folder")
@pytest.mark.parametrize("experiment", OWN)
def test_a_stopped_training_goes_on_bit_for_bit(
    experiment: str, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [experiment, *WORDS, *OWN[experiment], f"data.root={phantom}"]
    assert train(*words) == 0
    whole = final(the_run())
    assert whole["teaching.taught_after"] == 5
    (tmp_path / "cut").mkdir()
    monkeypatch.chdir(tmp_path / "cut")
    # The last lesson follows the step in which the signal comes: it is held after the pause.
    signal = ["callbacks.signal._target_=tests.training_parts.SignalAt", "callbacks.signal.step=4"]
    assert train(*words, *signal) == 2
    run = the_run()
    assert train(str(run), "callbacks.signal=null") == 0
    cut = final(run)
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
