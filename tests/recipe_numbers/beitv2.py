"""configs/beitv2.

Sources: BEiT v2 (arXiv 2208.06366); microsoft/unilm beit2/: TOKENIZER.md, PRETRAINING.md,
datasets.py, modeling_pretrain.py, get_started_for_image_classification.md (get_started); what the
paper's Tables 4 to 6 vary is known from the text, the values beside the defaults are ours.
"""

from recipe_numbers.beit import (
    EVERY_5,
    EVERY_20,
    EVERY_EPOCH,
    LAYER_SCALE,
    NEVER,
    PATCHES,
    SIZES,
    finetune,
    no_mix,
    with_tables,
)
from recipe_numbers.table import (
    CROPS,
    EVALUATION,
    HALF,
    IMAGENET,
    MIX,
    OURS,
    UNILM,
    VIT,
    cite,
    without,
)

CODES = cite("Sec. 3.1, TOKENIZER.md", model=dict(code_dim=32, codebook_size=8192))


def vqkd(kind: str, decoder_depth: int) -> dict:
    return UNILM | OURS | CROPS | VIT["base"] | PATCHES | CODES | EVERY_5 | cite(
        "TOKENIZER.md", total_epochs=100.0, total_steps=0,
        data=dict(global_batch_size=512),  # 8 x 64
        model=dict(decoder_depth=decoder_depth), target=dict(kind=kind),
        loss=dict(decay=0.99),
        optim=dict(learning_rate=5e-5 * 512 / 128, warmup_epochs=10.0, weight_decay=1e-4, b2=0.99)
    ) | cite(
        "run_vqkd_training.py's defaults", optim=dict(min_learning_rate=1e-5),
        data=dict(interpolation="bicubic", color_jitter=0.0, flip=0.5)
    ) | cite(
        "modeling_vqkd.py: default process type, 2 x - 1", data=HALF
    ) | cite(
        "norm_ema_quantizer.py", loss=dict(commitment_weight=1.0, kmeans_iterations=10)
    ) | cite("what one GPU saw", loss=dict(kmeans_images=64))


def pretrain(size: str, length: str) -> dict:
    short = length == "300e"
    return UNILM | OURS | CROPS | VIT[size] | PATCHES | EVERY_20 | cite(
        "PRETRAINING.md", total_epochs={"300e": 300.0, "1600e": 1600.0}[length], total_steps=0,
        data=dict(global_batch_size=2048, crop_scale=(0.2, 1.0)) | IMAGENET,
        optim=dict(learning_rate=1.5e-3, min_learning_rate=1e-5, warmup_epochs=10.0,
                   weight_decay=0.05, b1=0.9, b2=0.98 if short else 0.999, eps=1e-8,
                   clip_norm=3.0),
        model=dict(drop_path_rate=0.0 if short else 0.1, layer_scale_init=LAYER_SCALE[size],
                   early_layer={"base": 9, "large": 21}[size], head_layers=2, shared_head=True),
    ) | cite(
        "beit2/datasets.py: fixed", data=dict(color_jitter=0.4)
    ) | cite(
        "modeling_pretrain.py", model=dict(use_shared_rel_pos=True, head_init="torch")
    ) | cite(
        "masking_generator.py: 75 of 196, always",
        mask=dict(kind="block_exact", num_masked=75, min_block=16)
    ) | cite(
        "vqkd_encoder_base_decoder_3x768x12_clip",
        target=dict(kind="vqkd", image_px=224, patch_size=16, width=768, depth=12, num_heads=12,
                    mlp_ratio=4.0, code_dim=32, codebook_size=8192))


def classifier(size: str, epochs: float, learning_rate: float, warmup_epochs: float,
               layer_decay: float, drop_path_rate: float, group_size: int = 0, px: int = 224,
               source: str = "get_started") -> dict:
    """group_size: 0 = without mixup."""
    table = finetune(size) | with_tables(size) if group_size else no_mix(
        finetune(size) | with_tables(size))
    table |= cite(
        source, total_epochs=epochs, data=dict(image_px=px, global_batch_size=1024),
        model=dict(image_px=px, drop_path_rate=drop_path_rate),
        optim=dict(learning_rate=learning_rate, warmup_epochs=warmup_epochs, weight_decay=0.05,
                   min_learning_rate=1e-6, layer_decay=layer_decay)
    ) | cite(
        "beit2/datasets.py", data=dict(eval_crop_ratio=0.875 if px == 224 else 1.0) | IMAGENET)
    return table | (MIX | cite("get_started", augment=dict(group_size=group_size))
                    if group_size else {})


def labels_of_22k(size: str, drop_path_rate: float) -> dict:
    return classifier(size, 90.0, 6e-4, 20.0, 0.75, drop_path_rate, 128) | NEVER | cite(
        "get_started", data=dict(global_batch_size=4096)) | cite(
        "ours", augment=dict(group_size=128))


NOT_PUBLISHED = "not published: as at 224 px"
BASE_300E = classifier("base", 100.0, 5e-4, 20.0, 0.65, 0.1, 128)
FROM_22K = {"base": ("base", 30.0, 5e-5, 20.0, 0.75, 0.1),
            "large": ("large", 20.0, 7e-5, 5.0, 0.8, 0.25)}


def probe(size: str, kind: str) -> dict:
    """No protocol was published: BEiT's, Appendix D, on the class token of Sec. 3.2."""
    return UNILM | OURS | CROPS | VIT[size] | PATCHES | EVALUATION | EVERY_EPOCH | cite(
        "BEiT, Appendix D", total_epochs=50.0, total_steps=0, data=dict(global_batch_size=1024),
        optim=dict(learning_rate=4e-3, weight_decay=1e-4)
    ) | cite(
        "beit/run_linear_eval.py", data=dict(interpolation="bilinear"),
        optim=dict(min_learning_rate=0.0, schedule="cosine_by_epoch", decay_rule="all")
    ) | cite(
        "PRETRAINING.md", data=IMAGENET,
        model=dict(layer_scale_init=LAYER_SCALE[size], use_shared_rel_pos=True)
    ) | cite(
        "Sec. 3.2", probe=dict(feature="mean" if kind == "mean" else "cls", num_classes=-1)
    ) | cite(
        "ours", probe=dict(normalise="batch" if kind == "batch" else "layer")
    ) | (cite("ours", optim=dict(learning_rate=1e-2)) if kind == "batch" else {})


def robustness(data: str, size: str) -> dict:
    """The original's evaluation of a classifier; the one step of training is never done."""
    table = VIT[size] | PATCHES | cite(
        "README", data=dict(eval_crop_ratio=0.875, eval_resize="crop") | IMAGENET,
        model=dict(layer_scale_init=LAYER_SCALE[size], use_rel_pos=True, pool="mean",
                   num_classes=1000)
    ) | cite("ours: never done", total_steps=1, total_epochs=0.0,
             data=dict(global_batch_size=256), optim=dict(learning_rate=1e-5))
    if data == "imagenet_sketch":
        return table
    return table | cite("Hendrycks et al.: 200 of the 1,000 classes", target=dict(
        classes=data, all_classes="imagenet_1k", num_classes=-1))


# --- ablations ------------------------------------------------------------------------------------

FULL = pretrain("base", "300e")
AGGREGATION = {
    "full": FULL,
    "early_layer_3": FULL | cite("ours", model=dict(early_layer=3)),
    "early_layer_6": FULL | cite("ours", model=dict(early_layer=6)),
    "early_layer_11": FULL | cite("ours", model=dict(early_layer=11)),
    "head_layers_1": FULL | cite("Table 5", model=dict(head_layers=1)),
    "head_layers_3": FULL | cite("Table 5", model=dict(head_layers=3)),
    "separate_head": FULL | cite("Table 5", model=dict(shared_head=False)),
    "head_init_backbone": FULL | cite("ours", model=dict(head_init="backbone")),
    "mask_block": FULL | cite("ours: BEiT's", mask=dict(kind="block")),
    "mask_random": without(FULL, "mask.") | cite("ours", mask=dict(kind="random", num_masked=75)),
    "teacher_dino": FULL,
}
# BEiT's task on VQ-KD's codes
ONE_PREDICTION = without(FULL, "model.early_layer", "model.head_layers", "model.shared_head",
                         "model.head_init") | cite("BEiT, Eq. 1", loss=dict(positions="masked"))
TOKENIZERS = {  # of the tokenizer's model; without the decoder, of the target as well
    "decoder_1": dict(decoder_depth=1),
    "decoder_3": dict(decoder_depth=3),
    "decoder_6": dict(decoder_depth=6),
    "encoder_small": dict(width=384, num_heads=6),
    "code_dim_16": dict(code_dim=16),
    "code_dim_64": dict(code_dim=64),
    "codebook_4096": dict(codebook_size=4096),
    "codebook_16384": dict(codebook_size=16384),
}
ENCODER = BASE_300E | cite(  # without a table of relative positions
    "run_class_finetuning.py, VQ-KD's encoder", data=HALF,
    model=dict(layer_scale_init=0.0, use_abs_pos=True, use_rel_pos=False))

RECIPES = {
    ("beitv2/vqkd", "clip"): vqkd("clip_vitb16", 3),
    ("beitv2/vqkd", "clip_decoder1"): vqkd("clip_vitb16", 1),
    ("beitv2/vqkd", "dino"): vqkd("dino_vitb16", 1),
    ("beitv2/finetune", "base_300e"): BASE_300E,
    ("beitv2/finetune", "base_1600e"): classifier("base", 100.0, 5e-4, 20.0, 0.6, 0.2, 128),
    ("beitv2/finetune", "large_300e"): classifier("large", 50.0, 5e-4, 5.0, 0.8, 0.2, 64),
    ("beitv2/finetune", "large_1600e"): classifier("large", 50.0, 2e-4, 5.0, 0.8, 0.2, 64),
    ("beitv2/finetune", "base_in22k"): labels_of_22k("base", 0.1),
    ("beitv2/finetune", "large_in22k"): labels_of_22k("large", 0.2),
    **{("beitv2/finetune", f"{size}_in22k_to_in1k{ending}"): classifier(
        *FROM_22K[size], px=px, source=NOT_PUBLISHED if ending else "get_started")
        for size, ending, px in (("base", "", 224), ("base", "_384", 384), ("large", "", 224),
                                 ("large", "_384", 384), ("large", "_512", 512))},
    **{("beitv2/pretrain", f"{size}_{length}"): pretrain(size, length)
       for size in SIZES for length in ("300e", "1600e")},
    **{("beitv2/linear_probe", f"{size}_{kind}".rstrip("_")): probe(size, kind)
       for size in SIZES for kind in ("", "batch", "mean")},
    **{("beitv2/robustness", data if size == "base" else f"{data}_large"): robustness(data, size)
       for data in ("imagenet_a", "imagenet_r", "imagenet_sketch") for size in SIZES},
    **{("beitv2/ablations", name, "pretrain"): table for name, table in AGGREGATION.items()},
    ("beitv2/ablations", "no_aggregation", "pretrain"): ONE_PREDICTION,
    ("beitv2/ablations", "no_aggregation", "probe"): probe("base", "mean"),
    ("beitv2/ablations", "teacher_dino", "tokenizer"): vqkd("dino_vitb16", 1),
    ("beitv2/ablations", "encoder_clip", "tokenizer"): vqkd("clip_vitb16", 3),
    ("beitv2/ablations", "encoder_dino", "tokenizer"): vqkd("dino_vitb16", 1),
    ("beitv2/ablations", "encoder_clip", "finetune"): ENCODER,
    ("beitv2/ablations", "encoder_dino", "finetune"): ENCODER,
}
for name, change in TOKENIZERS.items():
    seen = {key: value for key, value in change.items() if key != "decoder_depth"}
    RECIPES |= {
        ("beitv2/ablations", name, "tokenizer"): vqkd("clip_vitb16", 3) | cite(
            "Table 4; values ours", model=change),
        ("beitv2/ablations", name, "pretrain"): ONE_PREDICTION | cite(
            "as the tokenizer", target=seen),
        ("beitv2/ablations", name, "probe"): probe("base", "mean"),
    }
for name in (*AGGREGATION, "no_aggregation", *TOKENIZERS):
    RECIPES["beitv2/ablations", name, "finetune"] = BASE_300E
for name in AGGREGATION:
    RECIPES["beitv2/ablations", name, "probe"] = probe("base", "")
