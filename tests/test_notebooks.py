"""The notebooks run from top to bottom in an empty folder, and lie in git without outputs."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(notebook: Path) -> None:
    for cell in cells(notebook, "code"):
        assert cell["outputs"] == [], "run `nbstripout notebooks/*.ipynb`"
        assert cell["execution_count"] is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_say_first_what_they_are(notebook: Path) -> None:
    text = "".join(cells(notebook, "markdown")[0]["source"])
    assert text.startswith("# ")
    assert ".[notebooks]" in text


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nbclient") is None, reason="needs the extra `notebooks`")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("BTS_RUN", raising=False)
    # One process of pytest a core; more threads only wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for folder in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder.lower()))
    read = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        read, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(cwd=str(tmp_path), env=dict(os.environ))
    shown = [output for cell in read.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in shown for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml"}, "a notebook without a picture teaches little"
    said = [output["text"] for output in shown if output.get("name") == "stderr"]
    assert not [text for text in said if "Warning" in text]
