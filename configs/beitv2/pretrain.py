"""BEiT v2: masked image modelling with patch aggregation on ImageNet-1k. No labels are used.

python -m beit_jax.main --config configs/beitv2/pretrain.py:base_1600e --workdir runs/pretrain \
    --config.target.checkpoint=vqkd.npz  # on a CPU, in seconds: ":smoke"

The tokenizer is a run of configs/beitv2/vqkd.py, or a released one, which python -m
beit_jax.convert --source vqkd turns into our file; large is trained with the same base-size one.
Variants: base_300e, base_1600e, large_300e, large_1600e. Published: large predicts about 16 % of
the hidden codes at the end of 300 epochs (microsoft/unilm issue 885); both losses start at 9.05.
Source: BEiT v2 (arXiv 2208.06366), Sec. 2.2 and 2.3; microsoft/unilm beit2/PRETRAINING.md.
"""

from configs import common

LAYER_SCALE_INIT = {"base": 0.1, "large": 1e-5}
EARLY_LAYER = {"base": 9, "large": 21}
EPOCHS = {"300e": 300.0, "1600e": 1600.0}
B2 = {"300e": 0.98, "1600e": 0.999}
DROP_PATH_RATE = {"300e": 0.0, "1600e": 0.1}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("base_300e", "base_1600e", "large_300e", "large_1600e"))
    size, length = name.split("_")
    config = common.base()
    config.task = "beitv2_pretrain"
    config.total_epochs = EPOCHS[length]  # 187,500 or 1,000,000 steps
    config.data.update(
        name="imagenet2012",
        global_batch_size=2048,
        image_px=224,  # of both views: the tokenizer sees the same picture in [0, 1]
        crop_scale=(0.2, 1.0), interpolation="bicubic",
        color_jitter=0.4,  # microsoft/unilm beit2/datasets.py; its argument is not read
        **common.IMAGENET_MEAN_STD,  # README's flag for ImageNet-1k
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT[size],
        layer_scale_init=LAYER_SCALE_INIT[size],
        use_shared_rel_pos=True,
        drop_path_rate=DROP_PATH_RATE[length],
        early_layer=EARLY_LAYER[size], head_layers=2, shared_head=True,
        head_init="torch",  # what the code does, not what it says: see models/beit.py
    )
    # beit2/masking_generator.py: 75 of 196, always
    config.mask = dict(kind="block_exact", num_masked=75, min_block=16)
    config.target = dict(
        kind="vqkd", checkpoint="",
        image_px=224, patch_size=16, **common.VIT["base"],
        code_dim=32, codebook_size=8192,
    )
    config.optim.update(
        learning_rate=1.5e-3, min_learning_rate=1e-5, warmup_epochs=10.0,
        weight_decay=0.05, b1=0.9, b2=B2[length], eps=1e-8,
        clip_norm=3.0,
    )
    config.eval.every_epochs = 20.0
    return common.shrink(config) if smoke else config
