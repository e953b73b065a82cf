"""BEiT: 800 epochs of masked image modelling on ImageNet-1k. No labels are used.

python -m beit_jax.main --config configs/beit/pretrain_in1k.py --workdir runs/pretrain_in1k \
    --config.target.checkpoint=dalle.npz  # on a CPU, in seconds: ":smoke"
python -m beit_jax.main --config configs/beit/pretrain_in1k.py:base_plain \
    --workdir runs/pretrain_plain --config.target.checkpoint=dalle.npz

Variants:
  base, large: relative position bias and layer scale, the form of the released code ("BEiT+" in
    the paper's appendix). Then finetune_in1k.py:base_pt1k, linear_probe.py:base_rel_pos, ...
  base_plain, large_plain: absolute positions and no layer scale, the plain ViT of the paper's
    Tables 1 to 4 and of the released 800-epoch weights. Then finetune_in1k_plain.py,
    finetune_cifar100.py, linear_probe.py:base, ...
Source: BEiT (arXiv 2106.08254v2), Sec. 2.5 and Table 12; microsoft/unilm beit/README.md, the
  command for ImageNet-1k. There is no published command for large: Table 12 is followed.
"""

from configs import common

LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}  # unilm beit/README.md alone
CLIP_NORM = {"base": 3.0, "large": 1.0}  # Table 12


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("base", "large", "base_plain", "large_plain"))
    size, plain = name.split("_")[0], name.endswith("plain")
    config = common.base()
    config.task = "beit_pretrain"
    config.total_epochs = 800.0  # Table 12: 500,000 steps
    config.data.update(
        name="imagenet2012",
        global_batch_size=2048,  # Table 12
        image_px=224,
        target_px=112,  # Sec. 2.1: 14x14 codes at stride 8; unilm beit/run_beit_pretraining.py
        color_jitter=0.4,  # Table 12
        **common.IMAGENET_MEAN_STD,  # README's flag for ImageNet-1k
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=0.0 if plain else LAYER_SCALE_INIT[size],
        use_abs_pos=plain, use_shared_rel_pos=not plain,
        drop_path_rate=0.1,  # Table 12
    )
    config.mask = dict(kind="block", num_masked=75, min_block=16)  # Sec. 2.3: at most 75 of 196
    config.target = dict(kind="dvae", checkpoint="")  # DALL-E's encoder: see docs/beit.md
    config.loss = dict(positions="masked")  # Eq. 1
    config.optim.update(
        learning_rate=1.5e-3, min_learning_rate=1e-5, warmup_epochs=10.0,  # Table 12
        weight_decay=0.05, b1=0.9, b2=0.999, eps=1e-8,  # Table 12
        clip_norm=CLIP_NORM[size],
    )
    config.eval.every_epochs = 20.0
    return common.shrink(config) if smoke else config
