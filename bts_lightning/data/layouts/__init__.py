"""Data sets as they are published: where the images of a case lie, and what they are called."""

from bts_lightning.data.layouts.case import LABEL_VALUES, Case, DataSet, Fault, Image
from bts_lightning.data.layouts.find import find_cases

__all__ = ["LABEL_VALUES", "Case", "DataSet", "Fault", "Image", "find_cases"]
