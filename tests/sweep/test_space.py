"""The distributions of a sweep, with values known by hand."""

from typing import Any

import optuna
import pytest

from bts_lightning.errors import ConfigError
from bts_lightning.sweep.space import DISTRIBUTIONS, Parameter, cells, read_parameters


def one(entry: dict[str, Any]) -> Parameter:
    return read_parameters({"net.width": entry}, "mine.yaml")[0]


def drawn(parameter: Parameter, count: int = 200) -> list[Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [parameter.suggest(study.ask()) for _ in range(count)]


# Each with the value that has a quarter and three quarters of the probability below it.
NORMAL = 0.6744897501960817
QUARTILES: dict[str, tuple[dict[str, Any], float, float]] = {
    "constant": ({"value": 7}, 7, 7),
    "categorical": ({"values": [1, 2, 3, 4]}, 2, 4),
    "int_uniform": ({"min": 1, "max": 4}, 2, 4),
    "uniform": ({"min": 1.0, "max": 3.0}, 1.5, 2.5),
    "q_uniform": ({"min": 0, "max": 100, "q": 20}, 20, 80),
    "log_uniform_values": ({"min": 1e-4, "max": 1.0}, 1e-3, 1e-1),
    "normal": ({"mu": 1, "sigma": 2}, 1 - 2 * NORMAL, 1 + 2 * NORMAL),
}


def test_every_distribution_is_tested_here():
    assert set(QUARTILES) == set(DISTRIBUTIONS)


@pytest.mark.parametrize("kind", QUARTILES)
def test_quartiles_are_those_of_the_distribution(kind: str):
    entry, low, high = QUARTILES[kind]
    parameter = one({"distribution": kind, **entry})
    assert parameter.quantile(0.25) == pytest.approx(low)
    assert parameter.quantile(0.75) == pytest.approx(high)


@pytest.mark.parametrize("kind", QUARTILES)
def test_draws_lie_around_the_same_quartiles(kind: str):
    entry, low, high = QUARTILES[kind]
    values = drawn(one({"distribution": kind, **entry}))
    # 200 draws, half of them expected between the quartiles; ties count in for discrete ones.
    below, above = sum(v <= low * 1.001 for v in values), sum(v >= high * 0.999 for v in values)
    assert below >= 25
    assert above >= 25
    assert {type(v) for v in values} == {type(one({"distribution": kind, **entry}).quantile(0.5))}


def test_whole_steps_give_whole_numbers():
    assert one({"distribution": "q_uniform", "min": 8, "max": 64, "q": 8}).quantile(0.3) == 24
    assert isinstance(one({"distribution": "q_uniform", "min": 0, "max": 9}).quantile(0.3), int)


def test_decimal_steps_lose_the_noise_of_binary():
    parameter = one({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.1})
    assert [parameter.quantile(share) for share in (0.1, 0.3, 0.7)] == [0.1, 0.3, 0.7]


def test_distributions_are_implied_as_by_wandb():
    assert one({"value": None}).distribution == "constant"
    assert one({"values": ["a"]}).distribution == "categorical"
    assert one({"min": 1, "max": 2}).distribution == "int_uniform"
    assert one({"min": 1.0, "max": 2.0}).distribution == "uniform"


def test_nested_parameters_get_dotted_names():
    tree = {
        "net": {"parameters": {"width": {"value": 8}, "deep": {"parameters": {"a": {"value": 1}}}}}
    }
    assert [p.name for p in read_parameters(tree, "f")] == ["net.width", "net.deep.a"]


def test_lists_and_none_can_be_choices():
    values = drawn(one({"values": [[96, 96, 64], None, True]}), 30)
    assert all(choice in values for choice in ([96, 96, 64], None, True))


def test_a_grid_has_every_combination_the_last_fastest():
    parameters = read_parameters(
        {
            "a": {"values": [1, 2]},
            "b": {"value": 5},
            "c": {"distribution": "q_uniform", "min": 0, "max": 4, "q": 2},
        },
        "f",
    )
    grid = cells(tuple(p.as_choices() for p in parameters))
    assert [(c["a"], c["c"]) for c in grid] == [(a, c) for a in ("1", "2") for c in ("0", "2", "4")]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (
            {"distribution": "log_uniform", "min": 1, "max": 2},
            "no distribution here is named 'log_uniform'; choose constant, categorical, "
            "int_uniform, uniform, q_uniform, log_uniform_values, normal",
        ),
        ({"min": 2, "max": 1}, "min 2 is not below max 1"),
        ({"min": 1, "max": 2.5}, "both as 1 or both as 1.0"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min must be above 0"),
        ({"distribution": "normal", "sigma": 0}, "sigma must be above 0"),
        ({"distribution": "normal", "std": 1}, "normal takes mu, sigma, not 'std'"),
        ({"values": []}, "at least one value"),
        ({"values": [1, 1]}, "a value twice"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "takes values, not 'probabilities'"),
        ({"distribution": "uniform", "min": 1.0}, "uniform needs max"),
        ({"min": "low", "max": 1}, "give a number"),
        ({}, "give value, values, or min and max"),
        (8, "write {value: 8} for a constant"),
        ({"parameters": ["width"]}, "parameters is ['width']; name keys below net.width"),
    ],
)
def test_mistakes_are_named(entry: Any, told: str):
    with pytest.raises(ConfigError) as error:
        one(entry)
    assert "mine.yaml: parameters.net.width" in str(error.value)
    assert told in str(error.value)


def test_a_grid_of_a_continuous_parameter_is_refused():
    with pytest.raises(ConfigError, match=r"net\.width: a grid needs values"):
        one({"min": 0.0, "max": 1.0}).as_choices()
