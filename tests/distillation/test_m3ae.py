"""The two stages of M3AE: what is shown, what learns, and what is handed on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from bts_lightning import runs
from bts_lightning.__main__ import main
from bts_lightning.availability import Complete, Only
from bts_lightning.distillation.chain.before import first_stage, words_of_first
from bts_lightning.distillation.masked import MaskedAutoencodingTask, spread
from bts_lightning.distillation.stages import take_weights
from bts_lightning.distillation.twice import SelfDistillationTask
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.losses import RegionLoss
from bts_lightning.networks.m3ae import M3AE
from bts_lightning.networks.unet import UNet
from tests.tiny_training import NOT_VALIDATED, final, the_run, train

TINY = [
    *["m3ae", "smoke", "data.patch=32", "data.steps_per_epoch=3", "trainer.accelerator=cpu"],
    *["trainer.devices=1", "trainer.deterministic=true", *NOT_VALIDATED, "callbacks.overlays=null"],
]
FRAME = (40, 40, 36)


def net(**options: Any) -> M3AE:
    torch.manual_seed(0)
    return M3AE(width=8, frame=FRAME, **options)


def parts() -> dict[str, Any]:
    return {"loss": RegionLoss(), "optimizer": torch.optim.Adam}


@pytest.fixture
def batch() -> dict[str, Any]:
    source = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 4, 32, 32, 32, generator=source),
        "label": torch.randint(4, (2, 32, 32, 32), generator=source).to(torch.uint8),
        "present": torch.tensor([[False, True, False, False], [True, True, True, True]]),
        "available": torch.ones(2, 4, dtype=torch.bool),
        "place": torch.tensor([[[0, 1], [5, 1], [2, 1]], [[8, 1], [39, -1], [0, 1]]]),
        "seed": [11, 12],
    }


def test_as_many_tokens_are_visible_whatever_is_kept(batch: dict[str, Any]) -> None:
    task = MaskedAutoencodingTask(net(), token=8, **parts())
    shown = task.draw(batch["image"], batch["present"]).flatten(2)  # B M T
    assert shown.sum(dim=(1, 2)).tolist() == [32, 32]  # of 256
    assert shown[0].sum(dim=1).tolist() == [0, 32, 0, 0]  # half of the one that is kept
    assert (shown[1].sum(dim=1) > 0).all()


def test_the_first_stage_trains_the_substitute_and_no_head(batch: dict[str, Any]) -> None:
    task = MaskedAutoencodingTask(net(), **parts())
    terms = task._step(batch)
    assert terms.keys() == {"reconstruction", "substitute"}
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in task.named_parameters():
        is_head = name.startswith(("net.head", "net.deep"))
        assert parameter.requires_grad != is_head, name
        assert is_head or (parameter.grad is not None and parameter.grad.any()), name
    rates = [group["lr"] for group in task.configure_optimizers().param_groups]
    assert rates == [1e-3, 5e-3]


def test_what_a_case_lacks_has_no_target_and_brings_no_nan(batch: dict[str, Any]) -> None:
    task = MaskedAutoencodingTask(net(), **parts())
    batch["available"][:, 3] = False
    batch["present"][:, 3] = False
    values = []
    for absent in (0.0, float("nan")):
        batch["image"][:, 3] = absent
        torch.manual_seed(0)
        values.append(task._step(batch)["reconstruction"])
    assert values[0].isfinite()
    assert torch.equal(*values)


def test_the_norm_is_that_around_the_mean_of_each_modality() -> None:
    x = torch.zeros(4, 2, 2, 2)
    x[1, 0, 0, 0] = 8.0  # mean 1: once 7, seven times -1
    assert spread(x).item() == pytest.approx(56**0.5)
    flat = torch.ones(4, 2, 2, 2, requires_grad=True)
    spread(flat).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def second(network: M3AE | None = None, **options: Any) -> SelfDistillationTask:
    return SelfDistillationTask(network or net(), **parts(), **options)


def test_both_copies_are_pulled_together_and_the_substitute_stays(batch: dict[str, Any]) -> None:
    task = second()
    terms = task._step(batch)
    assert list(terms) == ["main", "deep/2", "deep/4", "consistency"]
    torch.stack(list(terms.values())).sum().backward()
    assert task.net.substitute.grad is None
    others = [p for p in task.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.any() for p in others)


@pytest.mark.parametrize("compare", ["bottleneck", "quarter_logits"])
def test_one_subset_twice_sets_nothing_apart(batch: dict[str, Any], compare: Any) -> None:
    batch["present"] = torch.ones(2, 4, dtype=torch.bool)
    alike = second(compare=compare, availability=Complete())._step(batch)
    apart = second(compare=compare, availability=Only("t1c"))._step(batch)
    assert alike["consistency"] == 0
    assert apart["consistency"] > 0


def test_slices_are_shaken_alike_in_both_copies() -> None:
    x = torch.ones(4, 4, 3, 3, 5)
    shaken = second(intensity=0.1).shaken(x)
    assert torch.equal(shaken[:2], shaken[2:])
    assert torch.equal(shaken[:, :, :1, :1].expand_as(shaken), shaken)
    assert len(shaken[0, :, 0, 0].unique()) == 4 * 5
    assert (shaken - 1).abs().max() <= 0.2


def test_the_second_stage_takes_all_but_the_heads(tmp_path: Path) -> None:
    first = MaskedAutoencodingTask(net(), **parts())
    torch.save({"state_dict": first.state_dict()}, tmp_path / "first.ckpt")
    torch.manual_seed(1)
    own = M3AE(width=8, frame=FRAME)
    head = own.head.weight.clone()
    take_weights(own, tmp_path / "first.ckpt", second(own).anew)
    assert torch.equal(own.head.weight, head)
    for name, value in own.state_dict().items():
        if not name.startswith(("head", "deep")):
            assert torch.equal(value, first.net.state_dict()[name]), name
    with pytest.raises(UserError, match=r"another network: substitute is \(1, 4, 40, 40, 36\)"):
        take_weights(
            M3AE(width=8, frame=FRAME, coarse=2), tmp_path / "first.ckpt", ("head.", "deep.")
        )


def test_what_cannot_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="UNet, which has no substitute"):
        MaskedAutoencodingTask(UNet(**UNet.small()), **parts())
    with pytest.raises(ConfigError, match=r"task.visible is 0.5"):
        MaskedAutoencodingTask(net(), visible=0.5, **parts())
    with pytest.raises(ConfigError, match="deep_supervision=true"):
        second(net(deep_supervision=False), compare="quarter_logits")
    with pytest.raises(ConfigError, match=r"task.pretraining is nowhere, which is no run"):
        second(pretraining="nowhere").prepare_fit()


# The chain


def test_words_of_the_second_stage_are_not_for_the_first() -> None:
    words = ["m3ae", "smoke", "net.width=8", "task.consistency=0", "--trainer.max_epochs=9"]
    made = words_of_first([*words, "callbacks.best.mode=max", "seed=3"], "m3ae_pretraining")
    assert made == ["m3ae", "m3ae_pretraining", "smoke", "net.width=8", "seed=3"]


@pytest.mark.usefixtures("in_an_empty_folder")
def test_a_first_stage_is_found_by_its_whole_configuration(phantom: Path) -> None:
    words = [*TINY, f"data.root={phantom}"]
    first = first_stage(words, "m3ae_pretraining", ())
    assert first_stage([*words, "task.consistency=0"], "m3ae_pretraining", ()) == first
    assert first_stage([*words, "seed=1"], "m3ae_pretraining", ()) != first
    assert first.parent == Path("runs/m3ae+m3ae_pretraining+smoke")


STOP = """
callbacks: {stop: {_target_: tests.training_parts.SignalAt, step: 1}}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("in_an_empty_folder")
def test_each_stage_stops_and_goes_on_bit_for_bit(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={phantom}"]
    assert train(*words) == 0, capsys.readouterr().err
    whole = the_run("m3ae+smoke")
    Path("stop.yaml").write_text(STOP)
    assert train(*words, "stop.yaml") == 2
    assert "stopped by SIGTERM in epoch 0" in capsys.readouterr().err
    run, first = the_run("m3ae+smoke+stop"), the_run("m3ae+m3ae_pretraining+smoke+stop")
    assert not (first / "trained.txt").exists()
    assert not runs.checkpoint_files(run)
    assert train(str(run)) == 2  # the first stage ends, the second one is stopped
    assert (first / "trained.txt").exists()
    assert (run / "checkpoints" / "interrupted.ckpt").exists()
    assert train(str(run)) == 0, capsys.readouterr().err
    for ours, theirs in ((final(run), final(whole)), (final(first), final(_first(whole)))):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert _substitute(run).equal(_substitute(first))
    assert main(["evaluate", str(first), "--device", "cpu"]) == 2
    assert "is of a first stage, which segments nothing" in capsys.readouterr().err


def _first(run: Path) -> Path:
    return Path(OmegaConf.load(runs.config_file(run)).task.pretraining)


def _substitute(run: Path) -> Tensor:
    return final(run)["net.substitute"]
