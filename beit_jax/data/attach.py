"""What examples bring along beside their pictures, joined to finished batches in numpy."""

from collections.abc import Iterable, Iterator

import numpy as np

from beit_jax import token_ids
from beit_jax.data.source import Source

# what a filler row holds, where it is not simply the last example's
_FILLERS = {"label": -1, "index": -1, "answer_labels": -1, "answer_scores": 0,
            "text": token_ids.PAD, "text_is_valid": False}


def attached(source: Source, batches: Iterable[dict], choices: Iterable) -> Iterator[dict]:
    """Batches with the texts and arrays of their examples.

    Args:
      batches: with index int32 [b] (-1 = filler) and is_example bool [b].
      choices: of each batch, float [b] in [0, 1) or None, as for `Texts.rows`.
    """
    for batch, choice in zip(batches, choices, strict=False):
        index = np.maximum(batch["index"], 0)
        batch = batch | {key: rows[index] for key, rows in source.arrays.items()}
        if source.texts is not None:
            batch |= source.texts.rows(index, choice)
        yield batch if batch["is_example"].all() else with_fillers(batch, batch["is_example"])


def with_fillers(batch: dict, is_example: np.ndarray) -> dict:
    """The batch with fillers for all rows but `is_example`, bool [b].

    A text is then <s> alone: attention needs one token that is valid.
    """
    filled = batch | {"is_example": is_example}
    for key in _FILLERS.keys() & batch.keys():
        rows = filled[key] = batch[key].copy()
        rows[~is_example] = _FILLERS[key]
    if "text" in filled:
        filled["text"][~is_example, ..., 0] = token_ids.BOS
        filled["text_is_valid"][~is_example, ..., 0] = True
    return filled
