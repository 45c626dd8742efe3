"""A generated data set, so that everything runs without a download."""

from bts_lightning.data.phantom.write import generate_case, write_phantom

__all__ = ["generate_case", "write_phantom"]
