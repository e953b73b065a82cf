"""Linear probe of BEiT v2 on ImageNet-1k: a linear classifier on the frozen features of each block.

python -m beit_jax.main --config configs/beitv2/linear_probe.py --workdir runs/probe \
    --config.init.checkpoint=runs/pretrain

Published (class token of the last block, base, 300 epochs of pre-training): 80.1 %; in the same
table BEiT 56.7 %, CAE 64.1 %, MVP 75.4 %. No protocol and no code were published, and a user who
tried reached about 65 % (microsoft/unilm issue 1574): all numbers here are ours, unverified.
Variants, each for base and large:
  base, large: class token, normalised vector by vector, so that the last block's classifier can
    represent what one on norm(x)[0] can; otherwise the protocol of BEiT.
  base_batch, large_batch: class token, each number normalised over the batch, larger rate.
  base_mean, large_mean: as the first, on the mean of the patch tokens: for models that were
    pre-trained without patch aggregation, and to see what the bottleneck does.
All blocks are reported, so that the table of a run has more than the paper's one number.
Source: BEiT v2 (arXiv 2208.06366), Sec. 3.2, for the feature; BEiT (arXiv 2106.08254v2),
  Appendix D, and microsoft/unilm beit/run_linear_eval.py for the protocol.
"""

from configs import common

LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}
FEATURE = {"": "cls", "batch": "cls", "mean": "mean"}
NORMALISE = {"": "layer", "batch": "batch", "mean": "layer"}
LEARNING_RATE = {"": 4e-3, "batch": 1e-2, "mean": 4e-3}  # 4e-3: BEiT, Appendix D


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("base", "large", "base_batch", "large_batch",
                                          "base_mean", "large_mean"))
    size, _, kind = name.partition("_")
    config = common.base()
    config.task = "linear_probe"
    config.total_epochs = 50.0  # BEiT, Appendix D
    config.data.update(
        name="imagenet2012",
        global_batch_size=1024,
        image_px=224,
        crop_scale=(0.08, 1.0),
        interpolation="bilinear",
        **common.IMAGENET_MEAN_STD,  # as in pre-training
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=LAYER_SCALE_INIT[size],
        use_shared_rel_pos=True,
    )
    config.probe = dict(feature=FEATURE[kind], normalise=NORMALISE[kind], num_classes=-1)
    config.optim.update(
        learning_rate=LEARNING_RATE[kind], min_learning_rate=0.0, schedule="cosine_by_epoch",
        weight_decay=1e-4,  # BEiT, Appendix D
        decay_rule="all",  # run_linear_eval.py
    )
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
