"""MAE: pixels of hidden patches, predicted from a quarter of the patches. No labels are used.

python -m beit_jax.main --config configs/mae/pretrain.py:base_1600e --workdir runs/pretrain

On a CPU, in seconds: ":smoke". Variants: base, large (patches of 16 px) and huge (14 px), each with
_300e, _800e or _1600e behind it.
Published after 1,600 epochs, top-1 on ImageNet-1k (MAE, Tables 3 and 12):
            fine-tuned    linear probe
  base         83.6 %        68.0 %
  large        85.9 %        75.8 %
  huge         86.9 %        76.6 %
Shorter, base, by open-mmlab/mmpretrain: 300 epochs 83.1 / 60.8 %, 800 epochs 83.3 / 65.1 %.
Source: MAE (arXiv 2111.06377), Sec. 3 and Table 8; facebookresearch/mae PRETRAIN.md and
  main_pretrain.py. No length but 800 and 1,600 epochs is theirs.
"""

from configs import common

PATCH_SIZE = {"base": 16, "large": 16, "huge": 14}
NUM_MASKED = {"base": 147, "large": 147, "huge": 192}  # 75 % of 196, of 256: Sec. 3
EPOCHS = {"300e": 300.0, "800e": 800.0, "1600e": 1600.0}


def get_config(variant: str = ""):
    names = tuple(f"{size}_{length}" for size in PATCH_SIZE for length in ("800e", "1600e", "300e"))
    name, smoke = common.choose(variant, names)
    size, length = name.split("_")
    config = common.base()
    config.task = "mae_pretrain"
    config.total_epochs = EPOCHS[length]  # 312 steps each
    config.data.update(
        name="imagenet2012",
        global_batch_size=4096,  # Table 8
        image_px=224,
        crop_scale=(0.2, 1.0), interpolation="bicubic", flip=0.5,  # main_pretrain.py; no colour
        **common.IMAGENET_MEAN_STD,
    )
    config.model = dict(
        image_px=224, patch_size=PATCH_SIZE[size], **common.VIT[size],
        fusion="last",
        decoder_width=512, decoder_depth=8, decoder_num_heads=16,  # models_mae.py, for every size
    )
    config.mask = dict(kind="random", num_masked=NUM_MASKED[size], cell=1)
    config.target = dict(
        kind="pixels", image_px=224, patch_size=PATCH_SIZE[size],
        normalise=True,  # per patch: the released weights' flag --norm_pix_loss
        norm="none", **common.IMAGENET_MEAN_STD)
    config.loss = dict(kind="squared")
    config.optim.update(
        learning_rate=2.4e-3,  # 1.5e-4 x 4096 / 256
        min_learning_rate=0.0, schedule="cosine_continuous", warmup_epochs=40.0,
        weight_decay=0.05, decay_rule="not_vectors", b1=0.9, b2=0.95, eps=1e-8,  # Table 8
    )
    config.eval.every_epochs = 20.0
    return common.shrink(config) if smoke else config
