import pytest
import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.networks.mmformer import RAW, TOKENS, MMFormer

ALL = torch.ones(1, 4, dtype=torch.bool)


def small(**options: object) -> MMFormer:
    torch.manual_seed(0)
    return MMFormer(**MMFormer.small() | options)


def test_full_width_has_the_official_number_of_weights_without_the_unused() -> None:
    assert sum(p.numel() for p in MMFormer().parameters()) == 36_654_416 - 262_656


def test_other_sizes_are_refused_with_the_one_that_fits() -> None:
    with pytest.raises(ValueError, match=r"built for \(32, 32, 32\) voxels, got \(48, 32, 32\)"):
        small()(torch.zeros(1, 4, 48, 32, 32), ALL)


def test_patch_decides_the_size() -> None:
    assert small(patch=48).eval()(torch.randn(1, 4, 48, 48, 48), ALL).logits.shape[2:] == (48,) * 3


@pytest.mark.parametrize("patch", [16, 40, 0])
def test_impossible_patch_is_refused(patch: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 16, 32 or more"):
        small(patch=patch)


def test_heads_must_divide_the_tokens() -> None:
    with pytest.raises(ConfigError, match="token_width 16 is not a multiple of heads 3"):
        small(heads=3)


def without_attention(net: MMFormer) -> MMFormer:
    """Leave of the fusion of tokens only how they are laid out."""
    net.across, net.gather = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    return net


def marked() -> Tensor:
    """Give tokens that hold their modality and place: 100·modality + place."""
    places = torch.arange(8.0).view(1, 1, 1, 2, 2, 2)
    return (places + 100 * torch.arange(4.0).view(1, 4, 1, 1, 1, 1)).expand(-1, -1, 16, -1, -1, -1)


def test_tokens_of_one_place_meet_in_one_voxel() -> None:
    volume = without_attention(small()).attend_across(marked())
    at_last_place = volume[0, :, 1, 1, 1].view(4, 16)
    assert at_last_place[:, 0].tolist() == [7, 107, 207, 307]
    assert (at_last_place == at_last_place[:, :1]).all()


def test_legacy_layout_puts_neighbours_of_one_modality_into_a_voxel() -> None:
    volume = without_attention(small(legacy_token_layout=True)).attend_across(marked())
    # FLAIR comes first in the official order, and fills the first two of eight voxels.
    assert volume[0, :, 0, 0, 0].view(4, 16)[:, 0].tolist() == [300, 301, 302, 303]
    assert volume[0, :, 0, 0, 1].view(4, 16)[:, 0].tolist() == [304, 305, 306, 307]
    assert volume[0, :, 0, 1, 0].view(4, 16)[:, 0].tolist() == [100, 101, 102, 103]


def test_absent_tokens_take_part_as_their_positions_alone() -> None:
    net = small().eval()
    with torch.no_grad():
        net.positions[0].normal_()
        tokens = torch.randn(1, 4, 16, 2, 2, 2)
        tokens[:, 0] = 0
        seen = net.attend_across(tokens)
        net.positions[0].zero_()
        assert not torch.allclose(net.attend_across(tokens), seen)


def test_modality_heads_read_the_encoder_and_not_its_transformer() -> None:
    net = small(dropout=0.0).train()
    features = net.encode(torch.randn(1, 4, 32, 32, 32), ALL)
    before = net.decode(features)
    for level, changes_heads in ((RAW, True), (TOKENS, False)):
        levels = list(features.levels)
        levels[level] = levels[level].flip(-1)
        after = net.decode(type(features)(tuple(levels), features.present, features.real))
        same_heads = torch.equal(before.auxiliary[0].logits, after.auxiliary[0].logits)
        assert same_heads != changes_heads
        assert torch.equal(before.logits, after.logits) == changes_heads


def test_four_coarse_heads_are_supervised_at_full_size() -> None:
    output = small().train()(torch.randn(1, 4, 32, 32, 32), ALL)
    deep = [a for a in output.auxiliary if a.name.startswith("deep/")]
    assert [a.name for a in deep] == ["deep/1", "deep/2", "deep/3", "deep/4"]
    assert all(a.logits.shape == output.logits.shape for a in deep)
