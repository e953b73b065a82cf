"""Intermediate fine-tuning: 90 epochs on the labels of ImageNet-22k, from the pre-trained BEiT.

python -m beit_jax.main --config configs/beit/finetune_in22k.py --workdir runs/ft22k \
    --config.data.path=DIR --config.init.checkpoint=runs/pretrain_in22k

DIR is an image folder with one sub-folder for each of the 21,841 classes. Variants: base, large.
Source: microsoft/unilm beit/get_started_for_image_classification.md, the commands for ImageNet-22k;
  BEiT (arXiv 2106.08254v2), Appendix B. The commands pass a clipping norm that their DeepSpeed path
  never applies: we clip nothing, as what really ran.
"""

from configs import common

# as in pre-training; unilm beit/README.md alone
LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}
BATCH = {"base": 4096, "large": 2048}
LEARNING_RATE = {"base": 3e-3, "large": 2e-3}
LAYER_DECAY = {"base": 0.65, "large": 0.75}


def get_config(variant: str = ""):
    size, smoke = common.choose(variant, ("base", "large"))
    config = common.base()
    config.task = "classification"
    config.total_epochs = 90.0
    config.data.update(
        name="folder",
        holdout_per_class=0,  # nothing is evaluated, as in the original
        global_batch_size=BATCH[size],
        image_px=224,
        randaugment="rand-m9-mstd0.5-inc1",
        **common.HALF_MEAN_STD,  # as in pre-training
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=LAYER_SCALE_INIT[size],
        use_rel_pos=True, pool="mean",
        drop_path_rate=0.2,
        num_classes=-1,  # from the data: 21,841
        head_init_scale=0.001,
    )
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(random_erasing=0.25)  # no mixup, no cutmix
    config.optim.update(
        learning_rate=LEARNING_RATE[size], min_learning_rate=1e-6, warmup_epochs=5.0,
        weight_decay=0.05, layer_decay=LAYER_DECAY[size],
    )
    config.init.update(common.FROM_MIM)
    return common.shrink(config) if smoke else config
