"""Run many verbs, each in a process of its own, without importing torch for each of them.

This process imports everything and starts no thread; a verb runs in a fork of it, and the trainings
that a verb starts run in forks of that one.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import lightning  # noqa: F401
import torch

from bts_lightning import __main__, files
from bts_lightning.commands import (  # noqa: F401
    distill,
    evaluate,
    fit,
    prepare,
    score,
    study,
    sweep,
    train,
)
from bts_lightning.distillation.chain import plan, result, run  # noqa: F401
from bts_lightning.runs import jobs, processes
from bts_lightning.study import report, work  # noqa: F401
from bts_lightning.sweep import worker  # noqa: F401
from tests.faults.hook import sitecustomize


class Fork:
    """What `subprocess.Popen` gives, as far as the package asks for it."""

    def __init__(self, command: list[str], env: dict[str, str], stdout: Any, **_: Any) -> None:
        words = command[command.index("bts_lightning") + 1 :]
        self.returncode: int | None = None
        waits, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(told)
            if not os.read(waits, 1):
                os._exit(1)
            in_a_fork(words, env, stdout.fileno())
        os.close(waits)
        self.stdin = os.fdopen(told, "wb")

    def poll(self) -> int | None:
        """Give the exit status once it has ended."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def in_a_fork(words: list[str], environment: dict[str, str], log: int) -> None:
    """Run a verb, and never come back."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(environment)
        files._tidied.clear()
        sys.argv = ["bts", *words]
        code = __main__.main(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Read a verb a line, and answer with its exit status."""
    torch.set_num_threads(1)
    jobs._LOOK_EVERY = 0.02
    # So that a slow machine makes no more changes than a fast one.
    processes._BEAT_EVERY = 1e9
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("BTS_", "PL_", "SLURM_"))}
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.chdir(wish["folder"])
            processes.subprocess = SimpleNamespace(  # type: ignore[assignment]
                **{**vars(subprocess), "Popen": Fork}
            )
            if wish["fault"]:
                sitecustomize.install(**wish["fault"])
            log = os.open(wish["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            in_a_fork(wish["words"], plain | wish["environment"], log)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps([code, time.monotonic() - began]), flush=True)


if __name__ == "__main__":
    main()
