"""Which tokens of a text are hidden, and what stands in their place.

All draws are functions of a key alone. A text hides as many tokens as its length asks for, in a
fixed number of slots, so that shapes are static whatever the lengths.
"""

import dataclasses
import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax import token_ids
from beit_jax.options import Share, within

BERT = (0.8, 0.1, 0.1)  # shares of hidden tokens that become <mask>, stay, become a random piece
ALWAYS_MASK = (1.0, 0.0, 0.0)


class HiddenText(NamedTuple):
    """A text with hidden tokens, m = slots.

    Attributes:
      text: int32 [b, l], the input: the hidden positions replaced.
      positions: int32 [b, m], where the hidden tokens stand, ascending.
      codes: int32 [b, m], what stood there: the targets.
      is_hidden: bool [b, m], False in slots that no hidden token fills; their loss counts nothing.
    """
    text: jax.Array
    positions: jax.Array
    codes: jax.Array
    is_hidden: jax.Array


@dataclasses.dataclass(frozen=True)
class HideOptions:
    """What a config says of hiding words: see `hide_content`, `hide_caption`."""

    rate: Annotated[float, within(above=0, high=1)]
    corruption: tuple[Share, Share, Share] = BERT

    def __post_init__(self):
        check(self.rate, self.corruption)


def check(rate: float, corruption: tuple[float, float, float]) -> None:
    """Refuses settings that mean nothing. Raises: ValueError: naming the values."""
    if not 0 < rate <= 1:
        raise ValueError(f"mask.rate={rate} must lie in (0, 1]: 0.15 for texts, 0.5 for pairs")
    if len(corruption) != 3 or min(corruption) < 0 or abs(sum(corruption) - 1) > 1e-6:
        raise ValueError(f"mask.corruption={corruption} must be three shares (mask, keep, random) "
                         "that add up to 1: (0.8, 0.1, 0.1) or (1.0, 0.0, 0.0)")


def num_slots(length: int, rate: float) -> int:
    """Slots that `hide_content` makes: the most it can hide in rows of `length` tokens."""
    return int(_content_counts(length, rate).max())


def num_caption_slots(length: int, rate: float) -> int:
    """The same of `hide_caption`."""
    return int(_caption_counts(length, rate).max())


def hide_content(keys, text, is_valid, *, rate: float, num_pieces: int,
                 corruption: tuple[float, float, float] = BERT) -> HiddenText:
    """Hides a share of a text's pieces, drawn without replacement, for pre-training.

    Of n pieces floor(rate n + 1/2) are hidden, at least one where there is one. <s>, </s> and
    <pad> never are.

    Args:
      keys: PRNG keys [b].
      text: int [b, l].
      is_valid: bool [b, l], True = a real token.
      rate: share to hide: 0.15 of texts, 0.5 of a pair's text.
      num_pieces: entries of the tokenizer's model; random tokens are its ids 4 to num_pieces.
      corruption: `BERT` or `ALWAYS_MASK`, or any other three shares.
    Returns: HiddenText with `num_slots(l, rate)` slots.
    Raises: ValueError: a rate or shares out of range.
    Source: BEiT-3, Sec. 2.2, has the rates; the shares are not published, and 80/10/10 is what its
      captioning code does. microsoft/torchscale's BERT example has `ALWAYS_MASK`.
    """
    check(rate, corruption)
    is_candidate = is_valid & ~jnp.isin(text, jnp.array(token_ids.SPECIAL))
    counts = _content_counts(text.shape[1], rate)
    return _hide(keys, text, is_candidate, counts, corruption,
                 (token_ids.FIRST_PIECE, num_pieces), token_ids.mask_id(num_pieces))


def hide_caption(keys, text, is_valid, *, rate: float, num_pieces: int,
                 corruption: tuple[float, float, float] = BERT) -> HiddenText:
    """Hides a share of a caption's tokens, drawn without replacement, for captioning.

    Of n tokens with <s> and </s> floor(rate n + 1/2) are hidden, at least 1, at most n - 1: </s>
    may be, which teaches where to stop; <s> and <pad> never are.

    Args, Returns, Raises: as of `hide_content`; random tokens are the ids 3 to num_pieces + 1.
    Source: microsoft/unilm beit3/datasets.py, CaptioningDataset.
    """
    check(rate, corruption)
    is_candidate = is_valid & ~jnp.isin(text, jnp.array((token_ids.BOS, token_ids.PAD)))
    counts = _caption_counts(text.shape[1], rate)
    last = token_ids.mask_id(num_pieces)
    return _hide(keys, text, is_candidate, counts, corruption, (token_ids.UNKNOWN, last), last)


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


def _content_counts(length: int, rate: float) -> np.ndarray:
    """How many of n = 0 .. length - 2 pieces are hidden; on the host, in float64: 0.5 rounds up."""
    return np.array([0] + [min(max(_rounded(rate * n), 1), n) for n in range(1, length - 1)])


def _caption_counts(length: int, rate: float) -> np.ndarray:
    """How many of n = 0 .. length - 1 candidates are hidden; <s> is a token, but none of them."""
    return np.array([0] + [max(1, min(_rounded(rate * (n + 1)), n)) for n in range(1, length)])


def _hide(keys, text, is_candidate, counts, corruption, random_ids, mask_id) -> HiddenText:
    """Hides counts[n] of each row's n candidates. random_ids: (lowest, highest)."""
    slots = int(counts.max())
    table = jnp.asarray(counts, jnp.int32)

    def one(key, text, is_candidate):
        place_key, kind_key, random_key = jax.random.split(key, 3)
        n = jnp.minimum(jnp.sum(is_candidate), len(counts) - 1)
        order = jnp.argsort(jnp.where(is_candidate,
                                      jax.random.uniform(place_key, text.shape), 2.0))
        is_hidden = jnp.arange(slots) < table[n]
        # a slot without a token has the position l: out of range, where `drop` leaves it alone
        places = jnp.sort(jnp.where(is_hidden, order[:slots], text.shape[0]))
        codes = text.at[places].get(mode="fill", fill_value=token_ids.PAD)
        kind = jax.random.uniform(kind_key, (slots,))
        drawn = jax.random.randint(random_key, (slots,), random_ids[0], random_ids[1] + 1)
        shown = jnp.where(kind < corruption[0], mask_id,
                          jnp.where(kind < corruption[0] + corruption[1], codes, drawn))
        hidden = text.at[places].set(shown.astype(text.dtype), mode="drop")
        return HiddenText(hidden, jnp.where(is_hidden, places, 0), codes, is_hidden)

    return jax.vmap(one)(keys, text, is_candidate)
