"""A Slurm of three nodes on one machine, for the tests: its daemons, its commands, its end.

It needs the packages `slurm-wlm` and `munge`, and root, as in a container. All that it keeps lies
in one folder.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
# Jobs take the first two; the third is there when one of them dies.
NODES = ("n1", "n2", "n3")
_PORTS = {"controller": 27817, "n1": 27818, "n2": 27819, "n3": 27820}
# What a job may be in the end.
_ENDS = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def why_not() -> str | None:
    """Say what is missing here."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"Slurm is not installed here: no {', '.join(missing)}"
    return None if os.geteuid() == 0 else "starting Slurm needs root"


class Cluster:
    """Three nodes of two processors each; a context that starts and ends them.

    Args:
        place: an empty folder for keys, sockets, logs and spools.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        # A socket's path may have about a hundred characters.
        self._short = Path("/tmp") / f"bts-slurm-{os.getpid()}"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        free = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        self.environment = free | {"SLURM_CONF": str(place / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        self._short.mkdir(mode=0o755)
        key = self.place / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        here = self.place
        (here / "slurm.conf").write_text(self._configuration())
        (here / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for node in NODES:
            (here / "spool" / node).mkdir(parents=True)
        munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
        munge += [f"--socket={self._socket}", f"--pid-file={here}/munge.pid"]
        munge += [f"--log-file={here}/munge.log", f"--seed-file={here}/munge.seed"]
        self._start("munged", munge)
        self._until(self._socket.exists, "munged made no socket")
        self._start("slurmctld", ["slurmctld", "-D", "-i"])
        for node in NODES:
            self.start_node(node)
        self._until(lambda: self._idle() == len(NODES), "the nodes did not come up")

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user=root", "--signal=KILL", check=False)
        for name in [*NODES, "slurmctld", "munged"]:
            if daemon := self._daemons.pop(name, None):
                daemon.kill()
                daemon.wait()
        # The steps of jobs outlive their node.
        for node in NODES:
            for process in self._processes(f"SLURMD_NODENAME={node}"):
                _kill(process)
        shutil.rmtree(self._short, ignore_errors=True)

    def start_node(self, node: str) -> None:
        self._start(node, ["slurmd", "-D", "-N", node])

    def kill_node(self, node: str) -> None:
        """Kill a node as a power cut does: its daemon, its steps and all that they started."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for process in self._processes(f"SLURMD_NODENAME={node}"):
            _kill(process)

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands and give what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}{self.logs()}")
        return done.stdout

    def submit(self, script: str, folder: Path, *options: str) -> str:
        """Give a script to `sbatch` in a folder; give the job's number."""
        file = folder / f"job-{time.time_ns()}.sh"
        file.write_text(script)
        return self.run("sbatch", "--parsable", f"--chdir={folder}", *options, str(file)).strip()

    def facts(self, job: str) -> list[dict[str, str]]:
        """Give what Slurm knows of a job, of each of its tasks."""
        printed = self.run("scontrol", "--oneliner", "show", "job", job)
        return [
            dict(word.partition("=")[::2] for word in line.split() if "=" in word)
            for line in printed.splitlines()
        ]

    def states(self, job: str) -> list[str]:
        """Give the state of each of its tasks."""
        return [one["JobState"] for one in self.facts(job)]

    def wait(self, job: str, limit: float) -> list[str]:
        """Wait until all tasks of a job have ended; give their states."""
        self._until(lambda: set(self.states(job)) <= _ENDS, f"job {job} did not end", limit)
        return self.states(job)

    def until(self, there: Callable[[], bool], what: str, limit: float = 120) -> None:
        self._until(there, what, limit)

    def logs(self) -> str:
        """Give the ends of the daemons' logs, for a test that failed."""
        files = sorted(self.place.glob("*.log"))
        return "".join(f"\n--- {f.name}\n" + f.read_text()[-2000:] for f in files)

    def _processes(self, setting: str) -> set[int]:
        """Find the processes of jobs by what their environment says, and the daemons above them."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                settings = (folder / "environ").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                above = Path(f"/proc/{parent}/cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if {setting.encode(), f"SLURM_CONF={self.place}/slurm.conf".encode()} <= {*settings}:
                found |= {int(folder.name), *([parent] if above.startswith(b"slurmstepd") else [])}
        return found

    @property
    def _socket(self) -> Path:
        return self._short / "munge"

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.place / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def _idle(self) -> int:
        printed = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False)
        return printed.split().count("idle")

    def _until(self, there: Callable[[], bool], what: str, limit: float = 60) -> None:
        end = time.monotonic() + limit
        while not there():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} in {limit:.0f} s{self.logs()}")
            time.sleep(0.2)

    def _configuration(self) -> str:
        host = os.uname().nodename
        lines: Mapping[str, object] = {
            "ClusterName": "bts",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": _PORTS["controller"],
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self._socket}",
            "StateSaveLocation": self.place / "state",
            "SlurmdSpoolDir": f"{self.place}/spool/%n",
            "SlurmctldPidFile": self.place / "slurmctld.pid",
            "SlurmdPidFile": f"{self.place}/slurmd-%n.pid",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "MpiDefault": "none",
            "ReturnToService": 2,
            # Short, where a cluster has minutes: a dead node is to be seen in seconds.
            "SlurmdTimeout": 10,
            "KillWait": 10,
            "MinJobAge": 3600,
            "SchedulerParameters": "requeue_delay=1,batch_sched_delay=1",
            "SchedulerType": "sched/builtin",
            "JobRequeue": 1,
        }
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={_PORTS[node]} CPUs=2 "
            "RealMemory=4000 State=UNKNOWN"
            for node in NODES
        ]
        part = f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"
        return "\n".join([*(f"{k}={v}" for k, v in lines.items()), *nodes, part]) + "\n"


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
