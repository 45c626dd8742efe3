"""TorchIO on one patch: any transform of its, seeded so that the sample stays reproducible."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bts_lightning.errors import ConfigError, UserError
from bts_lightning.modalities import MODALITIES, Subset

BRAIN = "brain"


def transform_patch(
    transforms: Mapping[str, Any],
    image: NDArray[np.float16],
    label: NDArray[np.uint8],
    available: Subset,
    seed: int,
    place: str,
    begin: Callable[[str], None] = lambda name: None,
) -> None:
    """Pass a patch through TorchIO transforms as a `Subject`, and write the result back.

    The subject has a `ScalarImage` for each modality that the case has, under its name, and the
    `LabelMap` `label`; so `include: [t1c]` works. Absent modalities stay zero, and so does the
    background of each: skulls are stripped after a scanner has made its artifacts.

    Args:
        place: names the patch in an error.
        begin: is told which transform runs next.
    """
    # TorchIO takes a second to import, and few experiments name a transform. It is partly untyped.
    torchio: Any = import_module("torchio")
    here = [name for name, there in zip(MODALITIES, available, strict=True) if there]
    volumes = [image[MODALITIES.index(name)] for name in here]
    # One label map for all, a bit each: whatever moves voxels moves it too, at little cost.
    brain = np.zeros(label.shape, np.uint8)
    for bit, volume in enumerate(volumes):
        brain |= (volume != 0).view(np.uint8) << bit
    maps = {"label": torch.from_numpy(label), BRAIN: torch.from_numpy(brain)}
    subject = torchio.Subject(
        {
            name: torchio.ScalarImage(tensor=torch.from_numpy(volume)[None].float())
            for name, volume in zip(here, volumes, strict=True)
        }
        | {name: torchio.LabelMap(tensor=values[None]) for name, values in maps.items()}
    )
    with seeded(seed):
        for name, transform in transforms.items():
            begin(name)
            subject = _transformed(subject, transform, f"{named(name, transform)} {{}} {place}")
    brain = subject[BRAIN].numpy()[0]
    for bit, (name, volume) in enumerate(zip(here, volumes, strict=True)):
        np.copyto(volume, subject[name].numpy()[0], casting="same_kind")
        volume[(brain >> bit & 1) == 0] = 0
    label[...] = subject["label"].numpy()[0]


def named(name: str, transform: Any) -> str:
    """Name a transform as its user does."""
    return f"data.transforms.{name} ({type(transform).__name__})"


def without_copies(transform: Any) -> Any:
    """Give the same transform, for subjects that nobody else holds: it works on what it is given.

    By default each transform copies its subject, and a random one does so twice.
    """
    transform = deepcopy(transform)
    todo = [transform]
    while todo:
        one = todo.pop()
        if hasattr(one, "copy"):
            one.copy = False
        # Those of Compose are a list, those of OneOf the keys of a mapping.
        todo += [*getattr(one, "transforms", ()), *getattr(one, "transforms_dict", ())]
    return transform


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's global generator, from which TorchIO draws, begin at a seed; then put it back."""
    # The default generator is seeded itself, because `torch.manual_seed` would seed those of the
    # devices too, in the middle of the training.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _transformed(subject: Any, transform: Any, line: str) -> Any:
    """Run one transform; `line` names it and the patch, with a gap for what went wrong."""
    shape, names = subject.spatial_shape, list(subject.get_images_names())
    try:
        subject = transform(subject)
        lost = [name for name in names if name not in subject]
        if "present" in subject:  # which DropModalities says
            lost.append("modalities")
        got = shape if lost else subject.spatial_shape
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{line.format('failed on')}: {why}") from error
    if lost:
        raise ConfigError(
            f"{line.format('takes away ' + ', '.join(lost) + ' from')}; which modalities a sample"
            " keeps is decided by data.availability"
        )
    if got != shape:
        raise ConfigError(f"{line.format(f'makes {got} of')}; it must keep the size {shape}")
    return subject
