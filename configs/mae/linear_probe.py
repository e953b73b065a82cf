"""Linear probe of a masked autoencoder's encoder on ImageNet-1k, by LARS at a batch of 16,384.

python -m beit_jax.main --config configs/mae/linear_probe.py:base --workdir runs/probe \
    --config.init.checkpoint=runs/pretrain

Variants and what was published for the class token of the last block (paper / FINETUNE.md, top-1):
base 68.0 / 67.8 %, large 75.8 / 76.0 %, huge 76.6 / 77.2 %. Compare it with the last of
top1_block_0, top1_block_1, ...: all blocks are probed here, and "top1" is the best of them.
Where the batch is too large for the devices, optim.accumulation_steps=32 works it off in parts of
512 images, whose batch statistics are then the parts' own: so it was on the 32 GPUs of the paper's
code. Otherwise they are those of the whole batch.
Source: MAE (arXiv 2111.06377), Table 10; facebookresearch/mae FINETUNE.md, main_linprobe.py,
  util/lars.py and util/crop.py.
"""

from configs import common

PATCH_SIZE = {"base": 16, "large": 16, "huge": 14}
EPOCHS = {"base": 90.0, "large": 50.0, "huge": 50.0}  # FINETUNE.md: 50 suffice


def get_config(variant: str = ""):
    size, smoke = common.choose(variant, ("base", "large", "huge"))
    config = common.base()
    config.task = "linear_probe"
    config.total_epochs = EPOCHS[size]
    config.data.update(
        name="imagenet2012",
        global_batch_size=16_384,
        image_px=224,
        crop="resized_once", crop_scale=(0.08, 1.0), interpolation="bicubic", flip=0.5,
        eval_crop_ratio=0.875,
        **common.IMAGENET_MEAN_STD,
    )
    config.model = dict(
        image_px=224, patch_size=PATCH_SIZE[size], **common.VIT[size],
        layer_scale_init=0.0, use_abs_pos=True, use_k_bias=True,
    )
    config.probe = dict(feature="cls", normalise="layer+batch", num_classes=-1)
    config.optim.update(
        name="lars", momentum=0.9, trust_coefficient=0.001, weight_decay=0.0,
        learning_rate=6.4,  # 0.1 x 16384 / 256
        min_learning_rate=0.0, schedule="cosine_continuous", warmup_epochs=10.0,
    )
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
