"""What every text mask must satisfy, for texts of all lengths in one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import text_masking, token_ids

PIECES, LENGTH = 64_000, 64
SETTINGS = pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
BOTH = pytest.mark.parametrize("corruption", [text_masking.BERT, text_masking.ALWAYS_MASK],
                               ids=["bert", "always"])


def texts(lengths, length=LENGTH, seed=0):
    """Rows with 0, 1, 2 ... pieces: (ids int32 [b, l], is_valid bool [b, l])."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), length), token_ids.PAD, np.int32)
    for row, n in zip(ids, lengths):
        row[:n + 2] = [token_ids.BOS, *rng.integers(4, PIECES + 1, n), token_ids.EOS]
    return ids, ids != token_ids.PAD


def hide(function, ids, is_valid, seed=0, **options):
    keys = jax.random.split(jax.random.key(seed), len(ids))
    run = jax.jit(lambda keys, ids, is_valid: function(keys, ids, is_valid, num_pieces=PIECES,
                                                       **options))
    return jax.tree.map(np.asarray, run(keys, ids, is_valid))


def counted(rate, n):
    return min(max(int(rate * n + 0.5), 1), n)


@SETTINGS
@BOTH
def test_pieces_alone_are_hidden_in_the_right_number(rate, corruption):
    ids, is_valid = texts(range(LENGTH - 1))
    made = hide(text_masking.hide_content, ids, is_valid, rate=rate, corruption=corruption)
    slots = text_masking.num_slots(LENGTH, rate)
    assert made.positions.shape == made.codes.shape == made.is_hidden.shape == (len(ids), slots)
    assert made.is_hidden.sum(axis=1).tolist() == [counted(rate, n) for n in range(LENGTH - 1)]
    for row in range(len(ids)):
        places = made.positions[row][made.is_hidden[row]]
        assert (np.diff(places) > 0).all() and (ids[row, places] >= 4).all()
        np.testing.assert_array_equal(made.codes[row][made.is_hidden[row]], ids[row, places])
        untouched = np.setdiff1d(np.arange(LENGTH), places)
        np.testing.assert_array_equal(made.text[row, untouched], ids[row, untouched])
        if corruption == text_masking.ALWAYS_MASK:
            assert (made.text[row, places] == 64_001).all()


NUMBERS = [  # of tokens, hidden ones: by hand, half a token counts as a whole one
    (text_masking.hide_content, 0.15, {1: 1, 9: 1, 10: 2, 16: 2, 17: 3, 23: 3, 24: 4, 62: 9}),
    (text_masking.hide_content, 0.5, {1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 61: 31, 62: 31}),
    (text_masking.hide_content, 1.0, {1: 1, 2: 2, 62: 62}),
    # of captions tokens are counted with both ends, and one at least stays
    (text_masking.hide_caption, 0.7, {2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 10: 7, 15: 11, 32: 22, 64: 45}),
    (text_masking.hide_caption, 0.6, {2: 1, 3: 2, 4: 2, 5: 3, 6: 4, 32: 19, 64: 38}),
    (text_masking.hide_caption, 1.0, {2: 1, 3: 2, 64: 63}),
]


@pytest.mark.parametrize(("function", "rate", "numbers"), NUMBERS)
def test_how_many_are_hidden_of_how_many_by_hand(function, rate, numbers):
    ends = 2 if function is text_masking.hide_caption else 0
    ids, is_valid = texts([n - ends for n in numbers])
    made = hide(function, ids, is_valid, rate=rate)
    assert made.is_hidden.sum(axis=1).tolist() == list(numbers.values())
    is_changed = made.text != ids
    for row in range(len(ids)):
        places = made.positions[row][made.is_hidden[row]]
        assert len(set(places)) == len(places) and set(np.flatnonzero(is_changed[row])) <= {*places}


def test_the_last_token_of_a_caption_is_hidden_as_often_as_any_other():
    ids, is_valid = texts([7] * 4000)
    ids[:] = ids[0]
    made = hide(text_masking.hide_caption, ids, is_valid, rate=0.5)  # 5 of the 8 behind <s>
    often = np.bincount(made.positions[made.is_hidden], minlength=LENGTH)[:10] / len(ids)
    np.testing.assert_allclose(often[1:9], 5 / 8, atol=5 * np.sqrt(15 / 64 / len(ids)))
    assert often[0] == often[9] == 0


@pytest.mark.parametrize("length, rate, slots", [(196, 0.15, 29), (64, 0.5, 31), (64, 1.0, 62)])
def test_slots_are_what_the_longest_text_needs(length, rate, slots):
    assert text_masking.num_slots(length, rate) == slots


def test_shares_of_what_stands_in_a_hidden_place():
    ids, is_valid = texts([62] * 512)
    made = hide(text_masking.hide_content, ids, is_valid, rate=1.0)
    is_mask = made.text == 64_001
    is_kept = (made.text == ids) & is_valid
    pieces = is_valid & (ids >= 4)
    others = made.text[pieces & ~is_mask & ~is_kept]
    n = pieces.sum()
    assert abs(is_mask[pieces].mean() - 0.8) < 5 * np.sqrt(0.16 / n)
    assert abs(is_kept[pieces].mean() - 0.1) < 5 * np.sqrt(0.09 / n)
    assert others.min() >= 4 and others.max() <= 64_000
    assert abs(others.mean() - 32_002) < 5 * 64_000 / np.sqrt(12 * len(others))


def test_random_tokens_reach_the_first_and_the_last_id():
    ids, is_valid = texts([62] * 64)
    ids = np.where(ids >= 4, 4 + ids % 7, ids)
    keys = jax.random.split(jax.random.key(1), len(ids))
    random = dict(rate=1.0, num_pieces=10, corruption=(0.0, 0.0, 1.0))
    made = text_masking.hide_content(keys, ids, is_valid, **random)
    assert set(np.unique(made.text[ids >= 4])) == set(range(4, 11))
    made = text_masking.hide_caption(keys, ids, is_valid, **random)
    assert set(np.unique(made.text[ids >= 4])) == set(range(3, 12))


def test_every_piece_is_hidden_equally_often_and_rows_differ():
    ids, is_valid = texts([20] * 4000)
    ids[:] = ids[0]  # one text, many keys
    made = hide(text_masking.hide_content, ids, is_valid, rate=0.5)
    often = np.bincount(made.positions[made.is_hidden], minlength=LENGTH)[1:21] / len(ids)
    np.testing.assert_allclose(often, 0.5, atol=5 * np.sqrt(0.25 / len(ids)))
    assert len({row.tobytes() for row in made.positions}) > 3000


def test_what_replaces_a_token_does_not_follow_from_where_others_are_hidden():
    """The draws of places and of replacements are independent: slot j against position j."""
    ids, is_valid = texts([62] * 2000)
    made = hide(text_masking.hide_content, ids, is_valid, rate=0.5, corruption=(0.5, 0.5, 0.0))
    is_place_hidden = np.zeros(ids.shape, bool)
    np.put_along_axis(is_place_hidden, made.positions, True, axis=1)
    is_mask = np.take_along_axis(made.text, made.positions, axis=1) == 64_001  # [b, slots]
    same = is_place_hidden[:, 1:31] == is_mask[:, 1:31]
    assert abs(same.mean() - 0.5) < 5 * 0.5 / np.sqrt(same.size)


def test_a_mask_follows_from_its_key_alone():
    ids, is_valid = texts([5, 30, 62, 0])
    keys = jax.random.split(jax.random.key(3), 4)
    options = dict(rate=0.5, num_pieces=PIECES)
    together = text_masking.hide_content(keys, ids, is_valid, **options)
    apart = text_masking.hide_content(keys[1:], jnp.asarray(ids[1:]), is_valid[1:], **options)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b), together, apart)


@pytest.mark.parametrize("rate", [0.1, 0.7, 1.0])
def test_captions_may_lose_their_end_but_never_their_start_or_padding(rate):
    ids, is_valid = texts([*range(LENGTH - 1)] * 8)
    made = hide(text_masking.hide_caption, ids, is_valid, rate=rate)
    wanted = [max(1, min(int(rate * n + 0.5), n - 1)) for n in is_valid.sum(axis=1)]
    assert made.is_hidden.sum(axis=1).tolist() == wanted
    hidden = made.codes[made.is_hidden]
    assert token_ids.EOS in hidden and not {token_ids.BOS, token_ids.PAD} & set(hidden.tolist())
    np.testing.assert_array_equal(made.text[:, 0], token_ids.BOS)
    assert (made.text[~is_valid] == token_ids.PAD).all()


@pytest.mark.parametrize("options, message", [
    (dict(rate=0.0), "mask.rate=0.0 must lie"), (dict(rate=1.5), "mask.rate=1.5"),
    (dict(rate=0.5, corruption=(0.8, 0.1, 0.2)), "add up to 1"),
    (dict(rate=0.5, corruption=(1.2, -0.1, -0.1)), "add up to 1")])
@pytest.mark.parametrize("function", [text_masking.hide_content, text_masking.hide_caption])
def test_impossible_settings_are_refused(function, options, message):
    ids, is_valid = texts([3])
    with pytest.raises(ValueError, match=message):
        function(jax.random.split(jax.random.key(0), 1), ids, is_valid, num_pieces=PIECES,
                 **options)
