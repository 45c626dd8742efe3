from pathlib import Path

import pytest
import torch
from torch import Tensor

from bts_lightning.__main__ import main
from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol
from bts_lightning.networks.backbone import Features
from bts_lightning.networks.medmap import MedMAP
from bts_lightning.networks.mifpn import DEEP, MIFPN

ALL = torch.ones(1, 4, dtype=torch.bool)
SOME = torch.tensor([[False, True, False, True]])


def small(**options: object) -> MIFPN:
    torch.manual_seed(0)
    return MIFPN(**MIFPN.small() | options).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 4, 32, 32, 32, generator=torch.Generator().manual_seed(1))


def test_full_width_has_the_official_number_of_weights_without_those_of_no_effect() -> None:
    with torch.device("meta"):
        net = MIFPN()
    assert sum(p.numel() for p in net.parameters()) == 107_715_616 - 12_331_268


@torch.no_grad()
def test_released_network_fails_the_law_of_no_leak(image: Tensor) -> None:
    other = image.where(SOME.view(1, 4, 1, 1, 1), -image)
    sound, released = small(), small(leak="released")
    assert torch.equal(sound(image, SOME).logits, sound(other, SOME).logits)
    before = released(image, SOME).logits
    assert (released(other, SOME).logits - before).norm() > 1e-4 * before.norm()


@torch.no_grad()
def test_released_network_decodes_absent_slots(image: Tensor) -> None:
    features = small(leak="released").encode(image, ALL)
    broken = tuple(
        torch.where(SOME.view(1, 4, *[1] * (x.dim() - 2)), x, float("nan")) for x in features.levels
    )
    spoilt = Features(broken, features.present, features.real).restrict(SOME)
    assert small().decode(spoilt).logits.isfinite().all()
    assert not small(leak="released").decode(spoilt).logits.isfinite().any()


@torch.no_grad()
def test_without_absent_modalities_both_are_one_network(image: Tensor) -> None:
    assert torch.equal(small()(image, ALL).logits, small(leak="released")(image, ALL).logits)


def test_leak_is_evaluated_only_where_it_is_named() -> None:
    for net in (small(leak="released"), MedMAP(small(leak="released"))):
        with pytest.raises(ConfigError, match=r"evaluation\.leak=released"):
            Protocol().admit(net)
        Protocol(leak="released").admit(net)
    Protocol().admit(small())
    assert "leak" not in Protocol().facts()
    assert Protocol(leak="released").facts()["leak"] == "released"


@pytest.mark.usefixtures("in_an_empty_folder")
def test_leak_must_be_named_before_a_training_begins(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_form = [f"net.{name}={value}" for name, value in MIFPN.small().items()]
    words = ["mifpn", "smoke", *small_form, "data.patch=32", f"data.root={phantom}"]
    assert main(["train", *words, "net.leak=released", "trainer.accelerator=cpu"]) == 2
    assert "evaluation.leak=released" in capsys.readouterr().err


def test_dropped_modalities_are_supervised_but_never_predicted_from(image: Tensor) -> None:
    net = small(dropout=0.0).train()
    output = net(image, SOME, available=ALL)
    other = net(image.flip(-1).where(~SOME.view(1, 4, 1, 1, 1), image), SOME, available=ALL)
    assert torch.equal(output.logits, other.logits)
    assert not torch.equal(output.auxiliary[0].logits, other.auxiliary[0].logits)
    assert not torch.equal(output.penalties["prompt"], other.penalties["prompt"])


def test_heads_of_modalities_leave_out_what_an_alignment_replaced(image: Tensor) -> None:
    aligned = MedMAP(small(dropout=0.0), levels=[DEEP]).train()
    valid = [a.valid for a in aligned(image, SOME, available=ALL).auxiliary[:4]]
    assert torch.cat(valid).equal(SOME[0])


def test_other_sizes_are_refused_with_the_one_that_fits() -> None:
    with pytest.raises(ValueError, match=r"built for \(32, 32, 32\) voxels, got \(48, 32, 32\)"):
        small()(torch.zeros(1, 4, 48, 32, 32), ALL)


def test_heads_must_divide_the_tokens() -> None:
    with pytest.raises(ConfigError, match="is not a multiple of heads 3"):
        small(heads=3)
