"""Fine-tuning on ImageNet-1k of a BEiT that was already fine-tuned on the labels of ImageNet-22k.

python -m beit_jax.main --config configs/beit/finetune_in22k_to_in1k.py:base_384 \
    --workdir runs/ft1k --config.init.checkpoint=runs/ft22k

Variants and what was published (unilm beit/README.md, top-1): base 85.2 %, base_384 86.8 %,
  large 87.4 %, large_384 88.4 %, large_512 88.6 %.
Source: microsoft/unilm beit/get_started_for_image_classification.md, the commands that start from
  weights fine-tuned on ImageNet-22k; layer scale: beit/README.md alone. All five start from the
  224 px model of 22k labels; the position tables are interpolated to the larger grid.
"""

from configs import common

LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}
LAYER_DECAY = {"base": 0.85, "large": 0.9}
DROP_PATH_RATE = {"base": 0.1, "large": 0.4}


def get_config(variant: str = ""):
    name, smoke = common.choose(
        variant, ("base", "base_384", "large", "large_384", "large_512"))
    size, _, px = name.partition("_")
    image_px = int(px or 224)
    config = common.base()
    config.task = "classification"
    config.total_epochs = 30.0
    config.data.update(
        name="imagenet2012",
        global_batch_size=512,
        image_px=image_px,
        randaugment="rand-m9-mstd0.5-inc1",
        eval_crop_ratio=0.875 if image_px < 384 else 1.0,  # unilm beit/datasets.py
        **common.HALF_MEAN_STD,
    )
    config.model = dict(
        image_px=image_px, patch_size=16, **common.VIT[size],
        layer_scale_init=LAYER_SCALE_INIT[size],
        use_rel_pos=True, pool="mean",
        drop_path_rate=DROP_PATH_RATE[size],
        num_classes=-1,  # from the data: 1,000
        head_init_scale=0.001,
    )
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(random_erasing=0.25)  # no mixup, no cutmix
    config.optim.update(
        learning_rate=2e-5, min_learning_rate=1e-6, warmup_epochs=5.0,
        weight_decay=1e-8,  # its way to say none
        layer_decay=LAYER_DECAY[size],
    )
    config.init.update(common.FROM_CLASSIFIER)
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
