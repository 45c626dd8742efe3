"""The kinds of training files, and who compares them."""

from pathlib import Path

from tests.networks.conformity import Row, config_of
from tests.networks.golden_train import schedules, uhved
from tests.networks.golden_train.replay import replay

FOLDER = Path(__file__).parents[2] / "golden_train"


def files(folder: Path = FOLDER, part: str = "") -> list[Path]:
    """List the files of a folder whose names contain this."""
    return sorted(path for path in folder.glob("*.npz") if part in path.stem)


def check(path: Path, steps: int | None = None) -> list[Row]:
    """Compare one file; of a training all steps, or the first ones."""
    if path.stem == "schedules":
        return schedules.compare(path)
    if config_of(path)["network"] == "U-HVED":
        return uhved.compare(path)
    return replay(path, steps)
