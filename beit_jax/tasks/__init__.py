"""The table of contents: one page per paper or downstream task."""

from beit_jax.tasks import (
    beit3_pretrain,
    beit_pretrain,
    beitv2_pretrain,
    captioning,
    classification,
    dvae_train,
    img2vec_pretrain,
    linear_probe,
    mae_pretrain,
    nlvr2,
    retrieval,
    token_diversity,
    vqa,
    vqkd_train,
)

TASKS = {
    "beit_pretrain": beit_pretrain.make,
    "beit3_pretrain": beit3_pretrain.make,
    "beitv2_pretrain": beitv2_pretrain.make,
    "captioning": captioning.make,
    "classification": classification.make,
    "dvae_train": dvae_train.make,
    "img2vec_pretrain": img2vec_pretrain.make,
    "linear_probe": linear_probe.make,
    "mae_pretrain": mae_pretrain.make,
    "nlvr2": nlvr2.make,
    "retrieval": retrieval.make,
    "token_diversity": token_diversity.make,
    "vqa": vqa.make,
    "vqkd_train": vqkd_train.make,
}


def make(config):
    """Builds the task that `config.task` names.

    Raises: ValueError: an unknown name, or a section that does not fit the task.
    """
    if config.task not in TASKS:
        raise ValueError(f"config.task={config.task!r} is none of {', '.join(sorted(TASKS))}")
    return TASKS[config.task](config)
