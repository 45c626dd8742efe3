"""Raw phantoms: heads with a skull whose motion is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from bts_lightning.__main__ import main
from bts_lightning.data.phantom.raw import MOST_DEGREES, MOST_MM, RawHead, scan_raw
from bts_lightning.data.phantom.write import generate_case, write_phantom
from bts_lightning.errors import DataError
from bts_lightning.modalities import MODALITIES, Modality

TINY = (48, 48, 40)


Images = dict[Modality, NDArray[np.int16]]


@pytest.fixture(scope="module")
def images() -> Images:
    return generate_case(0, 0, TINY)[0]


@pytest.fixture(scope="module")
def head(images: Images) -> RawHead:
    return scan_raw(np.random.default_rng(0), images, TINY)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_motion_that_is_told_brings_a_scan_back_to_the_brain(
    head: RawHead, images: Images, modality: Modality
) -> None:
    motion = sitk.AffineTransform(3)
    motion.SetMatrix(head.motions[modality][:3, :3].ravel().tolist())
    motion.SetTranslation(head.motions[modality][:3, 3].tolist())
    inside = sitk.GetArrayViewFromImage(head.brain) > 0

    def likeness(transform: sitk.Transform) -> float:
        back = sitk.Resample(head.scans[modality], head.brain, transform, sitk.sitkLinear)
        here = sitk.GetArrayViewFromImage(back)[inside]
        return float(np.corrcoef(here, images[modality].T[inside])[0, 1])

    assert likeness(motion) > max(0.6, likeness(sitk.Transform()) + 0.2)
    assert likeness(motion) > likeness(motion.GetInverse()) + 0.2
    turned = np.degrees(np.arccos((np.trace(head.motions[modality][:3, :3]) - 1) / 2))
    centre = np.array([120.0, -115.0, 75.0, 1.0])
    assert turned <= MOST_DEGREES + 1e-6
    assert np.linalg.norm((head.motions[modality] @ centre - centre)[:3]) <= MOST_MM


def test_a_skull_lies_around_the_brain_and_scans_have_grids_of_their_own(head: RawHead) -> None:
    grids = {(scan.GetSize(), scan.GetOrigin()) for scan in head.scans.values()}
    assert len(grids) == 4
    brain = np.count_nonzero(sitk.GetArrayViewFromImage(head.brain)) * 5 * 5 * 3.875
    for scan in head.scans.values():
        values = sitk.GetArrayViewFromImage(scan)
        filled = np.count_nonzero(values > 0.25 * np.median(values[values > values.mean()]))
        assert filled * np.prod(scan.GetSpacing()) > 1.2 * brain


def test_same_seed_gives_the_same_files_and_truth_lies_beside(tmp_path: Path) -> None:
    words = ["--raw", "--cases", "1", "--size", "48x48x40"]
    for name in ("a", "b"):
        assert main(["phantom", str(tmp_path / name), *words]) == 0
    files = sorted(f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    truth = tmp_path / "a/patient_00000/truth"
    assert set(json.loads((truth / "motions.json").read_text())) == set(MODALITIES)
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(truth / "seg.nii.gz")))
    np.testing.assert_array_equal(label.T, generate_case(0, 0, TINY)[1])
    with pytest.raises(DataError, match="holds another phantom"):
        write_phantom(tmp_path / "a", 1, 0, TINY)
