"""A step of BEiT-3's pre-training, computed again by loops: what is hidden, shown and asked.

The tokenizer reads the code of a patch off the red of its own view, so that a patch, its code and
its logits must belong together.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beit3_steps import (
    MASK,
    ROWS,
    compiled_eval,
    compiled_step,
    images,
    log_softmax,
    normalized,
    other_padding,
    smoke,
    started,
    texts,
    untrained,
)

from beit_jax import tasks, token_ids
from beit_jax.targets.vqkd import VqkdTokenizer
from beit_jax.tasks import image_codes
from configs.beit3 import pretrain

B, LENGTH, SIDE, CODES, SLOTS = 6, 12, 4, 16, 10  # SIDE x SIDE patches of 8 px
COUNTS = (10, 10, 7, 5, 3, 1)  # pieces of the texts
WEIGHTS = dict(image=0.5, text=2.0, pair_image=3.0, pair_text=0.25)
ALWAYS = (1.0, 0.0, 0.0)


class Painted(VqkdTokenizer):
    """Its codes stand in the images that it sees: 255 times the red of a patch's corner."""

    def init(self, key):
        return {}

    def codes(self, variables, image01, positions=None):
        corners = image01[:, ::self.patch_size, ::self.patch_size, 0]
        found = jnp.round(255 * corners).astype(jnp.int32).reshape(len(image01), -1)
        return found if positions is None else jnp.take_along_axis(found, positions, axis=1)


def painted(codes):
    """Codes [b, n] as a view of the tokenizer's; green and blue show others."""
    pixels = np.stack([codes, CODES - 1 - codes, (codes + 1) % CODES], axis=-1)
    pixels = pixels.reshape(-1, SIDE, SIDE, 3).repeat(8, axis=1).repeat(8, axis=2)
    return pixels.astype(np.uint8)


def as_patches(image):
    """[b, 32, 32, 3] -> [b, n, 8, 8, 3], a view."""
    return image.reshape(-1, SIDE, 8, SIDE, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(
        -1, SIDE ** 2, 8, 8, 3)


def from_patches(patches):
    return patches.reshape(-1, SIDE, SIDE, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(
        -1, 32, 32, 3)


@pytest.fixture(scope="module")
def case():
    """Task, weights, batch, the codes painted in it, and both programs."""
    rng = np.random.default_rng(0)
    codes = {"images": (5 * np.arange(B)[:, None] + np.arange(SIDE ** 2)) % CODES}
    codes["pairs"] = (codes["images"] + 7) % CODES

    def rows(name):
        found = {"index": 10 + np.arange(B, dtype=np.int32), "is_example": np.ones(B, bool)}
        if name != "texts":
            found |= {"image": images(rng, B), "image_for_target": painted(codes[name])}
        return found if name == "images" else found | texts(rng, COUNTS, LENGTH)

    batch = {name: rows(name) for name in ("images", "texts", "pairs")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(image_codes.TOKENIZERS, "vqkd", Painted)
        config = smoke(pretrain, loss=WEIGHTS)
        # of four such masks one has fewer patches than slots
        config.mask.image.update(kind="block", num_masked=SLOTS, min_block=8)
        config.mask.text.corruption = config.mask.pair.corruption = ALWAYS
        task = tasks.make(config)
    params, _ = started(task, batch)
    frozen = {name: network.init(jax.random.key(0)) for name, network in task.frozen.items()}
    return SimpleNamespace(task=task, batch=batch, codes=codes, params=params,
                           step=compiled_step(task, frozen), evaluate=compiled_eval(task, frozen))


@pytest.fixture(scope="module")
def first(case):
    """(loss, metrics, gradients, calls)."""
    return case.step(case.params, {}, case.batch)


def asked(case, calls):
    """{part: [(row, log probabilities [v], target, its place), ...]} of all that is hidden.

    Of what is hidden and where it stands in the output, the network's own arguments tell; what is
    right there, the batch as the test has made it.
    """
    found = {}

    def of_patches(part, stream, is_masked, slots, logits):
        found[part] = [
            (row, log_softmax(logits[row, list(slots[row]).index(patch)]),
             case.codes[stream][row, patch], patch)
            for row in range(B) for patch in np.flatnonzero(is_masked[row])]

    def of_words(part, stream, places, logits):
        found[part] = [  # place 0, of <s>, is that of an empty slot
            (row, log_softmax(logits[row, list(places[row]).index(place)]),
             case.batch[stream]["text"][row, place], place)
            for row in range(B) for place in sorted({*places[row]} - {0})]

    if "predict_patches" in calls:
        (_, is_masked, slots), logits = calls["predict_patches"][0]
        of_patches("image", "images", is_masked, slots, logits)
    if "predict_words" in calls:
        (_, _, places), logits = calls["predict_words"][0]
        of_words("text", "texts", places, logits)
    if "__call__" in calls:
        (_, _, _, is_masked, slots, places), (patches, words) = calls["__call__"][0]
        of_patches("pair_image", "pairs", is_masked, slots, patches)
        of_words("pair_text", "pairs", places, words)
    return found


def test_the_loss_is_that_of_what_is_hidden_alone_each_place_against_its_own_target(case, first):
    total, metrics, _, calls = first
    expected = 0.0
    found = asked(case, calls)
    assert 0 < len(found["image"]) + len(found["pair_image"]) < 2 * SLOTS * B  # some are empty
    for part, places in found.items():
        losses = [-log_p[target] for _, log_p, target, _ in places]
        right = [log_p.argmax() == target for _, log_p, target, _ in places]
        np.testing.assert_allclose(metrics[f"loss_{part}"], np.mean(losses), rtol=1e-5)
        np.testing.assert_allclose(metrics[f"accuracy_{part}"], np.mean(right), rtol=1e-5)
        expected += WEIGHTS[part] * np.mean(losses)
    np.testing.assert_allclose([total, metrics["loss"]], expected, rtol=1e-5)


def test_the_gradient_of_both_heads_is_probability_less_target(case, first):
    _, _, grads, calls = first
    expected = {"mim_head": np.zeros(CODES), "mlm_head": np.zeros(ROWS)}
    for part, places in asked(case, calls).items():
        head = expected["mim_head" if "image" in part else "mlm_head"]
        for _, log_p, target, _ in places:
            head += WEIGHTS[part] * (np.exp(log_p) - np.eye(len(log_p))[target]) / len(places)
    for name, gradient in expected.items():
        np.testing.assert_allclose(grads[name]["bias"], gradient, atol=1e-6)


def test_patches_are_hidden_in_images_and_in_pairs_and_no_two_masks_are_alike(case, first):
    calls = first[3]
    (image, masks, _), _ = calls["predict_patches"][0]
    (pair_image, _, _, pair_masks, _, _), _ = calls["__call__"][0]
    for seen, name in ((image, "images"), (pair_image, "pairs")):
        np.testing.assert_allclose(seen, normalized(case.batch[name]["image"]), atol=1e-5)
    every = np.concatenate([masks, pair_masks])
    assert np.all(every.sum(axis=1) <= SLOTS) and every.sum() > SLOTS * B
    assert len({row.tobytes() for row in masks}) > 1 < len({row.tobytes() for row in pair_masks})
    assert np.any(masks != pair_masks)


def test_words_are_hidden_in_texts_and_in_pairs_and_shown_as_the_mask(case, first):
    calls = first[3]
    (text, is_valid, places), _ = calls["predict_words"][0]
    (_, pair_text, pair_is_valid, _, _, pair_places), _ = calls["__call__"][0]
    for name, shown, valid, at, numbers in (
            ("texts", text, is_valid, places, (2, 2, 1, 1, 1, 1)),
            ("pairs", pair_text, pair_is_valid, pair_places, (5, 5, 4, 3, 2, 1))):
        rows = case.batch[name]
        np.testing.assert_array_equal(valid, rows["text_is_valid"])
        for row in range(B):
            hidden = sorted({*at[row]} - {0})
            assert len(hidden) == numbers[row]
            assert np.all(rows["text"][row, hidden] >= token_ids.FIRST_PIECE)
            wanted = rows["text"][row].copy()
            wanted[hidden] = MASK
            np.testing.assert_array_equal(shown[row], wanted)
        assert {*at[0]} != {*at[1]}  # two texts of ten pieces


def test_masks_differ_from_step_to_step_and_a_step_can_be_drawn_again(case, first):
    again, later = (case.step(case.params, {}, case.batch, number) for number in (0, 1))
    for method in first[3]:
        args, same, others = (calls[3][method][0][0] for calls in (first, again, later))
        jax.tree.map(np.testing.assert_array_equal, same, args)
        differ = [np.any(a != b) for a, b in zip(args, others, strict=True)]
        # images and lengths stay; masks, slots, shown texts and places do not
        assert differ == {"predict_patches": [False, True, True],
                          "predict_words": [True, False, True],
                          "__call__": [False, True, False, True, True, True]}[method]


def test_pixels_of_hidden_patches_and_padding_do_not_matter_and_visible_pixels_do(case, first):
    total, metrics, _, calls = first
    masks = {"images": calls["predict_patches"][0][0][1], "pairs": calls["__call__"][0][0][3]}

    def changed(is_changed):
        rows = {name: other_padding(rows) if "text" in rows else rows
                for name, rows in case.batch.items()}
        for name in ("images", "pairs"):
            where = is_changed[name][..., None, None, None]
            patches = as_patches(rows[name]["image"])
            rows[name] = rows[name] | {"image": from_patches(np.where(where, 255 - patches,
                                                                      patches))}
        return case.step(case.params, {}, rows)

    same_total, same, _, _ = changed(masks)
    np.testing.assert_allclose(same_total, total, rtol=1e-6)
    _, other, _, _ = changed({name: ~mask for name, mask in masks.items()})
    for name, value in metrics.items():
        if name.startswith("loss_"):
            np.testing.assert_allclose(same[name], value, rtol=1e-6, err_msg=name)
    # images alone see nothing else; a pair's words see its patches
    for part in ("image", "pair_image", "pair_text"):
        assert abs(other[f"loss_{part}"] - metrics[f"loss_{part}"]) > 1e-4, part
    assert other["loss_text"] == pytest.approx(metrics["loss_text"], rel=1e-6)


def test_branches_are_dropped_in_every_stream(case):
    """Nothing that a mask decides can be seen here: all patches look like hidden ones and stand
    nowhere, all words look alike and each text has one, all codes are 3."""
    params = jax.tree.map(np.copy, case.params)
    vision = params["vision_embed"]
    vision["proj"] = {"kernel": 0 * vision["proj"]["kernel"],
                      "bias": vision["mask_token"].ravel()}
    params["embed_positions"]["A"]["embedding"][:] = 0.0
    params["text_embed"]["embedding"][:] = params["text_embed"]["embedding"][:1]
    one_word = texts(np.random.default_rng(1), (1,) * B, LENGTH)
    batch = {name: rows | (one_word if "text" in rows else {}) | (
        {"image_for_target": painted(np.full((B, SIDE ** 2), 3))} if "image" in rows else {})
        for name, rows in case.batch.items()}
    losses = [case.step(params, {}, batch, number)[1] for number in range(4)]
    for part in WEIGHTS:
        assert np.ptp([each[f"loss_{part}"] for each in losses]) > 1e-4, part


def test_every_weight_is_trained_in_one_step(first):
    assert untrained(first[2]) == set()


def with_fillers(case):
    """The batch, of whose images and pairs the last row, and of whose texts the last two are none.
    """
    batch = {name: dict(rows) for name, rows in case.batch.items()}
    for name, number in (("images", 1), ("texts", 2), ("pairs", 1)):
        batch[name]["is_example"] = np.arange(B) < B - number
    return batch


def test_evaluation_adds_up_what_is_hidden_in_examples(case):
    batch = with_fillers(case)
    sums, calls = case.evaluate(case.params, batch)
    for part, places in asked(case, calls).items():
        stream = {"image": "images", "text": "texts"}.get(part, "pairs")
        known = [place for place in places if batch[stream]["is_example"][place[0]]]
        losses = [-log_p[target] for _, log_p, target, _ in known]
        right = [log_p.argmax() == target for _, log_p, target, _ in known]
        np.testing.assert_allclose(sums[f"loss_{part}"], [np.sum(losses), len(known)], rtol=1e-5)
        np.testing.assert_allclose(sums[f"accuracy_{part}"], [np.sum(right), len(known)])
        if part == "image":
            counts = np.bincount([target for _, _, target, _ in known], minlength=CODES)
            np.testing.assert_array_equal(sums["codes"], counts)
    values = case.task.summarize(sums)
    assert values["loss"] == pytest.approx(
        sum(WEIGHTS[part] * sums[f"loss_{part}"][0] / sums[f"loss_{part}"][1]
            for part in WEIGHTS), rel=1e-5)


def test_a_mismatched_pair_is_an_image_with_the_text_of_the_row_before(case):
    batch = with_fillers(case)
    sums, calls = case.evaluate(case.params, batch)
    (matched, _), (mismatched, (patches, words)) = calls["__call__"]
    for number, name in enumerate(("image", "text", "is_valid", "is_masked", "slots", "places")):
        wanted = matched[number]
        if name in ("text", "is_valid", "places"):
            wanted = np.stack([wanted[(row - 1) % B] for row in range(B)])
        np.testing.assert_array_equal(mismatched[number], wanted, err_msg=name)
    is_masked, slots, places = mismatched[3:]
    known = range(1, B - 1)  # the first has the text of a filler, the last is one
    of_patches = [-log_softmax(patches[row, list(slots[row]).index(patch)])[
        case.codes["pairs"][row, patch]] for row in known
        for patch in np.flatnonzero(is_masked[row])]
    of_words = [-log_softmax(words[row, list(places[row]).index(place)])[
        case.batch["pairs"]["text"][row - 1, place]] for row in known
        for place in sorted({*places[row]} - {0})]
    for part, losses in (("pair_image", of_patches), ("pair_text", of_words)):
        np.testing.assert_allclose(sums[f"loss_{part}_mismatched"], [np.sum(losses), len(losses)],
                                   rtol=1e-5)


def test_evaluation_sees_neither_fillers_nor_the_order_of_rows(case):
    batch = with_fillers(case)
    sums, _ = case.evaluate(case.params, batch)
    others = {}
    for name, rows in batch.items():
        filler, others[name] = ~rows["is_example"], dict(rows)
        for key in {"image", "image_for_target", "text"} & rows.keys():
            others[name][key] = np.where(filler.reshape(-1, *[1] * (rows[key].ndim - 1)),
                                         rows[key][:1], rows[key])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
                 case.evaluate(case.params, others)[0], sums)
    rolled = jax.tree.map(lambda each: np.roll(each, 2, axis=0), others)
    for name, value in case.evaluate(case.params, rolled)[0].items():
        if "mismatched" not in name:  # there each meets the text of its neighbor
            np.testing.assert_allclose(value, sums[name], rtol=1e-5, err_msg=name)


def test_figures_show_what_is_hidden_in_gray(case):
    figures = case.task.pictures({}, {}, case.batch, jax.random.key(0))
    assert figures.keys() == {"masks_images", "masks_pairs"}
    for name, figure in figures.items():
        image = case.batch[name.removeprefix("masks_")]["image"]
        whole, hidden = (as_patches(np.asarray(figure[:, :, part]))
                         for part in (slice(0, 32), slice(32, 64)))
        np.testing.assert_array_equal(whole, as_patches(image))
        is_gray = np.all(hidden == 128, axis=(2, 3, 4))
        assert np.all(is_gray.sum(axis=1) <= SLOTS) and np.any(is_gray)
        np.testing.assert_array_equal(hidden[~is_gray], whole[~is_gray])
