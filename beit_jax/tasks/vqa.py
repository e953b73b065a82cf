"""Visual question answering: a choice among the frequent answers, by a network that sees both.

Source: BEiT-3 (arXiv 2208.10442), Sec. 3.1.1; microsoft/unilm beit3/engine_for_finetuning.py,
  VQAHandler.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax import flops, losses, metrics, vqa_metrics
from beit_jax.models.beit3_heads import Beit3ForVqa
from beit_jax.tasks import image_text
from beit_jax.tasks import task as contract


def make(config) -> contract.Task:
    """Binary cross-entropy of every answer with its soft score, summed over the answers.

    Reads config.model (Beit3ForVqa), data.text_length, data.mean, data.std. Measures: accuracy, the
    mean soft score of the chosen answers; official_accuracy, by all that people said; both in
    [0, 1]. A split whose answers nobody tells gives answers.json alone.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model",))
    model = image_text.build(Beit3ForVqa, config)
    if model.num_classes < 2:
        raise ValueError(f"config.model.num_classes={model.num_classes}: a question needs two "
                         "answers or more to choose among; does the data set list them?")
    inputs = image_text.inputs(config)

    def targets(batch):
        """The soft score of every answer, float32 [b, C]."""
        is_answer = jax.nn.one_hot(batch["answer_labels"], model.num_classes)  # [b, k, C]; -1: 0
        # no matrix product, which would round the scores on accelerators
        return jnp.sum(is_answer * batch["answer_scores"][..., None], axis=1)

    def init(key, batch):
        image_text.require(batch, "answer_labels", "answer_scores")
        return model.init(key, *inputs(batch))

    def loss(params, state, frozen, batch, key):
        del frozen
        logits = model.apply({"params": params}, *inputs(batch), train=True,
                             rngs={"drop_path": key})  # [b, C]
        target = targets(batch)
        total = jnp.mean(losses.binary_cross_entropy(logits, target))
        accuracy = jnp.mean(metrics.score_of_best(logits, target))
        return total, (state, {"loss": total, "accuracy": accuracy})

    def eval_step(variables, frozen, batch):
        del frozen
        logits = model.apply({"params": variables["params"]}, *inputs(batch))
        target = targets(batch)
        return {"index": batch["index"],
                "label": jnp.argmax(logits, axis=-1),
                "score": metrics.score_of_best(logits, target),
                "loss": losses.binary_cross_entropy(logits, target),
                "is_answered": jnp.any(batch["answer_labels"] >= 0, axis=-1)}

    def judge(rows, split_info):
        rows, questions = image_text.in_order(rows, split_info.records)
        names = split_info.class_names
        if len(names) != model.num_classes:
            raise ValueError(f"config.model.num_classes={model.num_classes}, but the data list "
                             f"{len(names)} answers: give the list that the network was trained "
                             "with")
        ids = [question.question_id if question else int(index)
               for question, index in zip(questions, rows["index"])]
        chosen = {number: names[label] for number, label in zip(ids, rows["label"])}
        said = {question.question_id: question.answers for question in questions
                if question and question.answers}
        # a question that people answered with unlisted words counts, as a wrong one
        is_answered = rows["is_answered"] | np.array([number in said for number in ids])
        values = {}
        if is_answered.any():
            values = {"accuracy": float(np.mean(rows["score"][is_answered])),
                      "loss": float(np.mean(rows["loss"][is_answered]))}
        if said:
            values["official_accuracy"] = vqa_metrics.accuracy(
                {number: chosen[number] for number in said}, said) / 100
        return values, {"answers.json": json.dumps(
            [{"question_id": number, "answer": answer} for number, answer in chosen.items()])}

    d, num_image = model.width, model.num_patches + 1
    forward = (flops.multiway(model, num_image, config.data.text_length) + flops.linear(1, d, d)
               + flops.linear(1, d, 2 * d) + flops.linear(1, 2 * d, model.num_classes))
    return contract.Task(init, loss, eval_step, None, reduce="concat", judge=judge,
                         judged=("accuracy", "loss", "official_accuracy"),
                         flops_per_image=flops.train_step(forward))
