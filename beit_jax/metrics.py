"""Measures of predictions, as sums over rows so that a split can be added up exactly."""

import jax.numpy as jnp

from beit_jax.vectors import to_unit


def is_correct(logits, label, k: int = 1):
    """Whether fewer than k classes score above the label's: logits [b, C], label [b] -> bool [b].

    A tie counts as correct only against classes of a higher index, as for argmax; logits that are
    not numbers and labels that are no class are never correct.
    """
    is_class = (label >= 0) & (label < logits.shape[-1])
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    index = jnp.arange(logits.shape[-1])[None, :]
    before = (logits > own) | ((logits == own) & (index < label[:, None]))
    return is_class & (jnp.sum(before, axis=-1) < k) & ~jnp.any(jnp.isnan(logits), axis=-1)


def code_use(counts):
    """(share of codes used at least once, perplexity in [1, v]) of code counts [v].

    Sum the counts over batches and hosts first: neither is a mean of means.
    """
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    terms = jnp.where(counts > 0, share * jnp.log(jnp.where(counts > 0, share, 1.0)), 0.0)
    return jnp.mean(counts > 0), jnp.exp(-jnp.sum(terms))


def token_similarity(features):
    """How alike an image's tokens are: mean cosine of ordered pairs of different tokens.

    1 - this is the token diversity. It is not centred: a vector that all tokens share raises it.

    Args: features: [b, n, c], without class token and registers.
    Returns: float32 [b], 1 where all tokens have one direction.
    Raises: ValueError: there are no pairs.
    Source: Img2Vec (arXiv 2304.12535), token diversity.
    """
    n = features.shape[1]
    if n < 2:
        raise ValueError(f"token similarity compares the tokens of an image, and there is n={n}: "
                         "give features of two patches or more")
    unit = to_unit(features)
    # |sum u|^2 is the sum over all pairs: work n c, and no n x n matrix. The pairs i = j are taken
    # out as they are, not as n, so that a token that is zero counts as similar to none.
    pairs = jnp.sum(jnp.sum(unit, axis=1) ** 2, axis=-1) - jnp.sum(unit ** 2, axis=(1, 2))
    return pairs / (n * (n - 1))


def score_of_best(logits, targets):
    """VQA: the soft score of each question's best answer: logits, targets [b, C] -> float32 [b].

    Its mean times 100 is the validation accuracy of BEiT-3. Logits that are no numbers score 0.
    """
    best = jnp.argmax(logits, axis=-1)[:, None]
    score = jnp.take_along_axis(targets, best, axis=-1)[:, 0]
    return jnp.where(jnp.any(jnp.isnan(logits), axis=-1), 0.0, score).astype(jnp.float32)
