"""One window of a run as a graph, and the program of the docs around it."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bts_lightning.__main__ import main
from bts_lightning.inference import Protocol
from bts_lightning.inference.graph import Window, compare, obstacle, record
from bts_lightning.inference.norms import spell_norms_out
from bts_lightning.losses import LabelLoss, RegionLoss, SeparateLabelLoss
from bts_lightning.losses.segmentation import SegmentationLoss
from bts_lightning.modalities import parse_subset
from bts_lightning.networks.unet import UNet

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
SMALL = ["evaluation.window=32"]


def needs_the_extra() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs the extra `onnx`")


def values(file: Path) -> np.ndarray[Any, Any]:
    return np.asarray(nib.load(file).dataobj)  # type: ignore[attr-defined]


def program(folder: Path) -> Path:
    """Take the program out of the page."""
    (text,) = re.findall(r"^```python\n(# segment.py.*?)^```$", DOCS.read_text(), re.M | re.S)
    file = folder / "segment.py"
    file.write_text(text)
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["evaluation.mirror=true", "evaluation.windows=stepped", "evaluation.weighting=constant"],
        ["evaluation.average=logits", "evaluation.temperature=2", "evaluation.et_minimum=100000"],
        ["data.crop=none", "evaluation.skip_empty=false", "evaluation.window=64"],
    ],
    ids=["default", "mirrored", "logits", "whole"],
)
def test_the_program_of_the_page_segments_as_predict_does(
    trained: Path, phantom: Path, tmp_path: Path, words: list[str]
) -> None:
    needs_the_extra()
    case = phantom / "BraTS2021_00000"
    files = {m: case / f"{case.name}_{m}.nii.gz" for m in ("t2", "flair")}
    graph, words = tmp_path / "net.onnx", [*SMALL, *words]
    assert main(["export", str(trained), str(graph), "--subset", "t2+flair", *words]) == 0
    given = [word for m, file in files.items() for word in (f"--{m}", str(file))]
    given.append("--probabilities")
    out = tmp_path / "predict.nii.gz"
    assert main(["predict", str(trained), *given, "--out", str(out), *words]) == 0
    alone: list[str | Path] = [sys.executable, program(tmp_path), graph, tmp_path / "alone.nii.gz"]
    subprocess.run([*alone, *(f"{m}={file}" for m, file in files.items())], check=True)
    wanted, found = (values(f) for f in (out, tmp_path / "alone.nii.gz"))
    assert len(np.unique(wanted)) > 1
    # Where two labels are as likely as each other, either may win.
    likeliest = np.sort(values(tmp_path / "predict_probabilities.nii.gz"))
    tied = (likeliest[..., -1] - likeliest[..., -2] < 1e-4) & (likeliest[..., -1] > 0)
    assert (found == wanted)[~tied].all()
    assert tied.mean() < 0.02


@pytest.mark.slow
def test_a_graph_carries_what_a_program_must_know(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_the_extra()
    from onnxruntime import InferenceSession

    out = tmp_path / "net.onnx"
    assert main(["export", str(trained), str(out), "--subset", "flair+T2", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"worst difference \d\.\de-\d\d in a probability, [\d.]+ s a window", printed)
    session = InferenceSession(out)
    shapes = {x.name: x.shape for x in (*session.get_inputs(), *session.get_outputs())}
    assert shapes["t2"] == shapes["flair"] == ["batch", 32, 32, 32]
    assert shapes["probabilities"][1:] == [4, 32, 32, 32]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["bts_lightning"])
    told: dict[str, object] = {
        "subset": "t2+flair",
        "window": [32, 32, 32],
        "normalisation": "zscore",
    }
    told |= {"scheme": "brats", "labelling": "argmax", "channels": [0, 1, 2, 3]}
    told |= {"regions": {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}, "overlap": 0.0}
    assert {key: facts[key] for key in told} == told
    assert facts["tissues"]["2"] == "oedema"


@pytest.mark.slow
def test_norms_of_a_graph_are_those_of_double_precision() -> None:
    needs_the_extra()
    from onnxruntime import InferenceSession

    torch.manual_seed(0)
    x = torch.randn(2, 4, 64, 64, 64)
    x[:, 0] = 0.7  # as the zero image of an absent modality becomes
    x[:, 1] = 3 + 1e-3 * x[:, 1]
    x[:, 2, :32] = 0
    for net in (nn.InstanceNorm3d(4, affine=True), nn.GroupNorm(2, 4), nn.InstanceNorm3d(4)):
        free = ({0: torch.export.Dim.DYNAMIC},)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(net.eval(), (x,), dynamo=True, dynamic_shapes=free)
        spell_norms_out(program)
        graph = program.model_proto.SerializeToString()
        session = InferenceSession(graph, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x[:1].numpy()})
        wanted = net.double()(x[:1].double())
        assert (torch.from_numpy(found) - wanted).abs().max() < 1e-4


class Wrong(UNet):
    """A network that computes something else while it is recorded."""

    def decode(self, features):  # type: ignore[no-untyped-def]
        output = super().decode(features)
        if torch.compiler.is_compiling():
            output.logits.add_(0.01)
        return output


class Odd(UNet):
    """A network with an operator that ONNX has not."""

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        return (torch.special.bessel_j0(image).unsqueeze(2),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Wrong, "differs from .* nothing was written"),
        (Odd, "bessel_j0 stands in"),
    ],
)
def test_what_cannot_be_a_graph_is_refused(kind: type[UNet], text: str) -> None:
    needs_the_extra()
    net = kind(width=4, poolings=2).eval()
    window = Window(net, RegionLoss(), parse_subset("flair"), Protocol(window=16))
    with pytest.raises(Exception, match=text):
        compare(window, record(window, (16, 16, 16)).model_proto.SerializeToString(), (16, 16, 16))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["net.bin"], "net.bin: the graph is a file that ends in .onnx"),
        (["net.onnx", "--subset", "t3"], "--subset: unknown modality 't3'"),
        (["net.onnx", "--subset", ""], "--subset"),
        (["net.onnx", "--subst", "t2"], "unknown option --subst"),
        (["net.onnx"], "install the extra: pip install 'bts_lightning[onnx]'"),
    ],
)
def test_a_mistake_is_one_line(
    trained: Path,
    words: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bts_lightning.commands.export.find_spec", lambda name: None)
    assert main(["export", str(trained), *words]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not Path("net.onnx").exists()


def test_the_operator_in_the_way_is_named() -> None:
    error = ValueError("Failed to convert\na long story")
    error.__cause__ = RuntimeError("No ONNX function for <OpOverload(op='aten.bessel', …)>")
    assert obstacle(error) == "aten.bessel"
    assert obstacle(ValueError("two words\nand more")) == "two words"


@pytest.mark.parametrize("loss", [RegionLoss(), LabelLoss(), SeparateLabelLoss()])
def test_a_loss_says_how_its_labels_are_read(loss: SegmentationLoss) -> None:
    draw = torch.Generator().manual_seed(0)
    average = loss.probabilities(torch.randn(1, loss.channels, 8, 8, 8, generator=draw))
    labels, p = np.array(loss.channel_classes), average[0].numpy()
    rules: dict[str, Any] = {
        "argmax": lambda: labels[p.argmax(0)],
        "last above half": lambda: np.select([a > 0.5 for a in p[::-1]], labels[::-1], 0),
        "argmax above half": lambda: np.where(p[1:].max(0) > 0.5, labels[p[1:].argmax(0) + 1], 0),
    }
    assert (rules[loss.labelling]() == loss.labels(average)[0].numpy()).all()
