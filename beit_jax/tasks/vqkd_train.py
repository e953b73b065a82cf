"""Train the VQ-KD tokenizer: codes from which a frozen teacher's features can be told.

Source: BEiT v2 (arXiv 2208.06366), Sec. 2.1; microsoft/unilm beit2/{modeling_vqkd,
  norm_ema_quantizer,engine_for_vqkd}.py; TOKENIZER.md there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax import augment, flops, losses, metrics, options
from beit_jax.models.vqkd import Vqkd
from beit_jax.options import BelowOne, Count, Natural, NonNegative
from beit_jax.targets import quantizer
from beit_jax.tasks import task as contract
from beit_jax.tasks import teacher_features
from beit_jax.vectors import to_unit

_PATCHES_SHOWN = 8  # of each code, in the pictures


@dataclasses.dataclass(frozen=True)
class VqkdLoss:
    """config.loss.

    Attributes:
      commitment_weight: beta, of the distance between vectors and their codes.
      decay: of the codebook, per update.
      kmeans_iterations: of the codebook's start on the first global batch; 0: random directions.
      kmeans_images: images of that batch that k-means sees, from its first on; with fewer patches
        than codes the run is refused.
    """

    commitment_weight: NonNegative = 1.0
    decay: BelowOne = 0.99
    kmeans_iterations: Natural = 10
    kmeans_images: Count = 64


def make(config) -> contract.Task:
    """Encoder and decoder learn by gradients, the codebook by averages.

    Reads config.model (Vqkd), target (a teacher, see targets.teachers), loss, data.mean, data.std
    (of the encoder's input: 0.5 each gives 2 x - 1). Collections beside the parameters:
      codebook: embedding [v, c], rows of length 1.
      usage: cluster_size [v], average over updates of how often each code was chosen.
      pending: count [v] and total [v, c] of the update that is being worked off; zero between two.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "target", "loss"))
    dtype = contract.compute_dtype(config)
    teacher = teacher_features.make(config)
    model = options.build(Vqkd, config.model, "config.model", dtype=dtype, teacher_dim=teacher.dim)
    model.check()
    rule = options.build(VqkdLoss, config.loss, "config.loss")
    if teacher.grid != model.grid:
        raise ValueError(f"the teacher has {teacher.grid[0]}x{teacher.grid[1]} patches, "
                         f"config.model {model.grid[0]}x{model.grid[1]}: choose sizes that agree")
    if config.optim.get("ema_decay", 0.0):
        raise ValueError("config.optim.ema_decay: the codebook belongs to the encoder as it is, "
                         "not to its average: remove it")
    if config.data.get("target_px", 0):
        raise ValueError("config.data.target_px: teacher and encoder see the same image: remove it")
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)
    size = model.codebook_size

    def init(key, batch):
        network_key, codebook_key = jax.random.split(key)
        return {
            **model.init(network_key, normalise(batch["image"][:1])),
            "codebook": {"embedding": quantizer.random_codebook(codebook_key, size,
                                                                model.code_dim)},
            "usage": {"cluster_size": jnp.zeros(size)},
            "pending": {"count": jnp.zeros(size), "total": jnp.zeros((size, model.code_dim))},
        }

    def encode(variables, batch):
        """float32 [b, n, c], not yet of unit length."""
        return model.apply({"params": variables["params"]}, normalise(batch["image"]),
                           method="encode")

    def begin(variables, frozen, batch, key):
        """The codebook by k-means over the first batch, the same on every device and host.

        Raises: ValueError: fewer vectors than codes.
        """
        del frozen
        collections = {name: value for name, value in variables.items() if name != "params"}
        if not rule.kmeans_iterations:
            return collections
        image = batch["image"][:rule.kmeans_images]
        if len(image) * model.num_patches < size:
            # start_means would draw vectors twice, and of equal codes only one is ever chosen
            raise ValueError(
                f"model.codebook_size={size}, but k-means begins the codebook with the patches of "
                f"{len(image)} images, {len(image) * model.num_patches} vectors: most codes would "
                f"be copies that nothing can choose. Take {-(-size // model.num_patches)} images "
                "or more (data.global_batch_size and loss.kmeans_images), fewer codes, or "
                "loss.kmeans_iterations=0, which begins with random directions")
        vectors = encode(variables, {"image": image})
        samples = to_unit(vectors).reshape(-1, model.code_dim)
        means = quantizer.start_means(key, samples, size)
        embedding, _ = quantizer.kmeans(samples, means, rule.kmeans_iterations)
        return collections | {"codebook": {"embedding": embedding}}

    def reconstruct(variables, frozen, batch):
        """Quantized (see targets.quantizer), and 1 - cosine to the teacher's features [b, n]."""
        quantized = quantizer.quantize(encode(variables, batch),
                                       variables["codebook"]["embedding"])
        predicted = model.apply({"params": variables["params"]}, quantized.output, method="decode")
        features = teacher.tokens(frozen, batch)
        return quantized, losses.cosine_distance(predicted, features)

    def loss(params, state, frozen, batch, key):
        del key
        quantized, distance = reconstruct({"params": params, **state}, frozen, batch)
        reconstruction, commitment = jnp.mean(distance), jnp.mean(quantized.commitment)
        total = rule.commitment_weight * commitment + reconstruction
        count, sums = quantizer.statistics(quantized.unit, quantized.codes, size)
        pending = {"count": state["pending"]["count"] + count,
                   "total": state["pending"]["total"] + sums}
        usage, perplexity = metrics.code_use(count)
        return total, (state | {"pending": pending}, {
            "loss": total, "reconstruction": reconstruction, "commitment": commitment,
            "batch_usage": usage, "batch_perplexity": perplexity})

    def end_step(params, state):
        del params
        count, total = state["pending"]["count"], state["pending"]["total"]
        embedding = quantizer.update(state["codebook"]["embedding"], count, total, rule.decay)
        average = rule.decay * state["usage"]["cluster_size"] + (1.0 - rule.decay) * count
        return {"codebook": {"embedding": embedding}, "usage": {"cluster_size": average},
                "pending": jax.tree.map(jnp.zeros_like, state["pending"])}

    def eval_step(variables, frozen, batch):
        quantized, distance = reconstruct(variables, frozen, batch)
        is_example = batch["is_example"].astype(jnp.float32)
        weights = jnp.broadcast_to(is_example[:, None], quantized.codes.shape)
        return {"reconstruction": jnp.sum(jnp.mean(distance, axis=1) * is_example),
                "commitment": jnp.sum(jnp.mean(quantized.commitment, axis=1) * is_example),
                "code_counts": jnp.zeros(size).at[quantized.codes].add(weights),
                "count": jnp.sum(is_example)}

    def summarize(sums):
        counts = np.asarray(sums["code_counts"])
        usage, perplexity = metrics.code_use(counts)
        means = contract.mean_of_sums({k: v for k, v in sums.items() if k != "code_counts"})
        return means | {
            "loss": rule.commitment_weight * means["commitment"] + means["reconstruction"],
            "usage": float(usage), "perplexity": float(perplexity),
            "dead_codes": float(np.sum(counts == 0))}

    def pictures(variables, frozen, batch, key):
        """Images beside their codes as colours, and the patches nearest to the most used codes."""
        del frozen, key
        image, embedding = batch["image"], variables["codebook"]["embedding"]
        unit = to_unit(encode(variables, batch))
        codes = quantizer.nearest(unit, embedding)
        return {"code_maps": code_maps(image, codes, model.grid, size),
                "nearest_patches": nearest_patches(image, unit, codes, embedding, model.grid)}

    work = flops.train_step(flops.vqkd(model), teacher.flops)
    return contract.Task(init, loss, eval_step, summarize, pictures=pictures, begin=begin,
                         end_step=end_step, flops_per_image=work,
                         frozen=teacher.frozen)


def code_maps(image, codes, grid: tuple[int, int], size: int):
    """Each image beside its map of codes, one colour a code.

    Args: image: uint8 [b, h, w, 3]; codes: int [b, n]; grid: (rows, columns); size: v.
    Returns: uint8 [b, h, 2 w, 3].
    """
    colours = jax.random.randint(jax.random.key(0), (size, 3), 32, 256).astype(jnp.uint8)
    shown = colours[codes].reshape(-1, *grid, 3)
    for axis in (1, 2):
        shown = jnp.repeat(shown, image.shape[axis] // grid[axis - 1], axis)
    return jnp.concatenate([image, shown], axis=2)


def nearest_patches(image, unit, codes, embedding, grid: tuple[int, int]):
    """For the codes that the batch uses most, a row of the patches nearest to each.

    Args: image: uint8 [b, h, w, 3]; unit: [b, n, c]; codes: int [b, n]; embedding: [v, c].
    Returns: uint8 [min(b, v), p, 8 p, 3], codes in order of use.
    """
    b, h, w, _ = image.shape
    rows, columns = grid
    patches = image.reshape(b, rows, h // rows, columns, w // columns, 3)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, h // rows, w // columns, 3)
    counts = jnp.zeros(embedding.shape[0]).at[codes.reshape(-1)].add(1.0)
    _, chosen = jax.lax.top_k(counts, min(b, embedding.shape[0]))
    similarity = jnp.matmul(embedding[chosen], unit.reshape(-1, unit.shape[-1]).T,
                            precision="highest")
    _, nearest = jax.lax.top_k(similarity, min(_PATCHES_SHOWN, patches.shape[0]))  # [k, 8]
    shown = patches[nearest].transpose(0, 2, 1, 3, 4)  # [k, p, 8, p, 3]
    return shown.reshape(*shown.shape[:2], -1, 3)
