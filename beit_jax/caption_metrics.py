"""BLEU, ROUGE-L and CIDEr-D of captions against several references each, without Java.

The formulas are those of the COCO caption evaluation; the words are those of `caption_words`,
which is close to its tokenizer but not it: figures for a paper come from the original program.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from beit_jax import caption_words

log = logging.getLogger(__name__)

_N = 4  # longest n-gram
NAMES = (*(f"BLEU-{n + 1}" for n in range(_N)), "ROUGE-L", "CIDEr-D")  # of `scores`
_SIGMA = 6.0  # CIDEr-D: width of its penalty on a difference of length, in words
_BETA = 1.2  # ROUGE-L: weight of recall


def scores(candidates: Mapping, references: Mapping[object, Sequence[str]]) -> dict[str, float]:
    """Scores of one caption for each image.

    Args:
      candidates: {image id: caption}.
      references: {image id: captions of people}, the same ids.
    Returns: {"BLEU-1" .. "BLEU-4", "ROUGE-L": in [0, 1]; "CIDEr-D": in [0, 10]}; papers write them
      times 100. What is 0 by definition is left out of the means and said in the log: images whose
      references hold no word, and of CIDEr-D those that `cider_d` cannot score. CIDEr-D is not
      there if it can score none, as of a single image; nothing is there if no reference has a word.
    Raises: ValueError: the ids differ, there are none, or an image has no reference.
    """
    missing = [*(i for i in references if i not in candidates),
               *(i for i in candidates if i not in references)]
    if missing:
        raise ValueError(f"image {missing[0]} has {'no' if missing[0] in references else 'a'} "
                         f"caption to score and {len(references.get(missing[0], ()))} references: "
                         "give both the same images")
    if not references:
        raise ValueError("no captions to score")
    split = {i: caption_words.split(caption) for i, caption in candidates.items()}
    known = {i: [caption_words.split(one) for one in captions]
             for i, captions in references.items()}
    bare = [i for i, captions in known.items() if not captions]
    if bare:
        raise ValueError(f"image {bare[0]} has no reference caption: leave it out")
    pairs = [(split[i], captions) for i, captions in known.items() if any(captions)]
    if len(pairs) < len(known):
        log.warning("the references of %d of %d images hold no word: they are not measured",
                    len(known) - len(pairs), len(known))
    if not pairs:
        return {}
    rouge = [rouge_l(words, captions) for words, captions in pairs]
    found = {**{f"BLEU-{n + 1}": value for n, value in enumerate(bleu(pairs))},
             "ROUGE-L": sum(rouge) / len(rouge)}
    cider = [value for value in cider_d(pairs) if value is not None]
    if len(cider) < len(pairs):
        log.warning("CIDEr-D of %d of %d images is 0 by definition, whatever their captions say: "
                    "each n-gram of their references stands with every image, as with a single "
                    "one. %s", len(pairs) - len(cider), len(pairs),
                    "The mean leaves them out" if cider else "It is left out")
    return found | ({"CIDEr-D": sum(cider) / len(cider)} if cider else {})


def ngrams(words: Sequence[str]) -> list[Counter]:
    """Counts of n-grams, n = 1 to 4: one Counter of tuples each."""
    return [Counter(zip(*(words[i:] for i in range(n)))) for n in range(1, _N + 1)]


def bleu(pairs) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus, with the closest reference's length.

    Args: pairs: [(words, [words of a reference, ...]), ...].
    Source: Papineni et al. 2002; tylin/coco-caption, bleu_scorer.py, option "closest": of two
      references equally close the shorter counts.
    """
    right, shown = [0] * _N, [0] * _N
    length = closest = 0
    for words, references in pairs:
        length += len(words)
        closest += min((abs(len(r) - len(words)), len(r)) for r in references)[1]
        known = [ngrams(reference) for reference in references]
        for n, counts in enumerate(ngrams(words)):
            most = Counter()
            for reference in known:
                most |= reference[n]  # the larger count of each
            right[n] += (counts & most).total()
            shown[n] += counts.total()
    brevity = math.exp(min(0.0, 1.0 - closest / length)) if length else 0.0
    precisions = [r / s if s else 0.0 for r, s in zip(right, shown)]
    return [brevity * math.prod(precisions[:n]) ** (1 / n) for n in range(1, _N + 1)]


def rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one caption: F of the best precision and the best recall, beta 1.2.

    The two bests may come from different references, as in the original.
    Source: Lin 2004; tylin/coco-caption, rouge.py.
    """
    common = [_longest_common(words, reference) for reference in references]
    precision = max((c / len(words) for c in common if words), default=0.0)
    recall = max((c / len(r) for c, r in zip(common, references) if r), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], (diagonal + 1 if word == other
                                        else max(row[j], row[j - 1]))
    return row[-1]


def cider_d(pairs) -> list[float | None]:
    """CIDEr-D of each caption, in [0, 10]; None where it is 0 whatever the caption.

    Rarity is counted over the references of all pairs, so a score depends on the whole set. An
    n-gram that all images have weighs nothing: in a set of one image none weighs anything.

    Args: pairs: [(words, [words of a reference, ...]), ...].
    Source: Vedantam et al. 2015 (arXiv 1411.5726), Sec. 4; tylin/coco-caption, cider_scorer.py.
    """
    known = [[ngrams(reference) for reference in references] for _, references in pairs]
    images_with = [Counter() for _ in range(_N)]
    for references in known:
        for n in range(_N):
            images_with[n].update(set().union(*(reference[n] for reference in references)))
    log_images = math.log(len(pairs)) if pairs else 0.0

    def weigh(counts):
        vectors = [{gram: count * (log_images - math.log(max(1, images_with[n][gram])))
                    for gram, count in counts[n].items()} for n in range(_N)]
        return vectors, [math.hypot(*vector.values()) for vector in vectors], counts[0].total()

    found = []
    for (words, _), references in zip(pairs, known):
        caption, weighed = weigh(ngrams(words)), [weigh(reference) for reference in references]
        if not any(any(norms) for _, norms, _ in weighed):
            found.append(None)
            continue
        each = [_similarity(caption, reference) for reference in weighed]
        found.append(10.0 * sum(each) / len(each))
    return found


def _similarity(caption, reference) -> float:
    """Mean over n of clipped cosines, times the penalty on a difference of length."""
    (vectors, norms, length), (others, other_norms, other_length) = caption, reference
    total = 0.0
    for vector, other, norm, other_norm in zip(vectors, others, norms, other_norms):
        if norm and other_norm:
            shared = sum(min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0)
                         for gram, weight in vector.items())
            total += shared / (norm * other_norm)
    return total / _N * math.exp(-(length - other_length) ** 2 / (2 * _SIGMA**2))
