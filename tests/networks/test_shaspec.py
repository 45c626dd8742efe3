import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bts_lightning import config
from bts_lightning.config.build import build
from bts_lightning.errors import ConfigError
from bts_lightning.losses import regions_of
from bts_lightning.networks.shaspec import DESCRIBED, JOINED, SHARED, ShaSpec
from bts_lightning.networks.standardised import Context, StandardisedConv
from tests.golden.fill_rule import noise
from tests.networks.conformity import FOLDER, fill_parameters, relative

ALL = torch.ones(1, 4, dtype=torch.bool)
T1, T1C, T2, FLAIR = range(4)


def only(*modalities: int) -> Tensor:
    return torch.tensor([[m in modalities for m in range(4)]])


def small(**options: object) -> ShaSpec:
    torch.manual_seed(0)
    return ShaSpec(**ShaSpec.small() | options).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 4, 64, 64, 32, generator=torch.Generator().manual_seed(1))


def test_full_width_has_the_official_number_of_weights_without_those_of_no_effect() -> None:
    with torch.device("meta"):
        net = ShaSpec()
    # The branch from the mean over space of each of five encoders: a convolution and its norm.
    dead = 5 * (256 * 256 + 2 * 256)
    assert sum(p.numel() for p in net.parameters()) == 187_708_132 - dead
    encoder = sum(p.numel() for p in net.shared.parameters())
    decoder = sum(p.numel() for part in (net.decoder, net.head) for p in part.parameters())
    assert (encoder, decoder) == (35_127_872 - dead // 5, 8_528_800)


@torch.no_grad()
def test_wide_surroundings_are_those_of_the_official_code() -> None:
    """The map of the network's own file is too small for dilations."""
    with np.load(FOLDER / "parts" / "aspp_20.npz") as file:
        expected = file["lckd/out"]
    net = Context(256)
    fill_parameters(net)
    size = (1, 256, 20, 20, 20)
    image = noise(np.arange(np.prod(size)) + 31).reshape(size).astype(np.float32)
    found = net(torch.from_numpy(image))[0, ::16, ::3, ::3, ::3]
    assert relative(found.numpy(), expected) < 1e-5


def test_kernels_have_mean_0_and_variance_1() -> None:
    kernel = StandardisedConv(3, 4, 3).kernel().flatten(1)
    torch.testing.assert_close(kernel.mean(dim=1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(kernel.var(dim=1), torch.ones(4))


@torch.no_grad()
@pytest.mark.parametrize(
    ("present", "stand_in"),
    [((T1, FLAIR), FLAIR), ((T1C, T1), T1), ((T2, T1C), T1C), ((T2,), T2)],
)
def test_the_first_that_is_there_stands_in(
    image: Tensor, present: tuple[int, ...], stand_in: int
) -> None:
    net = small()
    features = net.encode(image, ALL)
    joined = net.deep(features.restrict(only(*present)))
    for m in range(4):
        level = features.levels[JOINED][:, m] if m in present else None
        expected = features.levels[SHARED][:, stand_in] if level is None else level
        assert torch.equal(joined[:, m], expected)


@torch.no_grad()
def test_any_that_is_there_stands_in_while_training(image: Tensor) -> None:
    net = small().train()
    features = net.encode(image, ALL).restrict(only(T1, T2))
    chosen = set()
    for _ in range(20):
        joined = net.deep(features)
        assert torch.equal(joined[:, T1C], joined[:, FLAIR])
        same = [torch.equal(joined[:, T1C], features.levels[SHARED][:, m]) for m in range(4)]
        chosen.add(same.index(True))
    assert chosen == {T1, T2}


@torch.no_grad()
def test_absent_modalities_are_zero_images(image: Tensor) -> None:
    """As published: they pass through both encoders, and decoder and losses read them."""
    net = small().train()
    torch.manual_seed(2)
    output = net(image, only(T1C, FLAIR))
    zeroed = image.where(only(T1C, FLAIR).view(1, 4, 1, 1, 1), 0)
    official = net.encode(zeroed, ALL)
    shared = official.levels[SHARED]
    ring = sum((shared[:, m] - shared[:, m - 1]).abs().mean() for m in range(4))
    torch.testing.assert_close(output.penalties["shared"], 0.1 * ring, rtol=1e-3, atol=1e-4)
    logits = net.classify(official.levels[DESCRIBED][0].flatten(1))
    entropy = F.cross_entropy(logits, torch.arange(4))
    torch.testing.assert_close(output.penalties["domain"], 0.02 * entropy, rtol=1e-3, atol=1e-4)
    torch.manual_seed(2)
    joined = net.deep(official.restrict(only(T1C, FLAIR)))
    fine = [level.flatten(1, 2) for level in official.levels[:SHARED]]
    x = net.decoder(joined.flatten(1, 2), fine)
    logits = F.interpolate(net.head(x), image.shape[2:], mode="trilinear")
    torch.testing.assert_close(output.logits, logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_one_zero_image_serves_all_subsets_of_a_case(image: Tensor) -> None:
    net = small()
    features = net.encode(image, ALL)
    runs: list[bool] = []
    net.shared.register_forward_hook(lambda module, inputs, output: runs.append(True))
    net.decode_subsets(features, torch.cat([ALL, only(T1), only(T2, FLAIR), only(T1C)]))
    assert len(runs) == 1
    net.decode(features)
    assert len(runs) == 1  # nothing is absent


def test_dropped_modalities_cost_no_encoder(image: Tensor) -> None:
    net = small().train()
    runs: list[bool] = []
    for encoder in net.specific:
        encoder.register_forward_hook(lambda module, inputs, output: runs.append(True))
    net(image, only(T1, T2))
    assert len(runs) == 2


@pytest.mark.parametrize(("axis", "fine"), [("first", (64, 32, 16)), ("last", (32, 32, 32))])
@torch.no_grad()
def test_one_axis_stays_whole_at_first(image: Tensor, axis: str, fine: tuple[int, ...]) -> None:
    finest = small(whole_axis=axis).encode(image, ALL).levels[0]
    assert finest.shape[3:] == fine


@torch.no_grad()
def test_the_choice_of_the_whole_axis_turns_the_network(image: Tensor) -> None:
    first, last = small(whole_axis="first"), small(whole_axis="last")
    for ours, theirs in zip(last.parameters(), first.parameters(), strict=True):
        ours.copy_(theirs.transpose(2, 4) if theirs.ndim == 5 else theirs)
    turned = first(image.transpose(2, 4), ALL).logits.transpose(2, 4)
    torch.testing.assert_close(last(image, ALL).logits, turned, rtol=1e-3, atol=1e-3)


def test_the_published_patch_fits_and_others_are_named() -> None:
    with torch.device("meta"):
        net = ShaSpec()
    net.check_size((160, 160, 80))
    with pytest.raises(ValueError, match=r"\(32, 32, 16\), got \(80, 160, 160\); \(96, 160, 160\)"):
        net.check_size((80, 160, 160))


@pytest.mark.parametrize("blocks", [[3, 4, 6], [3, 4, 6, 0]])
def test_an_encoder_has_four_stages(blocks: list[int]) -> None:
    with pytest.raises(ConfigError, match="needs 4 numbers from 1 up"):
        ShaSpec(width=4, blocks=blocks)


def test_the_loss_is_the_published_one() -> None:
    loss = build(config.load(["shaspec"]).task.loss)
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(4, (2, 4, 4, 4)).byte()
    truth, found = regions_of(label).float(), logits.sigmoid()
    shared, sizes = (truth * found).sum(dim=(2, 3, 4)), (truth + found).sum(dim=(2, 3, 4))
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    expected = (1 - 2 * shared / (sizes + 1)).mean() + entropy.mean(dim=(0, 2, 3, 4)).sum()
    torch.testing.assert_close(loss(logits, label), expected)
