"""Tokens of all texts of a split: kept without padding, made into rows when a batch asks."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from beit_jax import token_ids
from beit_jax.data.text_ops import Tokenizer

log = logging.getLogger(__name__)


class Texts(NamedTuple):
    """Texts of n examples, m in all.

    Attributes:
      ids: int32 [t], pieces of one text after the other, without <s> and </s>.
      start, count: int64 [m], text j is ids[start[j]:start[j] + count[j]].
      first: int64 [n + 1], example i has the texts first[i] to first[i + 1]; only an image without
        captions, which is for evaluation alone, has none.
      length: l, tokens of a row with <s> and </s>.
      are_captions: True: evaluation gives all texts of an example; False: each has exactly one.
    """
    ids: np.ndarray
    start: np.ndarray
    count: np.ndarray
    first: np.ndarray
    length: int
    are_captions: bool = False

    def rows(self, index: np.ndarray, choice: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Rows of tokens for some examples.

        Args:
          index: int [b], example numbers.
          choice: float [b] in [0, 1): which of its texts each example shows; None at evaluation.
        Returns: text int32 [b, l], text_is_valid bool [b, l] (True = a real token); captions at
          evaluation [b, r, l], r = most texts of an example, at least 1; what an example lacks of
          r texts is a row with nothing valid.
        """
        first, counts = self.first[index], np.diff(self.first)
        if self.are_captions and choice is None:
            number = np.arange(max(counts.max(), 1))
            which = np.where(number < counts[index, None], first[:, None] + number, -1)
        else:
            choice = np.zeros(len(index)) if choice is None else choice
            which = first + (choice * counts[index]).astype(np.int64)
        return self._rows(which)

    def _rows(self, which: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of the texts `which`, int [...], -1 = none."""
        start, count = (np.where(which < 0, 0, values[which] if len(values) else 0)[..., None]
                        for values in (self.start, self.count))
        place = np.arange(self.length) - 1  # of a piece in its text; <s> stands before the first
        is_piece = (place >= 0) & (place < count)
        text = np.full(is_piece.shape, token_ids.PAD, np.int32)
        text[is_piece] = self.ids[(start + place)[is_piece]]
        text[..., 0] = token_ids.BOS
        text[place == count] = token_ids.EOS
        is_valid = (place <= count) & (which >= 0)[..., None]
        return {"text": np.where(is_valid, text, token_ids.PAD), "text_is_valid": is_valid}

    def subset(self, numbers: np.ndarray) -> "Texts":
        """The texts of some examples, int [k]."""
        counts = np.diff(self.first)[numbers]
        first = np.concatenate([[0], np.cumsum(counts)])
        which = np.repeat(self.first[numbers] - first[:-1], counts) + np.arange(first[-1])
        return self._replace(start=self.start[which], count=self.count[which], first=first)

    def each(self) -> "Texts":
        """Every text as an example of its own."""
        return self._replace(first=np.arange(len(self.start) + 1), are_captions=False)


def pack(blocks: Sequence[Sequence[int]], length: int) -> Texts:
    """One text of at most length - 2 pieces for each example."""
    count = np.array([len(block) for block in blocks], np.int64)
    ids = np.fromiter((piece for block in blocks for piece in block), np.int32, count.sum())
    return Texts(ids, np.cumsum(count) - count, count, np.arange(len(blocks) + 1), length)


def encode(groups: Sequence[Sequence[str]], tokenizer: Tokenizer, length: int,
           what: str, *, are_captions: bool = False) -> Texts:
    """`of_ids` of the texts of each example."""
    return of_ids([[tokenizer.encode(text) for text in group] for group in groups], length, what,
                  are_captions=are_captions)


def of_ids(groups: Sequence[Sequence[Sequence[int]]], length: int, what: str, *,
           are_captions: bool = False) -> Texts:
    """One or more texts for each example; what is too long is cut at the end, and logged.

    Args: groups: of each example its texts, ids of pieces without <s> and </s>. what: for the log:
      where they come from. are_captions: see `Texts`.
    """
    pieces = [text for group in groups for text in group]
    cut = sum(len(text) > length - 2 for text in pieces)
    if cut:
        log.info("%s: %d of %d texts are longer than config.data.text_length=%d and are cut",
                 what, cut, len(pieces), length)
    counts = [len(group) for group in groups]
    return pack([text[:length - 2] for text in pieces], length)._replace(
        first=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), are_captions=are_captions)
