"""The whole of Img2Vec on built-in data, in minutes on two CPU cores.

python -m beit_jax.main --config configs/digits/img2vec.py --workdir runs/digits_img2vec

Stages: teacher (a classifier trained with the labels of all training scenes: it stands for a
network that learnt from ImageNet), pretrain (its features of hidden cells; no labels here), then
the comparison of configs/digits/mae.py. As the paper does it with ViT teachers, single patches are
hidden; a convolutional teacher's coarser grid needs model.grid_match and mask.cell. What the
teacher knew of the labels is in the rows of pre-training.
Variants: "" (digit_scenes/plain), "smoke". All numbers are ours; docs/img2vec.md says more.
"""

from configs import common
from configs.digits import beit, beitv2, mae


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("plain",))
    config = common.staged()
    config.stages = dict(teacher=beitv2.teacher(name), pretrain=pretrain(name))
    config.report = dict(
        metric="eval/validation/top1", scale=100.0, unit="%",
        rows=mae.add_comparison(config, name, smoke),
        title=f"digit_scenes/{name}, {beit.LABELS_PER_CLASS} labels a class, 3 seeds")
    return common.shrink(config) if smoke else config


def pretrain(name: str):
    config = mae.pretrain(name)
    config.task, config.total_steps = "img2vec_pretrain", 2000
    config.model = dict(**mae.BACKBONE, **mae.DECODER, fusion="mean")
    config.mask = dict(kind="random", num_masked=10)  # 60 % of 16; 6 are seen
    config.target = dict(
        kind="backbone", checkpoint="stage:teacher", norm="layernorm", **common.HALF_MEAN_STD,
        model=dict(**beitv2.BACKBONE, use_abs_pos=True))
    config.loss = dict(kind="smooth_l1", beta=2.0, global_weight=0.5, global_hidden=128)
    return config
