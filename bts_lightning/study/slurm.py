"""A study as jobs of Slurm: an array of its trainings, and a job after it that writes the table."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bts_lightning.errors import UserError

# What a study says itself; another value would break it.
_OURS = ("--array", "-a", "--dependency", "-d", "--output", "-o", "--parsable", "--wrap")
# Names that stand for another option of ours.
_ALSO = {"-c": "--cpus-per-task", "-t": "--time", "-n": "--ntasks", "-J": "--job-name"}
# The table needs no GPU: of the user's options it takes those that say who pays, and where.
_PLACE = (
    "--partition",
    "-p",
    "--account",
    "-A",
    "--qos",
    "-q",
    "--reservation",
    "--clusters",
    "-M",
)


def slurm_options(text: str) -> dict[str, str]:
    """Take options of `sbatch` apart, as `--partition=gpu --gres=gpu:a100:1`.

    Gives the text of each by its name.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        raise UserError(f"--sbatch {text}: a quote is not closed") from None
    found: dict[str, str] = {}
    last = ""
    for word in words:
        if word.startswith("-") and len(word) > 1:
            # `-p gpu` and `-pgpu` are one; a long name ends at its equals sign.
            last = word.partition("=")[0] if word.startswith("--") else word[:2]
            if last in _OURS:
                raise UserError(f"--sbatch {word}: a study sets {last} itself; leave it out")
            found[last] = shlex.quote(word)
        elif last and found[last] in (last, shlex.quote(last)):
            found[last] += f" {shlex.quote(word)}"
        else:
            raise UserError(
                f'--sbatch {word}: give options of sbatch, as --sbatch="--partition=gpu '
                '--gres=gpu:a100:1"'
            )
    return found


def slurm_script(
    words: Sequence[str], folder: Path, count: int, given: dict[str, str], *, on_gpu: bool
) -> str:
    """Write the script that submits a study.

    Args:
        words: those of `bts study` without the ones that ask for this script.
        folder: of the study.
        count: its trainings.
        given: the user's options of `sbatch`, which replace ours.
        on_gpu: whether a training needs a GPU.
    """
    array = {
        "--job-name": folder.name,
        "--array": f"0-{count - 1}",
        "--ntasks": "1",
        "--gpus-per-task": "1",
        "--cpus-per-task": "8",
        "--time": "24:00:00",
        "--signal": "SIGUSR1@120",
        "--output": f"{folder}/slurm-%a.log",
    }
    if not on_gpu or any("gres" in name or "gpus" in name for name in given):
        del array["--gpus-per-task"]
    table = {
        "--job-name": f"{folder.name}-table",
        "--time": "1:00:00",
        "--output": f"{folder}/slurm-table.log",
    }
    command = shlex.join([sys.executable, "-P", "-m", "bts_lightning", "study", *words])
    after = {name: text for name, text in given.items() if name in _PLACE}
    return f"""#!/bin/bash
# Submits {count} trainings with their evaluations, and what writes the table after the last one.
# Give it to bash. What is finished ends at once, what was stopped goes on.
set -e
cd {shlex.quote(str(Path.cwd()))}
array=$(sbatch --parsable <<'ARRAY'
{_head(array, given)}
#SBATCH --requeue
#SBATCH --open-mode=append
srun {command} --only "$SLURM_ARRAY_TASK_ID"
ARRAY
)
table=$(sbatch --parsable --dependency="afterany:${{array%%;*}}" <<'TABLE'
{_head(table, after)}
{command} --table
TABLE
)
echo "trainings: job $array; table: job $table, in {folder}/study.html"
"""


def _head(ours: dict[str, str], given: dict[str, str]) -> str:
    replaced = {_ALSO.get(name, name) for name in given}
    kept = [f"{name}={value}" for name, value in ours.items() if name not in replaced]
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in [*kept, *given.values()])])
