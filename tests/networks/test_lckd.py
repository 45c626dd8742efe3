import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.config import build, load
from bts_lightning.networks.lckd import DEEP, LCKD
from bts_lightning.networks.standardised import FINE

ALL = torch.ones(1, 4, dtype=torch.bool)
# The branch from the mean over space: a convolution and its norm.
DEAD = 256 * 256 + 2 * 256


@pytest.fixture
def net() -> LCKD:
    torch.manual_seed(0)
    return LCKD(**LCKD.small()).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 4, 64, 64, 32, generator=torch.Generator().manual_seed(1))


def test_full_width_has_the_official_number_of_weights_without_those_of_no_effect() -> None:
    with torch.device("meta"):
        net = LCKD()
    assert sum(p.numel() for p in net.parameters()) == 43_656_672 - DEAD
    assert sum(p.numel() for p in net.shared.parameters()) == 35_127_872 - DEAD
    decoder = sum(p.numel() for part in (net.decoder, net.head) for p in part.parameters())
    assert decoder == 8_528_800


@torch.no_grad()
def test_the_mean_of_what_is_there_stands_in(net: LCKD, image: Tensor) -> None:
    x = net.encode(image, ALL).levels[DEEP]
    deep = net.deep(net.encode(image, ALL).restrict(torch.tensor([[True, False, False, True]])))
    mean = (x[:, 0] + x[:, 3]) / 2
    for m, expected in enumerate((x[:, 0], mean, mean, x[:, 3])):
        torch.testing.assert_close(deep[:, m], expected)


@torch.no_grad()
def test_the_decoder_reads_finer_levels_of_zero_images(net: LCKD, image: Tensor) -> None:
    """As published: only deep features are replaced."""
    present = torch.tensor([[False, True, False, True]])
    zeroed = image.where(present.view(1, 4, 1, 1, 1), 0)
    official = net.encode(zeroed, ALL)
    fine = [level.flatten(1, 2) for level in official.levels[:FINE]]
    x = net.decoder(net.deep(official.restrict(present)).flatten(1, 2), fine)
    logits = F.interpolate(net.head(x), image.shape[2:], mode="trilinear")
    torch.testing.assert_close(net(image, present).logits, logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_training_predicts_as_evaluation_does(net: LCKD, image: Tensor) -> None:
    """The golden files are judged so."""
    present = torch.tensor([[False, True, False, True]])
    evaluated = net(image, present).logits
    trained = net.train()(image, present).logits  # by other kernels on a processor
    torch.testing.assert_close(trained, evaluated, rtol=1e-3, atol=1e-3)


def test_all_modalities_share_the_encoder(net: LCKD, image: Tensor) -> None:
    same = image[:, :1].expand(-1, 4, -1, -1, -1)
    for level in net.encode(same, ALL).levels:
        for m in range(1, 4):
            assert torch.equal(level[:, m], level[:, 0])


def test_metakd_trains_the_same_network() -> None:
    assert build(load(["metakd"]).net).state_dict().keys() == LCKD().state_dict().keys()


@pytest.mark.parametrize(("experiment", "sizes"), [("lckd", 3), ("metakd", 4)])
def test_the_rate_jumps_where_incomplete_samples_begin(experiment: str, sizes: int) -> None:
    words = load([experiment])
    task = build(words.task | {"net": {"_target_": words.net._target_, "width": 2}})
    optimizer = task.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    schedule = task.make_schedule(optimizer)
    assert schedule.factor(319) * 1e-2 < 1e-4
    assert schedule.factor(320) * 1e-2 == pytest.approx(3.4e-3, rel=0.01)
    weights = build(words.data.availability).weights(320)
    assert (weights[-1] > 0) == (sizes == 4)
