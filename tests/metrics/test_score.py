"""Scores: answers known by hand, and the packages that define them."""

import warnings

import numpy as np
import pytest
from medpy.metric import binary
from scipy.ndimage import gaussian_filter

from bts_lightning.metrics.score import score
from bts_lightning.metrics.surface import most_subsets
from bts_lightning.modalities import REGIONS, SCHEMES
from tests.metrics.parts import speckled

MEMBERS = list(REGIONS.values())
MOST = most_subsets(len(REGIONS))
# surface-distance 0.1 imports from `scipy.ndimage.filters`.
surface_distance_is_old = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")


def volume(*boxes: tuple[slice, slice, slice], size: int = 12, value: int = 3) -> np.ndarray:
    label = np.zeros((size,) * 3, np.uint8)
    for box in boxes:
        label[box] = value
    return label


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.9375, 0.9375), (0.5, 2.0, 1.1)])
def test_pooled_hd95_and_overlaps_equal_medpy(spacing: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    compared = 0
    for i in range(25):
        truth, *predicted = speckled(rng, masks=4)
        ours = score(np.stack(predicted), truth, spacing, empty="nan", threads=1 + i % 2)
        for s, p in enumerate(predicted):
            for r, values in enumerate(MEMBERS):
                a, b = np.isin(p, values), np.isin(truth, values)
                if a.any() and b.any():
                    compared += 1
                    assert ours["hd95"][s, r] == binary.hd95(a, b, spacing)
                    assert ours["dice"][s, r] == pytest.approx(binary.dc(a, b))
                    assert ours["sensitivity"][s, r] == pytest.approx(binary.recall(a, b))
                    assert ours["precision"][s, r] == pytest.approx(binary.precision(a, b))
    assert compared > 150


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.9375, 0.9375)])
def test_directed_hd95_equals_monai(spacing: tuple[float, float, float]) -> None:
    with warnings.catch_warnings():
        # MONAI 1.6 imports modules that warn of their own future.
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics import compute_hausdorff_distance

        rng = np.random.default_rng(1)
        compared = 0
        for _ in range(12):
            truth, *predicted = speckled(rng, masks=3)
            ours = score(np.stack(predicted), truth, spacing, hd95="directed", empty="nan")
            for s, p in enumerate(predicted):
                a, b = (
                    torch.from_numpy(np.stack([np.isin(x, v) for v in MEMBERS]))[None]
                    for x in (p, truth)
                )
                theirs = compute_hausdorff_distance(
                    a, b, include_background=True, percentile=95, spacing=spacing
                )[0].numpy()
                both = (a.flatten(2).any(-1) & b.flatten(2).any(-1))[0].numpy()
                compared += int(both.sum())
                np.testing.assert_allclose(ours["hd95"][s][both], theirs[both], rtol=1e-6)
        assert compared > 40


@surface_distance_is_old
def test_directed_hd95_equals_surface_distance_between_flat_plates() -> None:
    import surface_distance

    truth = volume((slice(4, 8), slice(2, 38), slice(2, 38)), size=40)
    thicker = volume((slice(2, 9), slice(2, 38), slice(2, 38)), size=40)
    spacing = (1.5, 1.0, 1.0)
    distances = surface_distance.compute_surface_distances(truth == 3, thicker == 3, spacing)
    theirs = surface_distance.compute_robust_hausdorff(distances, 95)
    assert score(thicker[None], truth, spacing, hd95="directed")["hd95"][0, 2] == theirs == 3.0


@surface_distance_is_old
def test_directed_hd95_stays_near_surface_distance_elsewhere() -> None:
    import surface_distance

    rng = np.random.default_rng(2)
    z, y, x = np.indices((24, 24, 24)) - 12
    radius = np.sqrt(z**2 + y**2 + x**2)
    for _ in range(5):
        wobble = gaussian_filter(rng.standard_normal(radius.shape), 3)
        truth, found = radius < 8, radius + 20 * wobble < 7
        distances = surface_distance.compute_surface_distances(truth, found, (1, 1, 1))
        theirs = surface_distance.compute_robust_hausdorff(distances, 95)
        ours = score(np.uint8(3 * found)[None], np.uint8(3 * truth), hd95="directed")["hd95"][0, 2]
        assert abs(ours - theirs) < 1


def test_one_voxel_three_millimetres_away() -> None:
    truth = volume((slice(5, 6), slice(5, 6), slice(5, 6)))
    found = volume((slice(5, 6), slice(5, 6), slice(7, 8)))
    scores = score(found[None], truth, (1, 1, 1.5))
    assert scores["hd95"].tolist() == [[3.0, 3.0, 3.0]]
    assert scores["dice"].tolist() == [[0.0, 0.0, 0.0]]
    assert scores["true_ml"].tolist() == [[0.0015] * 3]


def test_percentile_lies_between_two_distances() -> None:
    # Two surfaces of one and two voxels: distances 0 | 0, 4; the 95th percentile of three values
    # is nine tenths of the way from the second to the third.
    truth = volume((slice(0, 1), slice(0, 1), slice(0, 1)))
    found = truth.copy()
    found[0, 0, 4] = 3
    assert score(found[None], truth)["hd95"][0, 2] == pytest.approx(3.6)
    # Directed: 95 % of the way between 0 and 4 of the prediction's own two distances.
    assert score(found[None], truth, hd95="directed")["hd95"][0, 2] == pytest.approx(3.8)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 0.7, 0.7)])
def test_distances_beyond_every_walk_are_exact(spacing: tuple[float, float, float]) -> None:
    truth = volume((slice(0, 9), slice(0, 7), slice(0, 2)), size=80)
    found = volume((slice(75, 76), slice(60, 65), slice(3, 4)), size=80)
    found[40, 70, 60:66] = 3
    expected = binary.hd95(found == 3, truth == 3, spacing)
    assert score(found[None], truth, spacing)["hd95"][0, 2] == expected > 60


def test_speckle_over_the_whole_grid_is_exact() -> None:
    # As untrained networks predict.
    rng = np.random.default_rng(3)
    truth = volume((slice(2, 5), slice(2, 5), slice(2, 5)), size=16)
    found = np.where(rng.random(truth.shape) < 0.05, 3, 0).astype(np.uint8)
    found[:8, :8, :8] = 0
    assert score(found[None], truth)["hd95"][0, 2] == binary.hd95(found == 3, truth == 3)


def test_regions_are_nested_labels() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[0, 0, :3] = 1, 2, 3
    found = np.zeros_like(truth)
    found[0, 0, :3] = 2, 2, 3
    scores = score(found[None], truth)
    assert scores["dice"][0].tolist() == pytest.approx([1, 2 / 3, 1])
    assert scores["sensitivity"][0].tolist() == [1, 0.5, 1]
    assert scores["precision"][0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("policy", "nothing", "missed", "invented"),
    [
        # dice, hd95, sensitivity, precision
        ("brats", (1, 0, 1, 1), (0, 373.12866, 0, 0), (0, 373.12866, 0, 0)),
        ("brats2023", (1, 0, 1, 1), (0, 374, 0, 0), (0, 374, 0, 0)),
        (
            "nan",
            (np.nan, np.nan, np.nan, np.nan),
            (0, np.nan, 0, np.nan),
            (0, np.nan, np.nan, 0),
        ),
        ("amoe_bts", (np.nan,) * 4, (0, np.nan, 0, np.nan), (np.nan,) * 4),
    ],
)
def test_empty_sides_follow_the_policy(
    policy: str, nothing: tuple, missed: tuple, invented: tuple
) -> None:
    empty, full = volume(), volume((slice(3, 5), slice(3, 5), slice(3, 5)))
    for truth, found, expected in (
        (empty, empty, nothing),
        (full, empty, missed),
        (empty, full, invented),
    ):
        s = score(found[None], truth, empty=policy)
        got = [s["dice"][0, 2], s["hd95"][0, 2], s["sensitivity"][0, 2], s["precision"][0, 2]]
        np.testing.assert_array_equal(got, expected)


def test_one_empty_region_leaves_the_others_alone() -> None:
    truth = volume((slice(3, 6), slice(3, 6), slice(3, 6)), value=2)
    scores = score(truth[None], truth)
    assert scores["hd95"].tolist() == [[0, 0, 0]]
    assert score(volume()[None], truth)["hd95"].tolist() == [[373.12866, 0, 0]]


def test_many_subsets_score_as_each_alone() -> None:
    rng = np.random.default_rng(4)
    truth, *predicted = speckled(rng, masks=MOST + 3)
    together = score(np.stack(predicted), truth)
    for s in (0, MOST - 1, MOST, MOST + 1):
        alone = score(predicted[s][None], truth)
        np.testing.assert_array_equal(together["hd95"][s], alone["hd95"][0])
        np.testing.assert_array_equal(together["dice"][s], alone["dice"][0])


@pytest.mark.parametrize("name", ["cavity", "ped", "men_rt"])
def test_other_schemes_score_their_regions_as_medpy_does(name: str) -> None:
    scheme = SCHEMES[name]
    rng = np.random.default_rng(6)
    truth, *predicted = speckled(rng, masks=16)  # 15 subsets of 4 regions fill all 64 bits
    truth, *predicted = (
        np.where(m > 0, m + (rng.random(m.shape) < 0.4), 0) for m in (truth, *predicted)
    )
    truth, *predicted = (
        np.minimum(m, scheme.classes - 1).astype(np.uint8) for m in (truth, *predicted)
    )
    ours = score(np.stack(predicted), truth, empty="nan", scheme=scheme)
    assert ours["dice"].shape == (len(predicted), len(scheme.regions))
    for s, p in enumerate(predicted):
        for r, values in enumerate(scheme.regions.values()):
            a, b = np.isin(p, values), np.isin(truth, values)
            if a.any() and b.any():
                assert ours["hd95"][s, r] == binary.hd95(a, b)
                assert ours["dice"][s, r] == pytest.approx(binary.dc(a, b))
    with pytest.raises(ValueError, match=f"a value above {scheme.classes - 1}"):
        score(
            np.full((1, 4, 4, 4), scheme.classes, np.uint8),
            np.zeros((4,) * 3, np.uint8),
            scheme=scheme,
        )


def test_threads_do_not_change_a_digit() -> None:
    truth, *predicted = speckled(np.random.default_rng(5), masks=5)
    one, three = (score(np.stack(predicted), truth, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one["hd95"], three["hd95"])
    np.testing.assert_array_equal(one["dice"], three["dice"])


def test_read_only_and_strided_arrays_are_read_as_they_are() -> None:
    truth, found = speckled(np.random.default_rng(6), masks=2)
    turned = found[None].transpose(0, 3, 2, 1)
    truth.setflags(write=False)
    expected = score(np.ascontiguousarray(turned), np.ascontiguousarray(truth.T))
    np.testing.assert_array_equal(score(turned, truth.T)["hd95"], expected["hd95"])


def test_a_small_et_is_empty_in_dice_pp_alone() -> None:
    small, large = (slice(0, 7),) * 3, (slice(0, 8),) * 3  # 343 and 512 voxels
    nothing = np.zeros((9, 9, 9), np.uint8)
    full, few = nothing.copy(), nothing.copy()
    full[large], few[small] = 3, 3
    cases = ((full, full, 1), (full, few, 0), (nothing, few, 1), (few, few, 0))
    for truth, found, expected in cases:
        scores = score(found[None], truth)
        assert scores["dice_pp"][0, 2] == expected
        np.testing.assert_array_equal(scores["dice_pp"][0, :2], scores["dice"][0, :2])
    assert score(few[None], few)["dice"][0, 2] == 1


def test_amoe_leaves_out_a_distance_of_nothing() -> None:
    full = volume((slice(3, 5), slice(3, 5), slice(3, 5)))
    perfect = score(full[None], full, empty="amoe_bts")
    assert (perfect["dice"] == 1).all()
    assert np.isnan(perfect["hd95"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": np.zeros((1, 3, 3, 4), np.uint8)}, "do not fit"),
        ({"predicted": np.zeros((1, 3, 3, 3), np.int64)}, "must be uint8"),
        ({"predicted": np.full((1, 3, 3, 3), 4, np.uint8)}, "above 3"),
        ({"spacing": (1, 0, 1)}, "positive"),
        ({"hd95": "pool"}, "pooled, directed"),
        ({"empty": "zero"}, "brats, brats2023, nan"),
    ],
)
def test_what_cannot_be_scored_is_refused(change: dict, message: str) -> None:
    good = {
        "predicted": np.zeros((1, 3, 3, 3), np.uint8),
        "truth": np.zeros((3, 3, 3), np.uint8),
        "spacing": (1.0, 1.0, 1.0),
    }
    with pytest.raises(ValueError, match=message):
        score(**(good | change))
