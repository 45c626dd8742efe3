import pytest
import torch

from bts_lightning.errors import ConfigError
from bts_lightning.networks.backbone import Features
from bts_lightning.networks.demoseg import ChannelSort, DeMoSeg

T1, T1C, T2, FLAIR = range(4)


def test_full_width_has_the_official_number_of_weights() -> None:
    net = DeMoSeg()
    assert sum(p.numel() for p in net.parameters()) == 31_527_192
    assert sum(p.numel() for p in net.parameters() if not p.requires_grad) == 244_696


# Per slot T1, T1c, T2, FLAIR: the modality it is filled from, and which of its quarters.
@pytest.mark.parametrize(
    ("present", "filled"),
    [
        ([T1, T1C, T2, FLAIR], [(T1, 0), (T1C, 0), (T2, 0), (FLAIR, 0)]),
        ([FLAIR], [(FLAIR, 3), (FLAIR, 2), (FLAIR, 1), (FLAIR, 0)]),
        ([T1], [(T1, 0), (T1, 1), (T1, 2), (T1, 3)]),
        ([T1C, T2], [(T1C, 1), (T1C, 0), (T2, 0), (T2, 1)]),
        ([T1, FLAIR], [(T1, 0), (T1, 1), (FLAIR, 1), (FLAIR, 0)]),
    ],
)
def test_absent_slots_take_the_part_that_their_first_partner_made_for_them(
    present: list[int], filled: list[tuple[int, int]]
) -> None:
    net = DeMoSeg(width=4, poolings=1)
    mark = torch.arange(16.0).view(1, 4, 4, 1, 1, 1)  # 4·modality + quarter
    keep = torch.zeros(1, 4, dtype=torch.bool)
    keep[0, present] = True
    routed = net.route(Features((mark,), (keep,), keep))
    assert routed.flatten().tolist() == [4 * m + quarter for m, quarter in filled]


def test_each_channel_is_joined_by_the_one_of_its_rank() -> None:
    torch.manual_seed(0)
    layer = ChannelSort(8, descending=True)
    layer.last = torch.nn.Sequential()
    x = torch.randn(2, 8, 4, 4, 4)
    u = layer.first(layer.conv(x))
    scores = layer.score(u.mean(dim=(2, 3, 4)))
    for b, ranked in enumerate(scores.sort(dim=1, descending=True).indices.tolist()):
        expected = torch.stack([u[b, k] + u[b, other] for k, other in enumerate(ranked)])
        torch.testing.assert_close(layer(x)[b], expected)


def test_divergence_needs_two_modalities() -> None:
    torch.manual_seed(0)
    net, image = DeMoSeg(**DeMoSeg.small(), kl_weight=0.5).train(), torch.randn(1, 4, 16, 16, 16)
    values = [
        net(image, torch.tensor([present])).penalties["kl"].item()
        for present in ([True, False, False, False], [True, False, True, False])
    ]
    assert values[0] == 0
    assert values[1] > 0


def test_width_is_in_quarters() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        DeMoSeg(width=6)
