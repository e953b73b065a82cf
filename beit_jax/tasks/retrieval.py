"""Retrieval: which text belongs to an image, and which image to a text, by products of vectors.

Source: BEiT-3 (arXiv 2208.10442), Sec. 3.1.4; microsoft/unilm beit3/engine_for_finetuning.py,
  RetrievalHandler.
"""

import dataclasses
import logging

import jax.numpy as jnp
import numpy as np

from beit_jax import flops, losses, metrics, options, retrieval_metrics
from beit_jax.models.beit3_heads import Beit3ForRetrieval
from beit_jax.options import Natural
from beit_jax.tasks import image_text
from beit_jax.tasks import task as contract

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """config.measure.

    Attributes:
      folds: > 0: also the mean over so many equal parts of the split, as "1k_...": COCO's test
        split of 5,000 images in 5 folds. 0: only the whole split.
    """

    folds: Natural = 0


def make(config) -> contract.Task:
    """Contrastive loss over the global batch; evaluation alone is zero-shot retrieval.

    Every other text of the batch is a wrong one, even if it is of the same image. A batch that is
    worked off in parts (config.optim.accumulation_steps) compares within each part only.

    Reads config.model (Beit3ForRetrieval), measure, data.text_length, data.mean, data.std.
    Measures: `retrieval_metrics.recalls` in percent, tr_r1 ... ir_r10 and their mean; what so few
    images or captions make certain is said in the log, and no part of the mean.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "measure"))
    model = image_text.build(Beit3ForRetrieval, config)
    folds = options.build(MeasureOptions, config.get("measure"), "config.measure").folds
    inputs = image_text.inputs(config)

    def init(key, batch):
        return model.init(key, *inputs(batch))

    def loss(params, state, frozen, batch, key):
        del frozen
        image, text, factor = model.apply({"params": params}, *inputs(batch), train=True,
                                          rngs={"drop_path": key})  # [b, d], [b, d], []
        total = losses.contrastive(image, text, factor)
        cosines, own = image @ text.T, jnp.arange(image.shape[0])
        hits = metrics.is_correct(cosines, own), metrics.is_correct(cosines.T, own)
        return total, (state, {"loss": total, "accuracy": jnp.mean(jnp.stack(hits)),
                               "factor": factor})

    def eval_step(variables, frozen, batch):
        del frozen
        image, ids, is_valid = inputs(batch)  # ids [b, r, l]
        if ids.ndim != 3:
            raise ValueError("the data have one text for an image, and none is its caption: "
                             "retrieval needs config.data.text=captions, or name karpathy, pairs "
                             "or index, of captions")
        b, r, length = ids.shape
        params = {"params": variables["params"]}
        text = model.apply(params, ids.reshape(b * r, length), is_valid.reshape(b * r, length),
                           method="text_vector")
        return {"index": batch["index"],
                "image": model.apply(params, image, method="image_vector"),
                "text": text.reshape(b, r, -1), "has_text": jnp.any(is_valid, axis=-1)}

    def judge(rows, split_info):
        # folds are of images in the split's order
        rows, _ = image_text.in_order(rows, split_info.records)
        has_text = rows["has_text"]
        if not has_text.any():
            log.warning("none of the %d images of the split has a caption: nothing is measured",
                        len(has_text))
            return {}, {}
        parts = rows["image"], rows["text"][has_text], np.nonzero(has_text)[0]
        values = retrieval_metrics.recalls(*parts)
        if known := retrieval_metrics.certain(len(has_text), parts[2]):
            log.warning("%s of %d images and %d captions can only be 100: the mean leaves them "
                        "out", ", ".join(known), len(has_text), len(parts[2]))
        size, rest = divmod(len(has_text), folds or 1)
        # the run is worth more than these numbers
        if folds and (rest or size < 2
                      or not has_text.reshape(folds, size, -1).any(axis=(1, 2)).all()):
            log.warning("config.measure.folds=%d do not divide the %d images of the split, or "
                        "leave a part without captions or of one image, whose recall can only be "
                        "100: 1k_ is left out", folds, len(has_text))
        elif folds:
            each = retrieval_metrics.fold_recalls(*parts, folds)
            values |= {f"1k_{name}": value for name, value in each.items()}
        return values, {}

    def features(variables, frozen, batch):
        """The image's vector, float32 [b, d]."""
        del frozen
        return model.apply({"params": variables["params"]}, inputs(batch)[0],
                           method="image_vector")

    names = retrieval_metrics.NAMES
    forward = (flops.multiway(model, model.num_patches + 1, 0)
               + flops.multiway(model, 0, config.data.text_length)
               + 2 * flops.linear(1, model.width, model.width))
    return contract.Task(init, loss, eval_step, None, reduce="concat", judge=judge,
                         judged=names + tuple(f"1k_{name}" for name in names if folds),
                         features=features, flops_per_image=flops.train_step(forward))
