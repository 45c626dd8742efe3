"""What `bts predict --raw` does: from scans as they are to label maps on their own grids."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.progress import track

from bts_lightning.commands.segment import Segmenter, console
from bts_lightning.data.cache.nifti import write_nifti
from bts_lightning.data.cache.prepare import case_of, load_cases
from bts_lightning.errors import DataError, UserError
from bts_lightning.inference.sliding import label_map
from bts_lightning.modalities import Modality
from bts_lightning.preprocess import atlas
from bts_lightning.preprocess.back import affine_of, carry
from bts_lightning.preprocess.folder import find_patients, write_images
from bts_lightning.preprocess.patient import Recipe, align
from bts_lightning.preprocess.series import read_all
from bts_lightning.preprocess.sheet import draw


def segment_raw(
    segmenter: Segmenter, scans: Mapping[Modality, Path], out: Path, recipe: Recipe
) -> list[Path]:
    """Segment one patient as scanned: on BraTS's grid, and on that of each scan."""
    stem = out.name.removesuffix(".gz").removesuffix(".nii")
    places = {modality: out.with_name(f"{stem}_{modality}.nii.gz") for modality in scans}
    picture = out.with_name(f"{stem}_preprocess.png")
    segmenter.refuse_to_overwrite([out, *places.values(), picture], scans.values())
    read = read_all(scans)
    aligned = align(read, recipe)
    draw(aligned, picture)
    if aligned.faults:
        raise DataError(f"{'; '.join(aligned.faults)}: look at {picture}")
    ensemble = segmenter.ensemble
    with TemporaryDirectory() as place:
        images = write_images(aligned, Path(place), "case", recipe)
        cases = load_cases(case_of(images, scheme=ensemble.loss.scheme_name), segmenter.recipes)
    averaged = segmenter.write(cases, out)[0].float().cpu().numpy()
    geometry, protocol = cases[0].geometry, ensemble.protocol
    whole = geometry.uncrop(averaged)
    for modality, file in places.items():
        scan, transform = read[modality].image, aligned.transforms[modality].GetInverse()
        carried = torch.from_numpy(carry(whole, atlas.grid(), scan, transform))[None]
        # What is too small is counted in voxels of 1 mm.
        voxel = math.prod(scan.GetSpacing())
        least = {
            name: math.ceil(getattr(protocol, name) / voxel)
            for name in ("et_minimum", "component_minimum")
        }
        labels = label_map(ensemble.loss, carried, replace(protocol, **least))
        write_nifti(geometry.in_file(labels), affine_of(scan), file)
    console.print(f"{out}, and on the grid of each scan beside it; look at {picture}")
    return [out, *places.values()]


def segment_raw_folder(segmenter: Segmenter, folder: Path, out: Path, recipe: Recipe) -> list[Path]:
    """Segment many patients as scanned; who cannot be is named and left out."""
    written: list[Path] = []
    patients = find_patients(folder).items()
    for name, scans in track(
        patients, "segmenting", console=console, disable=not console.is_terminal
    ):
        try:
            written += segment_raw(segmenter, scans, out / f"{name}.nii.gz", recipe)
        except DataError as error:
            console.print(f"left out: {name}: {error}", style="yellow")
    if not written:
        raise UserError(f"{folder} has no patient that can be segmented")
    return written
