"""Check golden files of the official networks: `python -m tests.networks.golden [FOLDER [NAME]]`.

Prints a line per file and mask with the relative error of the logits, the largest error among the
statistics and inner tensors, and the verdict; the exit status is 1 when anything misses its limit.
Files named `*_salted` are filled with their salt. NAME limits the check to files whose names
contain it. How to add a network: see `conformity.py`.
"""

import sys
from pathlib import Path

from tests.networks.conformity import FOLDER, entries, files, mask_name, network_of, recorded


def main(folder: Path = FOLDER, part: str = "") -> int:
    """Check the files of a folder that belong to a network of ours."""
    failures = 0
    known = entries()
    for path in recorded(folder, part):
        if (name := network_of(path)) not in known:
            print(f"{path.stem:40} {name}: not one of our networks, skipped")
    for path, entry in files(folder, part):
        for index in range(entry.masks(path)):
            rows = entry.check(path, index)
            main_row = next((row for row in rows if row.what == "logits"), rows[0])
            worst = max(rows, key=lambda row: row.error / row.limit if row.limit else row.error)
            passed = all(row.passed for row in rows)
            failures += not passed
            print(
                f"{path.stem:40} {mask_name(path, index):18} {main_row.what} {main_row.error:.2e}"
                f" (limit {main_row.limit:.0e}),"
                f" worst of {len(rows)}: {worst.what} {worst.error:.2e}"
                f" {'ok' if passed else 'FAILED'}",
                flush=True,
            )
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main(*[Path(sys.argv[1])] if len(sys.argv) > 1 else [], *sys.argv[2:3]))
