"""Compare trainings with those of the official programs.

    python -m tests.networks.golden_train [FOLDER [NAME]]

Prints a line per file and kind of number with the worst error, its limit and the verdict; the exit
status is 1 when anything misses its limit. NAME limits the check to files whose names contain it.
Any folder of such files will do, whatever their salts, masks and labels; `tests/golden_train/`
describes them.
"""

import sys
from pathlib import Path

from tests.networks.golden_train.files import FOLDER, check, files


def main(folder: Path = FOLDER, part: str = "") -> int:
    """Check the files of a folder."""
    failures = 0
    for path in files(folder, part):
        for row in check(path):
            failures += not row.passed
            print(
                f"{path.stem:24} {row.what:16} {row.error:.1e} (limit {row.limit:.0e})"
                f" {'ok' if row.passed else 'FAILED'}",
                flush=True,
            )
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main(*[Path(sys.argv[1])] if len(sys.argv) > 1 else [], *sys.argv[2:3]))
