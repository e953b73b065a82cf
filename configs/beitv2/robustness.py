"""Robustness of a classifier of ImageNet-1k: ImageNet-A, -R and -Sketch, no training.

python -m beit_jax.main --config configs/beitv2/robustness.py:imagenet_r --workdir runs/r \
    --evaluate --config.init.checkpoint=runs/finetune

The checkpoint is a run of fine-tuning with 1,000 classes, or a converted one. Pictures at 224 px,
cut out of 256. ImageNet-A and -R have 200 of the 1,000 classes each: the classifier is reduced to
these, and softmax and top-5 run over them. Data as TFDS prepares them, whose labels count all
1,000 classes, or a folder with a sub-folder for each class, named by WordNet id:
--config.data.name=folder --config.data.path=DIR.

Variants: imagenet_a, imagenet_r, imagenet_sketch (base), and each with _large.
Published top-1 in % (measured by timm, its own crop; fine-tuned on ImageNet-1k after 1,600 epochs,
and the same with ImageNet-22k labels between):
  base            A 53.64   R 61.49   Sketch 46.00
  large           A 67.63   R 70.44   Sketch 54.17
  base, 22k       A 61.48   R 65.75   Sketch 49.52
  large, 22k      A 76.60   R 76.31   Sketch 58.38
microsoft/unilm beit2/README.md: large on R top-1 69.940, top-5 82.890, loss 1.541.
Source: BEiT v2 (arXiv 2208.06366), Table 3; classes: Hendrycks et al., arXiv 1907.07174 and
  2006.16241; ImageNet-Sketch: Wang et al., arXiv 1905.13549.
"""

from configs import common

DATA = ("imagenet_a", "imagenet_r", "imagenet_sketch")
LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, (*DATA, *(f"{data}_large" for data in DATA)))
    data, size = name.removesuffix("_large"), "large" if name.endswith("_large") else "base"
    config = common.base()
    config.task = "classification"
    config.total_steps = 1  # never done with --evaluate
    config.data.update(
        name=data,
        train_split="test", eval_split="test",  # the only split
        global_batch_size=256,
        image_px=224,
        eval_crop_ratio=0.875,
        **common.IMAGENET_MEAN_STD,
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=LAYER_SCALE_INIT[size],
        use_rel_pos=True, pool="mean", num_classes=1000,
    )
    if data != "imagenet_sketch":  # which has all classes
        config.target = dict(classes=data, num_classes=-1, all_classes="imagenet_1k")
    config.optim.learning_rate = 1e-5  # for a smoke test
    if smoke:
        common.shrink(config)
        config.data.synthetic_classes = 1000
    return config
