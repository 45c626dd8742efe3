"""Augmentation after nnU-Net's recipe: of whole batches on a device, of samples on a processor.

A device runs `apply` on tensors. On a processor the threads that read a sample run `apply_here`,
compiled passes that take the same draws: equal but for rounding. Each sample carries a seed that
depends on its place alone (`chance.py`), so a resumed run, another number of workers or of ranks
augment it alike. Three rules hold for every transform: background stays zero, labels are moved by
nearest neighbour only, and an absent modality stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import cos, radians, sin
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from bts_lightning.chance import probability
from bts_lightning.data.noise import add_noise, noise_like
from bts_lightning.data.passes import (
    TINY,
    bend,
    blur,
    coarsen,
    gaussian,
    statistics,
    stretch,
    turn,
)
from bts_lightning.data.samples import Sample
from bts_lightning.data.tensors import Statistics, blurred, coarse, grid, in_brain
from bts_lightning.data.transform import (
    Chance,
    Inside,
    Patch,
    Range,
    Reach,
    Three,
    Transform,
    positive,
)

Array = NDArray[Any]


class Augment:
    """Run transforms, by name and in their order, over a batch.

    Example:
        >>> augment = Augment({"flip": Flip(), "gamma": Gamma(p=0.3)})
        >>> batch = augment(batch)  # image becomes float32; label follows; the rest is untouched
    """

    def __init__(self, transforms: Mapping[str, Transform | None]) -> None:
        self.transforms = {name: each for name, each in transforms.items() if each is not None}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Give a new batch; the old one stays as it was."""
        batch = dict(batch)
        boxes = batch.pop("around", [None] * len(batch["image"]))
        image, label = batch["image"].float(), batch["label"]
        if not self.transforms:
            return {**batch, "image": image}
        images, labels = [], []
        for one, truth, box, seed in zip(image, label, boxes, batch["seed"], strict=True):
            inside = None
            if box is not None:
                d, h, w = truth.shape
                inside = Inside((d, h, w), box["centre"])
                one, truth = box["image"].float(), box["label"]
            patch = self._sample(Patch(one, truth, one != 0, inside), seed)
            images.append(patch.image)
            labels.append(patch.label)
        there = batch["available"].view(*batch["available"].shape, 1, 1, 1)
        return {
            **batch,
            "image": torch.where(there, torch.stack(images), image),
            "label": torch.stack(labels),
        }

    def fill(self, sample: Sample, image: Array, label: Array) -> None:
        """Write an augmented sample over float32 image and label, turned while it is read."""
        chances = [(each, Chance(sample.seed, name)) for name, each in self.transforms.items()]
        todo = [(each, chance) for each, chance in chances if chance.happens(each.p)]
        is_read = False
        if todo and isinstance(affine := todo[0][0], Affine):
            is_read = affine.read(sample, image, label, todo.pop(0)[1])
        if not is_read and sample.around:
            # What comes before the turn works on all that the turn brings in.
            patch, todo = self._sample(_around(sample, label.shape), sample.seed), []
            np.copyto(image, patch.image.numpy())
            np.copyto(label, patch.label.numpy())
        elif not is_read:
            sample.fill(image, label)
        for transform, chance in todo:
            transform.apply_here(image, label, chance)

    def reach(self, seed: int, size: Three) -> Reach | None:
        """Tell how far around its centre a sample must be read, where that is beyond the patch."""
        for name, transform in self.transforms.items():
            chance = Chance(seed, name)
            if chance.happens(transform.p) and (reach := transform.reach(size, chance)):
                return reach
        return None

    def _sample(self, patch: Patch, seed: int) -> Patch:
        # A transform draws from numbers of its own name: taking one out leaves the others alike.
        for name, transform in self.transforms.items():
            chance = Chance(seed, name)
            if chance.happens(transform.p):
                patch = transform.apply(patch, chance)
        return patch


class Flip(Transform):
    """Mirror each axis with probability `per_axis`; `data.flip` does so while reading, for free."""

    def __init__(self, *, p: float = 1.0, per_axis: float = 0.5) -> None:
        super().__init__(p)
        self.per_axis = probability("per_axis", per_axis)

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        axes = [axis for axis in (-3, -2, -1) if chance.happens(self.per_axis)]
        inside = patch.inside
        if inside is not None:
            edges, centre = patch.label.shape, inside.centre
            d, h, w = (edges[a] - centre[a] if a in axes else centre[a] for a in (-3, -2, -1))
            inside = replace(inside, centre=(d, h, w))
        return Patch(patch.image.flip(axes), patch.label.flip(axes), patch.brain.flip(axes), inside)


class Affine(Transform):
    """Rotate and scale about the centre of the patch.

    What comes in from outside the patch is read from the case, by the samples that need it and as
    far as they need it; outside the case is background.

    Args:
        rotation: largest angle in degrees, about each axis, or about one when `planes` is `one`.
        scale: factor of the region that is shown; above one the anatomy shrinks, as in nnU-Net.
        p_rotation: probability to rotate.
        p_scale: probability to scale.
        planes: `one` turns in a single random plane, as RFNet and mmFormer do.
        scaling: `each` draws a factor for each axis, as NiftyNet does.
    """

    def __init__(
        self,
        *,
        rotation: float = 30.0,
        scale: Range = (0.7, 1.4),
        p_rotation: float = 0.2,
        p_scale: float = 0.2,
        planes: Literal["all", "one"] = "all",
        scaling: Literal["alike", "each"] = "alike",
    ) -> None:
        super().__init__(1.0)
        self.rotation, self.scale = rotation, positive("scale", scale)
        self.p_rotation = probability("p_rotation", p_rotation)
        self.p_scale = probability("p_scale", p_scale)
        self.planes, self.scaling = planes, scaling

    def reach(self, size: Three, chance: Chance) -> Reach | None:
        """Tell how far the corners of the patch come to lie from its centre."""
        matrix = self._matrix(chance)
        if matrix is None:
            return None
        # To the centre of the last voxel and, for its neighbour in the interpolation, one further.
        d, h, w = np.abs(matrix) @ ((np.array(size) - 1) / 2) + 1
        return d, h, w

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        matrix = self._matrix(chance)
        if matrix is None:
            return patch
        where = grid(matrix, patch)
        image = F.grid_sample(patch.image[None], where, "bilinear", "zeros", align_corners=False)[0]
        exact = torch.cat([patch.brain, patch.label[None]]).float()
        exact = F.grid_sample(exact[None], where, "nearest", "zeros", align_corners=False)[0]
        brain = exact[:-1] > 0
        # Interpolation bleeds over the brain's edge; outside stays zero.
        image = torch.where(brain, image, image.new_zeros(()))
        return Patch(image, exact[-1].to(patch.label.dtype), brain)

    def read(self, sample: Sample, image: Array, label: Array, chance: Chance) -> bool:
        """Read a sample as it is to be seen, if it is to be turned or scaled."""
        matrix = self._matrix(chance)
        if matrix is None:
            return False
        sign = np.where(sample.flips, -1.0, 1.0)
        centre = np.array(sample.corner) + np.array(label.shape) / 2
        turn(image, label, sample.volume, sample.truth, matrix * sign[:, None], centre)
        image[~np.array(sample.available)] = 0
        return True

    def _matrix(self, chance: Chance) -> np.ndarray | None:
        rotates, scales = chance.happens(self.p_rotation), chance.happens(self.p_scale)
        if not rotates and not scales:
            return None
        matrix = self._rotation(chance) if rotates else np.eye(3)
        if scales:
            count = 3 if self.scaling == "each" else 1
            matrix = matrix * [chance.around_one(self.scale) for _ in range(count)]
        return matrix

    def _rotation(self, chance: Chance) -> np.ndarray:
        axes = [chance.choice(3)] if self.planes == "one" else [0, 1, 2]
        matrix = np.eye(3)
        for axis in axes:
            angle = radians(chance.between((-self.rotation, self.rotation)))
            plane = np.ix_(*[[other for other in range(3) if other != axis]] * 2)
            turn = np.eye(3)
            turn[plane] = [[cos(angle), -sin(angle)], [sin(angle), cos(angle)]]
            matrix = matrix @ turn
        return matrix


class Noise(Transform):
    """Add Gaussian noise; its standard deviation is drawn, in units of the z-score."""

    def __init__(self, *, p: float = 0.1, std: Range = (0.0, 0.1)) -> None:
        super().__init__(p)
        self.std = std

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        std = chance.between(self.std)
        return in_brain(patch, patch.image + std * noise_like(patch.image, chance.keys()))

    def apply_here(self, image: Array, label: Array, chance: Chance) -> None:
        add_noise(image, chance.between(self.std), chance.keys(), float(TINY))


class Blur(Transform):
    """Blur some channels, each by a Gaussian of its own, `sigma` in voxels."""

    def __init__(
        self, *, p: float = 0.2, per_channel: float = 0.5, sigma: Range = (0.5, 1.0)
    ) -> None:
        super().__init__(p)
        self.per_channel = probability("per_channel", per_channel)
        self.sigma = positive("sigma", sigma)

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        image = [
            blurred(channel, chance.between(self.sigma))
            if chance.happens(self.per_channel)
            else channel
            for channel in patch.image
        ]
        return in_brain(patch, torch.stack(image))

    def apply_here(self, image: Array, label: Array, chance: Chance) -> None:
        for channel in image:
            if chance.happens(self.per_channel):
                blur(channel, gaussian(chance.between(self.sigma)).astype(np.float32))


class Brightness(Transform):
    """Multiply each channel by a factor."""

    def __init__(self, *, p: float = 0.15, factor: Range = (0.75, 1.25)) -> None:
        super().__init__(p)
        self.factor = positive("factor", factor)

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        return in_brain(patch, torch.stack([x * chance.between(self.factor) for x in patch.image]))

    def apply_here(self, image: Array, label: Array, chance: Chance) -> None:
        for channel in image:
            stretch(channel, chance.between(self.factor), 0.0)


class Contrast(Transform):
    """Stretch each channel about its mean in the brain, within the values that it had there.

    nnU-Net takes the mean of the whole patch, so there the effect depends on how much air it shows.
    """

    def __init__(self, *, p: float = 0.15, factor: Range = (0.75, 1.25)) -> None:
        super().__init__(p)
        self.factor = positive("factor", factor)

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        was = Statistics(patch.image, patch.brain)
        away = patch.image - was.mean
        image = torch.stack([x * chance.around_one(self.factor) for x in away]) + was.mean
        return in_brain(patch, image.clamp(was.low, was.high))

    def apply_here(self, image: Array, label: Array, chance: Chance) -> None:
        for channel in image:
            mean, _, low, high = statistics(channel)
            factor = chance.around_one(self.factor)
            stretch(channel, factor, mean - factor * mean, low, high)


class Gamma(Transform):
    """Bend the grey values of each channel by a power and restore their mean and deviation.

    Args:
        invert: bend the negative, which treats bright tissue as `False` treats dark tissue.
    """

    def __init__(self, *, p: float = 0.3, gamma: Range = (0.7, 1.5), invert: bool = False) -> None:
        super().__init__(p)
        self.gamma, self.sign = positive("gamma", gamma), -1 if invert else 1

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        image = patch.image * self.sign
        was = Statistics(image, patch.brain)
        span = (was.high - was.low).clamp_min(1e-7)
        unit = ((image - was.low) / span).clamp(0, 1)
        image = torch.stack([x ** chance.around_one(self.gamma) for x in unit]) * span
        new = Statistics(image, patch.brain)
        image = (image - new.mean) / new.std.clamp_min(1e-7) * was.std + was.mean
        return in_brain(patch, image * self.sign)

    def apply_here(self, image: Array, label: Array, chance: Chance) -> None:
        for channel in image:
            mean, std, low, high = statistics(channel)
            span = max(high - low, 1e-7)
            start = low if self.sign > 0 else -high
            bend(channel, self.sign, start, span, chance.around_one(self.gamma))
            bent, spread, _, _ = statistics(channel)
            scale = self.sign * std / max(spread, 1e-7)
            stretch(channel, scale, mean - scale * bent)


class LowResolution(Transform):
    """Show some channels as if scanned with larger voxels: nearest down, trilinear up."""

    def __init__(
        self, *, p: float = 0.25, per_channel: float = 0.5, zoom: Range = (0.5, 1.0)
    ) -> None:
        super().__init__(p)
        self.per_channel = probability("per_channel", per_channel)
        self.zoom = positive("zoom", zoom)

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        image = [
            coarse(channel, chance.between(self.zoom))
            if chance.happens(self.per_channel)
            else channel
            for channel in patch.image
        ]
        return in_brain(patch, torch.stack(image))

    def apply_here(self, image: Array, label: Array, chance: Chance) -> None:
        for channel in image:
            if chance.happens(self.per_channel):
                coarsen(channel, chance.between(self.zoom))


class ScaleShift(Transform):
    """Multiply by 1 ± `scale` and add ± `shift`, in units of the z-score.

    Args:
        per: what draws its own numbers. `sample` is one pair for all channels (MONAI, AMoE-BTS).
            `slice` is each slice across the first axis of a channel, which gives stripes: RFNet,
            mmFormer and M2FTrans do that, hardly on purpose.
    """

    def __init__(
        self,
        *,
        p: float = 1.0,
        scale: float = 0.1,
        shift: float = 0.1,
        per: Literal["sample", "channel", "slice"] = "channel",
    ) -> None:
        super().__init__(p)
        self.scale, self.shift, self.per = scale, shift, per

    def apply(self, patch: Patch, chance: Chance) -> Patch:
        device = patch.image.device
        # Not blocking: the processor must not wait for the step before.
        scale, shift = (
            torch.from_numpy(numbers).to(device, non_blocking=True)
            for numbers in self._draw(patch.image.shape, chance)
        )
        return in_brain(patch, patch.image * scale + shift)

    def apply_here(self, image: Array, label: Array, chance: Chance) -> None:
        drawn = (
            np.broadcast_to(x, (*image.shape[:2], 1, 1)) for x in self._draw(image.shape, chance)
        )
        for channel, scales, shifts in zip(image, *drawn, strict=True):
            for plane, scale, shift in zip(channel, scales.flat, shifts.flat, strict=True):
                stretch(plane, scale, shift)

    def _draw(self, size: Sequence[int], chance: Chance) -> tuple[Array, Array]:
        shape = {"sample": (1, 1), "channel": (size[0], 1)}.get(self.per, (size[0], size[1]))
        scale = chance.array((1 - self.scale, 1 + self.scale), (*shape, 1, 1))
        return scale, chance.array((-self.shift, self.shift), (*shape, 1, 1))


def _around(sample: Sample, size: Sequence[int]) -> Patch:
    """Read the box around a patch."""
    box = sample.around
    assert box is not None
    image, label = np.empty((4, *box.size), np.float32), np.empty(box.size, np.uint8)
    sample.copy(image, label, box.corner)
    d, h, w = size
    one = torch.from_numpy(image)
    return Patch(one, torch.from_numpy(label), one != 0, Inside((d, h, w), box.centre))
