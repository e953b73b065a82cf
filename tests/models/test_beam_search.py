"""Beam search against trying every sentence, on words that depend on the word before alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.models.beam_search import beam_search

FIRST, LAST, MASK, WORDS, LENGTH = 0, 1, 2, 5, 5


def search(logits, beams, length_penalty, max_length=LENGTH):
    """logits [b, v, v]: next word by the word before, of every image."""
    def step(cache, ids, index):
        assert ids.shape == (len(logits) * beams, 2)
        table, words = cache  # the last words, written down as a network would its keys
        words = words.at[0, :, index].set(ids[:, 0])
        return table[0, jnp.arange(len(ids)), words[0, :, index]], (table, words)

    cache = (logits[None], jnp.zeros((1, len(logits), max_length), jnp.int32))
    return jax.jit(lambda: beam_search(
        step, cache, len(logits), first_id=FIRST, last_id=LAST, mask_id=MASK, beams=beams,
        max_length=max_length, length_penalty=length_penalty))()


def every_sentence(log_p, length_penalty):
    """(score, words) of all sentences; the longest end with any word, which is lost."""
    for count in range(LENGTH - 2):
        for words in itertools.product([w for w in range(WORDS) if w != LAST], repeat=count):
            path = (FIRST, *words)
            total = sum(log_p[a, b] for a, b in itertools.pairwise(path))
            is_longest = count == LENGTH - 3
            end = log_p[path[-1]].max() if is_longest else log_p[path[-1], LAST]
            yield (total + end) / (count + 2)**length_penalty, words


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_a_wide_search_finds_the_best_sentence(length_penalty):
    logits = 2.0 * jax.random.normal(jax.random.key(4), (6, WORDS, WORDS))
    found = search(logits, 16, length_penalty)
    lengths = set()
    for image, log_p in enumerate(np.asarray(jax.nn.log_softmax(logits))):
        score, words = max(every_sentence(log_p, length_penalty))
        ours = np.asarray(found.words[image])[np.asarray(found.is_valid[image])]
        assert tuple(ours) == words
        assert found.score[image] == pytest.approx(score, abs=1e-5)
        lengths.add(len(words))
    assert len(lengths) > 1 or length_penalty == 2.0


def test_one_beam_follows_the_likeliest_word():
    logits = jnp.zeros((1, WORDS, WORDS)).at[0, FIRST, 3].set(9.0).at[0, 3, 4].set(9.0)
    found = search(logits.at[0, 4, LAST].set(9.0), 1, 0.6, max_length=8)
    np.testing.assert_array_equal(found.words[0][:2], [3, 4])
    assert found.is_valid.sum() == 2


@pytest.mark.parametrize(("length_penalty", "wanted"), [(0.0, ()), (2.0, (3, 4, 3, 4, 3))])
def test_a_search_goes_on_while_a_longer_sentence_can_still_be_better(length_penalty, wanted):
    """Of all sentences 0.52 end at once, and the others never: log 0.48 / 7^2 > log 0.52 / 2^2."""
    logits = jnp.full((1, WORDS, WORDS), -40.0).at[0, FIRST, jnp.array([LAST, 3])].set(
        jnp.array([0.1, 0.0])).at[0, jnp.array([3, 4]), jnp.array([4, 3])].set(0.0)
    found = search(logits, 2, length_penalty, max_length=8)
    assert tuple(np.asarray(found.words[0])[np.asarray(found.is_valid[0])]) == wanted
    share = 1 / (1 + np.exp(0.1 if wanted else -0.1))
    assert found.score[0] == pytest.approx(np.log(share) / (7 if wanted else 2)**length_penalty,
                                           rel=1e-5)


def test_an_end_behind_a_full_set_of_beams_is_not_taken():
    """One beam goes on with 3, the likelier word, although to end would be better than all that
    comes then."""
    logits = jnp.full((1, WORDS, WORDS), -40.0).at[0, FIRST, jnp.array([3, LAST])].set(
        jnp.array([0.5, 0.0])).at[0, 3, jnp.array([2, 3, 4])].set(jnp.array([0.0, 0.5, 0.0]))
    found = search(logits, 1, 0.0, max_length=6)
    assert tuple(np.asarray(found.words[0])[np.asarray(found.is_valid[0])]) == (3, 3, 3)


def test_the_memory_of_a_beam_moves_with_it():
    """What follows depends on the first word alone, which the cache remembers: 3 is likelier at
    first, and 4, whose sentence ends as (4, 3), overtakes it."""
    def logits_of(**likely):
        words = jnp.array([int(word[1:]) for word in likely])
        return jnp.full(WORDS, -40.0).at[words].set(jnp.array(list(likely.values())))

    begins, spreads = logits_of(w3=0.4, w4=0.0), logits_of(w2=0.2, w3=0.1, w4=0.0)
    goes_on, ends = logits_of(w3=0.0), logits_of(w1=0.0)

    def step(cache, ids, index):
        cache = cache.at[0, :, index].set(ids[:, 0])
        of_four = jnp.where(index == 1, goes_on, ends)
        later = jnp.where((cache[0, :, 1] == 4)[:, None], of_four, spreads)
        return jnp.where(index == 0, begins, later), cache

    found = jax.jit(lambda: beam_search(
        step, jnp.zeros((1, 1, 6), jnp.int32), 1, first_id=FIRST, last_id=LAST, mask_id=MASK,
        beams=2, max_length=6, length_penalty=0.0))()
    assert tuple(np.asarray(found.words[0])[np.asarray(found.is_valid[0])]) == (4, 3)
    assert found.score[0] == pytest.approx(-np.log(1 + np.exp(0.4)), rel=1e-5)


def test_an_image_that_is_done_waits_for_the_others_and_keeps_its_sentence():
    short = jnp.full((WORDS, WORDS), -40.0).at[FIRST, 3].set(0.0).at[3, LAST].set(0.0).at[
        LAST, 4].set(0.0).at[4, 4].set(0.0)
    long = short.at[3, LAST].set(-40.0).at[3, 4].set(0.0)
    found = search(jnp.stack([short, long]), 2, 0.6, max_length=7)
    words = [tuple(np.asarray(row)[np.asarray(is_valid)])
             for row, is_valid in zip(found.words, found.is_valid, strict=True)]
    assert words == [(3,), (3, 4, 4, 4)]


def test_a_length_without_room_for_a_word_is_refused():
    with pytest.raises(ValueError, match="max_length=2 leaves no room for a word"):
        search(jnp.zeros((1, WORDS, WORDS)), 1, 0.6, max_length=2)
