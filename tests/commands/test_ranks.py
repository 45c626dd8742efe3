"""Two processes give what one gives, in training and in evaluation."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import distributed

from bts_lightning import config
from bts_lightning.__main__ import main
from bts_lightning.loggers import read_metrics
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.mmformer import MMFormer
from tests.tiny_training import TWO, bts, final

TINY = [
    "a2fseg",
    "smoke",
    "net.width=4",
    "net.poolings=2",
    "net.width_limit=8",
    "data.patch=16",
    "data.steps_per_epoch=4",
    "data.augment=null",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "callbacks.overlays=null",
    "evaluation.subsets=[flair,t1+t1c+t2+flair]",
]
NOT_VALIDATED = ["trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.subsets=null"]


def the_run(folder: Path) -> Path:
    (found,) = folder.glob("runs/*/*/config.yaml")
    return found.parent


def on_one_and_two(words: list[str], folder: Path) -> list[Path]:
    """Train with one rank, then with two that share the same batches; give both runs."""
    hows = {
        "one": ["trainer.devices=1", "data.batch_size=2"],
        "two": [*TWO, "data.batch_size=1"],
    }
    for name, how in hows.items():
        (folder / name).mkdir()
        bts("train", *words, *how, folder=folder / name)
    return [the_run(folder / name) for name in hows]


@pytest.fixture(scope="module")
def two_ranks(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    # Neither this process nor the rank that it starts may import what lies where it is started.
    for name in ("argparse", "yaml", "torch"):
        (folder / f"{name}.py").write_text("raise SystemExit('executed')")
    bts("train", *TINY, *TWO, "data.batch_size=1", f"data.root={phantom}", folder=folder)
    return folder


def test_two_ranks_learn_what_one_learns_with_twice_the_batch(
    two_ranks: Path, phantom: Path, tmp_path: Path
) -> None:
    bts("train", *TINY, "trainer.devices=1", "data.batch_size=2", f"data.root={phantom}",
        folder=tmp_path)  # fmt: skip
    one = read_metrics(the_run(tmp_path) / "logs" / "metrics.csv")
    two = read_metrics(the_run(two_ranks) / "logs" / "metrics.csv")
    # The epoch's mean is taken over both ranks, and each step began from the weights of the last.
    assert two["train/loss_epoch"][0][1] == pytest.approx(one["train/loss_epoch"][0][1], rel=1e-4)
    assert two["val/dice/mean"][0][1] == pytest.approx(one["val/dice/mean"][0][1], abs=1e-3)


@pytest.mark.slow
def test_two_ranks_operate_on_the_gradients_as_one_does(phantom: Path, tmp_path: Path) -> None:
    # Adam makes steps of mere rounding.
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "task.gradients=surgery"]
    words += ["task.optimizer._target_=torch.optim.SGD", "task.optimizer._partial_=true"]
    words += ["task.optimizer.lr=1e-2", "trainer.max_epochs=2", "trainer.gradient_clip_val=1.0"]
    found = [final(run) for run in on_one_and_two(words, tmp_path)]
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-3, atol=1e-5)


# Name: words of the experiment, edge of a patch, samples of a batch.
WHOLE_BATCH = {
    "rfnet": (["rfnet", "net.width=4", "task.main_loss_from_epoch=0"], 16, 4),
    # Two devices of four, as its official program has four of two.
    "mmformer": (
        ["mmformer", *(f"net.{key}={value}" for key, value in MMFormer.small().items())],
        32,
        8,
    ),
    # Terms of each sample, in single precision; which modality lags is asked of all.
    "passion": (["rfnet", "passion", "net.width=4", "task.main_loss_from_epoch=0"], 16, 4),
}


def learned(rank: int, world: int, name: str) -> torch.Tensor:
    """Give loss, gradient and buffers of an experiment's task for a rank's share of a batch."""
    words, edge, samples = WHOLE_BATCH[name]
    torch.manual_seed(0)
    task = config.build(config.load([*words, f"data.patch={edge}"]).task).double().train()
    for module in task.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    source = torch.Generator().manual_seed(1)
    share = slice(rank * samples // world, (rank + 1) * samples // world)
    # The last sample lacks a modality, so its head is not supervised there.
    available = torch.ones(samples, 4, dtype=torch.bool)
    available[-1, 1] = False
    present = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 1]]).bool()
    image = torch.randn(samples, 4, edge, edge, edge, generator=source, dtype=torch.double)
    batch = {
        "image": image[share],
        "label": torch.randint(4, (samples, edge, edge, edge), generator=source).byte()[share],
        "present": present.repeat(samples // 4, 1)[share],
        "available": available[share],
    }
    total = torch.stack(list(task._step(batch).values())).sum()
    total.backward()
    weights = task.net.parameters()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    found = [total.detach(), *gradients, *task.buffers()]
    return torch.cat([x.double().flatten() for x in found])


def as_a_rank(rank: int, folder: str, name: str) -> None:
    """Keep the mean over two ranks, as data-parallel training takes it."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    mean = learned(rank, 2, name)
    distributed.all_reduce(mean)
    torch.save(mean / 2, f"{folder}/two.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "relative", "absolute"),
    [("rfnet", 1e-9, 1e-12), ("mmformer", 1e-9, 1e-12), ("passion", 1e-4, 1e-6)],
)
def test_what_asks_for_the_whole_batch_asks_all_ranks(
    name: str, relative: float, absolute: float, tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(as_a_rank, (str(tmp_path), name), nprocs=2)
    two, one = torch.load(tmp_path / "two.pt"), learned(0, 1, name)
    print(f"{name}: loss {(two - one)[0].abs():.1e}, all {(two - one).norm() / one.norm():.1e}")
    torch.testing.assert_close(two, one, rtol=relative, atol=absolute)


@pytest.mark.slow
def test_two_ranks_balance_modalities_as_one_does(phantom: Path, tmp_path: Path) -> None:
    words = ["rfnet", "passion", "smoke", "net.width=4", "data.patch=16", "data.augment=null"]
    words += ["data.steps_per_epoch=3", "trainer.max_epochs=3", "trainer.accelerator=cpu"]
    words += [*NOT_VALIDATED, "callbacks.overlays=null", f"data.root={phantom}"]
    # Adam makes steps of mere rounding, and which modality lags is a matter of a sign.
    words += ["task.optimizer._target_=torch.optim.SGD", "task.optimizer._partial_=true"]
    words += ["task.optimizer.lr=1e-3"]
    found = [read_metrics(run / "logs" / "metrics.csv") for run in on_one_and_two(words, tmp_path)]
    terms = {f"balance/{m}": 1e-5 for m in MODALITIES} | {
        f"distillation/{m}": 1e-3 for m in MODALITIES
    }
    for term, limit in {"loss_epoch": 1e-4, "main": 1e-4, **terms}.items():
        one, two = ([value for _, value in metrics[f"train/{term}"]] for metrics in found)
        assert len(one) == 3
        assert two == pytest.approx(one, rel=limit, abs=1e-7), term
    assert len({found[0][f"train/balance/{m}"][-1][1] for m in MODALITIES}) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "terms"),
    [
        ("acn", ["information", "judges/entropy", "fools/knowledge"]),
        ("smunet", ["content", "judges/style", "fools/style"]),
    ],
)
def test_two_ranks_train_two_paths_and_their_discriminators_as_one_does(
    network: str, terms: list[str], phantom: Path, tmp_path: Path
) -> None:
    words = [network, "smoke", "net.width=8", "net.dropout=0.0", "data.patch=32"]
    words += ["data.augment=null"]
    words += ["data.steps_per_epoch=2", "trainer.max_epochs=3", "trainer.accelerator=cpu"]
    words += [*NOT_VALIDATED, "callbacks.overlays=null", f"data.root={phantom}"]
    found = [read_metrics(run / "logs" / "metrics.csv") for run in on_one_and_two(words, tmp_path)]
    for term in ("loss_epoch", "main", "full", "consistency", *terms):
        one, two = ([value for _, value in metrics[f"train/{term}"]] for metrics in found)
        assert len(one) == 3
        assert two == pytest.approx(one, rel=1e-4), term


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["lckd"], ["metakd", "data.held_out=1", "task.teaching.crops=2"]],
    ids=lambda words: words[0],
)
def test_two_ranks_choose_the_teachers_that_one_does(
    words: list[str], phantom: Path, tmp_path: Path
) -> None:
    words = [*words, "smoke", "data.patch=32", "data.augment=null", "data.steps_per_epoch=2"]
    # No longer: differences grow from 1e-5 to 7 % in a third epoch; to 0.5 % with patches of 64,
    # whose deepest features have more voxels to normalise over. So we take them for rounding.
    words += ["trainer.max_epochs=2", "trainer.accelerator=cpu", "task.teaching.every=2"]
    words += [*NOT_VALIDATED, "callbacks.overlays=null", f"data.root={phantom}"]
    runs = on_one_and_two(words, tmp_path)
    found = [read_metrics(run / "logs" / "metrics.csv") for run in runs]
    for term in ("loss_epoch", "peers", *(f"teaches/{m}" for m in MODALITIES)):
        one, two = ([value for _, value in metrics[f"train/{term}"]] for metrics in found)
        assert len(one) == 2
        assert two == pytest.approx(one, rel=1e-3), term
    chosen = ("teachers", "theta", "mean", "square")
    states = [final(run) for run in runs]
    for name in (n for n in states[0] if n.startswith("teaching.") and n.endswith(chosen)):
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-3, atol=1e-5)
    assert states[0]["teaching.taught_after"] == 3


@pytest.mark.slow
def test_the_table_does_not_depend_on_the_ranks_nor_on_an_interruption(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_ranks)
    run = the_run(two_ranks)
    words = ["evaluate", str(run), "--part", "train", "evaluation.importance=true"]
    bts(*words, "--name", "two", *TWO, folder=two_ranks)
    alone = ["trainer.devices=1", "trainer.strategy=auto"]
    assert main([*words, "--name", "one", *alone]) == 0
    one, two = (pd.read_csv(run / "evaluation" / name / "cases.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
    assert not two.duplicated(["case", "subset", "region"]).any()
    told = [(run / "evaluation" / n / "importance.csv").read_bytes() for n in ("one", "two")]
    assert told[0] == told[1]
    (run / "evaluation" / "one").rename(run / "evaluation" / "cut")
    for file in sorted((run / "evaluation" / "cut" / "rows").iterdir())[::2]:
        file.unlink()
    (run / "evaluation" / "cut" / "cases.csv").unlink()
    assert main([*words, "--name", "cut", *alone]) == 0
    cut = pd.read_csv(run / "evaluation" / "cut" / "cases.csv")
    pd.testing.assert_frame_equal(one, cut)


@pytest.mark.slow
def test_ranks_may_lack_different_modalities(phantom: Path, tmp_path: Path) -> None:
    present = "callbacks.present._target_=tests.training_parts.Present"
    words = [*TINY, *TWO, *NOT_VALIDATED, "--allow", "tests", present, f"data.root={phantom}"]
    # With the checkpoints of epochs all ranks would ask for the means of the epoch at one place.
    bts("train", *words, "callbacks.recent=null", "trainer.max_epochs=2", folder=tmp_path)
    assert read_metrics(the_run(tmp_path) / "logs" / "metrics.csv")["train/loss_epoch"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_told_once_by_the_first(
    phantom: Path, tmp_path: Path
) -> None:
    poison = ["callbacks.poison._target_=tests.training_parts.PoisonAt", "callbacks.poison.rank=1"]
    words = [*TINY, *TWO, *NOT_VALIDATED, "--allow", "tests", *poison, f"data.root={phantom}"]
    printed = bts("train", *words, "callbacks.poison.step=1", folder=tmp_path, code=2)
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert re.search(r"the loss is nan in epoch 0, step 1, for BraTS2021_\d+ \([^)]*\);", line)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the others wait")
def test_when_the_first_rank_fails_alone_the_others_end_with_it(
    phantom: Path, tmp_path: Path
) -> None:
    full = ["callbacks.full._target_=tests.training_parts.OutOfMemoryAt", "callbacks.full.step=1"]
    words = [*TINY, *TWO, *NOT_VALIDATED, "--allow", "tests", *full, f"data.root={phantom}"]
    # It comes back once every process has let go of the pipes.
    assert "error: out of memory" in bts("train", *words, folder=tmp_path, code=2)
