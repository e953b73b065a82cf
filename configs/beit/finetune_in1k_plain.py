"""Fine-tuning on ImageNet-1k of the plain ViT (absolute positions, no layer scale) of the paper.

python -m beit_jax.main --config configs/beit/finetune_in1k_plain.py --workdir runs/finetune_plain \
    --config.init.checkpoint=runs/pretrain_plain

The start is a run of pretrain_in1k.py:base_plain or large_plain. Variants and what was published
(Table 1, after 800 epochs on ImageNet-1k, top-1): base 83.2 %, large 85.2 %; base_384 84.6 %,
  large_384 86.3 % go on from those two for ten epochs: --config.init.checkpoint=runs/finetune_plain
Source: BEiT (arXiv 2106.08254v2), Table 13. It tries the learning rates 2e-3, 3e-3, 4e-3 and 5e-3
  and does not say which won: give another with --config.optim.learning_rate. It repeats
  augmentation for base, its code does not and neither do we. At 384 px the paper takes DeiT's
  setting for higher resolution, with ten epochs (Sec. 3.1): rate and floor 5e-6, weight decay 1e-8,
  batch 512 (DeiT, arXiv 2012.12877); no warm-up, and all else as at 224 px, is ours.
"""

from configs import common

EPOCHS = {"base": 100.0, "large": 50.0}
WARMUP_EPOCHS = {"base": 20.0, "large": 5.0}
LAYER_DECAY = {"base": 0.65, "large": 0.75}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("base", "large", "base_384", "large_384"))
    size, _, px = name.partition("_")
    image_px = int(px or 224)
    config = common.base()
    config.task = "classification"
    config.total_epochs = EPOCHS[size]
    config.data.update(
        name="imagenet2012",
        global_batch_size=1024,
        image_px=image_px,
        randaugment="rand-m9-mstd0.5-inc1",
        eval_crop_ratio=0.875 if image_px < 384 else 1.0,
        **common.IMAGENET_MEAN_STD,  # as in pre-training on ImageNet-1k
    )
    config.model = dict(
        image_px=image_px, patch_size=16, **common.VIT[size],
        layer_scale_init=0.0,
        use_abs_pos=True, pool="mean",
        drop_path_rate=0.1,
        num_classes=-1,  # from the data: 1,000
        head_init_scale=0.001,  # unilm beit/run_class_finetuning.py
    )
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(
        random_erasing=0.25, mixup=0.8, cutmix=1.0, switch_probability=0.5,
        group_size=128,  # ours: the paper does not state its batch per GPU
    )
    config.optim.update(
        learning_rate=4e-3 if size == "base" else 2e-3,  # ours, within Table 13's list
        min_learning_rate=1e-6, warmup_epochs=WARMUP_EPOCHS[size], weight_decay=0.05,
        layer_decay=LAYER_DECAY[size],
    )
    config.init.update(common.FROM_MIM)
    if px:  # Sec. 3.1: ten more epochs at 384 px
        config.total_epochs = 10.0
        config.data.global_batch_size = 512  # DeiT, as the next three
        config.optim.update(learning_rate=5e-6, min_learning_rate=5e-6, weight_decay=1e-8,
                            warmup_epochs=0.0)  # ours: a rate as low as its floor
        config.init.update(dict(allow_unused=()) | common.FROM_CLASSIFIER)
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
