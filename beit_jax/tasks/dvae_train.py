"""Train the discrete VAE whose encoder becomes BEiT's tokenizer.

Source: DALL-E (arXiv 2102.12092), Sec. 2.1, appendix A.2; its first author on openai/DALL-E
issues 1 (no straight-through), 8 (KL warm-up) and 26 (KL of the plain logits).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax import dvae_losses as losses
from beit_jax import metrics, options
from beit_jax.models.dvae import (
    Dvae,
    downsampling,
    map_pixels,
    pixels_of_stats,
)
from beit_jax.options import Finite, Natural, NonNegative, Positive
from beit_jax.tasks.task import Task, check_sections, compute_dtype


@dataclasses.dataclass(frozen=True)
class DvaeLoss:
    """config.loss. Steps are updates of the optimizer; defaults are the paper's.

    Attributes:
      likelihood: "logit_laplace", "mse" or "l1" (see dvae_losses.reconstruction_error).
      kl_weight: beta after its warm-up from 0 over `kl_steps`.
      tau_start, tau_end, tau_steps: temperature of the relaxation. A linear path to tau_end
        tended to diverge (paper), so both follow half a cosine.
      ln_b_min: lower clip of the predicted ln b (ours).
    """

    likelihood: Literal["logit_laplace", "mse", "l1"] = "logit_laplace"
    kl_weight: NonNegative = 6.6
    kl_steps: Natural = 5_000
    tau_start: Positive = 1.0
    tau_end: Positive = 1 / 16
    tau_steps: Natural = 150_000
    ln_b_min: Finite = -7.0


def make(config) -> Task:
    """The dVAE's training as a task. Reads config.model (see models.dvae.Dvae) and config.loss.

    `state` holds {"schedule": {"step": int32}}, the number of updates so far: temperature and KL
    weight follow from it.
    """
    check_sections(config, ("model", "loss"))
    model = options.build(Dvae, config.model, "config.model", dtype=compute_dtype(config))
    rule = options.build(DvaeLoss, config.loss, "config.loss")
    px, factor = config.data.image_px, downsampling(model.num_groups)
    if px % factor:
        raise ValueError(f"config.data.image_px={px} is no multiple of {factor}, the pixels of a "
                         f"code with config.model.num_groups={model.num_groups}; nearest: "
                         f"{max(px // factor, 1) * factor}")

    def schedules(state):
        step = state["schedule"]["step"]
        tau = losses.half_cosine(step, rule.tau_start, rule.tau_end, rule.tau_steps)
        return tau, losses.half_cosine(step, 0.0, rule.kl_weight, rule.kl_steps)

    def init(key, batch):
        smallest = jnp.zeros((1,) + (downsampling(model.num_groups),) * 2 + (3,))
        params = model.init(key, smallest)["params"]
        return {"params": params, "schedule": {"step": jnp.zeros((), jnp.int32)}}

    def forward(params, mapped, tau, uniform):
        """Mapped images -> (logits and relaxed codes [b, gh, gw, v], statistics [b, h, w, 6])."""
        logits = model.apply({"params": params}, mapped, method="encode")
        relaxed = losses.relax(logits, losses.gumbel(uniform), tau)
        return logits, relaxed, model.apply({"params": params}, relaxed, method="decode")

    def loss(params, state, frozen, batch, key):
        image = batch["image"].astype(jnp.float32) / 255
        mapped = map_pixels(image)
        tau, kl_weight = schedules(state)
        uniform = jax.random.uniform(key, _logits_shape(mapped.shape, model))
        logits, relaxed, stats = forward(params, mapped, tau, uniform)
        error = jnp.mean(losses.reconstruction_error(mapped, stats, rule.likelihood, rule.ln_b_min))
        kl = jnp.mean(losses.kl_to_uniform(logits))
        total = error + losses.kl_coefficient(kl_weight, downsampling(model.num_groups)) * kl

        usage, perplexity = metrics.code_use(_code_counts(jnp.argmax(logits, -1), model.vocab_size))
        measured = {
            "loss": total,
            "reconstruction": error,
            "kl": kl,
            "tau": tau,
            "kl_weight": kl_weight,
            "ln_b": jnp.mean(stats[..., 3:]),
            "mae": jnp.mean(jnp.abs(pixels_of_stats(stats) - image)),
            "agreement": jnp.mean(jnp.argmax(relaxed, -1) == jnp.argmax(logits, -1)),
            "batch_usage": usage,
            "batch_perplexity": perplexity,
        }
        return total, (state, measured)

    def end_step(params, state):
        del params
        return {"schedule": {"step": state["schedule"]["step"] + 1}}

    def reconstruct(variables, batch, key):
        """Everything evaluation and pictures need, with relaxed and with hard codes."""
        image = batch["image"].astype(jnp.float32) / 255
        mapped = map_pixels(image)
        tau, kl_weight = schedules(variables)
        shape = _logits_shape(mapped.shape[1:], model)
        # noise by example number: an example's result does not depend on its batch
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        uniform = jax.vmap(lambda one: jax.random.uniform(one, shape))(keys)
        logits, relaxed, stats = forward(variables["params"], mapped, tau, uniform)
        codes = jnp.argmax(logits, -1)
        hard = model.apply({"params": variables["params"]}, codes, method="decode")
        return image, mapped, tau, kl_weight, logits, relaxed, stats, codes, hard

    def eval_step(variables, frozen, batch):
        image, mapped, tau, kl_weight, logits, relaxed, stats, codes, hard = reconstruct(
            variables, batch, jax.random.key(0)
        )
        is_example = batch["is_example"].astype(jnp.float32)

        def total(per_example):  # [b, ...] -> sum over examples of the mean over the rest
            flat = per_example.astype(jnp.float32).reshape(per_example.shape[0], -1)
            return jnp.sum(flat.mean(axis=1) * is_example)

        sums = {
            "count": jnp.sum(is_example),
            "reconstruction": total(
                losses.reconstruction_error(mapped, stats, rule.likelihood, rule.ln_b_min)
            ),
            "kl": total(losses.kl_to_uniform(logits)),
            "posterior_entropy": total(losses.entropy(logits)),
            "agreement": total(jnp.argmax(relaxed, -1) == codes),
            "ln_b": total(stats[..., 3:]),
            "tau": tau * jnp.sum(is_example),
            "kl_weight": kl_weight * jnp.sum(is_example),
            "code_counts": _code_counts(codes, model.vocab_size, is_example),
        }
        for name, output in (("relaxed", stats), ("hard", hard)):
            difference = pixels_of_stats(output) - image
            sums[f"mae_{name}"] = total(jnp.abs(difference))
            sums[f"psnr_{name}"] = total(losses.psnr(jnp.mean(difference**2, axis=(1, 2, 3))))
        return sums

    def summarize(sums):
        sums = dict(sums)
        usage, perplexity = metrics.code_use(np.asarray(sums.pop("code_counts")))
        count = max(float(sums.pop("count")), 1.0)
        means = {name: float(value) / count for name, value in sums.items()}
        weight = losses.kl_coefficient(means["kl_weight"], downsampling(model.num_groups))
        return means | {
            "loss": means["reconstruction"] + weight * means["kl"],
            "usage": float(usage),
            "perplexity": float(perplexity),
        }

    def pictures(variables, frozen, batch, key):
        image, _, _, _, _, _, stats, _, hard = reconstruct(variables, batch, key)
        row = [image, pixels_of_stats(stats), pixels_of_stats(hard)]  # input | relaxed | hard
        return {"reconstructions": jnp.round(jnp.concatenate(row, 2) * 255).astype(jnp.uint8)}

    return Task(init, loss, eval_step, summarize, pictures=pictures, end_step=end_step)


def _logits_shape(image_shape, model: Dvae) -> tuple[int, ...]:
    *batch, height, width, _ = image_shape
    factor = downsampling(model.num_groups)
    return (*batch, height // factor, width // factor, model.vocab_size)


def _code_counts(codes, vocab_size: int, weights=None) -> jax.Array:
    """How often each code occurs, float32 [v]; codes [b, gh, gw], weights [b] or None."""
    if weights is None:
        weights = jnp.ones(codes.shape[0], jnp.float32)
    weights = jnp.broadcast_to(weights[:, None, None], codes.shape)
    return jnp.zeros(vocab_size, jnp.float32).at[codes.ravel()].add(weights.ravel())
