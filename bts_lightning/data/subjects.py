"""Cases as TorchIO subjects, for any tool that works on those, and the way back into a batch."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchio import LabelMap, ScalarImage, Subject, SubjectsDataset
from torchio.transforms import IntensityTransform
from torchio.transforms.augmentation.random_transform import RandomTransform

from bts_lightning.availability import Availability
from bts_lightning.data.cache.cached_case import CachedCase
from bts_lightning.data.patches import Batch
from bts_lightning.modalities import MODALITIES, Subset

# What a subject says of its modalities, B×4 bool in a batch.
PRESENT = "present"


def subjects_of(cases: Iterable[tuple[CachedCase, Subset]]) -> SubjectsDataset:
    """Give prepared cases, each with the modalities to show, as subjects.

    A subject has a `ScalarImage` for each modality under its name, the `LabelMap` `label` if there
    is one, and the texts `name` and `patient`. Images are z-scores on the cropped grid, and are
    read when they are asked for.
    """
    return SubjectsDataset([_subject(case, shown) for case, shown in cases])


def as_batch(subjects: Sequence[Any]) -> Batch:
    """Collate subjects, or patches of a `Queue`, into what a task trains on; all have labels.

    Example:
        >>> queue = Queue(data.subjects("train"), 40, 4, UniformSampler(64))
        >>> trainer.fit(task, DataLoader(queue, batch_size=2, collate_fn=as_batch))
    """
    images, labels, present = [], [], []
    for subject in subjects:
        truth = subject["label"].data[0].to(torch.uint8)
        zero = torch.zeros(truth.shape)
        flags = _present(subject)
        images.append(
            torch.stack(
                [
                    subject[name].data[0].float() if flag else zero
                    for name, flag in zip(MODALITIES, flags, strict=True)
                ]
            )
        )
        labels.append(truth)
        present.append(flags)
    return {
        "image": torch.stack(images),
        "label": torch.stack(labels),
        "present": torch.tensor(present),
        "available": torch.tensor(present),
        "case": [str(subject.get("name", "")) for subject in subjects],
        "seed": torch.randint(2**62, (len(subjects),)).tolist(),
    }


class DropModalities(RandomTransform, IntensityTransform):
    """Take modalities away as a policy of `availability` draws it; the label map stays.

    What is taken away is zero, and `present` says so: four flags for T1, T1c, T2, FLAIR. The
    history says which modalities went.

    Example:
        >>> data = tio.SubjectsDataset(subjects, tio.Compose([DropModalities(Uniform15())]))

    Args:
        policy: which subsets are how likely.
        epoch: counts from 0, for a policy that alternates; set the attribute before an epoch.
        settings: those of `torchio.Transform`, as `p` and `exclude`.
    """

    def __init__(self, policy: Availability, *, epoch: int = 0, **settings: Any) -> None:
        super().__init__(**settings)  # type: ignore[no-untyped-call]
        self.policy, self.epoch = policy, epoch

    def apply_transform(self, subject: Subject) -> Subject:
        """Draw from torch's global generator, as TorchIO does."""
        images = self.get_images_dict(subject)
        there = [
            flag and name in images
            for name, flag in zip(MODALITIES, _present(subject), strict=True)
        ]
        if not any(there):
            return subject
        seed = int(torch.randint(2**31, ()))
        has = self.policy.has(str(subject.get("name", "")), there)
        kept = self.policy.draw(has, seed, self.epoch, 0)
        gone = [
            name
            for name, before, after in zip(MODALITIES, there, kept, strict=True)
            if before and not after
        ]
        return Absent(gone, copy=self.copy, include=self.include, exclude=self.exclude)(subject)


class Absent(IntensityTransform):
    """Take the named modalities away."""

    def __init__(self, modalities: Sequence[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.modalities = list(modalities)
        self.args_names = ["modalities"]

    def apply_transform(self, subject: Subject) -> Subject:
        """Set them to zero, and say so."""
        images = self.get_images_dict(subject)
        gone = [name for name in self.modalities if name in images]
        flags = [
            flag and name not in gone
            for name, flag in zip(MODALITIES, _present(subject), strict=True)
        ]
        for name in gone:
            images[name].set_data(torch.zeros_like(images[name].data))
        subject[PRESENT] = torch.tensor(flags)
        subject.update_attributes()  # else a crop, as that of a `Queue`, leaves it behind
        return subject


def _present(subject: Any) -> list[bool]:
    """Tell which modalities a subject has and shows."""
    given = subject.get(PRESENT, [True] * len(MODALITIES))
    return [name in subject and bool(flag) for name, flag in zip(MODALITIES, given, strict=True)]


def _subject(case: CachedCase, shown: Subset) -> Subject:
    images: dict[str, ScalarImage | LabelMap] = {
        name: ScalarImage(case.folder / "image.npy", reader=partial(_read, case, channel))
        for channel, name in enumerate(MODALITIES)
        if shown[channel]
    }
    if case.is_labelled:
        images["label"] = LabelMap(case.folder / "label.npy", reader=partial(_read, case, None))
    return Subject(images | {"name": case.name, "patient": case.patient})


def _read(case: CachedCase, channel: int | None, path: Path) -> tuple[Tensor, NDArray[Any]]:
    """Read the label or a channel, in a type that all of TorchIO can compute with."""
    values = case.label if channel is None else case.image[channel].astype(np.float32)
    assert values is not None
    affine = np.array(case.geometry.affine)
    corner = [low for low, _ in case.geometry.box]
    affine[:3, 3] += affine[:3, :3] @ corner
    return torch.from_numpy(np.array(values)[None]), affine
