"""DICOM series as a scanner writes them, with a patient's name, number and dates."""

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

NAME, NUMBER, BORN, DAY = "Doe^Joanna", "PID-4711", "19610203", "20240229"
# What may stand in no file and in no log.
SECRETS = ("Doe", "Joanna", "4711", BORN, DAY, "St-Elsewhere")


def write_series(
    image: sitk.Image, folder: Path, *, name: str = NAME, number: str = NUMBER, modality: str = "MR"
) -> list[Path]:
    """Write the slices of a volume, last slice first, under names that say nothing of the order."""
    folder.mkdir(parents=True)
    values = sitk.GetArrayFromImage(image).astype(np.int16)
    directions = np.reshape(image.GetDirection(), (3, 3))
    series, study = generate_uid(), generate_uid(entropy_srcs=[number])
    files = []
    for index in reversed(range(len(values))):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = folder / f"IM{(index * 7) % len(values):04d}_{index}"
        header = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        header.Modality = modality
        header.PatientName, header.PatientID, header.PatientBirthDate = name, number, BORN
        header.StudyDate = header.SeriesDate = DAY
        header.InstitutionName = "St-Elsewhere"
        header.SeriesInstanceUID, header.StudyInstanceUID = series, study
        header.FrameOfReferenceUID = study
        header.InstanceNumber = index + 1
        header.ImagesInAcquisition = len(values)
        header.ImagePositionPatient = [
            f"{x:.6f}" for x in image.TransformIndexToPhysicalPoint((0, 0, index))
        ]
        header.ImageOrientationPatient = [f"{x:.8f}" for x in directions[:, :2].T.ravel()]
        header.PixelSpacing = [image.GetSpacing()[1], image.GetSpacing()[0]]
        header.SliceThickness = image.GetSpacing()[2]
        header.Rows, header.Columns = values.shape[1:]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, 1
        header.PixelData = values[index].tobytes()
        header.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


def change(file: Path, **tags: object) -> None:
    """Write other values into a file's header; None takes a tag out."""
    header = pydicom.dcmread(file)
    for tag, value in tags.items():
        if value is None:
            delattr(header, tag)
        else:
            setattr(header, tag, value)
    header.save_as(file)
