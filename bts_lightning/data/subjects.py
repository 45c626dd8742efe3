"""TorchIO on one patch: any transform of its, seeded so that the sample stays reproducible."""

from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES, Subset


def transform_patch(
    transforms: list[Any],
    image: NDArray[np.float16],
    label: NDArray[np.uint8],
    available: Subset,
    seed: int,
) -> None:
    """Pass a patch through TorchIO transforms as a `Subject`, and write the result back.

    The subject has a `ScalarImage` for each modality that the case has, under its name, and the
    `LabelMap` `label`; so `include: [t1c]` works. Absent modalities stay zero.
    """
    # TorchIO takes a second to import, and few experiments name a transform. It is partly untyped.
    torchio: Any = import_module("torchio")
    here = [name for name, there in zip(MODALITIES, available, strict=True) if there]
    volumes = {name: torch.from_numpy(image[MODALITIES.index(name)]).float() for name in here}
    subject = torchio.Subject(
        label=torchio.LabelMap(tensor=torch.from_numpy(label)[None]),
        **{name: torchio.ScalarImage(tensor=volume[None]) for name, volume in volumes.items()},
    )
    # TorchIO draws from torch's global generator. The default generator is seeded itself, because
    # `torch.manual_seed` would seed those of the devices too, in the middle of the training.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for transform in transforms:
            subject = transform(subject)
            if subject.spatial_shape != label.shape:
                raise ConfigError(
                    f"transform {type(transform).__name__} makes a patch of {label.shape} one of"
                    f" {subject.spatial_shape}; a training transform must keep the size"
                )
    for name in here:
        image[MODALITIES.index(name)] = subject[name].numpy()[0]
    label[...] = subject["label"].numpy()[0]
