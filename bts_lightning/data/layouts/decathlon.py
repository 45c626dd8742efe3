"""The Medical Segmentation Decathlon's Task01: 4-D files with a channel order of their own."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from bts_lightning.data.layouts.case import LABEL_VALUES, Case, Image
from bts_lightning.errors import DataError
from bts_lightning.files import content
from bts_lightning.modalities import MODALITIES, Modality

KNOWN = "Decathlon Task01"
_LABELS_OF = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}
_CHANNELS: dict[str, Modality] = {"flair": "flair", "t1w": "t1", "t1gd": "t1c", "t2w": "t2"}
_LABELS = {"0": "background", "1": "edema", "2": "non-enhancing", "3": "enhancing"}


def read(images: Sequence[Image]) -> Iterator[Case]:
    """Read Medical Segmentation Decathlon Task01, wherever below the folder it lies."""
    channels: dict[Path, dict[Modality, int]] = {}
    for stem, path in images:
        inside = next((folder for folder in path.parents if folder.name in _LABELS_OF), None)
        if inside is None:
            continue
        home = inside.parent
        if home not in channels:
            channels[home] = _decathlon_channels(home / "dataset.json")
        label = home / _LABELS_OF[inside.name] / path.name
        yield Case(
            name=stem,
            patient=stem,
            layout=KNOWN,
            images={modality: path for modality in MODALITIES if modality in channels[home]},
            label=label if label.exists() else None,
            label_values=LABEL_VALUES["decathlon"],
            channels=channels[home],
        )


def _decathlon_channels(path: Path) -> dict[Modality, int]:
    if not path.exists():
        raise DataError(
            f"{path} is missing; it says which channel of the 4-D files is which modality"
        )
    try:
        read = json.loads(content(path))
        names = {int(k): str(v).lower() for k, v in read["modality"].items()}
        labels = {str(k): str(v).lower() for k, v in read["labels"].items()}
    except (OSError, RecursionError, TypeError, ValueError, KeyError, AttributeError) as error:
        kind = type(error).__name__
        raise DataError(f"{path} is not a Decathlon description ({kind}: {error})") from error
    channels = {_CHANNELS[n]: k for k, n in names.items() if n in _CHANNELS}
    known = labels.keys() == _LABELS.keys() and all(
        labels[key].startswith(word) for key, word in _LABELS.items()
    )
    if len(channels) != len(names) or not known:
        raise DataError(
            f"{path} has modalities {sorted(names.values())} and labels {labels}; "
            "only Task01 (brain tumours) is read: FLAIR, T1w, T1gd, T2w; 1 edema, 2 non-enhancing, "
            "3 enhancing"
        )
    return channels
