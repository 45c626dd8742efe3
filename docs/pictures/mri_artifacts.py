"""Draw mri_artifacts.png: what each transform of the mix-in does to a phantom, where it shows."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw

from bts_lightning import config
from bts_lightning.data.cache import prepare
from bts_lightning.data.phantom import write_phantom
from bts_lightning.data.transformed import transform_patch
from bts_lightning.modalities import COMPLETE, MODALITIES, SHOWN_AS

SHOWN = ("t1c", "flair")
TILE, TITLE = 176, 16
# Chance also makes weak ones, and some in another plane than the picture's.
SEEDS = {"bias_field": 4, "motion": 3, "ghosting": 4, "spike": 5, "anisotropy": 7}
OUT = Path(__file__).with_suffix(".png")


def main() -> None:
    node = config.load(["unet_small", "mri_artifacts"]).data.transforms
    transforms = {"none": None} | {name: config.build(each, p=1.0) for name, each in node.items()}
    sheet = Image.new("L", (TILE * len(transforms), TITLE + TILE * len(SHOWN)))
    pen = ImageDraw.Draw(sheet)
    with TemporaryDirectory() as folder:
        (case,) = prepare(write_phantom(Path(folder) / "phantom", cases=1, size=(192, 192, 124)))
        image, label = np.array(case.image), np.array(case.label)
    depth = int((label > 0).sum(axis=(0, 1)).argmax())
    for column, (name, transform) in enumerate(transforms.items()):
        now = image.copy()
        if transform is not None:
            seed = SEEDS[name]
            transform_patch({name: transform}, now, label.copy(), COMPLETE, seed, "the phantom")
        pen.text((column * TILE + 4, 2), name.replace("_", " "), fill=255)
        for row, modality in enumerate(SHOWN):
            volume = now[MODALITIES.index(modality)]
            tile = grey(volume[..., depth].astype(np.float32))
            sheet.paste(tile, (column * TILE, TITLE + row * TILE))
            if column == 0:
                pen.text((4, TITLE + row * TILE + 2), SHOWN_AS[modality], fill=255)
    sheet.quantize(48).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size // 1000} kB")


def grey(values: np.ndarray) -> Image.Image:
    """Show a slice as radiologists do, front up, at its true proportions."""
    shown = np.where(values == 0, 0, np.clip((values + 2.5) / 6, 0.02, 1)) * 255
    picture = Image.fromarray(shown.astype(np.uint8).T)
    scale = TILE / max(picture.size)
    tile = Image.new("L", (TILE, TILE))
    size = [round(edge * scale) for edge in picture.size]
    tile.paste(picture.resize(size), [(TILE - edge) // 2 for edge in size])
    return tile


if __name__ == "__main__":
    main()
