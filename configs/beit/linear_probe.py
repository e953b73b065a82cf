"""Linear probe on ImageNet-1k: one linear classifier on the frozen features of each block.

python -m beit_jax.main --config configs/beit/linear_probe.py --workdir runs/probe \
    --config.init.checkpoint=runs/pretrain_plain
python -m beit_jax.main --config configs/beit/linear_probe.py:base_rel_pos \
    --workdir runs/probe_rel_pos --config.init.checkpoint=runs/pretrain_in1k

Variants. The protocol of the paper, average-pooled patch features, 50 epochs:
  base, large                     the plain ViT, pretrain_in1k.py:base_plain. Published after 800
                                  epochs: base 56.7 % (best block 9 of 12), large 73.5 % (14 of 24)
  base_rel_pos, large_rel_pos     relative positions and layer scale, pretrain_in1k.py:base, as in
                                  the second command
That of the released script, class token and mean patch side by side, 100 epochs, for relative
positions and layer scale:
  base_code, large_code           pretrain_in22k.py, or the released weights (pt22k)
  base_code_pt1k, large_code_pt1k    pretrain_in1k.py:base
Source: BEiT (arXiv 2106.08254v2), Appendix D, for the protocol with its rate, batch and weight
  decay; microsoft/unilm beit/run_linear_eval.py for what it leaves open. The classifiers are
  float32 and independent of each other; the script evaluates on bicubic images, we evaluate on
  bilinear ones, as it trains.
"""

from configs import common

LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}  # unilm beit/README.md alone


def get_config(variant: str = ""):
    kinds = ("", "_rel_pos", "_code", "_code_pt1k")
    names = tuple(size + kind for kind in kinds for size in ("base", "large"))
    name, smoke = common.choose(variant, names)
    size, _, kind = name.partition("_")
    plain, code = not kind, kind.startswith("code")
    config = common.base()
    config.task = "linear_probe"
    config.total_epochs = 100.0 if code else 50.0
    config.data.update(
        name="imagenet2012",
        global_batch_size=1024,  # 8 x 128
        image_px=224,
        crop_scale=(0.08, 1.0),
        interpolation="bilinear",
        # as in pre-training: on ImageNet-22k, and on ImageNet-1k
        **(common.HALF_MEAN_STD if kind == "code" else common.IMAGENET_MEAN_STD),
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=0.0 if plain else LAYER_SCALE_INIT[size],
        use_abs_pos=plain, use_shared_rel_pos=not plain,
    )
    config.probe = dict(feature="cls+mean" if code else "mean", num_classes=-1)
    config.optim.update(
        learning_rate=4e-3, min_learning_rate=0.0, schedule="cosine_by_epoch", weight_decay=1e-4,
        decay_rule="all",  # the script decays the biases too
    )
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
