"""M3AE's substitute image: where it is cut, and what never comes through."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol
from bts_lightning.inference.windows import lay_out, mirrored
from bts_lightning.networks.m3ae import M3AE

FRAME = (20, 24, 18)
ALL, NONE_BUT_T1 = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, False, False, False]])


def small(**options: Any) -> M3AE:
    """Give a network whose substitute says of each voxel where it is."""
    net = M3AE(**{"width": 8, "frame": FRAME, **options}).eval()
    places = torch.arange(net.substitute[0, 0].numel()).view(net.substitute[0, 0].shape)
    with torch.no_grad():
        net.substitute.copy_(places.expand_as(net.substitute))
    return net


def cut(net: M3AE, place: Tensor | None, size: int = 8) -> Tensor:
    image = torch.zeros(1, 4, size, size, size)
    return net.cut(net.encode(image, NONE_BUT_T1, place))[0, 0]


def test_full_width_has_the_official_number_of_weights() -> None:
    with torch.device("meta"):
        net = M3AE()
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()
    }
    assert net.substitute.numel() == 35_712_000
    assert sum(counts.values()) == 4_704_505
    assert counts["deep"] == 294


def test_the_substitute_is_cut_where_the_patch_lies() -> None:
    net = small()
    whole = net.substitute[0, 0]
    place = torch.tensor([[[3, 1], [10, 1], [5, 1]]])
    assert torch.equal(cut(net, place), whole[3:11, 10:18, 5:13])
    turned = mirrored(place, (8, 8, 8), [-3, -1])
    assert turned.tolist() == [[[10, -1], [10, 1], [12, -1]]]
    assert torch.equal(cut(net, turned), whole[3:11, 10:18, 5:13].flip(0, 2))
    assert torch.equal(mirrored(turned, (8, 8, 8), [-3, -1]), place)
    assert torch.equal(cut(net, None), whole[:8, :8, :8])


def test_beyond_the_frame_stands_its_border() -> None:
    found = cut(small(), torch.tensor([[[-2, 1], [0, 1], [14, 1]]]))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[..., 3], found[..., 7])
    assert not torch.equal(found[2], found[3])


def test_a_coarse_substitute_has_one_value_for_some_voxels() -> None:
    net = small(coarse=4)
    assert net.substitute.shape == (1, 4, 5, 6, 5)
    found = cut(net, torch.tensor([[[4, 1], [0, 1], [0, 1]]]))
    assert torch.equal(
        found,
        net.substitute[0, 0, 1:3, :2, :2]
        .repeat_interleave(4, 0)
        .repeat_interleave(4, 1)
        .repeat_interleave(4, 2),
    )


def test_each_row_of_a_batch_has_a_place_of_its_own() -> None:
    net = small()
    places = torch.tensor([[[0, 1]] * 3, [[5, 1]] * 3])
    image = torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    present = NONE_BUT_T1.expand(2, -1)
    with torch.no_grad():
        both = net(image, present, place=places).logits
        alone = net(image[1:], present[1:], place=places[1:]).logits
        elsewhere = net(image[1:], present[1:], place=places[:1]).logits
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(alone, elsewhere, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("form", "first"), [("full", [35, 41, 12]), ("released", [0, 0, 0])])
def test_windows_lie_in_the_frame_or_as_released_in_the_crop(form: Any, first: list[int]) -> None:
    net = M3AE(width=8, coarse=16, substitute_frame=form)
    image = torch.ones(4, 20, 16, 10).numpy()
    windows = lay_out(image, [True] * 4, Protocol(window=16, overlap=0.5), net, (35, 41, 15))
    assert windows.place[0, :, 0].tolist() == first  # the crop is three voxels narrower a side
    assert windows.place[-1, 0, 0] == first[0] + 4
    assert (windows.place[..., 1] == 1).all()


def test_a_case_beyond_the_frame_is_refused() -> None:
    image = torch.ones(4, 16, 16, 16).numpy()
    with pytest.raises(ConfigError, match=r"net.frame is \[20, 24, 18\], and .* \[16, 25, 16\]"):
        lay_out(image, [True] * 4, Protocol(window=16), small(), (0, 9, 0))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"frame": [10, 10]}, "three axes"), ({"coarse": 0}, "coarse is 0"), ({"width": 12}, "of 8")],
)
def test_what_makes_no_network_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        M3AE(**options)
