"""Trainings that begin from others: what is handed on, and the three stages of UniMRSeg."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from bts_lightning import config, runs
from bts_lightning.__main__ import main
from bts_lightning.data.splits import Split
from bts_lightning.distillation.chain.before import first_stage
from bts_lightning.distillation.stages import StagedTask, take_weights
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.losses import RegionLoss
from bts_lightning.networks.unimrseg import Stage, UniMRSeg
from tests.tiny_training import final, the_run, train, weights

STAGES: tuple[list[str], ...] = (["unimrseg_reconstruct"], ["unimrseg_contrast"], [])


def net(stage: Stage = "adapters", width: int = 4) -> UniMRSeg:
    return UniMRSeg(width=width, stage=stage)


def task(network: UniMRSeg, **options: Any) -> StagedTask:
    return StagedTask(network, loss=RegionLoss(), optimizer=torch.optim.Adam, **options)


def test_a_stage_takes_all_but_what_is_new(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before, after = net("contrast"), net()
    for x in before.state_dict().values():
        if x.is_floating_point():
            x.add_(torch.rand_like(x))  # statistics of batches too
    torch.save({"state_dict": task(before).state_dict()}, tmp_path / "before.ckpt")
    own = {name: x.clone() for name, x in after.state_dict().items()}
    take_weights(after, tmp_path / "before.ckpt", ("adapters.",))
    for name, x in after.state_dict().items():
        is_new = name.startswith("adapters.")
        assert torch.equal(x, own[name] if is_new else before.state_dict()[name]), name


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": task(net("contrast")).state_dict()}, tmp_path / "before.ckpt")
    with pytest.raises(UserError, match=r"adapters.0.match.0.weight is no such weight"):
        take_weights(net(), tmp_path / "before.ckpt", ())
    with pytest.raises(UserError, match=r"stages.0.0.weight is \(4, 4, 3, 3, 3\), where \(8, "):
        take_weights(net(width=8), tmp_path / "before.ckpt", ())


def test_a_run_to_begin_from_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"task.pretraining is nowhere, which is no run"):
        task(net(), pretraining="nowhere").prepare_fit()
    with pytest.raises(ConfigError, match=r"task.anew names adapter, but UniMRSeg has stages, up"):
        task(net(), anew=["adapter"])


def test_a_stage_that_saw_test_cases_of_the_next_is_refused(tmp_path: Path) -> None:
    cases = {name: SimpleNamespace(patient=name) for name in ("a", "b", "c")}
    Split(("a", "c"), ("b",), (), "theirs", "").save(tmp_path / "split.json")
    made = task(net(), pretraining=str(tmp_path))
    data = SimpleNamespace(cases=cases, root="data")
    made._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    data.split = Split(("a",), ("b",), ("c",), "ours", "")
    line = "trained on 1 of this training's 1 test cases, such as c; give this training the first"
    with pytest.raises(ConfigError, match=line):
        made.setup("fit")
    data.split = Split(("a", "c"), ("b",), (), "ours", "")
    made.setup("fit")


def test_the_stages_of_unimrseg_fit_each_other(tmp_path: Path) -> None:
    file = tmp_path / "before.ckpt"
    for mixins in STAGES:
        read = config.load(["unimrseg", *mixins, "net.width=4"])
        made = config.build(read.task)
        if file.exists():
            take_weights(made.net, file, made.anew)
        assert made.segments is (made.net.stage != "reconstruction")
        torch.save({"state_dict": made.state_dict()}, file)


TINY = [
    *["smoke", "net.width=4", "net.pairs=1", "data.patch=16", "data.steps_per_epoch=1"],
    *["trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=1"],
    *["evaluation.subsets=[flair,t1+t1c+t2+flair]", "callbacks.overlays=null"],
]


@pytest.mark.usefixtures("in_an_empty_folder")
def test_a_stage_before_another_one_has_a_stage_before_it(phantom: Path) -> None:
    words = ["unimrseg", *TINY, "task.anew=[]", f"data.root={phantom}"]
    second = first_stage(words, "unimrseg_contrast", ())
    task = OmegaConf.load(runs.config_file(second)).task
    assert Path(task.pretraining).parent == Path("runs/unimrseg+unimrseg_reconstruct+smoke")
    assert task.anew == ["head"]  # what a command says of the task is for the last stage alone
    first = OmegaConf.load(runs.config_file(Path(task.pretraining)))
    assert first.task.pretraining is None
    assert first.net.width == 4
    assert first_stage(words, "unimrseg_contrast", ()) == second
    assert len(list(Path("runs").glob("*/*/config.yaml"))) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("in_an_empty_folder")
def test_one_command_trains_all_three_stages(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("unimrseg", *TINY, f"data.root={phantom}") == 0, capsys.readouterr().err
    folders = [the_run("+".join(["unimrseg", *mixins, "smoke"])) for mixins in STAGES]
    first, second, third = map(final, folders)
    assert not torch.equal(first["net.stages.0.0.weight"], second["net.stages.0.0.weight"])
    for name, x in weights(runs.best_checkpoint(folders[1])).items():  # what a stage begins from
        if name.startswith("net.stages"):  # frozen, with its statistics
            assert torch.equal(third[name], x), name
    assert main(["evaluate", str(folders[-1]), "--device", "cpu"]) == 0, capsys.readouterr().err
    assert main(["evaluate", str(folders[0]), "--device", "cpu"]) == 2
    assert "is of a first stage, which segments nothing" in capsys.readouterr().err
