"""The table of metrics is what every page, table and training reads."""

import numpy as np

from bts_lightning.callbacks.subsets import VALIDATED
from bts_lightning.metrics.calibration.tally import Tally
from bts_lightning.metrics.lesions.tasks import LesionRules
from bts_lightning.metrics.score import score
from bts_lightning.metrics.table import COUNTS, METRICS, TABLE, VOLUMES, measured_by
from bts_lightning.report.page import page
from bts_lightning.report.summary import latex, markdown, summarise
from bts_lightning.report.table import EvaluationTable
from tests.report.synthetic import protocol, rows


def test_every_metric_is_measured_and_printed() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    nothing = Tally(truth, truth == 0, (1, 1, 1))
    nothing.add(truth, np.zeros((3, *truth.shape), np.float32))
    measured = [
        *score(truth[None], truth),
        *score(truth[None], truth, lesions=LesionRules("brats2024"), calibration=nothing.counts()),
    ]
    assert set(measured) == {*METRICS, *VOLUMES, *COUNTS}
    made = [dict.fromkeys((*METRICS, *COUNTS), 0.5) | row for row in rows(3)]
    summary = summarise(EvaluationTable.from_rows(made), protocol())
    document, text, tex = page(summary, []), markdown(summary), latex(summary)
    for metric in TABLE:
        assert f'data-metric="{metric.name}"' in document
        assert (f"## {metric.heading}" in text) is metric.is_main
        assert (metric.heading.replace("%", r"\%") in tex) is metric.is_main


def test_what_a_region_that_is_rightly_or_wrongly_empty_scores() -> None:
    empty, full = np.zeros((2, 4, 4, 4), np.uint8)
    full[1:3, 1:3, 1:3] = 3
    for metric in measured_by(None):
        name = metric.name
        assert (score(empty[None], empty)[name] == metric.best).all()
        worst = 373.12866 if np.isinf(metric.worst) else metric.worst
        assert (score(empty[None], full)[name] == worst).all()


def test_a_training_measures_what_the_table_says() -> None:
    assert {"dice", "hd95"} <= {metric.name for metric in VALIDATED}
    truth = np.zeros((4, 4, 4), np.uint8)
    measured = score(truth[None], truth, metrics=VALIDATED)
    assert list(measured) == [*(metric.name for metric in VALIDATED), *VOLUMES]
