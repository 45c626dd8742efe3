from collections import Counter

import numpy as np
import pytest

from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol
from bts_lightning.modalities import subset_name

CASES = [f"BraTS-GLI-{number:05}-000" for number in range(219)]


def test_every_case_is_asked_for_every_subset_by_default() -> None:
    asked = Protocol(subsets=["t1", "t1c+t2"]).subsets_of(["b", "a"])
    assert [[subset_name(s) for s in asked[case]] for case in "ab"] == [["t1", "t1c+t2"]] * 2


def test_brasyn_removes_what_the_draw_of_the_challenge_removes() -> None:
    state = np.random.get_state()
    np.random.seed(123456)  # as the challenge's program does
    expected = np.random.randint(0, 4, size=len(CASES))
    np.random.set_state(state)
    removes = {"t1+t2+flair": 0, "t1c+t2+flair": 1, "t1+t1c+t2": 2, "t1+t1c+flair": 3}
    asked = Protocol(draw="brasyn").subsets_of(CASES[::-1])
    (drawn,) = zip(*([removes[subset_name(s)] for s in asked[case]] for case in CASES), strict=True)
    assert list(drawn) == expected.tolist()
    assert all(count > 35 for count in Counter(drawn).values())


def test_draw_and_subsets_are_not_given_together() -> None:
    with pytest.raises(ConfigError, match="draw=brasyn"):
        Protocol(draw="brasyn", subsets=["t1"])


def test_a_table_says_that_it_was_drawn() -> None:
    assert Protocol(draw="brasyn").facts()["draw"] == "brasyn"
    assert "draw" not in Protocol().facts()
