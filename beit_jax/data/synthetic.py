"""Random pictures of any size, at once and without TensorFlow: for smoke tests and benchmarks."""
import functools

import numpy as np
from PIL import Image

from beit_jax.data import synthetic_text
from beit_jax.data.source import Source

_PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
                "lanczos3": Image.Resampling.LANCZOS}


def load(options, split: str) -> Source:
    """`synthetic_examples` pictures of `synthetic_classes` classes; every split has its own.

    A picture is coarse noise over a grey that tells its class. Both views are finished: crops,
    flips and colour have no effect, so that tests of other things start without TensorFlow.
    `options.text` asks for texts, of the same kinds as those of digit_scenes.
    """
    source = _load(split, options.synthetic_examples, options.synthetic_classes, options.image_px,
                   options.target_px, options.target_filter)
    if not options.text:
        return source
    return synthetic_text.with_text(source, options.text, options.text_length)


@functools.lru_cache(maxsize=8)
def _load(split, num_examples, num_classes, image_px, target_px, target_filter) -> Source:
    rng = np.random.default_rng([num_examples, num_classes, len(split)])
    labels = (np.arange(num_examples) % num_classes).astype(np.int32)
    coarse = rng.integers(-40, 41, (num_examples, 4, 4, 3))
    grey = 40 + 175 * labels / max(num_classes - 1, 1)
    coarse = np.clip(grey[:, None, None, None] + coarse, 0, 255).astype(np.uint8)
    sizes = {"image": (image_px, "bicubic")}
    if target_px:
        sizes["image_for_target"] = (target_px, target_filter)
    views = {key: np.stack([_resize(image, size, method) for image in coarse])
             for key, (size, method) in sizes.items()}
    return Source(num_examples, tuple(f"class {i}" for i in range(num_classes)), "synthetic",
                  labels=labels, views=views)


def _resize(image, size, method):
    return np.asarray(Image.fromarray(image).resize((size, size), _PIL_FILTERS[method]))
