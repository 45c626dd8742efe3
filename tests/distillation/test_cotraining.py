from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bts_lightning.distillation.cotraining import CoTrainingTask, entropy_map
from bts_lightning.distillation.paths import disagreement
from bts_lightning.errors import ConfigError
from bts_lightning.losses import SeparateLabelLoss
from bts_lightning.networks.acn import ACN
from bts_lightning.networks.unet import UNet
from bts_lightning.runs.checkpoints import read_checkpoint
from tests.tiny_training import NOT_VALIDATED, final, the_run, train

WORDS = [
    "smoke",
    "net.width=8",
    "data.patch=32",
    "data.steps_per_epoch=3",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.deterministic=true",
    *NOT_VALIDATED,
    "callbacks.overlays=null",
    "data.augment=null",
]


def task(**options: object) -> CoTrainingTask:
    torch.manual_seed(0)
    return CoTrainingTask(
        ACN(width=8, reads="t1c"),
        peer=ACN(width=8),
        loss=SeparateLabelLoss(),
        optimizer=torch.optim.Adam,
        discriminator_optimizer=torch.optim.Adam,
        **options,
    )


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 4, 32, 32, 32, generator=generator),
        "label": torch.randint(4, (2, 32, 32, 32), generator=generator).to(torch.uint8),
        "present": torch.tensor([[False, True, False, False]] * 2),
        "available": torch.ones(2, 4, dtype=torch.bool),
    }


def parts(task: CoTrainingTask) -> dict[str, nn.Module]:
    judges = {"entropy": task.judges_entropy, "knowledge": task.judges_knowledge}
    return {"net": task.net, "peer": task.peer, "information": task.information, **judges}


def moved(task: CoTrainingTask, value: Tensor) -> set[str]:
    """Name the parts that a term trains."""
    task.zero_grad()
    value.backward(retain_graph=True)
    return {
        name
        for name, part in parts(task).items()
        if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    }


def test_each_term_trains_its_own_side(batch: dict[str, Tensor]) -> None:
    co = task()
    terms = co._step(batch)
    expected = {
        "full": {"peer"},
        "main": {"net"},
        "consistency": {"net", "peer"},
        "information": {"net", "peer", "information"},
        "fools/entropy": {"net"},
        "fools/knowledge": {"net"},
        "judges/entropy": {"entropy"},
        "judges/knowledge": {"knowledge"},
    }
    assert {name: moved(co, value) for name, value in terms.items()} == expected


def test_released_information_knows_one_path_only(batch: dict[str, Tensor]) -> None:
    co = task(information="released")
    assert moved(co, co._step(batch)["information"]) == {"net", "information"}


def test_missing_path_reads_its_subset_alone(batch: dict[str, Tensor]) -> None:
    net = task().net.eval()
    other = batch["image"].clone()
    other[:, [0, 2, 3]] = 7.0
    with torch.no_grad():
        assert torch.equal(
            net(batch["image"], batch["available"]).logits, net(other, batch["available"]).logits
        )


def test_agreement_ramps_up_within_twenty_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    co = task()
    for epoch, weight in ((0, 0.0674), (10, 2.865), (20, 10.0), (50, 10.0)):
        monkeypatch.setattr(CoTrainingTask, "current_epoch", epoch)
        assert co.ramp() == pytest.approx(weight, rel=1e-3)


def test_background_takes_no_part_in_the_agreement() -> None:
    full, missing = torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 4, 2, 2, 2)
    full[:, 0] = 1.0
    assert disagreement(full, missing) == 0
    full[:, 2] = 0.5
    assert disagreement(full, missing) == pytest.approx(0.25)


def test_entropy_of_equal_maps_is_one() -> None:
    assert entropy_map(torch.full((1, 4, 2, 2, 2), 0.3)).sum(dim=1).allclose(torch.ones(1, 2, 2, 2))


def test_networks_without_depth_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.peer is UNet"):
        CoTrainingTask(
            ACN(width=8),
            peer=UNet(width=4, out_channels=4),
            loss=SeparateLabelLoss(),
            optimizer=torch.optim.Adam,
            discriminator_optimizer=torch.optim.Adam,
        )
    with pytest.raises(ConfigError, match=r"task\.peer has 128 deepest"):
        task_of_other_depth()


def task_of_other_depth() -> CoTrainingTask:
    return CoTrainingTask(
        ACN(width=8),
        peer=ACN(width=16),
        loss=SeparateLabelLoss(),
        optimizer=torch.optim.Adam,
        discriminator_optimizer=torch.optim.Adam,
    )


@pytest.mark.usefixtures("in_an_empty_folder")
@pytest.mark.parametrize("moments", ["kept", "anew"])
@pytest.mark.parametrize(("network", "judged"), [("acn", 16), ("smunet", 8)])
def test_both_optimizers_step_once_a_batch_and_remember_or_not(
    phantom: Path, network: str, judged: int, moments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [network, *WORDS, f"data.root={phantom}", "trainer.max_epochs=1"]
    words += [f"task.moments={moments}"]
    assert train(*words) == 0, capsys.readouterr().err
    states = read_checkpoint(max((the_run() / "checkpoints").glob("epoch_*.ckpt")))
    paths, judges = (state["state"] for state in states["optimizer_states"])
    assert {int(state["step"]) for state in paths.values()} == {3}
    assert [int(state["step"]) for state in judges.values()] == [3] * (judged * (moments == "kept"))
    schedule = states["lr_schedulers"][0]
    assert schedule["last_epoch"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("in_an_empty_folder")
@pytest.mark.parametrize("network", ["acn", "smunet"])
def test_a_stopped_training_goes_on_bit_for_bit(
    network: str, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [network, *WORDS, f"data.root={phantom}"]
    assert train(*words) == 0
    whole = final(the_run())
    (tmp_path / "cut").mkdir()
    monkeypatch.chdir(tmp_path / "cut")
    # In the middle of the second epoch.
    signal = ["callbacks.signal._target_=tests.training_parts.SignalAt", "callbacks.signal.step=8"]
    assert train(*words, *signal) == 2
    run = the_run()
    assert (run / "checkpoints" / "interrupted.ckpt").exists()
    assert train(str(run), "callbacks.signal=null") == 0
    cut = final(run)
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
