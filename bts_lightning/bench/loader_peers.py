"""How TorchIO, MONAI, nnU-Net and nibabel deliver patches: as documented, and at their best."""

import copy
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from math import pi
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler

from bts_lightning.bench.contender import Contender
from bts_lightning.data.phantom.write import case_files
from bts_lightning.modalities import MODALITIES

PROCESSES = 2
# A list of four cases ends at once; a repeated one lets worker processes live on.
REPEATS = 500
VOLUMES_IN_QUEUE = 4
# A crop leaves the cache as it was, so the whole case need not be copied first.
WITHOUT_COPIES = "CacheDataset without copies"


class Peers:
    """The same cases, in the form that each of them wants."""

    def __init__(self, phantom: Path, cases: list[Any], patch: int, batch: int) -> None:
        # Half of these packages warn about the other half.
        warnings.filterwarnings("ignore")
        threading.excepthook = _report
        self.home, self.cases, self.patch, self.batch = phantom, cases, patch, batch
        self.size = (patch,) * 3
        self._monai: dict[tuple[str, bool], Any] = {}
        self.files = [case_files(phantom, number) for number in range(len(cases))]

    def plain(self) -> list[Contender]:
        """Give what delivers patches without augmentation."""
        return [
            self.nnunet(PROCESSES),
            *(self.monai("CacheDataset", workers) for workers in (0, PROCESSES)),
            self.monai(WITHOUT_COPIES, 0),
            self.monai("PersistentDataset", PROCESSES),
            *(self.torchio(samples) for samples in (4, 1)),
            self.monai_at_best(),
            self.torchio_at_best(),
            self.torchio_sampler(),
        ]

    def augmented(self) -> list[Contender]:
        """Give what delivers augmented patches, as near to nnU-Net's recipe as each comes."""
        return [
            self.nnunet(PROCESSES, augment=True),
            self.monai(WITHOUT_COPIES, PROCESSES, augment=True),
            self.torchio(4, augment=True),
            self.monai_at_best(augment=True),
            self.torchio_at_best(augment=True),
        ]

    def crops(self) -> dict[str, Callable[[], object]]:
        """Give single crops."""
        turn = iter(range(1_000_000))
        return {
            "blosc2 by nnU-Net's loader": lambda: self._nnunet_single.generate_train_batch(),
            "MONAI CacheDataset, one sample": lambda: self._monai_dataset("CacheDataset")[
                next(turn)
            ],
            "nibabel, five .nii.gz read whole": lambda: self._read_and_crop(next(turn)),
        }

    def nnunet(self, processes: int, *, augment: bool = False) -> Contender:
        """Read blosc2 files in processes of batchgenerators."""

        @contextmanager
        def begin() -> Iterator[Iterator[int]]:
            module = import_module("batchgenerators.dataloading.nondet_multi_threaded_augmenter")
            loader = self._nnunet_augmenting() if augment else self._nnunet_loader(self.size)
            batches = module.NonDetMultiThreadedAugmenter(
                loader, None, processes, num_cached=6, seeds=None, pin_memory=False, wait_time=0.002
            )
            try:
                yield (len(batch["data"]) for batch in batches)
            finally:
                batches._finish()

        more = ", its augmentation" if augment else ""
        name = f"nnU-Net, blosc2{more}, {processes} process{'es' * (processes > 1)}"
        return Contender(name, begin, ahead=8 * self.batch)

    def monai(self, kind: str, workers: int, *, augment: bool = False) -> Contender:
        """Crop from volumes in memory, or from tensors on disk."""

        @contextmanager
        def begin() -> Iterator[Iterator[int]]:
            data: Any = import_module("monai.data")
            dataset = self._monai_dataset(kind, augment=augment)
            loader = data.DataLoader(
                dataset, batch_size=self.batch, num_workers=workers, shuffle=True
            )
            yield from _arrivals(loader, lambda batch: len(batch["image"]))

        where = f"{workers} processes" if workers else "main process"
        more = ", augmentation" if augment else ""
        return Contender(f"MONAI {kind}{more}, {where}", begin, ahead=(2 * workers + 1) * 2)

    def torchio(self, samples: int, *, augment: bool = False) -> Contender:
        """Fill a queue with patches of whole volumes."""
        length = samples * VOLUMES_IN_QUEUE

        @contextmanager
        def begin() -> Iterator[Iterator[int]]:
            tio: Any = import_module("torchio")
            transform = tio.ZNormalization(masking_method=tio.ZNormalization.mean)
            if augment:
                transform = tio.Compose([transform, *self._torchio_augmentation(tio)])
            subjects = [
                tio.Subject(
                    label=tio.LabelMap(label),
                    **{name: tio.ScalarImage(images[name]) for name in MODALITIES},
                )
                for images, label in self.files
            ]
            yield from self._queue(tio, subjects, transform, samples, PROCESSES)

        more = ", augmentation" if augment else ""
        name = f"TorchIO Queue, {samples} a volume{more}, {PROCESSES} processes"
        return Contender(name, begin, ahead=length, cycle=length)

    def monai_at_best(self, *, augment: bool = False) -> Contender:
        """Crop from prepared volumes in memory, by a thread that reads ahead."""

        @contextmanager
        def begin() -> Iterator[Iterator[int]]:
            data, t = import_module("monai.data"), import_module("monai.transforms")
            keys = ["image", "label"]
            places = {f"{x}_indices_key": f"label_{x}_indices" for x in ("fg", "bg")}
            steps = [
                t.FgBgToIndicesd("label"),
                t.RandCropByPosNegLabeld(keys, "label", self.size, num_samples=1, **places),
                t.SelectItemsd(keys),
            ]
            if augment:
                # Resampling knows no float16 on a processor.
                steps += [t.CastToTyped("image", torch.float32), *self._monai_augmentation()]
            items = [{"image": image, "label": label} for image, label in self._prepared]
            dataset = data.CacheDataset(
                items, t.Compose(steps), num_workers=0, progress=False, copy_cache=False
            )
            loader = data.ThreadDataLoader(
                dataset,
                batch_size=self.batch,
                # Threads as workers share a transform's random state, which they break (1.6).
                num_workers=0,
                sampler=RandomSampler(dataset, replacement=True, num_samples=1_000_000),
            )
            yield from _arrivals(loader, lambda batch: len(batch["image"]))

        more = ", augmentation" if augment else ""
        return Contender(f"MONAI at its best{more}, float16 cache, ThreadDataLoader", begin)

    def torchio_at_best(self, *, augment: bool = False) -> Contender:
        """Fill a queue with patches of prepared volumes in memory."""
        length = 4 * VOLUMES_IN_QUEUE

        @contextmanager
        def begin() -> Iterator[Iterator[int]]:
            tio: Any = import_module("torchio")
            subjects = self._subjects(tio, torch.float32 if augment else torch.float16)
            transform = tio.Compose(self._torchio_augmentation(tio)) if augment else None
            yield from self._queue(tio, subjects, transform, 4, PROCESSES if augment else 0)

        more = ", augmentation" if augment else ""
        name = f"TorchIO at its best{more}, Queue on prepared subjects"
        return Contender(name, begin, ahead=length, cycle=length)

    def torchio_sampler(self) -> Contender:
        """Draw from prepared volumes in memory, without a queue."""

        @contextmanager
        def begin() -> Iterator[Iterator[int]]:
            tio: Any = import_module("torchio")
            draw = tio.UniformSampler(self.patch)
            streams = [draw(subject) for subject in self._subjects(tio, torch.float16)]

            def arrive() -> Iterator[int]:
                for turn in itertools.count(step=self.batch):
                    patches = [next(streams[(turn + i) % len(streams)]) for i in range(self.batch)]
                    for name in ("image", "label"):
                        torch.stack([patch[name].data for patch in patches])
                    yield self.batch

            yield arrive()

        return Contender("TorchIO at its best, UniformSampler on prepared subjects", begin)

    def _queue(
        self, tio: Any, subjects: list[Any], transform: Any, samples: int, processes: int
    ) -> Iterator[Iterator[int]]:
        queue = tio.Queue(
            tio.SubjectsDataset(_repeated(subjects), transform=transform),
            max_length=samples * VOLUMES_IN_QUEUE,
            samples_per_volume=samples,
            sampler=tio.UniformSampler(self.patch),
            num_workers=processes,
        )
        loader = tio.SubjectsLoader(queue, batch_size=self.batch, num_workers=0)
        yield from _arrivals(loader, lambda batch: len(batch["label"]["data"]))

    @property
    def _prepared(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Give the very volumes that ours are cut from, in memory."""
        return [
            (torch.from_numpy(np.array(case.image)), torch.from_numpy(np.array(case.label))[None])
            for case in self.cases
        ]

    def _subjects(self, tio: Any, kind: torch.dtype) -> list[Any]:
        return [
            tio.Subject(
                image=tio.ScalarImage(tensor=image.to(kind)), label=tio.LabelMap(tensor=label)
            )
            for image, label in self._prepared
        ]

    def _read_and_crop(self, number: int) -> np.ndarray:
        images, label = self.files[number % len(self.files)]
        arrays = [np.asarray(nib.load(file).dataobj) for file in [*images.values(), label]]  # type: ignore[attr-defined]
        chance = np.random.default_rng(number)
        corner = [int(chance.integers(n - self.patch + 1)) for n in arrays[0].shape]
        box = tuple(slice(c, c + self.patch) for c in corner)
        return np.stack([array[box] for array in arrays])

    def _nnunet_loader(self, size: Any, *, batch: int | None = None, transforms: Any = None) -> Any:
        module = import_module("nnunetv2.training.dataloading.data_loader")
        return module.nnUNetDataLoader(
            self._nnunet_cases,
            batch or self.batch,
            size,
            self.size,
            SimpleNamespace(all_labels=[1, 2, 3], has_ignore_label=False),
            oversample_foreground_percent=0.33,
            transforms=transforms,
        )

    @cached_property
    def _nnunet_single(self) -> Any:
        return self._nnunet_loader(self.size, batch=1)

    def _nnunet_augmenting(self) -> Any:
        """Read the larger patch that is turned and cut, as its trainer does."""
        module = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
        shapes = import_module("nnunetv2.training.data_augmentation.compute_initial_patch_size")
        angle = (-pi / 6, pi / 6)
        transforms = module.nnUNetTrainer.get_training_transforms(
            self.size, angle, None, (0, 1, 2), do_dummy_2d_data_aug=False
        )
        larger = shapes.get_patch_size(self.size, angle, angle, angle, (0.85, 1.25))
        return self._nnunet_loader(tuple(int(n) for n in larger), transforms=transforms)

    @cached_property
    def _nnunet_cases(self) -> Any:
        module = import_module("nnunetv2.training.dataloading.nnunet_dataset")
        folder = self.home.parent / f"nnunet_{self.patch}"
        folder.mkdir(parents=True, exist_ok=True)
        kind = module.nnUNetDatasetBlosc2
        for case in self.cases:
            target = folder / case.name
            if target.with_suffix(".pkl").exists():
                continue
            image = np.asarray(case.image).astype(np.float32)
            label = np.asarray(case.label).astype(np.int16)[None]
            rows = np.asarray(case.foreground)
            places = np.column_stack([np.zeros(len(rows), int), rows[:, 1:]])
            where = {value: places[rows[:, 0] == value] for value in (1, 2, 3)}
            blocks, chunks = module.comp_blosc2_params(image.shape, self.size, 4)
            blocks_seg, chunks_seg = module.comp_blosc2_params(label.shape, self.size, 2)
            kind.save_case(
                image,
                label,
                {"class_locations": where},
                str(target),
                chunks=chunks,
                blocks=blocks,
                chunks_seg=chunks_seg,
                blocks_seg=blocks_seg,
            )
        return kind(str(folder), [case.name for case in self.cases])

    def _monai_dataset(self, kind: str, *, augment: bool = False) -> Any:
        if (kind, augment) not in self._monai:
            self._monai[kind, augment] = self._new_monai_dataset(
                kind, self._monai_augmentation() if augment else []
            )
        return self._monai[kind, augment]

    def _new_monai_dataset(self, kind: str, augmentation: list[Any]) -> Any:
        data, t = import_module("monai.data"), import_module("monai.transforms")
        keys = ["image", "label"]
        tuned = kind == WITHOUT_COPIES
        places = {f"{x}_indices_key": f"label_{x}_indices" for x in ("fg", "bg")} if tuned else {}
        steps = [
            t.LoadImaged([*MODALITIES, "label"]),
            t.EnsureChannelFirstd([*MODALITIES, "label"]),
            t.ConcatItemsd(list(MODALITIES), "image"),
            t.SelectItemsd(keys),
            t.CropForegroundd(keys, "image", allow_smaller=True),
            t.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            *([t.FgBgToIndicesd("label")] if tuned else []),
            t.RandCropByPosNegLabeld(keys, "label", self.size, num_samples=1, **places),
            t.SelectItemsd(keys),
            *augmentation,
        ]
        items = [
            {**{m: str(file) for m, file in images.items()}, "label": str(label)}
            for images, label in self.files
        ]
        items = _repeated(items)
        if kind == "PersistentDataset":
            return data.PersistentDataset(items, t.Compose(steps), self.home.parent / "monai")
        # Each case is cached once, however often it is named.
        return data.CacheDataset(
            items,
            t.Compose(steps),
            num_workers=PROCESSES,
            progress=False,
            copy_cache=not tuned,
            hash_as_key=True,
        )

    def _monai_augmentation(self) -> list[Any]:
        t = import_module("monai.transforms")
        keys = ["image", "label"]
        turn = dict.fromkeys(("rotate_range",), (pi / 6,) * 3)
        modes = ("bilinear", "nearest")
        return [
            t.RandAffined(keys, prob=0.2, mode=modes, padding_mode="zeros", **turn),
            t.RandAffined(keys, prob=0.2, mode=modes, padding_mode="zeros", scale_range=(0.3,) * 3),
            t.RandGaussianNoised("image", prob=0.1, std=0.1),
            t.RandGaussianSmoothd("image", (0.5, 1), (0.5, 1), (0.5, 1), prob=0.2),
            t.RandScaleIntensityd("image", prob=0.15, factors=0.25),
            t.RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True),
            t.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            t.RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1)),
            *(t.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]

    def _torchio_augmentation(self, tio: Any) -> list[Any]:
        return [
            tio.RandomAffine(scales=0, degrees=30, p=0.2),
            tio.RandomAffine(scales=(0.7, 1.4), degrees=0, p=0.2),
            tio.RandomNoise(std=(0, 0.1), p=0.1),
            tio.RandomBlur((0.5, 1), p=0.2),
            tio.RandomGamma(p=0.4),
            tio.RandomAnisotropy(downsampling=(1, 2), p=0.25),
            tio.RandomFlip((0, 1, 2)),
        ]


def _report(failure: threading.ExceptHookArgs) -> None:
    """Pass over threads of batchgenerators that complain when their processes are ended."""
    if failure.thread is None or "results_loop" not in failure.thread.name:
        threading.__excepthook__(failure)


def _arrivals(loader: DataLoader[Any], count: Callable[[Mapping[str, Any]], int]) -> Iterator[Any]:
    batches = iter(loader)
    yield (count(batch) for batch in batches)
    # The worker processes end with the last reference.
    del batches


def _repeated(items: list[Any], times: int = REPEATS) -> list[Any]:
    return [copy.copy(item) for _ in range(times) for item in items]
