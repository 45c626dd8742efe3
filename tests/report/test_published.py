import numpy as np
import pytest

from bts_lightning.errors import UserError
from bts_lightning.modalities import REGIONS
from bts_lightning.report.published import averages, read_published
from bts_lightning.report.table import SUBSET_NAMES


def test_every_published_table_is_complete() -> None:
    tables = read_published()
    assert len(tables) == 21
    assert all(np.isfinite(table.dice).all() for table in tables)


def test_a2fseg_means_are_those_that_the_paper_prints() -> None:
    (table,) = [t for t in read_published() if t.method == "A2FSeg"]
    np.testing.assert_allclose(table.dice.mean(axis=0), [89.79, 82.72, 66.71], atol=0.006)


def test_f_means_flair() -> None:
    (table,) = [t for t in read_published() if (t.dataset, t.method) == ("BraTS2018", "DeMoSeg")]
    assert table.dice[SUBSET_NAMES.index("flair"), 0] == 89.53
    assert table.dice[SUBSET_NAMES.index("t2+flair"), 0] == 90.5


def test_averages_are_those_of_both_tables() -> None:
    one, two = (dict(averages(f"A2FSeg paper, Table {n}")) for n in (1, 2))
    # The paper prints two of the rows in both.
    np.testing.assert_allclose(one["A2FSeg"], two["+ adaptive fusion module"], atol=0.006)
    np.testing.assert_allclose(one["MFI"], two["MFI"], atol=0.006)
    assert two["baseline (average fusion module only)"] == [89.29, 82.00, 66.00]


def test_a_source_that_nobody_printed_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean A2FSeg paper, Table 2"):
        averages("A2FSeg paper, table 22")


def test_et_with_and_without_t1c_is_as_the_docs_say() -> None:
    tables = [t for t in read_published() if t.source == "A2FSeg paper, Table 1"]
    seen = np.array(["t1c" in name for name in SUBSET_NAMES])
    et = np.stack([table.dice[:, list(REGIONS).index("ET")] for table in tables])
    assert seen.sum() == 8
    assert (et[:, seen] > 75).all()
    assert (et[:, seen] < 78.5).all()
    assert (et[:, ~seen] > 37).all()
    assert (et[:, ~seen] < 56.5).all()
