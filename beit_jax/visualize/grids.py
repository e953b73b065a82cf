"""Images side by side in one array."""

from collections.abc import Sequence

import numpy as np


def grid(images: np.ndarray, columns: int, *, gap: int = 2, background: int = 255) -> np.ndarray:
    """Lays images out row by row.

    Args:
      images: uint8 [n, h, w, 3].
      columns: images per row; the last row may be shorter.
      gap: pixels between images.
      background: grey level of gaps and of missing images.
    Returns: uint8 [rows * h + (rows - 1) * gap, columns * w + (columns - 1) * gap, 3].
    Raises: ValueError: no image, or an array of another form.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images) or images.dtype != np.uint8:
        raise ValueError(f"a grid needs uint8 images [n, h, w, 3], not {images.dtype} "
                         f"{images.shape}")
    n, height, width, _ = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background,
                    np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top:top + height, left:left + width] = image
    return sheet


def stack(columns: Sequence[np.ndarray], *, gap: int = 2) -> np.ndarray:
    """Several views of the same images: row i shows view 0, 1, ... of image i.

    Args:
      columns: uint8 [n, h, w, 3] each, all of one shape.
    Returns: as `grid`.
    """
    views = np.stack(columns, axis=1)  # [n, views, h, w, 3]
    return grid(views.reshape(-1, *views.shape[2:]), len(columns), gap=gap)


def enlarge(image: np.ndarray, min_height: int) -> np.ndarray:
    """Whole-number enlargement, pixels stay sharp: [h, w, 3] -> at least `min_height` rows."""
    factor = max(1, -(-min_height // image.shape[0]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
