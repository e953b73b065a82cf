"""Linear probe of Img2Vec's encoder on ImageNet-1k: MAE's protocol; nothing of it was published.

python -m beit_jax.main --config configs/img2vec/linear_probe.py:base --workdir runs/probe \
    --config.init.checkpoint=runs/pretrain

Variants, each for base, large and huge:
  base, ...       class token of every block, as MAE's probe
  base_mean, ...  the mean patch of every block, which the global loss of Img2Vec has trained
All blocks are probed, so that it shows which of those that pre-training fused know most.
Source: facebookresearch/mae FINETUNE.md for every number.
"""

from configs import common
from configs.mae import linear_probe

SIZES = ("base", "large", "huge")


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, (*SIZES, *(f"{size}_mean" for size in SIZES)))
    size, _, feature = name.partition("_")
    config = linear_probe.get_config(size)
    config.probe.feature = feature or "cls"
    return common.shrink(config) if smoke else config
