"""The same patient in a notebook: NiiVue as a widget, and four switches."""

from pathlib import Path
from typing import Any

from bts_lightning.errors import UserError
from bts_lightning.modalities import MODALITIES, SHOWN_AS, Subset, parse_subset, subset_name
from bts_lightning.viewer.niivue import EXTRA, bundle
from bts_lightning.viewer.opening import open_session
from bts_lightning.viewer.session import CODES, Session

HEIGHT = 420


def patient_widget(run: Path, case: str | None, device: str | None) -> Any:
    """Segment a case in all its subsets, and give switches above three planes and 3-D."""
    bundle()
    session = open_session([run], case, device=device)
    number = session.start.case
    facts = session.open(number)
    session.wait(number)
    session.close()
    return _Switched(session, number, facts).box


class _Switched:
    """Four switches, a text and a NiiVue; all label maps are here when it is made."""

    def __init__(self, session: Session, case: int, facts: dict[str, Any]) -> None:
        try:
            import ipywidgets
            from ipyniivue import NiiVue, ShowRender, SliceType, Volume
        except ImportError as error:
            raise UserError(f"the widget needs {error.name}: {EXTRA}") from error
        self._volume, self._session, self._case = Volume, session, case
        self._table = _table(facts["labels"])
        self._rows = session.state(case)[0]["rows"]
        view = session.patients[case].views[0]
        self._maps: dict[Subset, Any] = {}
        self.niivue = NiiVue(
            height=HEIGHT,
            is_radiological_convention=True,
            multiplanar_show_render=ShowRender.ALWAYS,
            slice_type=SliceType.MULTIPLANAR,
            crosshair_width=0.5,
        )
        shown = max(m for m, here in enumerate(view.available) if here)
        picture = session.picture(case, shown)
        self._picture = Volume(data=picture, name="picture.nii", colormap="gray")
        self.switches = [
            ipywidgets.ToggleButton(value=here, disabled=not here, description=SHOWN_AS[modality])
            for modality, here in zip(MODALITIES, view.available, strict=True)
        ]
        self.text = ipywidgets.HTML()
        for switch in self.switches:
            switch.observe(self._switched, names="value")
        row = ipywidgets.HBox(self.switches)
        self.box = ipywidgets.VBox([row, self.text, self.niivue])
        # A notebook keeps what it shows, and whoever has the box may want to switch by code.
        self.box.patient = self
        self._show()

    @property
    def subset(self) -> Subset | None:
        """Give what the network sees; None when every switch is off."""
        on = [switch.description.lower() for switch in self.switches if switch.value]
        return parse_subset("+".join(on)) if on else None

    def label_map(self, subset: Subset) -> bytes:
        """Give the NIfTI file that is shown for a subset."""
        file = self._session.label_map(self._case, 0, subset)
        if file is None:
            raise ValueError(f"the case cannot show {subset_name(subset)}")
        return file.read_bytes()

    def _switched(self, change: dict[str, Any]) -> None:
        if self.subset is None:
            # A network that sees nothing says nothing: the last switch stays on.
            change["owner"].value = True
        else:
            self._show()

    def _show(self) -> None:
        subset = self.subset
        assert subset is not None
        if subset not in self._maps:
            volume = self._volume(data=self.label_map(subset), name="labels.nii.gz", opacity=0.7)
            volume.set_colormap_label(self._table)
            self._maps[subset] = volume
        self.niivue.volumes = [self._picture, self._maps[subset]]
        row = self._rows[CODES[subset]]
        said = [f"{region} {ml:.1f} ml" for region, ml in row["ml"].items()]
        for region, dice in row.get("dice", {}).items():
            said += [f"Dice of {region} {100 * dice:.1f}"] if dice is not None else []
        self.text.value = " · ".join(said)


def _table(labels: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Say how values of a label map are painted, as NiiVue has it."""
    colours = [[int(one["colour"][k : k + 2], 16) for k in (1, 3, 5)] for one in labels]
    red, green, blue = ([0, *(colour[k] for colour in colours)] for k in range(3))
    return {
        "R": red,
        "G": green,
        "B": blue,
        "A": [0, *(255 for _ in labels)],
        "I": [0, *(one["value"] for one in labels)],
        "labels": ["", *(one["name"] for one in labels)],
    }
