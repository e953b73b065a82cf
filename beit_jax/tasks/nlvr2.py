"""NLVR2: is a sentence true of two images?

Source: BEiT-3 (arXiv 2208.10442), Sec. 3.1.2; microsoft/unilm beit3/engine_for_finetuning.py,
  NLVR2Handler.
"""

import jax.numpy as jnp
import numpy as np

from beit_jax import flops, losses, metrics
from beit_jax.models.beit3_heads import Beit3ForNlvr2
from beit_jax.tasks import image_text
from beit_jax.tasks import task as contract


def make(config) -> contract.Task:
    """Softmax cross-entropy of false (0) and true (1), which both images decide together.

    Reads config.model (Beit3ForNlvr2), data.text_length, data.mean, data.std. Measures: accuracy in
    [0, 1]. A split without labels gives predictions.csv alone.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model",))
    model = image_text.build(Beit3ForNlvr2, config)
    if model.num_classes != 2:
        raise ValueError(f"config.model.num_classes={model.num_classes}: a sentence is false or "
                         "true, so NLVR2 has 2")
    inputs = image_text.inputs(config)

    def init(key, batch):
        return model.init(key, *inputs(batch))

    def measured(logits, label):
        """Error and hit of each example, [b]; those with label -1 mean nothing."""
        label = jnp.maximum(label, 0)
        return losses.cross_entropy(logits, label), metrics.is_correct(logits, label)

    def loss(params, state, frozen, batch, key):
        del frozen
        logits = model.apply({"params": params}, *inputs(batch), train=True,
                             rngs={"drop_path": key})  # [b, 2]
        errors, is_correct = measured(logits, batch["label"])
        is_labelled = batch["label"] >= 0
        total = losses.weighted_mean(errors, is_labelled)
        accuracy = losses.weighted_mean(is_correct, is_labelled)
        return total, (state, {"loss": total, "accuracy": accuracy})

    def eval_step(variables, frozen, batch):
        del frozen
        logits = model.apply({"params": variables["params"]}, *inputs(batch))
        errors, is_correct = measured(logits, batch["label"])
        return {"index": batch["index"], "is_true": jnp.argmax(logits, axis=-1) == 1,
                "is_labelled": batch["label"] >= 0, "is_correct": is_correct, "loss": errors}

    def judge(rows, split_info):
        rows, statements = image_text.in_order(rows, split_info.records)
        is_labelled, values = rows["is_labelled"], {}
        if is_labelled.any():
            values = {"accuracy": float(np.mean(rows["is_correct"][is_labelled])),
                      "loss": float(np.mean(rows["loss"][is_labelled]))}
        lines = (f"{statement.identifier if statement else index},{bool(is_true)}\n"
                 for statement, index, is_true in zip(statements, rows["index"], rows["is_true"]))
        return values, {"predictions.csv": "".join(lines)}

    d = model.width
    pair = flops.multiway(model, model.num_patches + 1, config.data.text_length)
    forward = 2 * pair + flops.linear(1, 4 * d, 2 * d) + flops.linear(1, 2 * d, 2)
    return contract.Task(init, loss, eval_step, None, reduce="concat", judge=judge,
                         judged=("accuracy", "loss"),
                         flops_per_image=flops.train_step(forward))
