"""A W&B server on the loopback interface: what sweeps, agents and runs ask of the real one."""

import gzip
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY = "somebody"
# What an agent and a run call for; wandb accepts errors for everything else.
_OPERATION = re.compile(
    r"\b(upsertSweep|createAgent|agentHeartbeat|upsertBucket|createRunFiles|createArtifact"
    r"|createArtifactManifest|updateArtifactManifest|createArtifactFiles|commitArtifact|useArtifact"
    r"|notifyScriptableRunAlert)\b"
)


@dataclass
class Run:
    """What a client has told of one run."""

    name: str
    args: dict[str, Any]
    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "pending"
    exit_code: int | None = None
    alerts: list[tuple[str, str]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)

    def curve(self, metric: str) -> list[float]:
        return [row[metric] for row in self.history if metric in row]


class WandbServer:
    """Keep sweeps and runs; hand out the cells of a grid to whoever asks.

    Attributes:
        runs: by name, in the order in which they were handed out.
        sweeps: the configuration of each sweep.
        stop: names of runs to stop, as hyperband would.
        artifacts: what each holds: its name, type, metadata, aliases, names of files.
        uploaded: the content of files by their names.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.agents: dict[str, str] = {}
        self.stop: set[str] = set()
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.uploaded: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self._lock = threading.Lock()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Answer one GraphQL request; None if it is not understood."""
        found = _OPERATION.search(query)
        with self._lock:
            if found:
                return {found[1]: getattr(self, f"_{found[1]}")(variables)}
            if "SweepWithRuns" in query:
                return {"project": {"sweep": self._sweep(variables["sweep"])}}
            if "RunResumeStatus" in query:
                bucket = self._resumed(variables["name"])
                return {"model": {**_project(variables["project"]), "bucket": bucket}}
            if "viewer" in query:
                teams = {"edges": []}
                return {"viewer": {"id": "1", "entity": ENTITY, "flags": "{}", "teams": teams}}
        self.unknown.append(query.split("(")[0].strip())
        return None

    def stream(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        """Take history, summary and end of a run."""
        with self._lock:
            run = self.runs[name]
            files = content.get("files") or {}
            for kind, target in (("history", run.history), ("summary", None)):
                lines = files.get(f"wandb-{kind}.json{'l' if target is not None else ''}", {})
                for place, line in enumerate(lines.get("content", ()), lines.get("offset", 0)):
                    row = json.loads(line)
                    if target is None:
                        run.summary = row
                    else:
                        # As the real one: what is there already is written over.
                        target[place : place + 1] = [row]
            if content.get("complete"):
                run.exit_code = content.get("exitcode")
                run.state = "failed" if run.exit_code else "finished"
            return {"stopped": name in self.stop}

    def _upsertSweep(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = yaml.safe_load(given["config"])
        parameters = self.sweeps[name]["parameters"]
        keys = list(parameters)
        values = [parameters[key].get("values", [parameters[key].get("value")]) for key in keys]
        for i, cell in enumerate(itertools.product(*values)):
            args = dict(zip(keys, cell, strict=True))
            self.runs[f"{name}run{i}"] = Run(f"{name}run{i}", args, name)
        sweep = {"name": name, "project": _project(given["projectName"])}
        return {"sweep": sweep, "configValidationWarnings": []}

    def _createAgent(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = f"agent{len(self.agents)}"
        self.agents[name] = given["sweep"]
        return {"agent": {"id": name}}

    def _agentHeartbeat(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        busy = [name for name, is_running in json.loads(given["runState"]).items() if is_running]
        commands: list[dict[str, Any]] = [
            {"type": "stop", "run_id": name} for name in busy if name in self.stop
        ]
        sweep = self.agents[given["id"]]
        waiting = [r for r in self.runs.values() if r.sweep == sweep and r.state == "pending"]
        if not busy and waiting:
            run = waiting[0]
            run.state = "running"
            args = {key: {"value": value} for key, value in run.args.items()}
            program = self.sweeps[sweep].get("program", "")
            commands.append({"type": "run", "run_id": run.name, "args": args, "program": program})
        elif not busy:
            commands.append({"type": "exit"})
        return {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}

    def _upsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.setdefault(given["name"], Run(given["name"], {}))
        if given.get("config"):
            told = json.loads(given["config"])
            run.config |= {key: entry.get("value") for key, entry in told.items()}
        if given.get("summaryMetrics"):
            run.summary = json.loads(given["summaryMetrics"])
        bucket = {"id": run.name, "name": run.name, "displayName": given.get("displayName")}
        bucket |= {"description": None, "config": "{}", "sweepName": given.get("sweep")}
        bucket |= {"project": _project(given["project"]), "historyLineCount": len(run.history)}
        return {"bucket": bucket, "inserted": not run.history}

    def _resumed(self, name: str) -> dict[str, Any] | None:
        """Tell what is known of a run that has told something."""
        run = self.runs.get(name)
        if run is None or not (run.history or run.config):
            return None
        config = {key: {"value": value} for key, value in run.config.items()}
        tail = [json.dumps(row) for row in run.history[-1:]]
        counts = {"historyLineCount": len(run.history), "logLineCount": 0, "eventsLineCount": 0}
        texts = {"historyTail": json.dumps(tail), "eventsTail": "[]", "config": json.dumps(config)}
        texts |= {"summaryMetrics": json.dumps(run.summary), "wandbConfig": '{"t": 1}'}
        more = {"id": name, "name": name, "displayName": name, "tags": [], "notes": None}
        return counts | texts | more

    def _createArtifact(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        told = given["input"]
        place = f"artifact{len(self.artifacts)}"
        name, run = told["artifactCollectionName"], told.get("runName")
        metadata = json.loads(told.get("metadata") or "{}")
        same = [a for a in self.artifacts.values() if a["name"] == name]
        for artifact in same:
            if artifact["digest"] == told["digest"]:
                place = artifact["id"]
        self.artifacts[place] = {
            **{"id": place, "name": name, "type": told["artifactTypeName"], "metadata": metadata},
            **{"aliases": [a["alias"] for a in told.get("aliases") or []], "files": []},
            **{"digest": told["digest"], "state": "PENDING"},
        }
        # What a run only reads is nobody's output.
        if run:
            self.runs[run].made.append(name)
        return {"artifact": {"id": place, "state": "PENDING", "artifactSequence": _SEQUENCE}}

    def _createArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = f"manifest-{given['artifactID']}"
        file = {"id": name, "uploadUrl": f"/upload/{name}", "uploadHeaders": []}
        return {"artifactManifest": {"id": name, "file": file}}

    def _updateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = given["artifactManifestID"]
        file = {"id": name, "uploadUrl": f"/upload/{name}", "uploadHeaders": []}
        return {"artifactManifest": {"id": name, "file": file}}

    def _createArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = []
        for spec in given["input"]["artifactFiles"]:
            place, name = spec["artifactID"], spec["name"]
            self.artifacts[place]["files"].append(name)
            path = f"{place}/{name}"
            node = {"storagePath": path, "uploadUrl": f"/upload/{path}", "uploadHeaders": []}
            node |= {"uploadMultipartUrls": None, "artifact": {"id": place}}
            edges.append({"node": node})
        return {"files": {"edges": edges}}

    def _commitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = self.artifacts[given["artifactID"]]
        artifact["state"] = "COMMITTED"
        return {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}

    def _useArtifact(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        told = given["input"]
        self.runs[told["runName"]].used.append(self.artifacts[told["artifactID"]]["name"])
        return {"artifact": {"id": told["artifactID"]}}

    def _notifyScriptableRunAlert(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.runs[given["runName"]].alerts.append((given["severity"], given["text"]))
        return {"success": True}

    def _createRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"/upload/{name}"} for name in given["files"]]
        return {"runID": given["run"], "uploadHeaders": [], "files": files}

    def _sweep(self, name: str) -> dict[str, Any] | None:
        if name not in self.sweeps:
            return None
        config = yaml.safe_dump(self.sweeps[name])
        return {"id": name, "name": name, "state": "RUNNING", "config": config, "runs": _NO_RUNS}


_NO_RUNS: dict[str, Any] = {"edges": []}
_SEQUENCE: dict[str, Any] = {"id": "sequence", "latestArtifact": None}


def _project(name: str) -> dict[str, Any]:
    return {"id": "1", "name": name, "entity": {"id": "1", "name": ENTITY}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: WandbServer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        content = self._content()
        if self.path == "/graphql":
            asked = json.loads(content)
            data = self.state.answer(asked["query"], asked.get("variables") or {})
            told = {"data": data} if data is not None else {"errors": [{"message": "unknown"}]}
            text = json.dumps(told).replace('"/upload/', f'"http://{self.headers["Host"]}/upload/')
            self._reply(text.encode())
        elif self.path.endswith("/file_stream"):
            name = self.path.split("/")[-2]
            self._reply(json.dumps(self.state.stream(name, json.loads(content))).encode())
        else:
            self._reply(b"{}")

    def do_PUT(self) -> None:
        self.state.uploaded[self.path.removeprefix("/upload/")] = self._content()
        self._reply(b"")

    def _content(self) -> bytes:
        content = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content

    def _reply(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serve() -> Iterator[tuple[WandbServer, str]]:
    """Run a server on a free port; gives it and its address."""
    state = WandbServer()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
