import numpy as np
import pytest
from scipy import stats

from bts_lightning.report.statistics import (
    case_means,
    fewest_patients,
    groups,
    holm,
    patient_means,
    signed_rank,
    signed_ranks,
)
from bts_lightning.report.table import SUBSET_NAMES


def alone(patients: int, scans: int = 1) -> list[str]:
    """Name the patient of each case."""
    return [f"p{patient}" for patient in range(patients) for _ in range(scans)]


def test_holm_by_hand() -> None:
    # Sorted: 0.01·4, 0.02·3, 0.03·2, 0.5·1, each at least as large as the one before.
    p = np.array([0.03, 0.01, 0.5, 0.02])
    np.testing.assert_allclose(holm(p), [0.06, 0.04, 0.5, 0.06])


def test_holm_never_falls_behind_a_smaller_p() -> None:
    # 0.01·3 and 0.011·2: the second would come out below the first.
    np.testing.assert_allclose(holm(np.array([0.011, 0.01, 0.5])), [0.03, 0.03, 0.5])


def test_holm_leaves_absent_cells_out_of_the_family() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.04])), [0.02, np.nan, 0.04])


def test_holm_never_exceeds_one() -> None:
    assert holm(np.array([0.6, 0.7, 0.9])).max() == 1.0


def test_signed_rank_by_hand() -> None:
    # Five differences of one sign: 2 of the 32 sign patterns are as extreme.
    assert signed_rank(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 32)


def test_signed_rank_with_a_tie_by_hand() -> None:
    # Ranks 1.5, 1.5, 3, the lone minus at 1.5: of 8 patterns, 3 have a sum of at most 1.5
    # (none, or either of the tied alone), so p is 2 · 3 / 8.
    assert signed_rank(np.array([1.0, -1.0, 2.0])) == pytest.approx(6 / 8)


@pytest.mark.parametrize("cases", [6, 14, 50, 51, 120])
def test_signed_rank_agrees_with_scipy(cases: int) -> None:
    differences = np.random.default_rng(cases).normal(0.3, 1, cases)
    assert signed_rank(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)


@pytest.mark.parametrize(("differences", "p"), [([0.0, 0.0], 1.0), ([np.nan, 0.3], 1.0)])
def test_signed_rank_of_next_to_nothing(differences: list[float], p: float) -> None:
    assert signed_rank(np.array(differences)) == p


def test_signed_rank_of_nothing_is_nan() -> None:
    assert np.isnan(signed_rank(np.array([np.nan])))


def test_signed_ranks_are_corrected_for_all_cells() -> None:
    values = np.arange(1.0, 11)[:, None, None] * np.ones((10, 2, 3))
    np.testing.assert_allclose(signed_ranks(values), 6 * 2 / 2**10)


def test_interval_agrees_with_the_normal_one_for_many_cases() -> None:
    values = np.random.default_rng(2).normal(0.8, 0.1, size=(400, 1))
    half = 1.96 * values.std() / np.sqrt(400)
    for bounds in ((-np.inf, np.inf), (0, 1), (0, np.inf)):
        cells = case_means(values, alone(400), bounds).cells()
        np.testing.assert_allclose(cells.low, values.mean() - half, atol=4e-4)
        np.testing.assert_allclose(cells.high, values.mean() + half, atol=4e-4)


def test_interval_by_hand() -> None:
    # 1 and 3: mean 2, standard error 1, and t of one degree of freedom is tan(0.475 π).
    t = np.tan(0.475 * np.pi)
    values = np.array([[1.0], [3.0]])
    cells = case_means(values, alone(2)).cells()
    np.testing.assert_allclose([cells.low, cells.high], [[2 - t], [2 + t]])
    cells = case_means(values, alone(2), (0, np.inf)).cells()
    np.testing.assert_allclose([cells.low, cells.high], [[2 * np.exp(-t / 2)], [2 * np.exp(t / 2)]])
    cells = case_means(values, alone(2), (0, 4)).cells()  # odds of 2 in 4 are 1, their logarithm 0
    logit = np.array([-t, t])  # (1/2 + 1/2) · t
    np.testing.assert_allclose(np.ravel([cells.low, cells.high]), 4 / (1 + np.exp(-logit)))


def test_interval_stays_within_the_bounds() -> None:
    values = np.array([[1.0], [1.0], [1.0], [0.2], [1.0]])
    cells = case_means(values, alone(5), (0, 1)).cells()
    assert 0 < cells.low < 0.5
    assert cells.mean < cells.high < 1


def test_scans_of_a_patient_are_no_other_patients() -> None:
    once = np.random.default_rng(3).random((10, 2, 3))
    often, patients = np.repeat(once, 4, axis=0), alone(10, scans=4)
    one, four = case_means(once, alone(10)), case_means(often, patients)
    assert (four.count == 40).all()
    for end in ("mean", "low", "high"):
        np.testing.assert_allclose(getattr(four.cells(), end), getattr(one.cells(), end))
    np.testing.assert_allclose(patient_means(often, patients), once, rtol=1e-12)


def test_a_mean_counts_cases_and_loses_a_patient_with_all_scans() -> None:
    made = case_means(np.array([1.0, 3.0, 8.0]), ["a", "a", "b"])
    assert (made.mean, made.count, made.patients) == (4, 3, 2)
    np.testing.assert_allclose(made.moves, [4 - 8, 4 - 2])


def test_equal_cases_have_no_spread() -> None:
    for value in (0.0, 0.5, 1.0):
        cells = case_means(np.full((7, 2), value), alone(7), (0, 1)).cells()
        np.testing.assert_array_equal([cells.mean, cells.low, cells.high], np.full((3, 2), value))


def test_values_that_are_not_there_take_no_part() -> None:
    values = np.array([[0.2, np.nan], [0.4, np.nan], [np.nan, np.nan]])
    cells, there = (
        case_means(values, alone(3)).cells(),
        case_means(values[:2, :1], alone(2)).cells(),
    )
    np.testing.assert_allclose(cells.mean, [0.3, np.nan])
    np.testing.assert_array_equal(cells.count, [2, 0])
    assert cells.low[0] == there.low[0]
    assert np.isnan(cells.high[1])


def test_one_patient_has_no_interval() -> None:
    for cases in (1, 4):
        cells = case_means(np.full((cases, 1), 0.7), ["a"] * cases, (0, 1)).cells()
        assert cells.mean == 0.7
        assert np.isnan([cells.low, cells.high]).all()


def test_cells_of_a_patient_move_together() -> None:
    # The second subset is the first mirrored: their average must not vary.
    first = np.random.default_rng(3).random((10, 1, 1))
    average = case_means(np.concatenate([first, 1 - first], axis=1), alone(10)).over([0, 1])
    np.testing.assert_allclose([average.low, average.high], 0.5)


def test_average_over_subsets_is_the_mean_of_the_cell_means() -> None:
    values = np.random.default_rng(4).random((10, 15, 3))
    estimate = case_means(values, alone(10), (0, 1)).over(range(15))
    np.testing.assert_allclose(estimate.mean, values.mean(axis=(0, 1)))
    # Where no value lacks, it is the interval of the cases' averages.
    cells = case_means(values.mean(axis=1), alone(10), (0, 1)).cells()
    np.testing.assert_allclose([estimate.low, estimate.high], [cells.low, cells.high])


def test_groups_split_by_t1c() -> None:
    named = groups(SUBSET_NAMES)
    assert [len(indices) for indices in named.values()] == [15, 8, 7]
    assert list(groups(["t2", "flair"])) == ["mean over 2", "without T1c (2)"]


def test_fewest_patients_by_hand() -> None:
    # 45 · 2 / 2^10 = 0.088 and 45 · 2 / 2^11 = 0.044.
    assert fewest_patients(45) == 11
    assert fewest_patients(1) == 6
