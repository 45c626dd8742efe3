"""Data sets as they are published: where the images of a case lie, and what they are called."""

from bts_lightning.data.layouts.case import Case, DataSet, Fault
from bts_lightning.data.layouts.find import find_cases
from bts_lightning.data.layouts.folders import LABEL_VALUES, images_below

__all__ = ["LABEL_VALUES", "Case", "DataSet", "Fault", "find_cases", "images_below"]
