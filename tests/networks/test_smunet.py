import pytest
import torch

from bts_lightning.distillation.style import style_discriminator
from bts_lightning.networks.smunet import SMUNet


@pytest.mark.parametrize(
    ("reads", "count"),
    [
        ("t1+t1c+t2+flair", 4_778_212),
        ("t1+t1c+t2", 4_777_780),
        ("t1c+flair", 4_777_348),
        ("flair", 4_776_916),
    ],
)
def test_full_width_has_the_official_number_of_weights(reads: str, count: int) -> None:
    with torch.device("meta"):
        net, judge = SMUNet(reads=reads), style_discriminator(128)
    assert sum(p.numel() for p in net.parameters()) == count
    assert sum(p.numel() for p in judge.parameters()) == 3_149_249


def test_flair_is_the_first_channel_as_in_official_weights() -> None:
    net = SMUNet(width=8).eval()
    image, present = torch.randn(1, 4, 16, 16, 16), torch.ones(1, 4, dtype=torch.bool)
    flair_alone = SMUNet(width=8, reads="flair").eval()
    weights = net.state_dict() | {"stem.0.weight": net.stem[0].weight[:, :1]}
    flair_alone.load_state_dict(weights)
    image[:, :3] = 0.0
    with torch.no_grad():
        assert torch.equal(net(image, present).logits, flair_alone(image, present).logits)
