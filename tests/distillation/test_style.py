import pytest
import torch
from torch import Tensor, nn

from bts_lightning.distillation.style import (
    LAST,
    StyleTask,
    enlarged,
    gram_difference,
    released_weight,
    style_discriminator,
)
from bts_lightning.errors import ConfigError
from bts_lightning.losses import SeparateLabelLoss
from bts_lightning.networks.acn import ACN
from bts_lightning.networks.smunet import SMUNet
from tests.networks.parts import batch_for

T1C = [False, True, False, False]


def task(**options: object) -> StyleTask:
    torch.manual_seed(0)
    return StyleTask(
        SMUNet(width=8, reads="t1c", dropout=0.0),
        peer=SMUNet(width=8, dropout=0.0),
        loss=SeparateLabelLoss(),
        optimizer=torch.optim.Adam,
        discriminator_optimizer=torch.optim.Adam,
        **options,
    )


def moved(two: StyleTask, value: Tensor) -> set[str]:
    """Name the parts that a term trains."""
    two.zero_grad()
    value.backward(retain_graph=True)
    parts: dict[str, nn.Module] = {"judge": two.judges_style}
    for name, path in (("net", two.net), ("peer", two.peer)):
        assert isinstance(path, SMUNet)
        parts |= {f"{name} encoder": path.contract, f"{name} style": path.style}
        parts |= {f"{name} decoder": nn.ModuleList([path.merge, path.up, path.head])}
    return {
        name
        for name, part in parts.items()
        if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    }


@pytest.mark.parametrize("style", ["adversarial", "gram"])
def test_each_term_trains_its_own_side(style: str) -> None:
    two = task(style=style)
    terms = two._step(batch_for(16, [T1C, T1C]))
    net, peer = ({f"{path} {part}" for part in ("encoder", "style")} for path in ("net", "peer"))
    expected = {
        "full": peer | {"peer decoder"},
        "main": net | {"net decoder"},
        "consistency": net | peer | {"net decoder", "peer decoder"},
        "content": {"net encoder", "peer encoder"},
        "gram": net | peer,
        "fools/style": set() if style == "gram" else net,
        "judges/style": {"judge"},
    }
    if style == "adversarial":
        del expected["gram"]
    assert {name: moved(two, value) for name, value in terms.items()} == expected


def test_terms_have_the_published_weights() -> None:
    two = task(style="both")
    maps = torch.zeros(2, 1, 4, 2, 2, 2)
    full, missing = torch.zeros(1, 128, 2, 2, 2), torch.ones(1, 128, 2, 2, 2)
    terms = two.matched((maps[0], maps[1]), (full, missing))
    assert terms["content"] == pytest.approx(0.2)
    assert terms["gram"] == pytest.approx(0.2)  # each product of channels is 1 here, 0 there
    logit = two.judges_style(enlarged(missing[:, :64]))
    surely = torch.nn.functional.softplus(logit).mean()  # that of the missing path is the full one
    assert terms["fools/style"].item() == pytest.approx(0.0002 * surely.item())
    assert two.peer_share == pytest.approx(0.4)


def test_products_of_channels_are_compared_sample_by_sample() -> None:
    style = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1).expand(2, 2, 2, 2, 2)
    # Products 1, 2, 2, 4 against 0: their squares are 1, 4, 4, 16.
    assert gram_difference(torch.zeros_like(style), style) == pytest.approx(25 / 4)


def test_released_products_move_no_weight() -> None:
    draw = torch.Generator().manual_seed(0)
    full, missing = torch.randn(2, 1, 128, 20, 24, 16, generator=draw)
    missing.requires_grad_()
    weight = released_weight(full)
    assert weight == pytest.approx(6.6e-15, rel=0.01)
    (weight * gram_difference(full, missing)).backward()
    assert missing.grad is not None
    # A step as long as this would change no feature of 1 in single precision.
    assert 0 < missing.grad.abs().max() < 1e-17


@pytest.mark.parametrize("size", [(20, 24, 16), (4, 4, 4), (16, 24, 16)])
def test_one_patch_as_published_or_smaller_gets_one_answer(size: tuple[int, int, int]) -> None:
    style = torch.randn(1, 8, *size)
    padded = enlarged(style)
    assert torch.equal(padded[..., : size[0], : size[1], : size[2]], style)
    assert padded.sum() == pytest.approx(style.sum().item(), abs=1e-3)
    assert style_discriminator(8)(padded).shape == (1, 1, 1, 1, 1)
    assert padded.shape[2:] == (max(size[0], 8 * LAST[0]), 24, 16)


def test_paths_without_a_style_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.peer is ACN, which has no `style`"):
        StyleTask(
            SMUNet(width=8),
            peer=ACN(width=8),
            loss=SeparateLabelLoss(),
            optimizer=torch.optim.Adam,
            discriminator_optimizer=torch.optim.Adam,
        )
