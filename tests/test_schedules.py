"""Learning-rate factors against values worked out by hand."""

import pytest
import torch

from bts_lightning.schedules import Poly, StagedPoly, WarmupCosine, WarmupPoly


def rates(make, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make(optimizer)
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_poly_falls_from_the_full_rate_towards_zero():
    found = rates(lambda o: Poly(o, epochs=4, power=0.5), 5)
    assert found == pytest.approx([2.0, 2 * 0.75**0.5, 2 * 0.5**0.5, 1.0, 0.0])


@pytest.mark.parametrize("power", [0.9, 1.0, 0.5])
def test_poly_is_the_formula_to_the_last_bit(power: float):
    found = rates(lambda o: Poly(o, epochs=300, power=power), 303)
    assert found == [2.0 * max(0.0, 1 - epoch / 300) ** power for epoch in range(303)]


def test_poly_rounds_the_rate_itself():
    # 2·(3/4)^0.9 = 1.54377..., 2·(1/2)^0.9 = 1.07177...
    assert rates(lambda o: Poly(o, epochs=4, decimals=2), 3) == [2.0, 1.54, 1.07]


def test_warmup_cosine_begins_above_zero_and_peaks_after_the_warmup():
    found = rates(lambda o: WarmupCosine(o, epochs=6, warmup_epochs=2), 7)
    assert found == pytest.approx([1.0, 2.0, 2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0])


def test_zero_start_spends_the_first_epoch_at_zero_as_the_official_code():
    found = rates(lambda o: WarmupCosine(o, epochs=5, warmup_epochs=3, zero_start=True), 4)
    assert found == pytest.approx([0.0, 1.0, 2.0, 2.0])
    assert rates(lambda o: WarmupCosine(o, epochs=5, warmup_epochs=1, zero_start=True), 1) == [0.0]


def test_warmup_poly_begins_at_zero_and_falls_after_the_warmup():
    found = rates(lambda o: WarmupPoly(o, epochs=6, warmup_epochs=2, power=0.5), 7)
    assert found == pytest.approx([0.0, 1.0, 2.0, 2 * 0.75**0.5, 2 * 0.5**0.5, 1.0, 0.0])


def test_warmup_poly_may_begin_above_zero_and_end_there():
    # 2·(e+1)/2 below epoch 2, then 2·(1 - (e-2)/(6+1-2))^0.5
    found = rates(
        lambda o: WarmupPoly(o, epochs=6, warmup_epochs=2, power=0.5, zero_start=False), 6
    )
    assert found == pytest.approx([1.0, 2.0, *(2 * (1 - e / 5) ** 0.5 for e in range(4))])


def test_staged_poly_takes_up_the_longer_decay_where_it_would_be():
    found = rates(lambda o: StagedPoly(o, epochs=8, first_epochs=4, power=0.5), 9)
    first = [2 * (1 - e / 4) ** 0.5 for e in range(4)]
    assert found == pytest.approx([*first, *(2 * (1 - e / 8) ** 0.5 for e in range(4, 9))])


def test_a_resumed_schedule_goes_on_where_it_stopped():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = Poly(optimizer, epochs=10)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    resumed = Poly(other, epochs=10)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    optimizer.step(), schedule.step()
    other.step(), resumed.step()
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
