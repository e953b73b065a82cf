"""Captioning: hidden words of a caption, each seen from the image and what stands before it.

Source: BEiT-3 (arXiv 2208.10442), Sec. 3.1.3; microsoft/unilm beit3/engine_for_finetuning.py,
  CaptioningHandler.
"""

import dataclasses
import functools
import json
import logging
from typing import Annotated

import jax
import jax.numpy as jnp

from beit_jax import (
    caption_java,
    caption_metrics,
    flops,
    losses,
    options,
    text_masking,
    token_ids,
)
from beit_jax.models.beam_search import beam_search
from beit_jax.models.beit3_heads import Beit3ForCaptioning
from beit_jax.options import BelowOne, Count, Natural, NonNegative, within
from beit_jax.tasks import image_text
from beit_jax.tasks import task as contract

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """config.loss.

    Attributes:
      label_smoothing: share of the target spread evenly over all other words.
      drop_worst: share of the hidden words that count nothing, those with the largest losses; not
        before more than `drop_worst_after` steps are done.
    """

    label_smoothing: BelowOne = 0.0
    drop_worst: BelowOne = 0.0
    drop_worst_after: Natural = 0


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """config.measure: arguments of `beam_search`."""

    beams: Count = 3
    max_length: Annotated[int, within(3)] = 64
    length_penalty: NonNegative = 0.6


def make(config) -> contract.Task:
    """Divergence from the hidden words, smoothed; captions are found by beam search.

    Reads config.model (Beit3ForCaptioning), mask, loss, measure, data.text_length, data.mean,
    data.std. Measures: `caption_metrics.scores`, and METEOR where its program is installed, over
    the images of which people's captions are known; captions.json has all images.
    Raises: ValueError: values that do not fit together, no tokenizer to write captions with.
    """
    contract.check_sections(config, ("model", "mask", "loss", "measure"))
    if config.data.name == "index" and not config.data.tokenizer:
        raise ValueError("captions are written by a tokenizer, and index files have none: set "
                         "config.data.tokenizer to the model that made their ids")
    model = image_text.build(Beit3ForCaptioning, config)
    mask = options.build(text_masking.HideOptions, config.mask, "config.mask")
    rule = options.build(LossOptions, config.loss, "config.loss")
    measure = options.build(MeasureOptions, config.get("measure"), "config.measure")
    image_text.check_length(measure.max_length, model, "config.measure.max_length")
    inputs = image_text.inputs(config)
    num_pieces = token_ids.num_pieces(model.vocab_size)
    hide = functools.partial(text_masking.hide_caption, num_pieces=num_pieces, **vars(mask))

    def init(key, batch):
        variables = model.init(key, *inputs(batch))
        counter = {"counter": {"step": jnp.zeros((), jnp.int32)}} if rule.drop_worst else {}
        return {**variables, **counter}

    def loss(params, state, frozen, batch, key):
        del frozen
        mask_key, drop_key = jax.random.split(key)
        image, ids, is_valid = inputs(batch)
        hidden = hide(jax.random.split(mask_key, ids.shape[0]), ids, is_valid)
        logits = model.apply({"params": params}, image, hidden.text, is_valid, hidden.positions,
                             train=True, rngs={"drop_path": drop_key})  # [b, m, v]
        errors = losses.smoothed_divergence(logits, hidden.codes, rule.label_smoothing)
        total = losses.weighted_mean(errors, hidden.is_hidden)
        if rule.drop_worst:
            easier = losses.mean_of_smallest(errors, hidden.is_hidden, 1.0 - rule.drop_worst)
            total = jnp.where(state["counter"]["step"] > rule.drop_worst_after, easier, total)
        is_correct = jnp.argmax(logits, axis=-1) == hidden.codes
        return total, (state, {
            "loss": total, "accuracy": losses.weighted_mean(is_correct, hidden.is_hidden)})

    def end_step(params, state):
        del params
        return {"counter": {"step": state["counter"]["step"] + 1}}

    def eval_step(variables, frozen, batch):
        del frozen
        image = inputs(batch)[0]
        apply = functools.partial(model.apply, {"params": variables["params"]})
        found = beam_search(
            functools.partial(apply, method="decode_step"),
            apply(image, measure.max_length, method="start_text"), image.shape[0],
            first_id=token_ids.BOS, last_id=token_ids.EOS,
            mask_id=token_ids.mask_id(num_pieces), **dataclasses.asdict(measure))
        return {"index": batch["index"], "words": found.words, "is_valid": found.is_valid}

    def judge(rows, split_info):
        rows, images = image_text.in_order(rows, split_info.records)
        ids = [image.image_id if image else int(index)
               for image, index in zip(images, rows["index"])]
        captions = {number: split_info.tokenizer.decode(words[is_valid])
                    for number, words, is_valid in zip(ids, rows["words"], rows["is_valid"])}
        people = {image.image_id: image.captions for image in images if image and image.captions}
        values = {}
        if len(captions) < len(ids):
            log.warning("%d image(s) have the id of an earlier one, whose caption is lost: "
                        "measure splits whose ids overlap one by one", len(ids) - len(captions))
        if len(people) < len(captions):
            log.warning("%d of %d images have no captions by people: %s",
                        len(captions) - len(people), len(captions),
                        "the measures leave them out" if people else
                        "captions.json is written, and nothing is measured")
        if people:
            scored = {number: captions[number] for number in people}
            values = caption_metrics.scores(scored, people) | caption_java.scores(scored, people)
        return values, {"captions.json": json.dumps(
            [{"image_id": number, "caption": caption} for number, caption in captions.items()])}

    length = config.data.text_length
    slots = text_masking.num_caption_slots(length, mask.rate)
    forward = (flops.multiway(model, model.num_patches + 1, length)
               + flops.linear(slots, model.width, model.vocab_size))
    return contract.Task(init, loss, eval_step, None, reduce="concat", judge=judge,
                         judged=(*caption_metrics.NAMES, *caption_java.names()),
                         end_step=end_step if rule.drop_worst else None,
                         flops_per_image=flops.train_step(forward))
