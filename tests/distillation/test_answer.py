"""What distillation compares must be there."""

import pytest

from bts_lightning.distillation.terms import PrototypeTerm
from bts_lightning.errors import ConfigError
from tests.distillation.parts import answer


def test_a_network_that_hides_what_its_head_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"UNet gives no Output\.embedding"):
        PrototypeTerm().check(answer(), answer())
