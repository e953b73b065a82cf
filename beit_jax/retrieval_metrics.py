"""Recall of image-text retrieval, both ways, from the features of a whole split. On the host."""

import numpy as np

RANKS = (1, 5, 10)
NAMES = (*(f"{way}_r{k}" for way in ("tr", "ir") for k in RANKS), "mean")  # of `recalls`
_ROWS = 512  # rows of the score matrix at a time: 5,000 x 25,010 at once would be 500 MB


def recalls(image_features, text_features, image_of_caption) -> dict[str, float]:
    """Recall at 1, 5, 10 in percent.

    Args:
      image_features: [i, d], of unit length for cosines.
      text_features: [c, d].
      image_of_caption: int [c], the row of each caption's image.
    Returns: tr_r1, tr_r5, tr_r10: share of images with one of their own captions among the k best
      (of images that have a caption); ir_r1 ..: share of captions whose image is among the k best;
      mean: of the six, by which a model is chosen, without those of `certain`; not there if all
      are. A tie counts for the lower row, so that equal features score as chance does; features
      that are no numbers are never found.
    Raises: ValueError: no captions, or one of an image that is not there.
    Source: BEiT-3, Sec. 3.1.4; microsoft/unilm beit3/engine_for_finetuning.py, RetrievalHandler.
    """
    images, texts = (np.asarray(x, np.float32) for x in (image_features, text_features))
    own = np.asarray(image_of_caption)
    if len(own) != len(texts) or not len(own):
        raise ValueError(f"{len(texts)} features of captions and {len(own)} rows of images: as "
                         "many of both, and one at least")
    if own.min() < 0 or own.max() >= len(images):
        raise ValueError(f"a caption belongs to image {own.min() if own.min() < 0 else own.max()}, "
                         f"but there are images 0 to {len(images) - 1}")
    with_caption = np.unique(own)
    places = {"tr": _places(images[with_caption], texts, with_caption, own),
              "ir": _places(texts, images, own, np.arange(len(images)))}
    found = {f"{way}_r{k}": 100.0 * float(np.mean(place < k))
             for way, place in places.items() for k in RANKS}
    known = certain(len(images), own)
    open_ones = [value for name, value in found.items() if name not in known]
    return found | ({"mean": sum(open_ones) / len(open_ones)} if open_ones else {})


def certain(num_images: int, image_of_caption) -> tuple[str, ...]:
    """Which of the `recalls` are 100 by definition, in so small a set: "tr_r10", ...

    Args: image_of_caption: int [c], c > 0.
    """
    captions_of_image = np.unique(image_of_caption, return_counts=True)[1]
    # before an image's first own caption stand at most all captions of others
    others = {"tr": len(image_of_caption) - captions_of_image.min(), "ir": num_images - 1}
    return tuple(f"{way}_r{k}" for way, most in others.items() for k in RANKS if most < k)


def fold_recalls(image_features, text_features, image_of_caption, num_folds: int = 5) -> dict:
    """Mean of `recalls` over equal folds of consecutive images: COCO's 1k test is 5 of 5,000.

    Args, Returns: as of `recalls`.
    Raises: ValueError: the images do not make equal folds.
    """
    images, texts, own = map(np.asarray, (image_features, text_features, image_of_caption))
    size, rest = divmod(len(images), num_folds)
    if rest or not size:
        raise ValueError(f"{len(images)} images do not make {num_folds} equal folds")
    each = []
    for first in range(0, len(images), size):
        is_here = (own >= first) & (own < first + size)
        each.append(recalls(images[first:first + size], texts[is_here], own[is_here] - first))
    names = dict.fromkeys(name for fold in each for name in fold)  # some folds may have no mean
    return {name: float(np.mean([fold[name] for fold in each if name in fold])) for name in names}


def _places(queries, items, image_of_query, image_of_item) -> np.ndarray:
    """How many items stand before the best one of a query's own image: int [queries]."""
    places = []
    for first in range(0, len(queries), _ROWS):
        rows = slice(first, first + _ROWS)
        scores = queries[rows] @ items.T
        scores = np.where(np.isnan(scores), -np.inf, scores)
        is_own = image_of_query[rows, None] == image_of_item
        own_scores = np.where(is_own, scores, -np.inf)
        best = np.argmax(own_scores, axis=1)[:, None]  # the first of equal ones
        value = np.take_along_axis(own_scores, best, axis=1)
        before = (scores > value) | ((scores == value) & (np.arange(len(items)) < best))
        places.append(np.where(np.isneginf(value[:, 0]), len(items), before.sum(1)))
    return np.concatenate(places)
