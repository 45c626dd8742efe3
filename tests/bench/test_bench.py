"""Benchmarks: fair turns, results that join, and what runs where little is installed."""

import gc
import json
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from bts_lightning.__main__ import parse
from bts_lightning.bench import (
    arithmetic,
    loader,
    metrics,
    page,
    peers,
    subsets,
    synthetic,
)
from bts_lightning.bench.naive import segment_naively, write_volume
from bts_lightning.bench.race import Recipe
from bts_lightning.bench.result import (
    FAMILIES,
    Claim,
    Result,
    Table,
    again,
    chosen,
    markdown,
    read_all,
    shown,
)
from bts_lightning.bench.timing import Timing, failures, take_turns
from bts_lightning.commands.bench import device_for
from bts_lightning.errors import UserError
from bts_lightning.inference import Protocol, segment
from bts_lightning.modalities import COMPLETE, parse_subset


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """Collect the garbage of a measurement only, not torch's million objects each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def bench(*words: str) -> int:
    """Run `bts bench`; what the user can mend is raised."""
    args = parse(["bench", *words])
    return int(args.verb.run(args))


def result(family: str = "loader", device: str = "cpu", measured: float = 7.0) -> Result:
    return Result(
        family=family,
        device=device,
        command=f"bts bench {family}",
        machine={"processor": "some", "load": "0.1"},
        versions={"torch": "2"},
        settings={"patch": 128},
        tables=[Table("Patches", ["", "patches/s"], [["ours", 100.0], ["theirs", None]])],
        claims=[Claim("against theirs", 5.0, measured)],
        day="2026-01-31",
    )


def test_contenders_take_turns() -> None:
    called: list[str] = []
    timings = take_turns(
        {name: lambda name=name: called.append(name) for name in "ab"},
        rounds=2,
        warm=0,
    )
    assert called == ["a", "b", "a", "b"]
    assert len(timings["a"].values) == 2


def test_slow_contenders_are_neither_warmed_nor_repeated() -> None:
    called: list[str] = []
    take_turns(
        {name: lambda name=name: called.append(name) for name in "ab"}, rounds=2, fewer={"b": 1}
    )
    assert called == ["a", "a", "b", "a"]


def test_spread_is_half_the_range_over_the_median() -> None:
    assert Timing([1.0, 2.0, 4.0]).spread == "75 %"
    assert Timing([1.0]).spread is None


def test_a_peer_that_fails_is_reported_and_asked_no_more() -> None:
    called: list[int] = []

    def fail() -> None:
        called.append(1)
        import_module("absent_peer")

    timings = take_turns({"theirs": fail, "ours": lambda: None}, rounds=2)
    assert called == [1]
    assert np.isnan(timings["theirs"].median)
    assert failures(timings) == [
        "Not measured: theirs (ModuleNotFoundError: No module named 'absent_peer')."
    ]


def test_ours_must_not_fail() -> None:
    with pytest.raises(ModuleNotFoundError):
        take_turns({"ours": lambda: import_module("absent_peer")})


def test_peers_that_cannot_be_installed_are_recorded_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    Path("peers.txt").write_text("# why\nabsent-peer==1\n")
    monkeypatch.setattr(peers, "REQUIREMENTS", Path("peers.txt"))
    monkeypatch.setattr(peers, "MODULES", ("absent_peer",))
    python = peers.python_with_peers()
    assert "absent-peer==1 cannot be installed: No matching" in capsys.readouterr().out
    assert python == tmp_path / ".venv-bench/bin/python"
    # It sees what is installed beside it, and a benchmark in it knows what is not.
    look = "import json, torch; from bts_lightning.bench.peers import not_installed as n; "
    look += "print(json.dumps(n()))"
    done = subprocess.run(
        [python, "-c", look], env=peers.environment(), capture_output=True, text=True, check=True
    )
    assert list(json.loads(done.stdout)) == ["absent-peer==1"]
    peers.python_with_peers()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (1234, "1,234"),
        (12.345, "12.3"),
        (0.012345, "0.0123"),
        (123456.0, "123,456"),
        (2e-9, "2.0e-09"),
        ("word", "word"),
    ],
)
def test_cells_show_three_digits(cell: str | float | None, text: str) -> None:
    assert shown(cell) == text


def test_results_of_another_machine_join_and_newer_ones_replace(tmp_path: Path) -> None:
    result("loader").save(tmp_path / "here")
    result("loader", "cuda").save(tmp_path / "there")
    result("loader", "cpu", measured=9.0).save(tmp_path / "later")
    found = read_all([tmp_path / name for name in ("here", "there", "later")])
    assert [(r.device, r.claims[0].measured) for r in found] == [("cpu", 9.0), ("cuda", 7.0)]


def test_page_says_what_holds_what_was_missed_and_what_was_not_measured() -> None:
    lacking = replace(result("step", measured=1.0), absent={"monai==9": "No matching version"})
    text = page.compose([result(), lacking])
    assert "| against theirs | cpu | 5.00× | 7.00× | holds |" in text
    assert "| against theirs | cpu | 5.00× | 1.00× | **missed** |" in text
    assert "| holds | `bts bench loader` | 1 | 2026-01-31 |" in text
    assert "On a GPU: not measured; `bts bench step --device cuda` does it." in text
    assert "Could not be installed: monai==9 (No matching version)." in text
    assert "## metrics" not in text


def test_page_without_results_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bts bench"):
        bench("page", str(tmp_path), f"--out={tmp_path / 'page.md'}")


def test_numbers_stand_to_the_right() -> None:
    table = Table("T", ["by", "s"], [["ours", 1.0]], ["A note."], 'loader --only "{by}"')
    assert markdown(table) == [
        "| by | s |",
        "|---|---:|",
        "| ours | 1.00 |",
        "\nA note.",
        '\nOne row again: `bts bench loader --only "{by}"`.',
    ]


def test_one_row_comes_with_what_it_is_compared_with() -> None:
    names = ["ours, 1 thread", "nnU-Net", "MONAI", "memcpy"]
    assert chosen(names, "MONAI") == ["ours, 1 thread", "MONAI", "memcpy"]
    assert chosen(names, "") == names
    assert chosen(names, "medpy") == []


@pytest.mark.slow
def test_one_row_leaves_the_results_of_the_whole_alone(tmp_path: Path) -> None:
    words = ["metrics", "--size=24x24x20", "--rounds=1", "--only", "ours, directed"]
    assert bench(*words, "--no-peers", f"--results={tmp_path}", "--device=cpu") == 0
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="there are: ours, pooled"):
        bench(*words[:-1], "theirs", "--no-peers", "--device=cpu")


PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.mark.skipif(not PAGE.exists(), reason="a wheel has no docs")
def test_commands_of_the_page_parse_for_every_row() -> None:
    rows: list[dict[str, str]] = []
    columns: list[str] = []
    commands = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns, rows = cells, []
        elif not line.startswith("|---"):
            rows.append(dict(zip(columns, cells, strict=True)))
        if match := re.match(r"One row again: `(.*)`\.", line):
            commands += [match[1].format(**row) for row in rows]
        elif match := re.match(r"`(bts bench .*?)`", line):
            commands.append(match[1])
    assert len(commands) > 30
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["bts", "bench"], command
        parse(words[1:])


def test_a_row_is_repeated_with_all_options_that_were_given() -> None:
    words = "bts bench subsets rfnet a2fseg --rounds 5 --overlap 0.5 --device cpu"
    args = Namespace(command=words, networks=["rfnet", "a2fseg"])
    assert again(args, "{network} --window {window}") == (
        "subsets --rounds 5 --overlap 0.5 --device cpu {network} --window {window}"
        " --results scratch/one"
    )


def test_the_command_of_a_result_names_its_device(tmp_path: Path) -> None:
    words = ["step", "uhemis:width=4", "--modes=fp32", "--patch=16", "--steps=1"]
    bench(*words, f"--results={tmp_path}")
    (found,) = read_all([tmp_path])
    assert found.command.endswith(f" --device {found.device}")


@pytest.mark.parametrize(
    ("family", "asked", "has_gpu", "device"),
    [
        ("step", None, True, "cuda"),
        ("step", None, False, "cpu"),
        ("step", "cpu", True, "cpu"),
        # These know no GPU; a table must not say that they were measured on one.
        ("metrics", None, True, "cpu"),
        ("scale", None, True, "cpu"),
    ],
)
def test_a_gpu_is_measured_where_it_does_something(
    family: str, asked: str | None, has_gpu: bool, device: str
) -> None:
    assert device_for(family, asked, has_gpu=has_gpu) == device


def test_rows_of_a_gpu_need_one_or_the_word_for_their_twin() -> None:
    assert device_for("gpu", "cpu", has_gpu=False) == "cpu"
    with pytest.raises(UserError, match="torch finds no GPU; --device cpu runs the same"):
        device_for("gpu", None, has_gpu=False)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("metrics --device cuda", "measures the CPU alone"),
        ("step --modes fp31", "did you mean fp32?"),
        ("step uhemis:widht=4", "did you mean net.width?"),
        ("loader --size 240x240", "give three lengths, as 240x240x155"),
        ("metrics --size big", "give three lengths, as 240x240x155"),
        ("scale --cases 1,few", "give numbers from 1 on"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: str, line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        bench(*words.split(), "--no-peers")


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "phantom.json").write_text('{"seed": 0}')
    with pytest.raises(UserError, match=r"phantom\.json is no result of `bts bench`"):
        bench("page", str(tmp_path), f"--out={tmp_path / 'page.md'}")


def test_unknown_family_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean loader"):
        bench("loadr")


def test_recipe_takes_changes() -> None:
    assert Recipe("a2fseg:variant=paper,width=4,poolings=2").net().divisor == 4
    assert Recipe("a2fseg").net().variant == "official"


def test_early_fusion_gains_nothing_from_encoding_once() -> None:
    cost = arithmetic.count(Recipe("unet:width=4,poolings=2").net, 16)
    assert cost.encode == 0
    assert cost.reuse_bound() == pytest.approx(1)


def test_bound_is_that_of_the_specification() -> None:
    # baselines.md: RFNet at 80³, 203.6 GFLOP a pass, 2.23 times from encoding once.
    cost = arithmetic.count(Recipe("rfnet").net, 80)
    assert cost.encode + cost.decode == pytest.approx(203.6, rel=0.005)
    assert cost.reuse_bound() == pytest.approx(2.23, abs=0.01)
    # Each encoder runs in 8 of the 15 subsets, where absent ones are skipped.
    assert cost.loop(skips_absent=True) == pytest.approx(8 * cost.encode + 15 * cost.decode)


@pytest.mark.parametrize("name", ["rfnet:width=4", "a2fseg:width=4,poolings=2"])
@pytest.mark.parametrize("options", [{"auxiliary": True}, {"skip_absent": True}])
def test_the_naive_loop_gives_our_label_maps(
    name: str, options: dict[str, bool], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, loss = Recipe(name).net().eval(), Recipe(name).loss()
    image, _ = synthetic.make_case((20, 16, 16))
    subsets = [parse_subset("t1c"), parse_subset("t1+flair"), COMPLETE]
    protocol = Protocol(window=16, weighting="constant")
    naive = segment_naively(
        net,
        loss,
        write_volume(image, tmp_path / "volume.npy"),
        protocol,
        subsets,
        torch.device("cpu"),
        **options,
    )
    ours = segment(net, loss, image, COMPLETE, protocol, subsets)
    assert (naive != ours).mean() < 1e-3
    assert not net.training


@pytest.mark.slow
def test_both_sides_of_the_race_agree_and_every_stage_has_its_seconds(tmp_path: Path) -> None:
    args = Namespace(
        networks=["a2fseg:variant=paper,width=4,poolings=2"],
        window=16,
        size="20x16x16",
        overlap=None,
        precision=None,
        rounds=1,
        quick=False,
        no_peers=True,
        device=torch.device("cpu"),
        command="",
        scratch=tmp_path,
    )
    found = subsets.measure(args)
    times, stages = (table.rows for table in found.tables)
    assert float(times[0][-1] or 0) < 1e-3
    assert [row[1] for row in stages] == ["loop", "ours"]
    assert all(isinstance(seconds, float) for seconds in stages[-1][2:])
    # The loop computes what no pass needs, though it skips absent encoders as A2FSeg's does.
    assert 4 < float(times[0][6] or 0) < 8


def test_predictions_differ_from_truth_and_from_each_other() -> None:
    _, truth = synthetic.make_case((40, 40, 32))
    predicted = synthetic.make_predictions(truth, 3)
    assert set(np.unique(predicted)) <= {0, 1, 2, 3}
    overlap = [np.mean((p > 0) & (truth > 0)) / np.mean(truth > 0) for p in predicted]
    assert all(0.3 < share < 1 for share in overlap)
    assert (predicted[0] != predicted[2]).any()
    np.testing.assert_array_equal(predicted, synthetic.make_predictions(truth, 3))


def test_scores_agree_with_those_of_the_peers(tmp_path: Path) -> None:
    args = Namespace(
        size="40x40x32",
        rounds=1,
        sample=4,
        quick=False,
        no_peers=False,
        only="",
        device=torch.device("cpu"),
        command="",
    )
    found = metrics.measure(args)
    rows = {str(row[0]).partition(",")[0]: row for row in found.tables[1].rows}
    for peer in ("MONAI", "medpy", "SimpleITK's distance maps", "torchmetrics"):
        assert float(rows[peer][2] or 0) < 1e-6, peer  # Dice
    for peer in ("MONAI", "medpy", "SimpleITK's distance maps"):
        assert rows[peer][5] == "the same"
        assert float(rows[peer][4] or 0) < 1e-5, peer  # HD95


def test_the_promise_of_the_loader_is_against_the_best_peer() -> None:
    rows = [["ours, 2 threads", 9.0, "", 1.0], ["ours as", 1.0, "", 9.0], ["A", 3.0, "", 3.0]]
    table = Table("T", [], [*rows, ["B", 5.0, "", 1.8], ["C", np.nan, "", np.nan]])
    assert loader._claim("patches/s", table) == [
        Claim("patches/s against the best peer", loader.TARGET, 1.8)
    ]
    assert not loader._claim("patches/s", Table("T", [], rows[:2]))


def test_ours_delivers_whole_batches(tmp_path: Path) -> None:
    cases = synthetic.write_cases(tmp_path, 2, (20, 20, 18))
    assert cases[0].foreground[:, 0].min() >= 1
    for contender in (
        loader.ours(cases, 16, 2),
        loader.ours_as_subjects(cases, 16),
        loader.ours_augmented(cases, 16, torch.device("cpu"), 2),
    ):
        with contender.start() as arrivals:
            assert next(arrivals) == loader.BATCH


@pytest.mark.slow
def test_gpu_rows_need_little_more_than_torch(tmp_path: Path) -> None:
    script = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {sorted(ABSENT)}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from bts_lightning.__main__ import main
import bts_lightning.bench.subsets, bts_lightning.bench.metrics, bts_lightning.bench.loader
words = "bench step uhemis:width=4 --modes fp32 --patch 16 --steps 1 --device cpu".split()
raise SystemExit(main([*words, "--results", {str(tmp_path)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seconds = read_all([tmp_path])[0].tables[0].rows[0][3]
    assert isinstance(seconds, float), done.stdout


# Of our dependencies, those that a machine for an hour of GPU may lack.
ABSENT = {"torchio", "nibabel", "nilearn", "wandb", "SimpleITK", "optuna"}


def test_every_family_has_a_module_with_the_two_functions() -> None:
    for family in FAMILIES:
        module = __import__(f"bts_lightning.bench.{family}", fromlist=["measure"])
        assert callable(module.measure)
        assert callable(module.add_arguments)
