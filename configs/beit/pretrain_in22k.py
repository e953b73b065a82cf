"""BEiT: 150 epochs of masked image modelling on ImageNet-22k, the recipe of the released weights.

python -m beit_jax.main --config configs/beit/pretrain_in22k.py --workdir runs/pretrain_in22k \
    --config.data.path=DIR --config.target.checkpoint=dalle.npz

DIR is an image folder; labels are not used. Variants: base, large. Then finetune_in22k.py,
finetune_in1k.py:base, linear_probe.py:base_code, ...
Source: microsoft/unilm beit/README.md, the command for ImageNet-22k (base); for large, which has
  no published command, BEiT (arXiv 2106.08254v2), Table 12.
"""

from configs import common

LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}  # README alone
CLIP_NORM = {"base": 3.0, "large": 1.0}  # README; Table 12


def get_config(variant: str = ""):
    size, smoke = common.choose(variant, ("base", "large"))
    config = common.base()
    config.task = "beit_pretrain"
    config.total_epochs = 150.0  # README: about 6,900 steps an epoch, 1.04 M in all
    config.data.update(
        name="folder",  # about 14.2 M images; no TFDS builder exists; nothing is held out
        global_batch_size=2048,  # README
        image_px=224,
        target_px=112,
        color_jitter=0.4,  # unilm beit/run_beit_pretraining.py
        **common.HALF_MEAN_STD,  # unilm beit/datasets.py without the ImageNet flag
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=LAYER_SCALE_INIT[size],
        use_shared_rel_pos=True,
        drop_path_rate=0.1,  # README
    )
    config.mask = dict(kind="block", num_masked=75, min_block=16)  # README
    config.target = dict(kind="dvae", checkpoint="")  # DALL-E's encoder: see docs/beit.md
    config.loss = dict(positions="masked")
    config.optim.update(
        learning_rate=1.5e-3, min_learning_rate=1e-5,  # README
        warmup_steps=10_000,  # README: 1.4 epochs
        weight_decay=0.05, clip_norm=CLIP_NORM[size],
    )
    return common.shrink(config) if smoke else config
