"""Beam search for generation with a mask: one sentence per image, the best by penalised length."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_NEVER = -1e9  # score of a beam that does not exist yet


class Sentence(NamedTuple):
    """words int [b, max_length - 2]; is_valid bool of the same shape; score float32 [b]."""

    words: jax.Array
    is_valid: jax.Array
    score: jax.Array


class _State(NamedTuple):
    index: jax.Array  # place of the last real token
    tokens: jax.Array  # int [b, beam, max_length - 1], the first token in front
    scores: jax.Array  # float32 [b, beam], sums of log-probabilities
    cache: Any
    best: jax.Array  # int [b, max_length - 1], of closed sentences
    best_length: jax.Array  # int [b], its words
    best_score: jax.Array  # float32 [b]
    is_done: jax.Array  # bool [b]


def beam_search(step: Callable, cache, batch: int, *, first_id: int, last_id: int, mask_id: int,
                beams: int, max_length: int, length_penalty: float) -> Sentence:
    """Searches for the sentence with the largest sum of log-probabilities / length ** penalty.

    The length counts the first token and the mask. A sentence that reaches `max_length` is closed
    without the word found last.

    Args:
      step: (cache, last two ids int [b * beams, 2], index) -> (logits [b * beams, v], cache), see
        Beit3ForCaptioning.decode_step.
      cache: leaves [l, b, ...] of the images, with room for max_length tokens.
      batch: b.
      first_id, last_id, mask_id: tokens that begin and end a sentence, and the mask.
    Returns: Sentence, without first and last token.
    Raises: ValueError: no room for a word.
    Source: microsoft/unilm beit3/engine_for_finetuning.py, CaptioningHandler.eval_batch.
    """
    if max_length < 3:
        raise ValueError(f"max_length={max_length} leaves no room for a word: it counts the first "
                         "token and the mask, so choose 3 or more")

    def over_beams(leaf):  # [l, b, ...] -> [l, b * beams, ...]
        return jnp.repeat(leaf, beams, axis=1)

    def body(state: _State) -> _State:
        last = jnp.take(state.tokens, state.index, axis=2).reshape(-1)
        logits, cache = step(state.cache, jnp.stack([last, jnp.full_like(last, mask_id)], axis=1),
                             state.index)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, -1)
        v = log_p.shape[-1]
        # a beam ends in one way, so of so many candidates at least `beams` go on
        top, at = jax.lax.top_k((state.scores[..., None] + log_p).reshape(batch, -1), 3 * beams)
        parent, word = at // v, at % v
        goes_on = word != last_id
        length = state.index + 2
        # an end that comes after all beams are refilled is too unlikely to count
        closes = ~goes_on & (jnp.cumsum(goes_on, axis=1) < beams) | (length + 1 == max_length)
        closing = jnp.argmax(closes, axis=1)[:, None]  # the best: candidates are sorted
        value = jnp.take_along_axis(top, closing, axis=1)[:, 0] / length**length_penalty
        is_better = closes.any(axis=1) & (value > state.best_score)
        closed = _rows(state.tokens, jnp.take_along_axis(parent, closing, axis=1))[:, 0]

        open_ = jnp.argsort(~goes_on, axis=1, stable=True)[:, :beams]
        parent, word, scores = (jnp.take_along_axis(each, open_, axis=1)
                                for each in (parent, word, top))
        tokens = _rows(state.tokens, parent).at[:, :, state.index + 1].set(word)
        flat = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
        best_score = jnp.where(is_better, value, state.best_score)
        return _State(
            state.index + 1, tokens, scores,
            jax.tree.map(lambda leaf: jnp.take(leaf, flat, axis=1), cache),
            jnp.where(is_better[:, None], closed, state.best),
            jnp.where(is_better, state.index, state.best_length), best_score,
            # log-probabilities only fall: nothing open can still get better than this
            best_score >= top[:, 0] / (max_length - 1)**length_penalty)

    def goes_on(state: _State):
        return (state.index + 2 < max_length) & ~jnp.all(state.is_done)

    tokens = jnp.full((batch, beams, max_length - 1), first_id, jnp.int32)
    scores = jnp.full((batch, beams), _NEVER).at[:, 0].set(0.0)
    end = jax.lax.while_loop(goes_on, body, _State(
        jnp.int32(0), tokens, scores, jax.tree.map(over_beams, cache), tokens[:, 0],
        jnp.zeros(batch, jnp.int32), jnp.full(batch, -jnp.inf), jnp.zeros(batch, bool)))
    is_valid = jnp.arange(max_length - 2) < end.best_length[:, None]
    return Sentence(end.best[:, 1:], is_valid, end.best_score)


def _rows(tokens, beam):
    """tokens [b, beams, n] of beam int [b, k] -> [b, k, n]."""
    return jnp.take_along_axis(tokens, beam[..., None], axis=1)
