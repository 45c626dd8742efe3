"""The data module, with the real trainer around it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from bts_lightning.availability import Uniform15
from bts_lightning.data.augment import Noise
from bts_lightning.data.cache.prepare import CachedCase
from bts_lightning.data.cases import CaseLoader
from bts_lightning.data.module import BratsDataModule
from bts_lightning.errors import ConfigError

# Lightning 2.6 asks torch 2.13 about tree leaves in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

PATCH = 8


def module(phantom: Path, **options: Any) -> BratsDataModule:
    return BratsDataModule(phantom, **{"patch": PATCH, "workers": 2, **options})


class Recorder(LightningModule):
    """Train one number, and write down the seed of every sample that a finished step has seen."""

    def __init__(self, in_step: Callable[[Trainer], None] = lambda trainer: None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.in_step = in_step
        self.seen: list[int] = []
        self.batches: list[dict[str, Any]] = []
        self.cases: list[Any] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.in_step(self.trainer)
        self.seen += batch["seed"]
        self.batches.append(batch)
        return (self.weight - batch["image"].mean()) ** 2

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.cases.append(batch["case"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return Trainer(**defaults | options, callbacks=list(callbacks))


# --- before the trainer ---


def test_nothing_touches_the_disk_before_prepare_data(tmp_path: Path) -> None:
    BratsDataModule(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_setup_gives_split_fingerprint_and_cases(phantom: Path) -> None:
    data = module(phantom)
    data.prepare_data()
    data.setup("fit")
    assert len(data.cases) == 8
    assert data.fingerprint
    parts = [*data.split.train, *data.split.val, *data.split.test]
    assert sorted(parts) == sorted(data.cases)
    assert data.split.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"samples_per_epoch": 4, "steps_per_epoch": 2}, "say the same"),
        ({"seed": -1}, "seed is -1"),
        ({"held_out": -1}, "held_out is -1"),
        ({"foreground": 2.0}, "between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BratsDataModule("data", **options)


def test_an_impossible_patch_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="patch is"):
        BratsDataModule("data", patch=[8, 8])


def test_batches_are_those_of_the_contract(phantom: Path) -> None:
    data = module(phantom, batch_size=2, patch=[8, 12, 16])
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].dtype == torch.float16
    assert batch["image"].shape == (2, 4, 8, 12, 16)
    assert set(batch["case"]) <= set(data.split.train)


def test_the_length_of_an_epoch(phantom: Path) -> None:
    def steps(**options: Any) -> int:
        data = module(phantom, **options)
        data.setup("fit")
        return len(data.train_dataloader())

    train = 5  # of eight phantoms
    assert steps() == train
    assert steps(batch_size=2) == 3
    assert steps(samples_per_epoch=7, batch_size=2) == 4
    assert steps(steps_per_epoch=9, batch_size=2) == 9


def test_what_is_held_out_shows_the_network_nothing(phantom: Path) -> None:
    data = module(phantom, held_out=2, steps_per_epoch=40, foreground=0.5)
    data.setup("fit")
    held_out = data.held_out
    assert len(held_out) == 2
    assert set(held_out) < set(data.split.train)
    loader = data.train_dataloader()
    shown = {loader.patches.case_of(epoch, i).name for epoch in range(2) for i in range(40)}
    assert shown == set(data.split.train) - set(held_out)
    # All ranks ask for the same patches, and each case comes as often as the others.
    own, again = (data.patches_of(held_out, 4) for _ in range(2))
    assert sorted(own.batch(7, i)["case"][0] for i in range(4)) == sorted(2 * held_out)
    for i in range(4):
        assert torch.equal(own.batch(7, i)["image"], again.batch(7, i)["image"])


def test_holding_all_out_leaves_nothing_to_train_on(phantom: Path) -> None:
    data = module(phantom, held_out=5)
    data.setup("fit")
    with pytest.raises(ConfigError, match="held_out is 5, and the split has 5 training cases"):
        data.train_dataloader()


# --- cases that lack something ---


@pytest.fixture
def manifest(phantom: Path, tmp_path: Path) -> Path:
    """Name six phantoms: one without T1 and FLAIR, one without a label."""
    names = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "label": "seg"}
    lines = ["case," + ",".join(names) + ",labels"]
    for number, folder in enumerate(sorted(phantom.glob("BraTS*"))[:6]):
        files = {column: folder / f"{folder.name}_{end}.nii.gz" for column, end in names.items()}
        absent = {0: ("t1", "flair"), 1: ("label",)}.get(number, ())
        row = ["" if column in absent else str(files[column]) for column in names]
        lines.append(",".join([f"case{number}", *row, "brats2021"]))
    file = tmp_path / "cases.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_case_that_lacks_modalities_trains_with_what_it_has(
    manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text("case0\n")
    data = module(
        manifest,
        cache=tmp_path / "cache",
        split={"train": str(tmp_path / "train.txt")},
        samples_per_epoch=20,
        availability=Uniform15(),
    )
    data.setup("fit")
    for batch in data.train_dataloader():
        assert batch["available"].tolist() == [[False, True, True, False]]
        assert batch["present"].any()
        assert not (batch["present"] & ~batch["available"]).any()
        assert (batch["image"][:, [0, 3]] == 0).all()


def test_a_case_without_label_never_trains_but_is_predicted(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(manifest, cache=tmp_path / "cache")
    with caplog.at_level("INFO"):
        data.setup("fit")
        data.setup("test")
    assert caplog.text.count("1 of 6 cases have no label map") == 1
    assert "case1" not in [*data.split.train, *data.split.val, *data.split.test]
    predicted = [batch["case"] for batch in data.predict_dataloader()]
    assert "case1" in [case.name for case in predicted if case is not None]


# --- whole cases ---


def test_each_rank_gets_its_own_cases_and_as_many_steps(phantom: Path) -> None:
    data = module(phantom)
    data.setup("test")
    cases = list(data.cases.values())[:5]
    ranks = [CaseLoader(cases, lambda rank=rank: (rank, 3)) for rank in range(3)]
    shown = [[batch["case"] for batch in loader] for loader in ranks]
    assert [len(part) for part in shown] == [len(loader) for loader in ranks] == [2, 2, 2]
    assert [case for step in zip(*shown, strict=True) for case in step] == [*cases, None]


def test_an_unknown_part_is_refused(phantom: Path) -> None:
    data = module(phantom)
    data.setup("test")
    with pytest.raises(ConfigError, match="part is 'valid'"):
        data.case_dataloader("valid")  # type: ignore[arg-type]


def test_validation_gets_whole_cases_as_they_are(phantom: Path, tmp_path: Path) -> None:
    data, task = module(phantom), Recorder()
    trainer(tmp_path, max_epochs=1, limit_val_batches=1.0).fit(task, datamodule=data)
    assert [case.name for case in task.cases] == list(data.split.val)
    assert all(isinstance(case, CachedCase) for case in task.cases)


def test_a_case_loader_alone_works_without_the_module_attached(
    phantom: Path, tmp_path: Path
) -> None:
    data, task = module(phantom), Recorder()
    data.setup("test")
    trainer(tmp_path, limit_val_batches=1.0).validate(task, data.test_dataloader(), verbose=False)
    assert [case.name for case in task.cases] == list(data.split.test)


# --- training ---


def test_training_batches_arrive_as_float32_and_augmented(phantom: Path, tmp_path: Path) -> None:
    augmented, plain = Recorder(), Recorder()
    run = {"max_epochs": 1}
    trainer(tmp_path, **run).fit(plain, datamodule=module(phantom))
    noisy = module(phantom, augment={"noise": Noise(p=1), "off": None})
    trainer(tmp_path, **run).fit(augmented, datamodule=noisy)
    for before, after in zip(plain.batches, augmented.batches, strict=True):
        assert before["image"].dtype == after["image"].dtype == torch.float32
        assert not torch.equal(before["image"], after["image"])
        assert torch.equal(before["label"], after["label"])


def test_every_epoch_has_samples_of_its_own(phantom: Path, tmp_path: Path) -> None:
    task = Recorder()
    trainer(tmp_path).fit(task, datamodule=module(phantom))
    assert len(task.seen) == len(set(task.seen)) == 15


def test_overfitting_repeats_the_same_samples(phantom: Path, tmp_path: Path) -> None:
    task = Recorder()
    with pytest.warns(UserWarning, match="turning off"):
        trainer(tmp_path, overfit_batches=2).fit(task, datamodule=module(phantom))
    assert task.seen[:2] == task.seen[2:4] == task.seen[4:6]


class StoppedError(Exception):
    """The end of an interrupted run."""


class SaveAndStop(Callback):
    """Save a checkpoint when a hook is called in an epoch at a batch, and end the run."""

    def __init__(self, hook: str, epoch: int, batch: int, file: Path) -> None:
        self.when, self.file = (epoch, batch), file
        setattr(self, hook, self._now)

    def _now(self, trainer: Trainer, *_: Any) -> None:
        loop = trainer.fit_loop
        if (trainer.current_epoch, loop.epoch_loop.batch_idx) == self.when:
            trainer.save_checkpoint(self.file)
            raise StoppedError


@pytest.mark.parametrize(
    ("hook", "epoch", "batch", "finished"),
    [
        ("on_train_batch_start", 1, 1, 6),
        ("on_train_batch_end", 1, 1, 7),
        ("on_train_batch_end", 0, 4, 5),
        ("on_train_batch_end", 1, 4, 10),
        ("on_train_epoch_end", 0, 4, 5),
        ("on_train_epoch_end", 1, 4, 10),
        ("on_validation_end", 1, 4, 10),
        ("on_validation_end", 1, 1, 7),
    ],
)
@pytest.mark.filterwarnings("ignore:You're resuming")
def test_a_resumed_run_sees_each_remaining_sample_once(
    phantom: Path, tmp_path: Path, hook: str, epoch: int, batch: int, finished: int
) -> None:
    options: dict[str, Any] = {"limit_val_batches": 1}
    if hook == "on_validation_end" and batch == 1:
        options["val_check_interval"] = 2
    whole = Recorder()
    trainer(tmp_path, **options).fit(whole, datamodule=module(phantom))
    assert len(whole.seen) == 15

    file = tmp_path / "stopped.ckpt"
    with pytest.raises(StoppedError):
        trainer(tmp_path, SaveAndStop(hook, epoch, batch, file), **options).fit(
            Recorder(), datamodule=module(phantom)
        )
    resumed = Recorder()
    trainer(tmp_path, **options).fit(
        resumed, datamodule=module(phantom), ckpt_path=file, weights_only=True
    )
    assert resumed.seen == whole.seen[finished:]
    assert torch.equal(resumed.weight, whole.weight)


def test_a_checkpoint_from_within_a_step_repeats_that_step(phantom: Path, tmp_path: Path) -> None:
    file = tmp_path / "stopped.ckpt"

    def stop(trainer: Trainer) -> None:
        if trainer.global_step == 7:
            trainer.save_checkpoint(file)
            raise StoppedError

    whole, resumed = Recorder(), Recorder()
    trainer(tmp_path).fit(whole, datamodule=module(phantom))
    with pytest.raises(StoppedError):
        trainer(tmp_path).fit(Recorder(stop), datamodule=module(phantom))
    trainer(tmp_path).fit(resumed, datamodule=module(phantom), ckpt_path=file, weights_only=True)
    assert resumed.seen == whole.seen[7:]
    assert torch.equal(resumed.weight, whole.weight)


def test_the_loader_state_in_a_checkpoint_is_plain(phantom: Path, tmp_path: Path) -> None:
    file = tmp_path / "it.ckpt"
    with pytest.raises(StoppedError):
        trainer(tmp_path, SaveAndStop("on_train_batch_end", 0, 1, file)).fit(
            Recorder(), datamodule=module(phantom)
        )
    saved = torch.load(file, weights_only=True)["loops"]["fit_loop"]["state_dict"]
    assert json.dumps(saved["combined_loader"]) == json.dumps(
        [{"epoch": 0, "batch": 2, "step": 1, "steps": 5}]
    )
