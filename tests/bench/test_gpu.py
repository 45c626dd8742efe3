"""The battery for a GPU: a plan that fits, rows that fail alone, goals that nobody invents."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest
import torch

from bts_lightning.bench import page, plan, training
from bts_lightning.bench.gpu import join
from bts_lightning.bench.plan import PACE, Row
from bts_lightning.bench.result import GOALS, Result, Table, goal
from bts_lightning.bench.step import FAILED, MODES, claims
from bts_lightning.bench.timing import Timing
from bts_lightning.bench.worker import Worker

CARD, CPU = PACE["cuda"], PACE["cpu"]


def result(family: str, *tables: Table, device: str = "cuda") -> Result:
    return Result(family, device, "bts bench", {}, {}, {}, list(tables))


def test_a_row_costs_its_arithmetic_over_the_assumed_pace() -> None:
    row = plan.step("uhemis", "cuda", CARD)
    one = row.flop / (row.half + row.single)
    # 1 fp32 and 2 half-precision modes, of 3 + 5 steps.
    assert (row.single, row.half) == (8, 16)
    assert one == pytest.approx(0.19e12, rel=0.05)
    expected = 3 * CARD.mode + 16 * one / (0.15 * CARD.half) + 8 * one / (0.15 * CARD.single)
    assert row.seconds(CARD) == pytest.approx(expected)
    # 150×180×135 has 2×3×2 windows of 112; loop and one pass, forward alone.
    assert plan.subsets("uhemis", "cuda", CARD).half == 2 * 15 * 12 / 3


def test_the_plan_says_what_does_not_fit() -> None:
    rows = [Row("step a", fixed=100), Row("step b", fixed=300), Row("step c", fixed=50)]
    table = plan.table(rows, {"demo": 60.0}, replace(CARD, start=20), 4)
    assert [row[-1] for row in table.rows] == ["", "", "left out", "", "", "of 240"]
    assert table.rows[-1][2] == 20 + 100 + 50 + 60


@pytest.mark.slow
def test_the_plan_of_all_networks_fits_into_eight_minutes() -> None:
    rows = plan.lay_out([], "cuda", CARD)
    table = plan.table(rows, training.TRAININGS["cuda"], CARD, 8)
    assert {name.partition(":")[0] for name in plan.chosen("cuda")} >= {"a2fseg", "unet", "rfnet"}
    assert float(table.rows[-1][2] or 0) <= 480
    # What is promised comes first, and there is time for it.
    promised = [row for row in table.rows if "a2fseg" in str(row[0])]
    assert all(row[-1] == "" for row in promised)


def test_rows_of_a_family_are_joined_table_by_table() -> None:
    found: dict[str, Result] = {}
    for name in ("a", "b"):
        join(found, result("step", Table("Steps", ["network"], [[name]])), "bts bench gpu")
    join(found, result("step", Table("Others", ["network"], [["c"]])), "bts bench gpu")
    assert [table.rows for table in found["step"].tables] == [[["a"], ["b"]], [["c"]]]
    assert found["step"].command == "bts bench gpu"


def test_goals_without_a_card_are_not_measured() -> None:
    text = page.compose([result("step", device="cpu")])
    for what, _ in GOALS.values():
        assert f"| {what} | cuda |" in text
    assert text.count("| not measured |") == len(GOALS)
    measured = result("step")
    measured.claims.append(goal("step", 2.5))
    text = page.compose([measured])
    assert "| 2.00× | 2.50× | holds |" in text
    assert text.count("| not measured |") == len(GOALS) - 1


def test_a_step_is_held_against_the_official_one_and_the_card() -> None:
    official, fast = MODES["official"], MODES["fast"]
    found = {official: (Timing([0.4]), 4000), fast: (Timing([0.1]), 1000)}
    kept = claims(found, 20e12, {torch.bfloat16: 500e12, torch.float16: 400e12})
    assert [claim.measured for claim in kept] == pytest.approx([4.0, 0.4, 4.0])
    assert claims({official: (Timing([0.4]), 1)}, 1.0, {}) == []


@pytest.mark.slow
def test_a_row_that_fails_or_does_not_end_stops_no_other(tmp_path: Path) -> None:
    worker = Worker("cpu", tmp_path, CPU)
    good = Row("step uhemis:width=4 --patch 16 --modes fp32 --steps 1 --no-loader")
    try:
        found, _, said = worker.measure(replace(good, words="step nothing"), 60)
        assert found is None
        assert said.startswith(FAILED + "ConfigError")
        found, _, said = worker.measure(good, 60)
        assert said == "measured"
        assert found is not None
        # It does not begin without time; and what takes longer than planned is stopped.
        assert worker.measure(replace(good, fixed=9), 8)[2] == "left out: 8 s were left"
        long = replace(good, words=good.words.replace("--steps 1", "--steps 100000"))
        assert worker.measure(long, 1)[2] == "stopped after 1 s"
        kill = Timer(20, lambda: os.kill(worker._process.pid, signal.SIGKILL))
        kill.start()
        assert worker.measure(long, 300)[2] == FAILED + "the process died"
        kill.join()
        assert worker.measure(good, 60)[2] == "measured"
    finally:
        worker.close()


def test_the_curve_of_a_training_has_few_points(tmp_path: Path) -> None:
    lines = [f"{step},train/loss,{1 / (step + 1)}" for step in range(100)]
    lines += ["9,speed/patches_per_second,30", "19,speed/patches_per_second,50"]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,metric,value", *lines]))
    table = training._curve("demo", tmp_path / "metrics.csv")
    assert len(table.rows) == training.POINTS
    assert table.rows[-1][0] == 100
    losses = [float(row[1] or 0) for row in table.rows]
    assert losses == sorted(losses, reverse=True)
    assert table.notes == ["The training: 40 patches/s."]
