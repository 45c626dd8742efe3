import numpy as np

from bts_lightning.modalities import SUBSETS
from bts_lightning.report.shapley import case_values, one_more, shapley
from bts_lightning.report.table import EvaluationTable
from tests.report.synthetic import rows


def game(worth: dict[int, float], pairs: dict[tuple[int, int], float] | None = None) -> np.ndarray:
    """Worth of the 15 subsets when modalities add up, and some pairs are worth a bonus."""
    return np.array(
        [
            sum(w for m, w in worth.items() if subset[m])
            + sum(w for (a, b), w in (pairs or {}).items() if subset[a] and subset[b])
            for subset in SUBSETS
        ]
    )


def test_additive_game_gives_its_terms_back() -> None:
    terms = {0: 0.05, 1: 0.4, 2: 0.1, 3: 0.25}
    np.testing.assert_allclose(shapley(game(terms)), list(terms.values()))


def test_a_pair_shares_its_bonus() -> None:
    # T1c and FLAIR are worth 0.6 only together: each gets half.
    np.testing.assert_allclose(shapley(game({}, {(1, 3): 0.6})), [0, 0.3, 0, 0.3], atol=1e-12)


def test_a_modality_that_never_matters_is_worth_nothing() -> None:
    # The best of what is there counts; T1 is never the best and never needed.
    alone = np.array([0, 0.7, 0.5, 0.6])
    best = np.array([alone[list(subset)].max() for subset in SUBSETS])
    assert abs(shapley(best)[0]) < 1e-12


def test_values_add_up_to_the_complete_dice() -> None:
    table = EvaluationTable.from_rows(rows(5))
    cases, values = case_values(table)
    assert len(cases) == 5
    np.testing.assert_allclose(values.sum(axis=-1), table.grid("dice")[:, -1])


def test_cases_that_lack_a_modality_have_no_value_but_still_gains() -> None:
    table = EvaluationTable.from_rows(rows(4, lacking={1: (True, True, False, False)}))
    cases, values = case_values(table)
    assert cases == [table.cases[i] for i in (0, 2, 3)]
    assert np.isfinite(values).all()
    gain = next(g for g in one_more(table) if (g.subset, g.modality) == ("t1", "t1c"))
    assert np.isfinite(gain.values).all()


def test_a_table_without_all_subsets_has_no_value() -> None:
    some = [row for row in rows(2) if row["subset"] != "t1+t2"]
    assert case_values(EvaluationTable.from_rows(some))[0] == []


def test_one_more_sequence_has_28_steps_and_the_difference_of_their_ends() -> None:
    table = EvaluationTable.from_rows(rows(3))
    gains = one_more(table)
    assert len(gains) == 28  # 32 single steps of the cube without the 4 from the empty set
    step = next(g for g in gains if (g.subset, g.modality) == ("t2+flair", "t1c"))
    dice = table.grid("dice")
    more, less = table.subsets.index("t1c+t2+flair"), table.subsets.index("t2+flair")
    np.testing.assert_array_equal(step.values, dice[:, more] - dice[:, less])
