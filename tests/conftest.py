"""What tests share: one small phantom, prepared once a session, and torch left as it was."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Two workers of pytest on two cores: more threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of eight tiny phantom cases; all workers share one."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    root = shared / "phantom"
    from bts_lightning.data.cache.prepare import prepare

    # On a machine with a GPU, which may lack what makes a phantom; see tests/gpu.
    if given := os.environ.get("BTS_GPU_DATA"):
        shutil.copytree(given, root, dirs_exist_ok=True)
        prepare(root, workers=1)
        return root
    from bts_lightning.data.phantom.write import write_phantom

    # Both are safe when two processes start at once, and done when the folder is there.
    write_phantom(root, cases=8, seed=0, size=(48, 48, 40), workers=1)
    prepare(root, workers=1)
    return root


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Undo what a test changes for the whole process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    rng = torch.get_rng_state()
    # wandb leaves the address of its service to processes that a later test starts.
    changed = ("BTS_RUN", "PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WANDB_SERVICE")
    environment = {name: os.environ.get(name) for name in changed}
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_rng_state(rng)
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def trained(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run of a tiny U-HeMIS, trained for one step; tests copy it before they spoil it."""
    from bts_lightning.commands.train import train

    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        train(
            [
                "uhemis",
                "smoke",
                "net.width=4",
                f"data.root={phantom}",
                "data.patch=32",
                "data.steps_per_epoch=1",
                "trainer.max_epochs=1",
                "trainer.accelerator=cpu",
                "trainer.devices=1",
                "trainer.limit_val_batches=0",
                "callbacks.best=null",
            ]
        )
    finally:
        os.chdir(before)
        os.environ.pop("BTS_RUN", None)
    (config,) = folder.glob("runs/*/*/config.yaml")
    return config.parent


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where there are no runs yet, and where no scheduler has said anything."""
    monkeypatch.chdir(tmp_path)
    given = ("BTS_RUN", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE")
    for name in given:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
