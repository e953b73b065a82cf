"""How much the tokens of a frozen teacher differ from each other, over any number of images.

Nothing is trained. The steps of a run are the pass that gathers mean and variance of each channel;
its evaluations are the pass that measures. Teachers are compared by a recipe with one stage each.
Source: Img2Vec (arXiv 2304.12535), token diversity. Centred and pooled values are ours.
"""

import jax
import jax.numpy as jnp

from beit_jax import flops, metrics
from beit_jax.tasks import task as contract
from beit_jax.tasks import teacher_features
from beit_jax.vectors import to_unit

# dark to bright: cosine 0 (and below) to 1; nine colours of viridis, others lie between them
_COLOURS = ((68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140),
            (40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37))
_MARK = (255, 64, 64)  # of the frame round a query


def make(config) -> contract.Task:
    """Token similarity S of config.target: metrics of the split config.eval.split.

    similarity and diversity (1 - S) of raw tokens; the same `_centred`, after the mean token is
    subtracted, which S counts as likeness, and `_pooled`, after 2x2 average pooling of the grid,
    because neighbours on a fine grid are closer (left out where a side is odd or below 4);
    standard_error of similarity over images; num_tokens and width of a token.

    The collection `statistics` is over all tokens of all images of the steps, training views with
    whatever crops config.data asks for: mean [c], variance [c] (biased), count [] of images.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("target",))
    for key in ("learning_rate", "ema_decay", "clip_norm"):
        if config.optim.get(key, 0.0):
            raise ValueError(f"config.optim.{key}={config.optim[key]} has no effect: task "
                             "token_diversity trains nothing; remove it")
    teacher = teacher_features.make(config)
    rows, columns = teacher.grid
    has_pooled = rows % 2 == columns % 2 == 0 and min(rows, columns) > 2

    def init(key, batch):
        del key, batch
        return {"params": {}, "statistics": {"mean": jnp.zeros(teacher.dim), "count": jnp.zeros(()),
                                             "variance": jnp.zeros(teacher.dim)}}

    def loss(params, state, frozen, batch, key):
        del params, key
        tokens = teacher.tokens(frozen, batch)
        similarity = jnp.mean(metrics.token_similarity(tokens))
        # a teacher whose features are not numbers is to stop the run
        value = jnp.where(jnp.isfinite(similarity), 0.0, jnp.nan)
        return value, ({"statistics": combine(state["statistics"], statistics_of(tokens))},
                       {"similarity": similarity})

    def eval_step(variables, frozen, batch):
        tokens = teacher.tokens(frozen, batch)
        values = {"similarity": metrics.token_similarity(tokens)}
        centred = tokens - variables["statistics"]["mean"]
        values["similarity_centred"] = metrics.token_similarity(centred)
        if has_pooled:
            values["similarity_pooled"] = metrics.token_similarity(pool(tokens, teacher.grid))
        values["squares"] = values["similarity"] ** 2
        is_example = batch["is_example"]
        sums = {name: jnp.sum(jnp.where(is_example, value, 0.0)) for name, value in values.items()}
        return sums | {"count": jnp.sum(is_example.astype(jnp.float32))}

    def summarize(sums):
        count, means = float(sums["count"]), contract.mean_of_sums(sums)
        spread = max(means.pop("squares") - means["similarity"] ** 2, 0.0)
        diversity = {name.replace("similarity", "diversity"): 1.0 - value
                     for name, value in means.items()}
        return means | diversity | {
            "standard_error": (spread / max(count - 1.0, 1.0)) ** 0.5,
            "num_tokens": float(rows * columns), "width": float(teacher.dim)}

    def pictures(variables, frozen, batch, key):
        """Each image, the frame round one of its patches, beside how like that its patches are."""
        del variables, key
        image = batch.get("image_for_target", batch["image"])
        unit = to_unit(teacher.tokens(frozen, batch))
        shown = []
        for row, column in ((rows // 2, columns // 2), (rows // 4, columns // 4)):
            query = unit[:, row * columns + column]
            similarity = jnp.einsum("bnc,bc->bn", unit, query, precision="highest")
            shown += [frame(image, (row, column), teacher.grid),
                      similarity_map(similarity, teacher.grid, image.shape[1:3])]
        return {"similarity_maps": jnp.concatenate(shown, axis=2)}

    def features(variables, frozen, batch):
        """The mean token, float32 [b, c]."""
        del variables
        return jnp.mean(teacher.tokens(frozen, batch), axis=1)

    return contract.Task(init, loss, eval_step, summarize, frozen=teacher.frozen,
                         pictures=pictures, features=features,
                         flops_per_image=flops.train_step(0.0, teacher.flops))


def statistics_of(tokens):
    """Those of one batch: tokens [b, n, c] -> count [] of images, mean [c], variance [c]."""
    # first per image, then over images: long float32 sums lose digits
    mean = jnp.mean(jnp.mean(tokens, axis=1), axis=0)
    variance = jnp.mean(jnp.mean((tokens - mean) ** 2, axis=1), axis=0)
    return {"count": jnp.float32(tokens.shape[0]), "mean": mean, "variance": variance}


def combine(one, other):
    """Statistics of the union of two sets of images; `one` may be empty.

    Never subtracts two large sums: the variance of channels far from zero keeps its digits.
    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
      variances", 1979.
    """
    count = one["count"] + other["count"]
    share = other["count"] / count
    step = other["mean"] - one["mean"]
    return {"count": count, "mean": one["mean"] + share * step,
            "variance": ((1.0 - share) * one["variance"] + share * other["variance"]
                         + share * (1.0 - share) * step ** 2)}


def pool(tokens, grid: tuple[int, int]):
    """2x2 average pooling: [b, gh * gw, c] -> [b, gh * gw / 4, c], row-major."""
    b, _, c = tokens.shape
    rows, columns = grid
    cells = tokens.reshape(b, rows // 2, 2, columns // 2, 2, c)
    return jnp.mean(cells, axis=(2, 4)).reshape(b, -1, c)


def similarity_map(similarity, grid: tuple[int, int], size: tuple[int, int]):
    """Colours of cosines [b, gh * gw], each patch a rectangle: uint8 [b, h, w, 3], size (h, w)."""
    place = jnp.linspace(0.0, 1.0, len(_COLOURS))
    table = jnp.asarray(_COLOURS, jnp.float32)
    colours = jnp.stack([jnp.interp(similarity, place, table[:, i]) for i in range(3)], axis=-1)
    b = similarity.shape[0]
    shown = jax.image.resize(colours.reshape(b, *grid, 3), (b, *size, 3), "nearest")
    return jnp.round(shown).astype(jnp.uint8)


def frame(image, patch: tuple[int, int], grid: tuple[int, int]):
    """Images uint8 [b, h, w, 3] with a frame inside the patch (row, column)."""
    on_edge, inside = False, True
    for axis in (0, 1):
        side = image.shape[1 + axis]
        first, last = ((patch[axis] + i) * side // grid[axis] - i for i in (0, 1))
        width = max((last - first) // 8, 1)
        place = jnp.arange(side).reshape((-1, 1) if axis == 0 else (1, -1))
        inside &= (first <= place) & (place <= last)
        on_edge |= (place < first + width) | (place > last - width)
    return jnp.where((inside & on_edge)[..., None], jnp.asarray(_MARK, jnp.uint8), image)
