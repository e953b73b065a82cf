"""Fine-tuning on ImageNet-1k at 224 px, straight from masked image modelling on ImageNet-22k.

python -m beit_jax.main --config configs/beit/finetune_in1k.py --workdir runs/finetune \
    --config.init.checkpoint=runs/pretrain

On images of your own: --config.data.name=folder --config.data.path=DIR. Variants: base, large.
Published (unilm beit/README.md): base 83.7 % top-1, large 86.0 %.
Source: microsoft/unilm beit/README.md, fine-tuning on ImageNet-1k without intermediate
  fine-tuning.
"""

from configs import common

LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}
EPOCHS = {"base": 100.0, "large": 50.0}
LEARNING_RATE = {"base": 4e-3, "large": 1e-3}
WARMUP_EPOCHS = {"base": 20.0, "large": 5.0}
LAYER_DECAY = {"base": 0.65, "large": 0.75}
DROP_PATH_RATE = {"base": 0.1, "large": 0.2}


def get_config(variant: str = ""):
    size, smoke = common.choose(variant, ("base", "large"))
    config = common.base()
    config.task = "classification"
    config.total_epochs = EPOCHS[size]
    config.data.update(
        name="imagenet2012",
        global_batch_size=1024,
        image_px=224,
        randaugment="rand-m9-mstd0.5-inc1",
        **common.HALF_MEAN_STD,  # as in pre-training on ImageNet-22k
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=LAYER_SCALE_INIT[size],
        use_rel_pos=True, pool="mean",
        drop_path_rate=DROP_PATH_RATE[size],
        num_classes=-1,  # from the data: 1,000
        head_init_scale=0.001,
    )
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(
        random_erasing=0.25, mixup=0.8, cutmix=1.0, switch_probability=0.5,
        group_size={"base": 128, "large": 64}[size],  # images per GPU in the published commands
    )
    config.optim.update(
        learning_rate=LEARNING_RATE[size], min_learning_rate=1e-6,
        warmup_epochs=WARMUP_EPOCHS[size], weight_decay=0.05, layer_decay=LAYER_DECAY[size],
    )
    config.init.update(common.FROM_MIM)
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
