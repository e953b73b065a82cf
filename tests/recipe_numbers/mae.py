"""configs/mae.

Sources: MAE (arXiv 2111.06377); facebookresearch/mae PRETRAIN.md, FINETUNE.md, main_pretrain.py,
main_finetune.py, main_linprobe.py, models_mae.py; MaskFeat (arXiv 2112.09133); data2vec (arXiv
2202.03555), facebookresearch/data2vec_vision beit/README.md.
"""

from recipe_numbers.table import CROPS, IMAGENET, MIX, OURS, RAND_M9, VIT, cite, without

SIZES = ("base", "large", "huge")
PATCH = {"base": 16, "large": 16, "huge": 14}
CELLS = {"base": 196, "large": 196, "huge": 256}
NETWORK = {size: VIT[size] | cite("Sec. 4; models_mae.py", data=dict(image_px=224), model=dict(
    image_px=224, patch_size=PATCH[size])) for size in SIZES}
ADAMW = OURS | cite("util/lr_sched.py, main_*.py", optim=dict(
    name="adamw", eps=1e-8, schedule="cosine_continuous", decay_steps=0, warmup_steps=0,
    weight_decay_end=-1.0, clip_norm=0.0, layer_decay=1.0, head_rate=1.0, ema_decay=0.0))
EVERY_EPOCH = cite("main_finetune.py", eval=dict(every_epochs=1.0, every_steps=0))
MIDDLE = cite("FINETUNE.md, util/datasets.py: 256 px, then 224",
              data=dict(eval_resize="crop", eval_crop_ratio=0.875))


def kept(cells: int, ratio: float) -> int:
    """Patches that are hidden: the rest is rounded down, models_mae.py."""
    return cells - int(cells * (1 - ratio) + 1e-6)


def pretrain_without_task(size: str, epochs: float) -> dict:
    """What Img2Vec has from here."""
    return ADAMW | CROPS | NETWORK[size] | cite(
        "Table 8", total_epochs=epochs, total_steps=0, data=dict(global_batch_size=4096),
        optim=dict(learning_rate=1.5e-4 * 4096 / 256, min_learning_rate=0.0, warmup_epochs=40.0,
                   weight_decay=0.05, b1=0.9, b2=0.95)
    ) | cite(
        "main_pretrain.py", data=dict(crop_scale=(0.2, 1.0)) | IMAGENET,
        optim=dict(decay_rule="not_vectors")  # timm's groups: class and mask token have 3 axes
    ) | cite("models_mae.py", model=dict(decoder_width=512, decoder_num_heads=16)) | cite(
        "ours", eval=dict(every_epochs=20.0, every_steps=0))


def pretrain(size: str, epochs: float) -> dict:
    return pretrain_without_task(size, epochs) | cite(
        "models_mae.py", model=dict(fusion="last", decoder_depth=8)
    ) | cite(
        "Sec. 3: 75 % of the patches", mask=dict(kind="random", cell=1,
                                                 num_masked=kept(CELLS[size], 0.75))
    ) | cite(
        "PRETRAIN.md, --norm_pix_loss", loss=dict(kind="squared"),
        target=dict(kind="pixels", image_px=224, patch_size=PATCH[size], normalise=True,
                    norm="none") | IMAGENET)


def finetune(size: str) -> dict:
    base_rate = {"base": 5e-4, "large": 1e-3, "huge": 1e-3}[size]
    return ADAMW | CROPS | NETWORK[size] | MIX | RAND_M9 | MIDDLE | EVERY_EPOCH | cite(
        "FINETUNE.md", total_epochs={"base": 100.0, "large": 50.0, "huge": 50.0}[size],
        total_steps=0, data=dict(global_batch_size=1024) | IMAGENET,
        model=dict(drop_path_rate={"base": 0.1, "large": 0.2, "huge": 0.3}[size]),
        augment=dict(random_erasing=0.25, group_size={"base": 32, "large": 32, "huge": 16}[size]),
        optim=dict(learning_rate=base_rate * 1024 / 256, weight_decay=0.05,
                   layer_decay={"base": 0.65, "large": 0.75, "huge": 0.75}[size]),
    ) | cite(
        "Table 9", optim=dict(b1=0.9, b2=0.999, warmup_epochs=5.0),
        loss=dict(label_smoothing=0.1)
    ) | cite(
        "main_finetune.py", optim=dict(min_learning_rate=1e-6, decay_rule="matrices"),
        model=dict(pool="mean", head_init_scale=2e-5 / 0.02)
    ) | cite(
        "models_vit.py", model=dict(use_k_bias=True, use_abs_pos=True, layer_scale_init=0.0)
    ) | cite("of the data", model=dict(num_classes=-1))


def probe(size: str) -> dict:
    return OURS | CROPS | NETWORK[size] | MIDDLE | EVERY_EPOCH | cite(
        "Table 10; FINETUNE.md: 50 epochs suffice",
        total_epochs={"base": 90.0, "large": 50.0, "huge": 50.0}[size], total_steps=0,
        data=dict(global_batch_size=16_384) | IMAGENET,
        optim=dict(name="lars", learning_rate=0.1 * 16_384 / 256, momentum=0.9, weight_decay=0.0,
                   warmup_epochs=10.0)
    ) | cite(
        "util/lars.py, util/lr_sched.py", optim=dict(
            trust_coefficient=0.001, min_learning_rate=0.0, schedule="cosine_continuous",
            decay_steps=0, warmup_steps=0, clip_norm=0.0, layer_decay=1.0, head_rate=1.0,
            ema_decay=0.0)
    ) | cite(
        "util/crop.py", data=dict(crop="resized_once", crop_scale=(0.08, 1.0))
    ) | cite(
        "main_linprobe.py: the norm of the encoder, then a batch norm",
        probe=dict(feature="cls", normalise="layer+batch", num_classes=-1)
    ) | cite(
        "models_vit.py", model=dict(use_k_bias=True, use_abs_pos=True, layer_scale_init=0.0))


FULL = pretrain("base", 300.0)
OF_TARGET = ("target.", "loss.")
SMOOTH_L1 = cite("data2vec: beta 2", loss=dict(kind="smooth_l1", beta=2.0))
OF_A_VIT = dict(image_px=224, dtype="bfloat16", norm="layernorm")
BLOCKS = without(FULL, "mask.cell") | cite(
    "Table 1f; BEiT's smallest block", mask=dict(kind="block_exact", min_block=16))
ABLATIONS = {
    "full": FULL,
    "pixels": FULL | cite("Table 7", target=dict(normalise=False)),
    "hog": without(FULL, "target.") | cite("MaskFeat", target=dict(
        kind="hog", image_px=224, patch_size=16, norm="none") | IMAGENET),
    "dino": without(FULL, *OF_TARGET) | SMOOTH_L1 | cite(
        "ours", target=dict(kind="dino_vitb16") | OF_A_VIT),
    "clip": without(FULL, *OF_TARGET) | SMOOTH_L1 | cite(
        "ours", target=dict(kind="clip_vitb16") | OF_A_VIT),
    "ema": without(FULL, *OF_TARGET) | SMOOTH_L1 | cite(
        "data2vec_vision: --target_layers [6,...,11] --ema_decay 0.9998",
        target=dict(kind="ema", decay=0.9998, blocks=6, norm="none")),
    **{f"mask_{percent}": FULL | cite("Fig. 5", mask=dict(num_masked=kept(196, percent / 100)))
       for percent in (40, 50, 60, 80, 85, 90)},
    "block_50": BLOCKS | cite("Table 1f: 50 %", mask=dict(num_masked=98)),
    "block_75": BLOCKS | cite("Table 1f: 75 %", mask=dict(num_masked=147)),
    **{f"decoder_{depth}": FULL | cite("Table 1a", model=dict(decoder_depth=depth))
       for depth in (1, 2, 4, 12)},
}

RECIPES = {
    **{("mae/pretrain", f"{size}_{epochs}e"): pretrain(size, float(epochs))
       for size in SIZES for epochs in (300, 800, 1600)},
    **{("mae/finetune", size): finetune(size) for size in SIZES},
    **{("mae/linear_probe", size): probe(size) for size in SIZES},
    **{("mae/ablations", name, "pretrain"): table for name, table in ABLATIONS.items()},
    **{("mae/ablations", name, "finetune"): finetune("base") for name in ABLATIONS},
    **{("mae/ablations", name, "probe"): probe("base") for name in ABLATIONS},
}
