"""The patient in a notebook."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bts_lightning.errors import UserError
from bts_lightning.modalities import parse_subset
from bts_lightning.viewer import show


@pytest.mark.skipif(find_spec("ipyniivue") is None, reason="needs the extra `view`")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_switches_choose_the_label_map(trained: Path) -> None:
    patient = show(trained, device="cpu").patient
    assert [switch.value for switch in patient.switches] == [True] * 4
    for place, name in ((1, "t1+t2+flair"), (3, "t1+t2"), (0, "t2"), (2, "t2")):
        # The last one cannot be switched off.
        patient.switches[place].value = False
        assert patient.subset == parse_subset(name)
        picture, labels = patient.niivue.volumes
        assert picture.name == "picture.nii"
        assert labels.data == patient.label_map(parse_subset(name))
        assert "WT" in patient.text.value
    assert patient.switches[2].value


def test_without_the_extra_one_line_names_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bts_lightning.viewer.niivue.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(UserError, match=r"pip install 'bts_lightning\[view\]'$"):
        show(trained, device="cpu")
