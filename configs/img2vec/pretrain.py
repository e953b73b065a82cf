"""Img2Vec: features of a convolutional teacher whose tokens differ much from each other.

python -m beit_jax.main --config configs/img2vec/pretrain.py:base_800e --workdir runs/pretrain \
    --config.target.checkpoint=dino_resnet50.npz  # on a CPU, in seconds: ":smoke"

Variants: base_300e, base_800e, large_800e, huge_800e (patches of 14 px), huge16_800e (of 16 px).
Published, fine-tuned on ImageNet-1k: base 85.1 %, large 86.7 %, huge 87.5 % top-1; after how many
epochs is unknown to us.
Whose each number is: [P] the abstract; [R] a public review of the paper, in Korean, of 2023, that
retells its sections 1 to 3; [M] MAE, the framework it stands on; [D] ours, because these leave it
open: all of them are switches, and ablations.py has the alternatives.
Source: Img2Vec (arXiv 2304.12535), by way of [P] and [R]: no code was published and we had no full
  text. facebookresearch/mae PRETRAIN.md; docs/img2vec.md.
"""

from configs import common

EPOCHS = {"300e": 300.0, "800e": 800.0}  # [D] both
# huge: [M] for patches of 14 px; that Img2Vec's are as small is unverified
PATCH_SIZE = {"base": 16, "large": 16, "huge": 14, "huge16": 16}
DECODER_DEPTH = {"base": 2, "large": 4, "huge": 4, "huge16": 4}  # [R] base, large; [D] huge
# 60 % [R] of 7x7 cells of 32 px, 30 of 49; huge: of 8x8 cells of 28 px, 39 of 64. Kept ones rounded
# down [M]
NUM_MASKED = {"base": 30 * 4, "large": 30 * 4, "huge": 39 * 4, "huge16": 30 * 4}
# [D] huge has 16x16 patches, and 7x7 divides no such grid: its teacher sees the same crop at 256 px
TARGET_PX = {"base": 224, "large": 224, "huge": 256, "huge16": 224}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("base_800e", "base_300e", "large_800e", "huge_800e",
                                          "huge16_800e"))
    size, length = name.split("_")
    config = common.base()
    config.task = "img2vec_pretrain"
    config.total_epochs = EPOCHS[length]
    config.data.update(
        name="imagenet2012",
        global_batch_size=4096,  # [M]
        image_px=224,  # [R]
        crop_scale=(0.2, 1.0), interpolation="bicubic", flip=0.5,  # [M]
        **common.IMAGENET_MEAN_STD,
    )
    config.model = dict(
        image_px=224, patch_size=PATCH_SIZE[size], **common.VIT[size.removesuffix("16")],
        fusion="mean",  # [R] average of all blocks; [D] of raw outputs, one norm behind
        decoder_width=512, decoder_num_heads=16,  # [M]
        decoder_depth=DECODER_DEPTH[size],
        grid_match="pool",  # [D] one prediction for a token of the teacher
    )
    config.mask = dict(kind="random", num_masked=NUM_MASKED[size], cell=2)  # [R]
    config.target = dict(
        kind="dino_resnet50", checkpoint="",  # [R]; [D] the map before global pooling
        image_px=TARGET_PX[size], dtype="bfloat16",
        norm="layernorm",  # [D] a beta of 2 asks for targets of unit scale
    )
    if TARGET_PX[size] != config.data.image_px:
        config.data.update(target_px=TARGET_PX[size], target_filter="bicubic")
    config.loss = dict(
        kind="smooth_l1", beta=2.0, global_weight=0.5,  # [R]
        global_layers=2, global_hidden=2048,  # [R] an MLP with ReLU; [D] its size
        global_source="fused", global_target="pool_then_norm",  # [D]
    )
    config.optim.update(  # [D]: MAE's, [M]
        learning_rate=2.4e-3,  # 1.5e-4 x 4096 / 256
        min_learning_rate=0.0, schedule="cosine_continuous", warmup_epochs=40.0,
        weight_decay=0.05, decay_rule="not_vectors", b1=0.9, b2=0.95, eps=1e-8,
    )
    config.eval.every_epochs = 20.0
    return common.shrink(config) if smoke else config
