"""W&B's early termination, worked out by hand."""

from typing import Any

import pytest

from bts_lightning.errors import ConfigError
from bts_lightning.sweep.hyperband import Hyperband, read_hyperband


def test_rungs_from_the_first_grow_by_eta():
    rule = read_hyperband({"type": "hyperband", "min_iter": 3}, "f")
    assert rule is not None
    assert rule.rungs[:3] == (3, 9, 27)


def test_rungs_from_the_last_shrink_by_eta():
    rule = read_hyperband({"type": "hyperband", "max_iter": 27, "s": 2}, "f")
    assert rule is not None
    assert rule.rungs == (3, 9)


def test_the_best_part_goes_on():
    rule = Hyperband((1,), eta=3, strict=False)
    # The second value is compared. Three trials, a third passes: the best of them alone.
    trials = [[0.1, 0.5], [0.1, 0.6], [0.1, 0.7]]
    behind = [rule.is_behind(t, [o for o in trials if o is not t]) for t in trials]
    # int(3 / 3) = 1 stands second from the top: it and what is above go on.
    assert behind == [True, False, False]


def test_a_trial_before_its_rung_goes_on():
    rule = Hyperband((2,), eta=3, strict=False)
    assert not rule.is_behind([0.0, 0.0], [[0.9, 0.9, 0.9]] * 5)
    assert rule.is_behind([0.0, 0.0, 0.0], [[0.9, 0.9, 0.9]] * 5)


def test_the_first_trial_is_never_behind():
    assert not Hyperband((1,), eta=3, strict=True).is_behind([0.2, 0.1], [])


def test_strict_compares_the_rung_and_not_the_best():
    others = [[0.5, 0.5]] * 3
    fell = [0.9, 0.1]
    assert not Hyperband((1,), eta=2, strict=False).is_behind(fell, others)
    assert Hyperband((1,), eta=2, strict=True).is_behind(fell, others)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"type": "median"}, "type: hyperband"),
        ({"type": "hyperband"}, "give min_iter, or max_iter and s"),
        ({"type": "hyperband", "min_iter": 0}, "whole number from 1"),
        ({"type": "hyperband", "min_iter": 3, "eta": 1}, "above 1"),
        ({"type": "hyperband", "minimum": 3}, "unknown key 'minimum'"),
        ({"type": "hyperband", "max_iter": 2, "s": 3}, "leaves no rung"),
    ],
)
def test_mistakes_are_named(section: dict[str, Any], told: str):
    with pytest.raises(ConfigError) as error:
        read_hyperband(section, "mine.yaml")
    assert told in str(error.value)
