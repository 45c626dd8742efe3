"""The data of an experiment: cache, split, training batches, and whole cases for the rest."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from bts_lightning.availability import Availability, Uniform15
from bts_lightning.chance import generator, probability
from bts_lightning.data.augment import Augment
from bts_lightning.data.cache.normalise import Crop, Normalisation, Recipe
from bts_lightning.data.cache.prepare import CachedCase, fingerprint, prepare
from bts_lightning.data.cases import CaseLoader
from bts_lightning.data.patches import Batch, PatchLoader, to_device, whole_steps
from bts_lightning.data.samples import PatchDataset, triple
from bts_lightning.data.sampling import TorchioSampler
from bts_lightning.data.splits import PARTS, Part, Split, split_from
from bts_lightning.data.transform import Transform
from bts_lightning.errors import ConfigError
from bts_lightning.modalities import Subset


class BratsDataModule(LightningDataModule):
    """Prepare a data set in any known layout, split it, and deliver it.

    Training batches are patches: a dict of `image` B×4×D×H×W, `label` B×D×H×W uint8, `present` and
    `available` B×4 bool, and the lists `case` and `seed`; until the augmentation has run also
    `around`, a larger box for each sample that is rotated or shrunk. Everything else gets one whole
    `CachedCase` a step, as `{"case": case}`.

    Example:
        >>> data = BratsDataModule("data", patch=96, augment={"gamma": Gamma()})
        >>> trainer.fit(task, datamodule=data)

    Attributes:
        cases: every usable case by name, after `setup`.
        fingerprint: names the content of the data set, after `setup`.
        recipe: how cases are prepared.

    Args:
        root: a data set folder or manifest.
        cache: where prepared cases are kept; by default beside the data, or in the user's cache.
        scheme: what labels tell apart: `brats`; `cavity`, which gives the resection cavity a region
            of its own; `ped` or `men_rt`. The loss needs the same one.
        skip_broken: leave broken cases out in place of refusing the data set.
        split: `random`; `fold 1 of 5`; a saved split.json; or list files for train, val and test.
        held_out: how many of the training cases, drawn by the seed, show the network no patch; what
            learns beside it may ask for them (MetaKD).
        missing_cases: what to do about names in a list that the data set does not have.
        patch: edge length of a training patch, or one length for each axis.
        batch_size: patches a step on each device.
        samples_per_epoch: patches of an epoch over all devices, rounded up to whole steps; by
            default as many as there are training cases. Shuffled rounds over the cases run on from
            epoch to epoch, so no case is left out by a short one.
        steps_per_epoch: the same in steps, whatever the number of devices.
        foreground: probability to centre a patch on a tumour voxel, its class drawn first.
        sampler: a sampler of TorchIO in place of that, as a factory that takes the patch's size.
        flip: probability to mirror each axis.
        availability: which modalities a sample keeps.
        transforms: TorchIO transforms by name, on the CPU; null takes one out.
        augment: transforms of `data.augment` by name, on the device, or by the threads that read
            where that is the processor; null takes one out.
        workers: threads that read patches, each with a process for TorchIO transforms.
        seconds_per_transform: a TorchIO transform that takes longer for a patch ends the training.
        prefetch: batches read ahead.
        seed: of patches, availability and augmentation.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        cache: Path | str | None = None,
        normalisation: Normalisation = "zscore",
        crop: Crop = "brain",
        scheme: str = "brats",
        skip_broken: bool = False,
        split: str | Mapping[str, str] = "random",
        split_seed: int = 0,
        held_out: int = 0,
        missing_cases: Literal["error", "skip"] = "error",
        patch: int | Sequence[int] = 128,
        batch_size: int = 1,
        samples_per_epoch: int | None = None,
        steps_per_epoch: int | None = None,
        foreground: float = 0.0,
        sampler: Callable[..., Any] | None = None,
        flip: float = 0.5,
        availability: Availability | None = None,
        transforms: Mapping[str, Callable[..., Any] | None] | None = None,
        augment: Mapping[str, Transform | None] | None = None,
        workers: int = 4,
        seconds_per_transform: float = 30.0,
        prefetch: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if samples_per_epoch is not None and steps_per_epoch is not None:
            raise ValueError("samples_per_epoch and steps_per_epoch say the same; set one to null")
        least = {
            "batch_size": (batch_size, 1),
            "samples_per_epoch": (samples_per_epoch, 1),
            "steps_per_epoch": (steps_per_epoch, 1),
            "workers": (workers, 0),
            "prefetch": (prefetch, 1),
            "held_out": (held_out, 0),
            "seed": (seed, 0),
            "seconds_per_transform": (seconds_per_transform, 1),
        }
        for name, (value, lowest) in least.items():
            if value is not None and value < lowest:
                raise ValueError(f"{name} is {value}; the smallest is {lowest}")
        self.root, self.cache = Path(root), cache
        self.recipe = Recipe(normalisation=normalisation, crop=crop, scheme=scheme)
        self.skip_broken = skip_broken
        self.split_from, self.split_seed = split, split_seed
        self.missing_cases = missing_cases
        self._held_out = held_out
        self.patch = triple(patch)
        self.batch_size = batch_size
        self.samples_per_epoch, self.steps_per_epoch = samples_per_epoch, steps_per_epoch
        self.foreground = probability("foreground", foreground)
        if sampler and foreground:
            raise ValueError(
                f"foreground is {foreground}, and the sampler of TorchIO draws in its place; set"
                " data.foreground=0 or data.sampler=null"
            )
        self.sampler = TorchioSampler(sampler, self.patch) if sampler else None
        self.flip = probability("flip", flip)
        self.availability = availability or Uniform15()
        self.transforms = transforms
        self.augment = Augment(augment or {})
        self.workers, self.prefetch, self.seed = workers, prefetch, seed
        self.seconds_per_transform = seconds_per_transform
        self.cases: dict[str, CachedCase] = {}
        self.fingerprint = ""
        self._split: Split | None = None

    @property
    def split(self) -> Split:
        """Give the lists of cases, after `setup`."""
        if self._split is None:
            # Prediction needs no labels, so only who asks for the split must have some.
            self._split = split_from(
                self.split_from,
                list(self.cases.values()),
                fingerprint=self.fingerprint,
                seed=self.split_seed,
                missing=self.missing_cases,
            )
        return self._split

    @property
    def held_out(self) -> list[str]:
        """Name the training cases that are kept from the network, after `setup`."""
        names = sorted(self.split.train)
        if self._held_out >= max(1, len(names)):
            raise ConfigError(
                f"data.held_out is {self._held_out}, and the split has {len(names)} training cases,"
                " so none is left to train on; hold fewer out"
            )
        order = generator(self.seed, "held out").permutation(len(names))
        return sorted(names[number] for number in order[: self._held_out])

    @property
    def place(self) -> tuple[int, int]:
        """Tell rank and number of ranks."""
        return _place(self)

    def prepare_data(self) -> None:
        """Build what the cache lacks, once on each machine."""
        self._prepared()

    def setup(self, stage: str) -> None:
        """Open the cache and split it."""
        if not self.cases:
            cases = self._prepared()
            self.cases = {case.name: case for case in cases}
            self.fingerprint = fingerprint(cases)
            unlabelled = [case.name for case in cases if not case.is_labelled]
            if unlabelled and stage != "predict":
                rank_zero_info(
                    f"{len(unlabelled)} of {len(cases)} cases have no label map, so they neither "
                    f"train nor are scored: {_first(unlabelled)}"
                )
        if stage != "predict":
            _ = self.split

    def shows(self, name: str) -> Subset:
        """Tell which modalities a case has in training."""
        return self.availability.has(name, self.cases[name].available)

    def train_dataloader(self) -> PatchLoader:
        """Deliver random patches of the training cases."""
        if not self.split.train:
            raise ConfigError(f"split {self.split.name} has no case to train on")
        held_out = self.held_out
        cases = [self.cases[name] for name in self.split.train if name not in held_out]
        suited = [case for case in cases if self.availability.suits(self.shows(case.name))]
        if not suited:
            raise ConfigError(
                f"none of the {len(cases)} training cases has the modalities that "
                f"{type(self.availability).__name__} keeps; choose another data.availability"
            )
        rank, world = _place(self)
        step = self.batch_size * world
        samples = self.samples_per_epoch or len(suited)
        samples = (
            step * self.steps_per_epoch if self.steps_per_epoch else whole_steps(samples, step)
        )
        trainer = self.trainer
        return self._patches(
            suited,
            samples,
            batch_size=self.batch_size,
            workers=self.workers,
            prefetch=self.prefetch,
            rank=rank,
            world=world,
            # The trainer sets this one where mypy does not see it.
            frozen=trainer is not None and trainer.overfit_batches > 0,  # type: ignore[attr-defined]
            finished=self._finished if trainer is not None else None,
        )

    def patches_of(self, names: Sequence[str], samples: int) -> PatchLoader:
        """Deliver patches of some cases one by one, the same on every rank."""
        return self._patches([self.cases[name] for name in names], samples, workers=0)

    def val_dataloader(self) -> "CaseLoader":
        """Deliver the cases that choose the checkpoint."""
        return self.case_dataloader("val")

    def test_dataloader(self) -> "CaseLoader":
        """Deliver the cases that the score is about."""
        return self.case_dataloader("test")

    def predict_dataloader(self) -> "CaseLoader":
        """Deliver every case, with or without a label."""
        return self.case_dataloader("all")

    def case_dataloader(self, part: Part | Literal["all"]) -> "CaseLoader":
        """Deliver whole cases of one part of the split, each on one rank only."""
        return CaseLoader(self._cases(part), lambda: _place(self))

    def subjects(self, part: Part | Literal["all"]) -> Any:
        """Give cases of one part as a `torchio.SubjectsDataset`, read when they are asked for.

        Example:
            >>> data.setup("fit")
            >>> data.subjects("train")[0].plot()
        """
        # TorchIO takes a second to import.
        module = import_module("bts_lightning.data.subjects")
        return module.subjects_of(
            (case, self.shows(case.name) if part == "train" else case.available)
            for case in self._cases(part)
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Upload a batch without making the host forget which modalities it shows."""
        return to_device(batch, device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Cast patches to float32 and augment them, on the device; leave whole cases alone."""
        return self.augment(batch) if "around" in batch else batch

    def _patches(self, cases: Sequence[CachedCase], samples: int, **options: Any) -> PatchLoader:
        patches = PatchDataset(
            cases,
            samples=samples,
            patch=self.patch,
            seed=self.seed,
            foreground=self.foreground,
            flip=self.flip,
            availability=self.availability,
            sampler=self.sampler,
            transforms=self.transforms,
            reach=self.augment.reach,
        )
        device = "" if self.trainer is None else self.trainer.strategy.root_device.type
        # TorchIO transforms come first, and want the patch as it was read.
        here = device == "cpu" and not patches.transforms
        return PatchLoader(
            patches,
            pin=device == "cuda",
            seconds_per_transform=self.seconds_per_transform,
            augment=self.augment.fill if here else None,
            **options,
        )

    def _cases(self, part: Part | Literal["all"]) -> list[CachedCase]:
        if part != "all" and part not in PARTS:
            raise ConfigError(f"part is {part!r}; a split has {', '.join(PARTS)}, or take all")
        names = sorted(self.cases) if part == "all" else getattr(self.split, part)
        return [self.cases[name] for name in names]

    def _prepared(self) -> list[CachedCase]:
        return prepare(
            self.root,
            self.cache,
            normalisation=self.recipe.normalisation,
            crop=self.recipe.crop,
            scheme=self.recipe.scheme,
            skip_broken=self.skip_broken,
        )

    def _finished(self) -> int:
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(progress.processed)


def _place(data: LightningDataModule) -> tuple[int, int]:
    """Tell rank and number of ranks, also for a loader that a trainer was given by itself."""
    if data.trainer is not None:
        return data.trainer.global_rank, data.trainer.world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
