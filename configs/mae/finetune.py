"""Fine-tuning of a masked autoencoder's encoder on ImageNet-1k, as a plain ViT.

python -m beit_jax.main --config configs/mae/finetune.py:base --workdir runs/finetune \
    --config.init.checkpoint=runs/pretrain

Variants and what was published (after 1,600 epochs on normalised pixels, top-1):
  base   83.6 % (of four seeds 83.63, 83.66, 83.52, 83.46)
  large  85.9 % (85.95, 85.87, 85.76, 85.88)
  huge   86.9 %, patches of 14 px
Source: facebookresearch/mae FINETUNE.md and main_finetune.py, which go with weights trained on
  normalised pixels; MAE (arXiv 2111.06377), Table 9, is for raw pixels and has other rates, layer
  decays and drop path rates, and reads the class token.
"""

from configs import common

PATCH_SIZE = {"base": 16, "large": 16, "huge": 14}
EPOCHS = {"base": 100.0, "large": 50.0, "huge": 50.0}
LEARNING_RATE = {"base": 2e-3, "large": 4e-3, "huge": 4e-3}  # 5e-4, 1e-3, 1e-3 x 1024 / 256
LAYER_DECAY = {"base": 0.65, "large": 0.75, "huge": 0.75}
DROP_PATH_RATE = {"base": 0.1, "large": 0.2, "huge": 0.3}
IMAGES_PER_GPU = {"base": 32, "large": 32, "huge": 16}


def get_config(variant: str = ""):
    size, smoke = common.choose(variant, ("base", "large", "huge"))
    config = common.base()
    config.task = "classification"
    config.total_epochs = EPOCHS[size]
    config.data.update(
        name="imagenet2012",
        global_batch_size=1024,
        image_px=224,
        crop_scale=(0.08, 1.0), interpolation="bicubic", flip=0.5,
        randaugment="rand-m9-mstd0.5-inc1",  # no colour jitter
        eval_crop_ratio=0.875,  # 256 px, then the middle 224
        **common.IMAGENET_MEAN_STD,
    )
    config.model = dict(
        image_px=224, patch_size=PATCH_SIZE[size], **common.VIT[size],
        layer_scale_init=0.0, use_k_bias=True,
        use_abs_pos=True,  # the sine-cosine table, trained from here on
        pool="mean",  # --global_pool: a norm of its own, and the final one is left out
        drop_path_rate=DROP_PATH_RATE[size],
        num_classes=-1,  # from the data: 1,000
        head_init_scale=0.001,  # of 0.02: std 2e-5, main_finetune.py
    )
    config.loss = dict(label_smoothing=0.1)
    config.augment = dict(
        random_erasing=0.25,  # not in Table 9
        mixup=0.8, cutmix=1.0, switch_probability=0.5,
        group_size=IMAGES_PER_GPU[size],  # in the published commands
    )
    config.optim.update(
        learning_rate=LEARNING_RATE[size], min_learning_rate=1e-6,
        schedule="cosine_continuous", warmup_epochs=5.0,
        weight_decay=0.05, b1=0.9, b2=0.999, layer_decay=LAYER_DECAY[size],
    )
    config.init.update(common.FROM_MAE)
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
