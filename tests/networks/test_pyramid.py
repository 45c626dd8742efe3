import pytest
import torch
from torch import nn

from bts_lightning.networks.backbone import Features
from bts_lightning.networks.pyramid import (
    Encoder,
    ModalityDecoder,
    Unit,
    from_maps,
    modality_auxiliaries,
    to_maps,
)


@pytest.mark.parametrize("channels", [3, 4])
def test_logits_of_maps_give_the_maps_again(channels: int) -> None:
    maps = to_maps(torch.randn(2, channels, 3, 3, 3))
    torch.testing.assert_close(to_maps(from_maps(maps)), maps)


@pytest.mark.parametrize("channels", [3, 4])
def test_certain_maps_have_finite_logits_and_gradients(channels: int) -> None:
    maps = torch.zeros(1, channels, 2, 1, 1)
    maps[:, 0] = 1
    maps.requires_grad_()
    logits = from_maps(maps)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_maps_are_labels_for_four_channels_and_regions_for_three() -> None:
    assert torch.equal(to_maps(torch.zeros(1, 4, 1, 1, 1)), torch.full((1, 4, 1, 1, 1), 0.25))
    assert torch.equal(to_maps(torch.zeros(1, 3, 1, 1, 1)), torch.full((1, 3, 1, 1, 1), 0.5))


def test_levels_halve_and_widen() -> None:
    levels = Encoder([2, 4, 8])(torch.randn(1, 1, 8, 8, 8))
    assert [tuple(x.shape[1:]) for x in levels] == [(2, 8, 8, 8), (4, 4, 4, 4), (8, 2, 2, 2)]


def test_pre_norm_encoder_sees_the_image_as_it_is() -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    post, pre = Encoder([2, 4]), Encoder([2, 4], order="pre")
    assert torch.allclose(post(image)[0], post(3 * image + 1)[0], atol=1e-4)
    assert not torch.allclose(pre(image)[0], pre(3 * image + 1)[0], atol=1e-1)


def test_mirrored_border_keeps_a_constant_constant() -> None:
    mirrored, zeros = Unit(1, 1, border="reflect")[0], Unit(1, 1, border="zeros")[0]
    x = torch.ones(1, 1, 4, 4, 4)
    assert mirrored(x).std() < 1e-6
    assert zeros(x).std() > 1e-2


def test_heads_of_modalities_see_what_dropout_removed_but_not_what_was_never_there() -> None:
    x = torch.randn(1, 4, 2, 4, 4, 4)
    x[:, 3] = float("nan")
    real = torch.tensor([[True, True, True, False]])
    features = Features((x, x[..., ::2, ::2, ::2].repeat(1, 1, 2, 1, 1, 1)), (real, real), real)
    decoder = ModalityDecoder([2, 4], 4)
    dropped = features.restrict(torch.tensor([[True, False, False, False]]))
    heads = modality_auxiliaries(decoder, dropped, (0, 1))
    assert [h.name for h in heads] == [
        "modality/t1",
        "modality/t1c",
        "modality/t2",
        "modality/flair",
    ]
    assert torch.stack([h.valid for h in heads if h.valid is not None], dim=1).equal(real)
    assert all(h.logits.isfinite().all() for h in heads)
    assert not torch.equal(heads[0].logits, heads[1].logits)


def test_heads_of_modalities_share_their_weights() -> None:
    x = torch.randn(1, 1, 2, 4, 4, 4).expand(-1, 4, -1, -1, -1, -1)
    real = torch.ones(1, 4, dtype=torch.bool)
    features = Features((x,), (real,), real)
    heads = modality_auxiliaries(ModalityDecoder([2], 4), features, (0,))
    assert isinstance(heads[0].logits, torch.Tensor)
    for other in heads[1:]:
        torch.testing.assert_close(other.logits, heads[0].logits)


def test_one_by_one_convolutions_have_no_border() -> None:
    convolution = Unit(2, 3, kernel=1)[0]
    assert isinstance(convolution, nn.Conv3d)
    assert convolution(torch.randn(1, 2, 2, 2, 2)).shape == (1, 3, 2, 2, 2)
