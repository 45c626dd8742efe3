from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bts_lightning import config
from bts_lightning.distillation.passion import (
    PassionTask,
    distances,
    rebalanced,
    softened_divergence,
)
from bts_lightning.distillation.terms import similarities
from bts_lightning.losses import LabelLoss
from bts_lightning.networks.a2fseg import A2FSeg
from bts_lightning.networks.backbone import Backbone
from bts_lightning.networks.medmap import MedMAP
from bts_lightning.networks.mfi import MFI
from bts_lightning.networks.rfnet import RFNet
from bts_lightning.networks.unet import UNet
from tests.golden.fill_rule import make_label, noise
from tests.tiny_training import NOT_VALIDATED, final, the_run, train, weights

GOLDEN = Path(__file__).parents[1] / "golden" / "passion_terms.npz"
SIZE = 12
TINY = [
    *("rfnet", "passion", "smoke", "net.width=4", "data.patch=16", "data.steps_per_epoch=3"),
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.devices=1"),
    *("trainer.deterministic=true", "callbacks.overlays=null", *NOT_VALIDATED),
]


def arr(shape: tuple[int, ...], k: int, a: float) -> Tensor:
    """Give the inputs of the file, by its rule."""
    values = a * noise(np.arange(np.prod(shape)) + k)
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


@pytest.mark.parametrize("case", ["all_classes", "no_ET_in_second"])
def test_terms_are_those_of_the_official_functions(case: str) -> None:
    golden = np.load(GOLDEN)
    volume, coarse = (2, 4, SIZE, SIZE, SIZE), (2, 4, 6, 6, 6)
    features = [arr((2, 8, SIZE, SIZE, SIZE), k, 1) for k in (1, 1_000_003)]
    logits = [arr(volume, k, 3) for k in (2_000_003, 3_000_017)]
    small = [arr(coarse, k, 3) for k in (4_000_037, 5_000_011)]
    one = torch.from_numpy(make_label(SIZE))
    label = torch.cat([one, one.flip(1)])
    if case == "no_ET_in_second":
        label[1][label[1] == 3] = 1
    loss = LabelLoss(cross_entropy="clamped", batch_dice=False)
    entropy = LabelLoss(cross_entropy="clamped", batch_dice=False, dice=0.0)
    found: dict[str, list[float]] = {"ce": [], "dice": []}
    for b in range(2):
        own, truth = logits[0][b : b + 1], label[b : b + 1]
        found["ce"].append(float(entropy(own, truth)))
        found["dice"].append(float(loss(own, truth) - entropy(own, truth)))
    found["kl"] = softened_divergence(loss, *logits, temperature=4.0).tolist()
    found["kl_up"] = softened_divergence(
        loss, *small, temperature=4.0, size=(SIZE, SIZE, SIZE)
    ).tolist()
    (own_maps, shown), (taught, _) = (similarities(x, label) for x in features)
    everywhere = shown.all(dim=0, keepdim=True)
    proto, dist = distances(own_maps, taught, everywhere)
    found |= {"proto": proto.tolist(), "dist": dist.tolist()}
    for name, values in found.items():
        np.testing.assert_allclose(values, golden[f"{case}/{name}"], rtol=1e-6, err_msg=name)


def test_balance_follows_the_figures_of_the_specification() -> None:
    balance, rate = torch.ones(4), 0.015
    apart = torch.tensor([0.2, 0.1, 0.3, 0.4])
    for expected in (
        [0.996978, 0.990978, 1.002978, 1.008977],
        [0.993911, 0.981912, 1.00591, 1.017909],
        [0.990799, 0.972802, 1.008796, 1.026793],
    ):
        balance = rebalanced(balance, apart, torch.tensor(rate))
        torch.testing.assert_close(balance, torch.tensor(expected), atol=2e-6, rtol=0)


def task(net: Backbone, **options: object) -> PassionTask:
    return PassionTask(
        net,
        loss=LabelLoss(cross_entropy="clamped", batch_dice=False),
        optimizer=torch.optim.Adam,
        **options,
    )


def batch(*available: tuple[bool, bool, bool, bool]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    has = torch.tensor(available)
    count = len(has)
    return {
        "image": torch.randn(count, 4, 16, 16, 16, generator=generator),
        "label": torch.randint(4, (count, 16, 16, 16), generator=generator).to(torch.uint8),
        "present": has,
        "available": has,
    }


def rfnet() -> RFNet:
    torch.manual_seed(0)
    return RFNet(width=4).train()


def test_each_modality_that_is_there_is_a_student() -> None:
    terms = task(rfnet())._step(batch((True, False, True, False), (True, False, True, True)))
    for name, is_there in (("t1", True), ("t1c", False), ("t2", True), ("flair", True)):
        assert (terms[f"distillation/{name}"] > 0) == is_there
    assert all(value.isfinite() for value in terms.values())


def test_absent_images_change_no_term() -> None:
    first = batch((True, False, True, False), (False, True, True, True))
    other = dict(first)
    absent = ~first["present"].view(2, 4, 1, 1, 1)
    other["image"] = first["image"].masked_fill(absent, torch.nan)
    terms, same = (task(rfnet())._step(b) for b in (first, other))
    assert all(torch.equal(terms[name], same[name]) for name in terms)
    torch.stack(list(same.values())).sum().backward()


def test_only_modalities_that_lag_learn_by_themselves() -> None:
    co = task(rfnet())
    terms = co._step(batch((True, True, True, True)))
    lags = co.apart > co.apart.mean()
    assert 0 < int(lags.sum()) < 4
    for m, name in enumerate(("t1", "t1c", "t2", "flair")):
        for kind in ("modality", "prototypes"):
            assert (terms[f"{kind}/{name}"] > 0) == bool(lags[m])


@pytest.mark.parametrize("rounding", [0.0, 1e-8])
def test_a_single_modality_neither_lags_nor_leads(rounding: float) -> None:
    dist = torch.tensor([[0.0, 0.0, 0.0, rounding], [0.2, 0.1, 0.0, 0.3]])
    real = torch.tensor([[False, False, False, True], [True, True, False, True]])
    assert task(rfnet())._lagging(dist, real).tolist() == [False, False, False, True]


def test_teacher_learns_nothing_from_its_students() -> None:
    net = rfnet()
    terms = task(net)._step(batch((True, False, False, False)))
    # A single modality is teacher and student in one: they do not lie apart, and nothing pulls.
    assert float(terms["distillation/t1"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(terms["prototypes/t1"].detach()) == pytest.approx(0.0, abs=1e-6)


def test_rare_modalities_weigh_more() -> None:
    plain, rare = task(rfnet()), task(rfnet())
    rare.share.copy_(torch.tensor([1.0, 1.0, 1.0, 0.25]))
    one = batch((True, True, False, True))
    names = ("distillation/t1", "distillation/flair")
    with torch.no_grad():
        before, after = plain._step(one), rare._step(one)
    torch.testing.assert_close(after[names[0]], before[names[0]])
    torch.testing.assert_close(after[names[1]], 4 * before[names[1]])


@pytest.mark.parametrize(
    "net",
    [
        UNet(width=4, poolings=2, width_limit=8, out_channels=4),
        MedMAP(RFNet(width=4)),
        A2FSeg(width=4, poolings=2, width_limit=8, out_channels=4),  # several heads a modality
        MFI(width=8, out_channels=4),
    ],
    ids=lambda net: type(net).__name__,
)
def test_any_network_can_be_the_host(net: Backbone) -> None:
    terms = task(net.train())._step(batch((True, True, False, True)))
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert terms["distillation/t1"] > 0


def test_baseline_and_balance_have_one_recipe() -> None:
    plain, balanced = (config.load(["rfnet", name]) for name in ("missing_rates", "passion"))
    for node in ("data", "trainer", "net", "evaluation"):
        assert plain[node] == balanced[node], node
    for part in ("loss", "optimizer", "main_loss_from_epoch"):
        assert plain.task[part] == balanced.task[part], part
    assert {**plain.task.schedule, **balanced.task.schedule} == plain.task.schedule
    assert plain.task.schedule.decimals is None


@pytest.mark.slow
@pytest.mark.usefixtures("in_an_empty_folder")
def test_a_stopped_training_goes_on_bit_for_bit(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, f"data.root={phantom}"]
    assert train(*words) == 0
    whole = final(the_run())
    assert whole["rate"] == pytest.approx(0.015)
    assert len(whole["balance"].unique()) > 1
    (tmp_path / "cut").mkdir()
    monkeypatch.chdir(tmp_path / "cut")
    # In the middle of the second epoch, with a balance that moved and distances half added up.
    signal = ["callbacks.signal._target_=tests.training_parts.SignalAt", "callbacks.signal.step=4"]
    assert train(*words, *signal) == 2
    run = the_run()
    kept = weights(run / "checkpoints" / "interrupted.ckpt")
    assert kept["apart"].any()
    assert train(str(run), "callbacks.signal=null") == 0
    cut = final(run)
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
