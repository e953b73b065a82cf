"""BEiT-3: ImageNet-1k classification with the experts for images.

python -m beit_jax.main --config configs/beit3/finetune.py:base --workdir runs/finetune \
    --config.init.checkpoint=runs/beit3

Variants and what was published (top-1 / top-5): base 85.40 / 97.63, large 87.58 / 98.33.
The paper's giant classifies by comparing images with names of classes; that head was never
released and is not here.
Source: microsoft/unilm beit3/get_started.
"""

from configs import common

RUNS = {
    "base": dict(learning_rate=7e-4, layer_decay=0.65, drop_path_rate=0.15),
    "large": dict(learning_rate=2e-4, layer_decay=0.8, drop_path_rate=0.25),
}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, tuple(RUNS))
    run = RUNS[name]
    config = common.base()
    config.task = "classification"
    config.total_epochs = 50.0
    config.data.update(
        name="imagenet2012", global_batch_size=1024, image_px=224,
        randaugment="rand-m9-mstd0.5-inc1", color_jitter=0.4, eval_crop_ratio=1.0,
        **common.IMAGENET_MEAN_STD)
    config.model = dict(kind="beit3", image_px=224, **common.BEIT3[name], num_classes=-1,
                        drop_path_rate=run["drop_path_rate"])
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(
        random_erasing=0.25, mixup=0.8, cutmix=1.0, switch_probability=0.5,
        group_size=128,  # published: 8 devices with 128 images each, of which each draws once
    )
    config.optim.update(
        learning_rate=run["learning_rate"], min_learning_rate=1e-6, warmup_epochs=5.0,
        weight_decay=0.05, b1=0.9, b2=0.999, layer_decay=run["layer_decay"])
    config.init.update(
        adapt=("take_vision", "resize_image_positions"),
        allow_missing=(r"^fc_norm/", r"^head/"),
        allow_unused=(*common.FROM_BEIT3["allow_unused"], r"^layer_norm/", *common.BEIT3_VECTORS),
        # published so: the released program classifies with these, and does all else with 0.5
        accept_other_statistics=True)
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
