"""Linear probe on ImageNet-1k: one linear classifier on the frozen features of each block.

python -m beit_jax.main --config configs/beit/linear_probe.py --workdir runs/probe \
    --config.init.checkpoint=runs/pretrain

Variants:
  base, large: average-pooled patch features, 50 epochs, the plain ViT of the paper. Published
    after 800 epochs on ImageNet-1k: base 56.7 % (best block 9 of 12), large 73.5 % (14 of 24).
  base_code, large_code: class token and mean patch side by side, 100 epochs, relative positions
    and layer scale: what the released script does.
Source: BEiT (arXiv 2106.08254v2), Sec. 3.1; microsoft/unilm beit/run_linear_eval.py. The
  classifiers are float32 and independent of each other; the script evaluates on bicubic images,
  we evaluate on bilinear ones, as it trains.
"""

from configs import common

LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("base", "large", "base_code", "large_code"))
    size, code = name.split("_")[0], name.endswith("code")
    config = common.base()
    config.task = "linear_probe"
    config.total_epochs = 100.0 if code else 50.0
    config.data.update(
        name="imagenet2012",
        global_batch_size=1024,  # 8 x 128
        image_px=224,
        crop_scale=(0.08, 1.0),
        interpolation="bilinear",
        # the script's default is that of the released weights; ours are pre-trained with ImageNet's
        **(common.HALF_MEAN_STD if code else common.IMAGENET_MEAN_STD),
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=LAYER_SCALE_INIT[size] if code else 0.0,
        use_abs_pos=not code, use_shared_rel_pos=code,
    )
    config.probe = dict(feature="cls+mean" if code else "mean", num_classes=-1)
    config.optim.update(
        learning_rate=4e-3, min_learning_rate=0.0, schedule="cosine_by_epoch", weight_decay=1e-4,
        decay_rule="all",  # the script decays the biases too
    )
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
