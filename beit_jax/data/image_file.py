"""One image file: is it whole, can TensorFlow decode it rightly, and if not, what are its pixels.

Files are decoded by PIL where TensorFlow would go wrong: CMYK, palettes, transparency, 16 bits,
WebP, and photographs that a camera stored turned.
"""
import io
import os
import stat
import warnings

import numpy as np
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # EXIF tag: how the camera was held; 1 is upright
_TAIL = 4096  # bytes at the end of a file in which its end mark is looked for


def inspect(path: str, decode: bool, keep: tuple[int, int] | None = None):
    """Checks an image file and says who may decode it.

    Args:
      path: of the file.
      decode: True decodes every pixel; False looks at head and tail only.
      keep: (width, height) of the images whose pixels are wanted; None = of none.
    Returns: (True where the file needs `decode_with_pil`, uint8 [h, w, 3] or None).
    Raises: ValueError: not an image, cut short, or of a kind we cannot convert; the reason.
    """
    pixels = None
    try:
        _require_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities inside EXIF are not the user's business
            with Image.open(path) as image:
                needs_pil = _needs_pil(image)
                if not decode:
                    _check_tail(path, image.format)
                elif image.size == keep:
                    pixels = np.asarray(to_rgb(image) if needs_pil else image.convert("RGB"))
                elif needs_pil:
                    to_rgb(image)
                else:
                    image.load()
    except Image.UnidentifiedImageError:
        raise ValueError("empty" if not os.path.getsize(path) else "not an image") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
        raise ValueError(reason or type(error).__name__) from None
    return needs_pil, pixels


def size_of(path: str) -> tuple[int, int] | None:
    """(width, height) as stored, in pixels; None where the file is not an image."""
    try:
        _require_file(path)
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None


def decode_with_pil(encoded: bytes) -> np.ndarray:
    """Encoded bytes of any kind that PIL reads, as uint8 [h, w, 3]."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB: upright, on white where it is transparent, first frame only.

    16-bit grey is divided by 257, whatever values occur. CMYK goes through PIL's plain conversion,
    without colour profiles.
    Raises: ValueError: floating-point pixels, whose range nobody knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip((wide + 128) // 257, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _require_file(path: str) -> None:
    """Raises: OSError: nothing there, or no regular file: to open a pipe would wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("no regular file")


def _needs_pil(image: Image.Image) -> bool:
    if image.format not in ("JPEG", "PNG") or image.mode not in ("RGB", "L"):
        return True
    if "transparency" in image.info or image.getexif().get(_ORIENTATION, 1) != 1:
        return True
    raw_mode = image.tile[0][3] if image.tile else image.mode
    raw_mode = raw_mode[0] if isinstance(raw_mode, tuple) else raw_mode
    return image.format == "PNG" and raw_mode != image.mode  # 1, 2, 4 or 16 bits


def _check_tail(path: str, kind: str) -> None:
    """Looks for the mark that ends a JPEG or PNG file. Raises OSError where it is missing."""
    marks = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
    with open(path, "rb") as file:
        file.seek(-min(_TAIL, os.path.getsize(path)), os.SEEK_END)
        if kind in marks and marks[kind] not in file.read():
            raise OSError("image file is truncated")
