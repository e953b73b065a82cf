"""The table of contents: one page per paper or downstream task."""

from beit_jax import options, token_ids
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


_MADE_UP_CLASSES = 1000


def check(config):
    """The task as it is before the data are read: numbers that only they know (-1) are made up.

    Raises: ValueError: as `make`.
    """
    config = config.copy_and_resolve_references()
    num_classes, target = _MADE_UP_CLASSES, config.get("target", {})
    if target.get("classes"):  # a list tells how many there must be
        key = "all_classes"
        options.check(classification.TargetOptions, target, "config.target", (key,))
        name = target.get(key, classification.TargetOptions.all_classes)
        num_classes = len(classification.read_classes(name, key))
    with config.unlocked():
        for section in ("model", "probe", "target"):
            if config.get(section, {}).get("num_classes") == -1:
                config[section].num_classes = num_classes
        if config.get("model", {}).get("vocab_size") == -1:
            config.model.vocab_size = token_ids.table_rows(token_ids.RELEASED_PIECES)
    return make(config)


def make(config):
    """Builds the task that `config.task` names.

    Raises: ValueError: an unknown name, or a section that does not fit the task.
    """
    if config.task not in TASKS:
        raise ValueError(f"config.task={config.task!r} is none of {', '.join(sorted(TASKS))}")
    return TASKS[config.task](config)
