"""What is particular to MedMAP: the anchor, the pull, what stands in for absent modalities."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bts_lightning.errors import ConfigError
from bts_lightning.losses import LabelLoss
from bts_lightning.modalities import SUBSETS, Subset
from bts_lightning.networks.backbone import Backbone, Features, Output
from bts_lightning.networks.gmd import GMD
from bts_lightning.networks.medmap import MedMAP
from bts_lightning.networks.mmformer import MMFormer
from bts_lightning.networks.rfnet import RFNet
from bts_lightning.networks.unet import UNet
from bts_lightning.task import SegmentationTask
from tests.networks.parts import build, image_for, networks

# Every class of network that an experiment names and that keeps modalities apart.
HOSTS: set[type[Any]] = {type(n) for n in map(build, networks().values()) if n.fused_levels}


def present(*subsets: Subset) -> Tensor:
    return torch.tensor(subsets)


ALL = present((True, True, True, True))
SOME = present((True, False, True, False))
ONE = present((False, False, True, False))


def aligned(**options: Any) -> MedMAP:
    return MedMAP(RFNet(width=4), **options)


def features(kept: Tensor, *, real: Tensor | None = None, seed: int = 0) -> Features:
    x = torch.randn(len(kept), 4, 2, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return Features((x,), (kept,), torch.ones_like(kept) if real is None else real)


def with_theta(net: MedMAP, *theta: float) -> MedMAP:
    with torch.no_grad():
        net.theta.copy_(torch.tensor(theta))
    return net


# The anchor and the pull


def test_weights_are_equal_at_the_start() -> None:
    x = features(ALL)
    net = aligned()
    assert net.weights(0, x.levels[0]).tolist() == [[0.25] * 4]
    torch.testing.assert_close(net.mix(0, x.levels[0], ALL), x.levels[0].mean(dim=1))


def test_equal_features_are_not_pulled() -> None:
    x = torch.randn(1, 1, 2, 3, 3, 3).expand(-1, 4, -1, -1, -1, -1)
    for anchor in ("adaptive", "fixed"):
        _, penalty = aligned(anchor=anchor).train().align(Features((x,), (SOME,), ALL))
        assert penalty < 1e-12


def test_pull_is_half_the_mean_square_over_modalities() -> None:
    x = torch.zeros(1, 4, 1, 1, 1, 2)
    x[:, 0] = 4  # the anchor is 1, the distances are 3, 1, 1, 1
    _, penalty = aligned().train().align(Features((x,), (ALL,), ALL))
    assert penalty.item() == pytest.approx(0.5 * (9 + 1 + 1 + 1) / 4)


def test_fixed_anchor_pulls_the_others_to_one_modality() -> None:
    x = torch.zeros(1, 4, 1, 1, 1, 2)
    x[:, 3] = 2
    net = aligned(anchor="fixed", fixed_modality="flair").train()
    assert net.align(Features((x,), (ALL,), ALL))[1].item() == pytest.approx(0.5 * 3 * 4 / 4)
    without = present((True, True, True, False))
    assert net.align(Features((x,), (without,), without))[1] == 0


def test_standard_normal_anchor_pulls_to_zero() -> None:
    x = torch.full((1, 4, 1, 1, 1, 2), 3.0)
    filled, penalty = aligned(anchor="standard_normal").train().align(Features((x,), (SOME,), ALL))
    assert penalty.item() == pytest.approx(4.5)
    assert (filled.levels[0][:, 1] == 0).all()


def test_pull_may_be_of_what_the_sample_keeps_alone() -> None:
    x = features(SOME)
    _, penalty = aligned(loss_anchor="available").train().align(x)
    kept = x.levels[0][:, [0, 2]]
    expected = 0.5 * (kept - kept.mean(dim=1, keepdim=True)).square().mean()
    torch.testing.assert_close(penalty, expected)


def test_modality_that_was_never_there_is_not_pulled() -> None:
    x = features(ONE, real=SOME)
    x.levels[0][:, [1, 3]] = float("nan")
    _, penalty = aligned().train().align(x)
    kept = x.levels[0][:, [0, 2]]
    torch.testing.assert_close(
        penalty, 0.5 * (kept - kept.mean(dim=1, keepdim=True)).square().mean()
    )


@pytest.mark.parametrize("detach", [False, True])
def test_detached_anchor_is_not_moved_by_the_pull(detach: bool) -> None:
    net = aligned(detach_anchor=detach).train()
    x = features(SOME)
    x.levels[0].requires_grad_()
    filled, penalty = net.align(x)
    penalty.backward(retain_graph=True)
    assert (net.theta.grad is None) == detach
    # What stands in for absent modalities trains the weights all the same.
    filled.levels[0].sum().backward()
    assert net.theta.grad is not None
    assert net.theta.grad.abs().sum() > 0


def test_penalty_is_weighted_and_the_mean_over_levels() -> None:
    torch.manual_seed(0)
    image, net = torch.randn(1, 4, 16, 16, 16), RFNet(width=4)

    def penalty(levels: list[int], weight: float = 1.0) -> Tensor:
        return MedMAP(net, levels=levels, weight=weight).train()(image, ALL).penalties["align"]

    torch.testing.assert_close(penalty([0, 2]), (penalty([0]) + penalty([2])) / 2)
    torch.testing.assert_close(penalty([0], weight=0.1), 0.1 * penalty([0]))


# What stands in


@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes_when_nothing_is_missing(training: bool) -> None:
    x = features(ALL)
    filled, _ = aligned().train(training).align(x)
    assert torch.equal(filled.levels[0], x.levels[0])


@pytest.mark.parametrize("training", [False, True])
def test_single_modality_stands_in_for_all(training: bool) -> None:
    x = features(ONE)
    net = with_theta(aligned(), 0.3, -2.0, 0.7, 5.0).train(training)
    filled, _ = net.align(x)
    for m in range(4):
        assert torch.equal(filled.levels[0][:, m], x.levels[0][:, 2])


@pytest.mark.parametrize("training", [False, True])
def test_what_stands_in_is_made_of_what_is_kept(training: bool) -> None:
    x = features(SOME)
    x.levels[0][:, [1, 3]] = float("nan")
    net = with_theta(aligned(loss_anchor="available"), 1.0, 9.0, 0.0, 9.0).train(training)
    filled, penalty = net.align(x)
    share = torch.tensor([1.0, 0.0]).softmax(dim=0)
    expected = share[0] * x.levels[0][:, 0] + share[1] * x.levels[0][:, 2]
    torch.testing.assert_close(filled.levels[0][:, 1], expected)
    torch.testing.assert_close(filled.levels[0][:, 3], expected)
    assert penalty.isfinite()


def test_official_stand_in_contains_what_it_replaces_in_training_alone() -> None:
    x = features(SOME)
    net = aligned(substitute_from="all")
    trained, _ = net.train().align(x)
    tested, _ = net.eval().align(x)
    torch.testing.assert_close(trained.levels[0][:, 1], x.levels[0].mean(dim=1))
    torch.testing.assert_close(tested.levels[0][:, 1], x.levels[0][:, [0, 2]].mean(dim=1))


def test_fixed_modality_stands_in_unless_it_is_absent_itself() -> None:
    net = aligned(anchor="fixed", fixed_modality="t2").eval()
    filled, _ = net.align(features(SOME))
    assert torch.equal(filled.levels[0][:, 1], filled.levels[0][:, 2])
    x = features(present((True, True, False, False)))
    filled, _ = net.align(x)
    torch.testing.assert_close(filled.levels[0][:, 2], x.levels[0][:, :2].mean(dim=1))


def test_official_scaling_is_for_testing_alone() -> None:
    x = features(ALL)
    net = aligned(scale_by_weight="official")
    assert torch.equal(net.train().align(x)[0].levels[0], x.levels[0])
    torch.testing.assert_close(net.eval().align(x)[0].levels[0], x.levels[0] / 4)


def test_only_the_aligned_level_becomes_complete() -> None:
    image = torch.randn(1, 4, 16, 16, 16)
    net = aligned(levels=[1]).eval()
    encoded = net.encode(image, ALL).restrict(SOME)
    filled, _ = net.align(encoded)
    assert [bool(level.all()) for level in filled.present] == [False, True, False, False]
    assert filled.levels[0] is encoded.levels[0]
    assert filled.original is encoded


# Which levels


@pytest.mark.parametrize(
    ("levels", "chosen"),
    [("finest", (0,)), ("deepest", (5,)), ("all", (0, 1, 2, 3, 5)), ([-1, 0], (0, 5)), ([3], (3,))],
)
def test_levels_are_those_that_the_network_fuses(levels: Any, chosen: tuple[int, ...]) -> None:
    assert MedMAP(MMFormer(**MMFormer.small()), levels=levels).aligned == chosen


@pytest.mark.parametrize("levels", [[4], [-5], [], "finest_"])
def test_impossible_levels_are_refused(levels: Any) -> None:
    with pytest.raises(ConfigError, match="indices from 0 to 3, or finest, deepest, all"):
        aligned(levels=levels)


def test_early_fusion_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot align UNet: it mixes the modalities"):
        MedMAP(UNet(**UNet.small()))


def test_scaling_needs_learned_weights() -> None:
    with pytest.raises(ConfigError, match="anchor=fixed has none"):
        aligned(anchor="fixed", scale_by_weight="official")


def test_a_learned_anchor_must_learn() -> None:
    with pytest.raises(ConfigError, match="keeps anchor=gaussian from learning"):
        aligned(anchor="gaussian", detach_anchor=True)


class Gated(UNet):
    """A finest level that is read where the one below says that a modality is there."""

    fused_levels = (0, 1)

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        return (image.unsqueeze(2),) * 2

    def decode(self, features: Features) -> Output:
        return super().decode(features.restrict(features.present[1]))


@pytest.mark.parametrize(("levels", "idle"), [("finest", 0), ("deepest", 1)])
def test_a_level_that_cannot_matter_is_refused_in_training(levels: Any, idle: int) -> None:
    net = Gated(**UNet.small())
    image = torch.randn(1, 4, 16, 16, 16)
    MedMAP(net, levels="all").train()(image, SOME, ALL)
    aligned = MedMAP(net, levels=levels).train()
    aligned(image, ALL, ALL)  # nothing is missing yet
    with pytest.raises(ConfigError, match=rf"Gated predicts the same .* level {idle},"):
        aligned(image, SOME, ALL)


@pytest.mark.parametrize("anchor", ["adaptive", "fixed"])
def test_an_average_of_one_modality_is_no_idle_level(anchor: Any) -> None:
    net = GMD(**GMD.small())
    MedMAP(net, anchor=anchor).train()(image_for(net), ONE, ALL)


@pytest.mark.parametrize("anchor", ["standard_normal", "gaussian"])
def test_an_anchor_of_zeros_is_no_idle_level_where_zeros_stand_in_anyway(anchor: Any) -> None:
    aligned(anchor=anchor, levels="all").train()(torch.randn(1, 4, 16, 16, 16), SOME, ALL)


# Around every network


QUICK = ("A2FSeg", "RFNet", "UHeMIS", "UHVED", "DeMoSeg")


@pytest.fixture(
    params=[
        pytest.param(h, id=h.__name__, marks=[] if h.__name__ in QUICK else [pytest.mark.slow])
        for h in sorted(HOSTS, key=str)
    ]
)
def host(request: pytest.FixtureRequest) -> Callable[[], Backbone]:
    def fresh() -> Backbone:
        torch.manual_seed(0)
        net: Backbone = request.param(**request.param.small())
        return net

    return fresh


def test_two_steps_train_network_and_weights(host: Callable[[], Backbone]) -> None:
    net = MedMAP(host(), levels="all").train()
    image = image_for(net, batch=2)
    kept = present((True, False, True, False), (False, True, True, True))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        output = net(image, kept, available=torch.ones_like(kept))
        assert output.penalties["align"] > 0
        loss = output.logits.square().mean() + sum(output.penalties.values())
        loss = loss + sum(a.logits.square().mean() for a in output.auxiliary)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
        assert all(row.abs().sum() > 0 for row in net.theta.grad)  # type: ignore[union-attr]
        optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(net.theta, before[0], strict=True))


@torch.no_grad()
def test_network_is_itself_when_nothing_is_missing(host: Callable[[], Backbone]) -> None:
    plain, wrapped = host().eval(), MedMAP(host(), levels="all").eval()
    image = image_for(plain)
    assert torch.equal(wrapped(image, ALL).logits, plain(image, ALL).logits)


@torch.no_grad()
@pytest.mark.parametrize("levels", ["all", "deepest", [0]])
def test_absent_content_changes_no_bit(host: Callable[[], Backbone], levels: Any) -> None:
    net = MedMAP(host(), levels=levels).eval()
    image = image_for(net)
    clean = net(image, SOME).logits
    image[:, [1, 3]] = float("nan")
    assert torch.equal(net(image, SOME).logits, clean)


@torch.no_grad()
def test_absent_modalities_differ_from_zeros(host: Callable[[], Backbone]) -> None:
    plain, wrapped = host().eval(), MedMAP(host(), levels="all").eval()
    image = image_for(plain)
    # With equal weights the anchor is the mean, which leaves a network that averages as it was.
    wrapped.theta += torch.tensor([1.0, 0.0, -1.0, 0.0])
    assert not torch.allclose(wrapped(image, SOME).logits, plain(image, SOME).logits, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("levels", ["all", "deepest", [1]])
def test_subsets_in_one_batch_equal_single_passes(
    host: Callable[[], Backbone], levels: Any
) -> None:
    inside = host()
    if levels == [1] and len(inside.fused_levels) < 2:
        pytest.skip("fuses one level")
    net = MedMAP(inside, levels=levels).eval()
    image = image_for(net)
    some = present(*SUBSETS[::2])
    once = net.decode_subsets(net.encode(image, ALL), some)  # S 1 C D H W
    for row in range(len(some)):
        alone = net(image, some[row : row + 1]).logits
        torch.testing.assert_close(once[row], alone, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_batch_of_mixed_subsets_equals_its_rows(host: Callable[[], Backbone]) -> None:
    net = MedMAP(host(), levels="all").eval()
    image = image_for(net, batch=2)
    kept = present((True, False, True, False), (False, True, False, False))
    together = net(image, kept).logits
    for row in range(2):
        alone = net(image[row : row + 1], kept[row : row + 1]).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)


def test_size_is_checked_by_the_network_inside() -> None:
    net = MedMAP(MMFormer(**MMFormer.small()))
    with pytest.raises(ValueError, match="MMFormer was built for"):
        net(torch.zeros(1, 4, 48, 48, 48), ALL)


@pytest.mark.slow
def test_compiles_without_graph_break() -> None:
    net = aligned(levels="all").train()
    image = torch.randn(1, 4, 16, 16, 16)
    forward = torch.compile(net.forward, fullgraph=True, backend="eager")
    output = forward(image, SOME, ALL)
    torch.testing.assert_close(output.logits, net(image, SOME, ALL).logits)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(dtype: torch.dtype) -> None:
    net = aligned(levels="all").train()
    with torch.autocast("cpu", dtype=dtype):
        output = net(torch.randn(1, 4, 16, 16, 16), SOME, ALL)
    assert output.logits.isfinite().all()
    assert output.penalties["align"].isfinite()


# The learned Gaussian, and what is only watched


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("kl", 0.5 * ((4 + 1) / 2 - 1 + math.log(2))),
        ("likelihood", 0.5 * (4 / 2 + math.log(2))),
        ("draft", 0.5 * (4 / 2 + 2)),
    ],
)
def test_gaussian_pulls_by_its_variance(form: Any, expected: float) -> None:
    net = aligned(anchor="gaussian", gaussian_pull=form).train()
    with torch.no_grad():
        net.means[0].fill_(1)
        net.log_variances[0].fill_(math.log(2))
    x = torch.full((1, 4, 4, 1, 1, 2), 3.0)  # 2 from the mean
    x[:, [1, 3]] = float("nan")
    filled, penalty = net.align(Features((x,), (SOME,), SOME))
    assert penalty.item() == pytest.approx(expected)
    assert (filled.levels[0][:, [1, 3]] == 1).all()
    penalty.backward()  # type: ignore[no-untyped-call]
    grad = net.means[0].grad
    assert grad is not None
    # The draft and both others: -(f - mu) / v, a fourth of it for each of four channels.
    assert grad.tolist() == pytest.approx([-0.25] * 4)


def test_gaussian_starts_as_the_standard_normal() -> None:
    x = torch.randn(1, 4, 4, 3, 3, 3)
    pulls = [
        aligned(anchor=anchor).train().align(Features((x,), (SOME,), ALL))[1]
        for anchor in ("gaussian", "standard_normal")
    ]
    torch.testing.assert_close(*pulls)


def test_gaussian_has_the_channels_of_each_level() -> None:
    net = MedMAP(MMFormer(**MMFormer.small()), levels="all", anchor="gaussian").train()
    features = net.encode(image_for(net), ALL)
    widths = [features.levels[level].shape[2] for level in net.aligned]
    assert [len(mean) for mean in net.means] == widths
    assert not any(p.is_meta for p in net.parameters())
    net(image_for(net), SOME, ALL).penalties["align"].backward()
    assert all(p.grad is not None for p in (*net.means, *net.log_variances))


@pytest.mark.parametrize(("level", "elements"), [(0, 4), (1, 8 / 8)])
def test_divergence_is_in_nats_a_voxel(level: int, elements: float) -> None:
    output = aligned(levels=[level]).train()(torch.randn(1, 4, 16, 16, 16), SOME, ALL)
    found, mean = output.watched["elbo/kl"], output.penalties["align"]
    torch.testing.assert_close(found, mean.detach() * elements)
    assert not found.requires_grad


def test_watching_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = RFNet(width=4).train()
    net = MedMAP(plain, watch_only=True).train()
    image = torch.randn(1, 4, 16, 16, 16)
    output, alone = net(image, SOME, ALL), plain(image, SOME, ALL)
    assert torch.equal(output.logits, alone.logits)
    assert output.penalties == alone.penalties == {}
    assert output.watched["elbo/kl"] > 0
    assert net.anchors(net.encode(image, ALL)) == {}
    assert not net.theta.requires_grad
    net.eval()
    assert torch.equal(net(image, SOME).logits, plain.eval()(image, SOME).logits)
    assert net(image, SOME).watched == {}


def test_both_parts_of_the_bound_are_kept_for_the_log_and_teach_nothing() -> None:
    net = aligned(watch_only=True).train()
    task = SegmentationTask(net, loss=LabelLoss(), optimizer=torch.optim.Adam)
    label = torch.randint(4, (1, 16, 16, 16)).to(torch.uint8)
    batch = {"image": torch.randn(1, 4, 16, 16, 16), "present": SOME, "available": ALL}
    terms = task._step({**batch, "label": label})
    assert not any(name.startswith("elbo") for name in terms)
    parts = task.watched
    torch.testing.assert_close(
        parts["elbo/bound"], -parts["elbo/reconstruction"] - parts["elbo/kl"]
    )
    assert not any(part.requires_grad for part in parts.values())
    plain = SegmentationTask(net.backbone, loss=LabelLoss(), optimizer=torch.optim.Adam)
    plain._step({**batch, "label": label})
    assert plain.watched == {}
