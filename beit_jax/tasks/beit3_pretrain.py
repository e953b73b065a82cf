"""BEiT-3: predict what is hidden of images, of texts and of pairs, all three in every step.

The authors never published this program. docs/beit3.md says what is theirs and what is our choice.
Source: BEiT-3 (arXiv 2208.10442), Sec. 2.2, 2.3 and Table 11.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from beit_jax import augment, flops, losses, masking, metrics, options, token_ids
from beit_jax.models.beit3_heads import Beit3ForPretraining
from beit_jax.options import NonNegative
from beit_jax.tasks import image_codes, image_text, streams
from beit_jax.tasks import task as contract
from beit_jax.text_masking import HideOptions, hide_content, num_slots

PARTS = ("image", "text", "pair_image", "pair_text")  # what is predicted
# whose a parameter is, by a name on its path; A and B are the experts
_OWNERS = {"image": {"A", "vision_embed", "mim_head"}, "text": {"B", "text_embed", "mlm_head"}}


@dataclasses.dataclass(frozen=True)
class MaskSections:
    """config.mask: `image` serves images and pairs alike; `text` texts, `pair` the text of pairs.
    """

    image: Mapping[str, Any]
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pair: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """config.loss.

    Attributes:
      image, text, pair_image, pair_text: weights of the four losses in their sum; equal ones are
        our choice, as nothing was published.
      sequential: forward and backward of one stream after the other, so that memory holds the
        activations of one; the gradient is the same.
    """

    image: NonNegative = 1.0
    text: NonNegative = 1.0
    pair_image: NonNegative = 1.0
    pair_text: NonNegative = 1.0
    sequential: bool = False


class Prediction(NamedTuple):
    """Of hidden places, m a row: logits float32 [b, m, v], codes int [b, m], counts bool [b, m]."""

    logits: jax.Array
    codes: jax.Array
    counts: jax.Array


def make(config) -> contract.Task:
    """Masked data modelling on batches {"images": ..., "texts": ..., "pairs": ...}.

    The streams are those of config.data.streams; each may be left out. Means are over the hidden
    places of a global batch, or of each part that it is worked off in. Reads config.model
    (Beit3ForPretraining), mask, target (the image tokenizer), loss, data.mean, data.std.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "mask", "target", "loss"))
    sections = options.build(MaskSections, config.mask, "config.mask")
    patch_mask = options.build(masking.MaskOptions, sections.image, "config.mask.image")
    text_mask = options.build(HideOptions, {"rate": 0.15} | sections.text, "config.mask.text")
    pair_mask = options.build(HideOptions, {"rate": 0.5} | sections.pair, "config.mask.pair")
    rule = options.build(LossOptions, config.loss, "config.loss")
    grid = contract.grid_of(config)
    patch_mask.check(grid)
    tokens = image_codes.make(config, grid[0] * grid[1])
    model = image_text.build(Beit3ForPretraining, config, codebook_size=tokens.vocab_size)
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)
    hide_words = functools.partial(hide_content,
                                   num_pieces=token_ids.num_pieces(model.vocab_size))

    def hide_patches(keys):
        """bool [b, n], and the hidden ones' slots int [b, m], of which bool [b, m] count."""
        is_masked = patch_mask.draw(keys, grid)
        return is_masked, *masking.masked_positions(is_masked, patch_mask.num_masked)

    def of_images(params, frozen, batch, keys, **kwargs):
        is_masked, slots, counts = hide_patches(keys)
        logits = model.apply({"params": params}, normalise(batch["image"]), is_masked, slots,
                             method="predict_patches", **kwargs)
        return {"image": Prediction(logits, tokens.codes(frozen, batch, slots), counts)}

    def of_texts(params, frozen, batch, keys, **kwargs):
        del frozen
        text, is_valid = first_text(batch)
        hidden = hide_words(keys, text, is_valid, **vars(text_mask))
        logits = model.apply({"params": params}, hidden.text, is_valid, hidden.positions,
                             method="predict_words", **kwargs)
        return {"text": Prediction(logits, hidden.codes, hidden.is_hidden)}

    def of_pairs(params, frozen, batch, keys, shift: int = 0, **kwargs):
        """shift: how many rows further the text is taken from; but 0, no pair belongs together."""
        patch_keys, text_keys = split_each(keys)
        is_masked, slots, counts = hide_patches(patch_keys)
        text_keys, text, is_valid = (jnp.roll(each, shift, axis=0)
                                     for each in (text_keys, *first_text(batch)))
        hidden = hide_words(text_keys, text, is_valid, **vars(pair_mask))
        patches, words = model.apply(
            {"params": params}, normalise(batch["image"]), hidden.text, is_valid, is_masked, slots,
            hidden.positions, **kwargs)
        return {"pair_image": Prediction(patches, tokens.codes(frozen, batch, slots), counts),
                "pair_text": Prediction(words, hidden.codes, hidden.is_hidden)}

    predict = {"images": of_images, "texts": of_texts, "pairs": of_pairs}
    if named := config.data.get("streams"):  # else the first batch tells that it is no mixture
        check_streams(named, predict)

    def init(key, batch):
        check_streams(batch, predict)
        image = jnp.zeros((1, model.image_px, model.image_px, 3))
        return model.init(key, image, jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool))

    def loss(params, state, frozen, batch, key):
        def of_stream(name):
            row_key, drop_key = jax.random.split(jax.random.fold_in(key, list(predict).index(name)))
            keys = jax.random.split(row_key, batch[name]["index"].shape[0])

            def stream_loss(params):
                found = predict[name](params, frozen, batch[name], keys, train=True,
                                      rngs={"drop_path": drop_key})
                parts = {f"{measure}_{part}": losses.weighted_mean(values, prediction.counts)
                         for part, prediction in found.items()
                         for measure, values in measures(prediction).items()}
                return sum(getattr(rule, part) * parts[f"loss_{part}"] for part in found), parts
            return stream_loss

        total, parts = streams.add([of_stream(name) for name in batch], params,
                                   sequential=rule.sequential)
        norms = {f"norm_{owner}": value for owner, value in parameter_norms(params).items()}
        return total, (state, {"loss": total, **parts, **norms})

    def eval_step(variables, frozen, batch):
        """Sums and counts; of pairs also with the text of another one: does one help the other?"""
        sums = {}

        def add(found, is_example, suffix=""):
            for part, prediction in found.items():
                weights = (prediction.counts & is_example[:, None]).astype(jnp.float32)
                for measure, values in measures(prediction).items():
                    sums[f"{measure}_{part}{suffix}"] = jnp.stack(
                        [jnp.sum(values * weights), jnp.sum(weights)])

        for name, rows in batch.items():
            keys = masking.keys_of(rows["index"])
            of_rows = functools.partial(predict[name], variables["params"], frozen, rows, keys)
            found = of_rows()
            add(found, rows["is_example"])
            if name == "images":
                weights = found["image"].counts & rows["is_example"][:, None]
                sums["codes"] = jnp.zeros(tokens.vocab_size).at[found["image"].codes].add(weights)
            if name == "pairs" and rows["index"].shape[0] > 1:  # one pair has no other text
                # a filler's text is none
                is_matched = rows["is_example"] & jnp.roll(rows["is_example"], 1)
                add(of_rows(shift=1), is_matched, "_mismatched")
        return sums

    def summarize(sums):
        sums = dict(sums)
        codes = sums.pop("codes", np.zeros(1))
        # a stream without this split counts nothing
        found = {name: float(total) / float(count)
                 for name, (total, count) in sums.items() if count}
        if codes.any():
            usage, perplexity = metrics.code_use(codes)
            found |= {"code_usage": float(usage), "code_perplexity": float(perplexity)}
        total = sum(getattr(rule, part) * found.get(f"loss_{part}", 0.0) for part in PARTS)
        return {"loss": total, **found}

    def pictures(variables, frozen, batch, key):
        del variables, frozen
        seen = {name: rows["image"] for name, rows in batch.items() if name != "texts"}
        return {f"masks_{name}": masking.grey_out(
            image, patch_mask.draw(jax.random.split(key, image.shape[0]), grid), grid)
            for name, image in seen.items()}

    return contract.Task(init, loss, eval_step, summarize, frozen=tokens.frozen, pictures=pictures,
                         flops_per_image=flops_per_example(config, model, patch_mask.num_masked,
                                                           text_mask, pair_mask, tokens.flops))


def first_text(batch):
    """(text, text_is_valid), int and bool [b, l]; evaluation gives several texts for an image."""
    return tuple(batch[key] if batch[key].ndim == 2 else batch[key][:, 0]
                 for key in ("text", "text_is_valid"))


def split_each(keys):
    """PRNG keys [b] -> two independent sets, each [b]."""
    halves = jax.vmap(jax.random.split)(keys)
    return halves[:, 0], halves[:, 1]


def measures(prediction: Prediction) -> dict[str, jax.Array]:
    """What is measured at each hidden place: {"loss": float32 [b, m], "accuracy": bool [b, m]}."""
    return {"loss": losses.cross_entropy(prediction.logits, prediction.codes),
            "accuracy": jnp.argmax(prediction.logits, axis=-1) == prediction.codes}


def parameter_norms(params) -> dict[str, jax.Array]:
    """Euclidean norms of the parameters that serve images alone ("image"), texts alone ("text"),
    and of all others ("shared", if there are any)."""
    owned = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = {entry.key for entry in path}
        owner = next((owner for owner, mark in _OWNERS.items() if names & mark), "shared")
        owned.setdefault(owner, []).append(leaf)
    return {owner: optax.tree.norm(leaves) for owner, leaves in owned.items()}


def check_streams(batch, known) -> None:
    """Refuses a batch that is no mixture. Raises: ValueError."""
    if not batch or not set(batch) <= set(known):
        raise ValueError(f"task beit3_pretrain trains on streams {', '.join(known)}, and the data "
                         f"give {', '.join(batch)}: set config.data.name=mixture and "
                         "config.data.streams")


def flops_per_example(config, model, num_masked, text_mask, pair_mask, of_tokenizer):
    """Mean over the examples of a step, by the shares of the streams; None without streams."""
    num_image, width = model.num_patches + 1, model.width
    total, parts = 0.0, 0

    def forward(name, length):
        has_image, has_text = name != "texts", name != "images"
        hide = text_mask if name == "texts" else pair_mask
        work = flops.multiway(model, num_image * has_image, length * has_text)
        if has_image:
            work += flops.linear(num_masked, width, model.codebook_size)
        if has_text:
            work += flops.linear(num_slots(length, hide.rate), width, model.vocab_size)
        return flops.train_step(work, of_tokenizer * has_image)

    for name, stream in (config.data.get("streams") or {}).items():
        share = stream.get("share", 1)
        total += share * forward(name, stream.get("text_length",
                                                  config.data.get("text_length", 0)))
        parts += share
    return total / parts if parts else None
