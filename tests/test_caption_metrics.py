"""BLEU, ROUGE-L, CIDEr-D: by hand on small sets, and the words that they compare."""

import math

import pytest

from beit_jax import caption_metrics, caption_words


@pytest.mark.parametrize("caption, words", [
    ("A man's dog, isn't it?", "a man 's dog is n't it"),
    ("They don't; we can't. I'm, you're, we've, he'll, she'd", "they do n't we ca n't i 'm you "
     "'re we 've he 'll she 'd"),
    ("a half-eaten, black/white T-shirt", "a half-eaten black/white t-shirt"),
    ("1,000 birds at 10:30 for 2.5 dollars.", "1,000 birds at 10:30 for 2.5 dollars"),
    ('"Stop" (he said) -- and... went!', "stop he said and went"),
    ("the U.S. flag", "the u.s. flag"), ("Mr. Smith on Main St.", "mr. smith on main st"),
    ("salt & pepper, 50% of #3", "salt & pepper 50 % of # 3"),
    ("cannot", "can not"), ("the 1980s, 3rd street", "the 1980s 3rd street"),
    ("caf\u00e9 \u2018blue\u2019 \u201cred\u201d", "caf\u00e9 blue red"),
    ("the boys' bats", "the boys bats"), ("\n two\nlines ", "two lines"), (" . ", ""),
], ids=lambda value: value[:14].strip())
def test_words(caption, words):
    assert caption_words.split(caption) == words.split()


REFERENCES = {1: ["a cat sits on a mat", "there is a cat on the mat"],
              2: ["two dogs run in the park", "dogs are running"],
              3: ["a red bus on the street"]}
SAME = {image: captions[0] for image, captions in REFERENCES.items()}


def scores(candidates, references=None):
    return caption_metrics.scores(candidates, references or REFERENCES)


def test_captions_that_are_references_score_full_marks():
    single = {image: captions[:1] for image, captions in REFERENCES.items()}
    found = scores(SAME, single)
    assert found.pop("CIDEr-D") == pytest.approx(10.0)
    assert found == pytest.approx(dict.fromkeys(found, 1.0))
    assert list(found) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]


def test_captions_without_a_common_word_score_nothing():
    assert set(scores(dict.fromkeys(REFERENCES, "zebra")).values()) == {0.0}
    assert set(scores(dict.fromkeys(REFERENCES, "")).values()) == {0.0}


def test_bleu_clips_counts_and_takes_the_closest_length():
    # the textbook: seven times "the"; at most two stand in one reference
    pairs = [("the the the the the the the".split(),
              ["the cat is on the mat".split(), "there is a cat on the mat".split()])]
    found = caption_metrics.bleu(pairs)
    assert found[0] == pytest.approx(2 / 7) and found[1:] == [0, 0, 0]  # length 7 is matched
    # 4 words between references of 3 and 5: the shorter counts, no penalty
    assert caption_metrics.bleu([("a b c d".split(), ["a b c".split(), "a b c d e".split()])]
                                ) == pytest.approx([1.0] * 4)
    # of 4 and 9 words the latter are closer to 8
    longer = caption_metrics.bleu([(list("abcdefgh"), [list("abcd"), list("abcdefghi")])])
    assert longer[0] == pytest.approx(math.exp(1 - 9 / 8))
    # 3 words of a reference of 5: exp(1 - 5 / 3)
    short = caption_metrics.bleu([("a b c".split(), ["a b c d e".split()])])
    assert short[:3] == pytest.approx([math.exp(-2 / 3)] * 3) and short[3] == 0.0


def test_bleu_is_of_the_corpus_not_a_mean_of_captions():
    pairs = [("a b c d".split(), ["a b c d".split()]), ("x y".split(), ["p q".split()])]
    assert caption_metrics.bleu(pairs)[0] == pytest.approx(4 / 6)
    assert caption_metrics.bleu(pairs)[1] == pytest.approx(math.sqrt(4 / 6 * 3 / 4))


def test_rouge_by_hand():
    # common "police the gunman" of 4 and 5 words: P = 3/4, R = 3/5
    words, reference = "police kill the gunman".split(), "police ended the gunman today".split()
    p, r = 3 / 4, 3 / 5
    expected = (1 + 1.44) * p * r / (r + 1.44 * p)
    assert caption_metrics.rouge_l(words, [reference]) == pytest.approx(expected)
    # best precision and best recall come from different references
    both = caption_metrics.rouge_l(words, [reference, ["gunman"]])
    assert both == pytest.approx((1 + 1.44) * p * 1 / (1 + 1.44 * p))


def test_cider_by_hand():
    """Two images; "a" is in both, so it weighs nothing; every other n-gram weighs log 2."""
    pairs = [("a b".split(), ["a b".split(), "a c".split()]), ("a d d".split(), ["a d".split()])]
    first, second = caption_metrics.cider_d(pairs)
    # n = 1 and 2 agree with the first reference wholly, with the second nowhere; n = 3, 4 are empty
    assert first == pytest.approx(10 * (1 + 1) / 4 / 2)
    # n = 1: "d" twice against once, clipped: 1 * 1 / (2 * 1). n = 2: "a d" of "a d", "d d":
    # 1 / sqrt 2. The lengths differ by one.
    penalty = math.exp(-1 / (2 * 36))
    assert second == pytest.approx(10 * (1 / 2 + 1 / math.sqrt(2)) / 4 * penalty)
    assert caption_metrics.cider_d(pairs[:1]) == [None]  # 0 whatever the caption


def test_what_is_0_by_definition_is_told_and_no_part_of_a_mean(caplog):
    one = scores({4: "a dog runs on wet grass"}, {4: ["a dog runs on wet grass", "dog on grass"]})
    assert "CIDEr-D" not in one and one["BLEU-4"] == pytest.approx(1.0)
    assert "CIDEr-D of 1 of 1 images is 0 by definition" in caplog.text
    caplog.clear()
    # every n-gram of "a cat" stands with both images; a reference may hold no word at all
    two = {1: ["a cat"], 2: ["a cat", "a cat sits on a mat"]}
    same = {1: "a cat", 2: "a cat sits on a mat"}
    found = scores(same, two)
    assert found["CIDEr-D"] == pytest.approx(caption_metrics.cider_d(
        [("a cat".split(), ["a cat".split()]),
         (same[2].split(), [c.split() for c in two[2]])])[1])
    assert "CIDEr-D of 1 of 2 images" in caplog.text and "hold no word" not in caplog.text
    assert scores(same | {3: "a bus"}, two | {3: [" . "]}) == found
    assert "the references of 1 of 3 images hold no word" in caplog.text
    assert scores({3: "a bus"}, {3: ["..."]}) == {}
    caplog.clear()
    assert len(scores(SAME)) == 6 and not caplog.text


def test_cider_does_not_pay_for_repetition():
    honest = scores(SAME)["CIDEr-D"]
    repeated = scores({i: f"{c} {c}" for i, c in SAME.items()})["CIDEr-D"]
    assert 0 < repeated < 0.75 * honest


@pytest.mark.parametrize("candidates, references, message", [
    ({1: "a"}, {1: ["a"], 2: ["b", "c"]}, "image 2 has no caption to score and 2 references"),
    ({1: "a", 3: "b"}, {1: ["a"]}, "image 3 has a caption to score and 0 references"),
    ({1: "a"}, {1: []}, "image 1 has no reference caption"), ({}, {}, "no captions to score")])
def test_sets_that_do_not_fit_are_refused(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        caption_metrics.scores(candidates, references)
