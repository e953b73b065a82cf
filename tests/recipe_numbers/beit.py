"""configs/beit.

Sources: BEiT (arXiv 2106.08254v2); microsoft/unilm beit/: README.md (README),
run_beit_pretraining.py, run_class_finetuning.py, run_linear_eval.py, datasets.py,
get_started_for_image_classification.md (get_started); DeiT (arXiv 2012.12877).
"""

from recipe_numbers import dvae
from recipe_numbers.table import (
    CROPS,
    EVALUATION,
    HALF,
    IMAGENET,
    MIX,
    OURS,
    RAND_M9,
    UNILM,
    VIT,
    cite,
    without,
)

SIZES = ("base", "large")
LAYER_SCALE = {"base": 0.1, "large": 1e-5}
DALLE = cite("Sec. 2.1, run_beit_pretraining.py", target=dict(kind="dvae"),
             data=dict(target_px=112, target_filter="lanczos3"))
PATCHES = cite("Sec. 2.5", data=dict(image_px=224), model=dict(image_px=224, patch_size=16))
EVERY_20 = cite("ours", eval=dict(every_epochs=20.0, every_steps=0))
EVERY_5 = cite("ours", eval=dict(every_epochs=5.0, every_steps=0))
EVERY_EPOCH = cite("run_class_finetuning.py", eval=dict(every_epochs=1.0, every_steps=0))
NEVER = cite("nothing is evaluated", eval=dict(every_epochs=0.0, every_steps=0),
             data=dict(holdout_per_class=0))
PLAIN = cite("Sec. 2.5: the plain ViT", model=dict(layer_scale_init=0.0, use_abs_pos=True))


def pretrain(size: str) -> dict:
    """Table 12, of ImageNet-1k with ImageNet's statistics."""
    return UNILM | OURS | CROPS | VIT[size] | PATCHES | DALLE | EVERY_20 | cite(
        "Table 12", total_epochs=800.0, total_steps=0,
        data=dict(global_batch_size=2048, color_jitter=0.4),
        model=dict(drop_path_rate=0.1),
        optim=dict(learning_rate=1.5e-3, min_learning_rate=1e-5, warmup_epochs=10.0,
                   weight_decay=0.05, clip_norm={"base": 3.0, "large": 1.0}[size]),
    ) | cite("README, --imagenet_default_mean_and_std", data=IMAGENET) | cite(
        "Sec. 2.3: at most 75 of 196; masking_generator.py",
        mask=dict(kind="block", num_masked=75, min_block=16)) | cite(
        "Eq. 1", loss=dict(positions="masked"))


def beit_plus(size: str) -> dict:
    """Relative positions and layer scale in pre-training."""
    return cite("README", model=dict(layer_scale_init=LAYER_SCALE[size], use_abs_pos=False,
                                     use_shared_rel_pos=True))


PLAIN_PRETRAIN = PLAIN | cite("Sec. 2.5", model=dict(use_shared_rel_pos=False))


def pretrain_in22k(size: str) -> dict:
    return without(pretrain(size) | beit_plus(size), "model.use_abs_pos") | cite(
        "README", total_epochs=150.0, optim=dict(warmup_epochs=0.0, warmup_steps=10_000)
    ) | cite("beit/datasets.py without the flag", data=HALF) | NEVER


def finetune(size: str) -> dict:
    """get_started, the commands of ImageNet-1k; Table 13 has the same but drop path and rate."""
    return UNILM | OURS | CROPS | VIT[size] | PATCHES | EVALUATION | RAND_M9 | MIX | cite(
        "get_started", total_epochs={"base": 100.0, "large": 50.0}[size], total_steps=0,
        data=dict(global_batch_size=1024), augment=dict(group_size={"base": 128, "large": 64}[size])
    ) | cite(
        "get_started", model=dict(drop_path_rate={"base": 0.1, "large": 0.2}[size]),
        optim=dict(learning_rate={"base": 4e-3, "large": 1e-3}[size], min_learning_rate=1e-6,
                   warmup_epochs={"base": 20.0, "large": 5.0}[size], weight_decay=0.05,
                   layer_decay={"base": 0.65, "large": 0.75}[size]),
    ) | cite(
        "run_class_finetuning.py", loss=dict(label_smoothing=0.1),
        augment=dict(random_erasing=0.25), model=dict(pool="mean", head_init_scale=0.001)
    ) | cite("of the data", model=dict(num_classes=-1)) | EVERY_EPOCH


def with_tables(size: str) -> dict:
    """A table of relative positions in each block, and layer scale."""
    return cite("README", model=dict(layer_scale_init=LAYER_SCALE[size], use_rel_pos=True))


def table_13(size: str, learning_rate: float) -> dict:
    """What Table 13 has otherwise than the commands; its rates are 2e-3, 3e-3, 4e-3 or 5e-3."""
    return cite("Table 13", model=dict(drop_path_rate=0.1), data=IMAGENET) | cite(
        "ours, within Table 13", optim=dict(learning_rate=learning_rate))


def no_mix(table: dict) -> dict:
    return without(table, "augment.mixup", "augment.cutmix", "augment.switch", "augment.group")


def labels_of_22k(size: str) -> dict:
    return no_mix(finetune(size)) | with_tables(size) | NEVER | cite(
        "get_started, ImageNet-22k", total_epochs=90.0,
        data=dict(global_batch_size={"base": 4096, "large": 2048}[size]) | HALF,
        model=dict(drop_path_rate=0.2),
        optim=dict(learning_rate={"base": 3e-3, "large": 2e-3}[size], warmup_epochs=5.0))


def from_22k(size: str, px: int) -> dict:
    return no_mix(finetune(size)) | with_tables(size) | cite(
        "get_started, from ImageNet-22k", total_epochs=30.0,
        data=dict(global_batch_size=512, image_px=px) | HALF,
        model=dict(image_px=px, drop_path_rate={"base": 0.1, "large": 0.4}[size]),
        optim=dict(learning_rate=2e-5, warmup_epochs=5.0, weight_decay=1e-8,
                   layer_decay={"base": 0.85, "large": 0.9}[size]),
    ) | cite("beit/datasets.py", data=dict(eval_crop_ratio=0.875 if px == 224 else 1.0))


def plain(size: str) -> dict:
    return finetune(size) | PLAIN | table_13(size, {"base": 4e-3, "large": 2e-3}[size]) | cite(
        "ours", augment=dict(group_size=128)) | cite(
        "beit/datasets.py", data=dict(eval_crop_ratio=0.875))


def plain_384(size: str) -> dict:
    return plain(size) | cite("Sec. 3.1", total_epochs=10.0) | cite(
        "DeiT", data=dict(global_batch_size=512),
        optim=dict(learning_rate=5e-6, min_learning_rate=5e-6, weight_decay=1e-8)
    ) | cite("ours", optim=dict(warmup_epochs=0.0)) | cite(
        "beit/datasets.py", data=dict(image_px=384, eval_crop_ratio=1.0), model=dict(image_px=384))


CIFAR100 = finetune("base") | PLAIN | table_13("base", 4e-3) | EVERY_5 | cite(
    "appendix, CIFAR-100", total_epochs=150.0, data=dict(global_batch_size=512),
    augment=dict(random_erasing=0.0), optim=dict(warmup_epochs=20.0, weight_decay=0.3,
                                                 layer_decay=0.65)) | cite(
    "ours", augment=dict(group_size=64))


def probe(size: str, *, plain: bool, code: bool, statistics: dict) -> dict:
    layer_scale = 0.0 if plain else LAYER_SCALE[size]
    return UNILM | OURS | CROPS | VIT[size] | PATCHES | EVALUATION | EVERY_EPOCH | cite(
        "run_linear_eval.py" if code else "Appendix D", total_epochs=100.0 if code else 50.0,
        total_steps=0, probe=dict(feature="cls+mean" if code else "mean", num_classes=-1),
    ) | cite(
        "Appendix D", data=dict(global_batch_size=1024),
        optim=dict(learning_rate=4e-3, weight_decay=1e-4)
    ) | cite(
        "run_linear_eval.py", data=dict(interpolation="bilinear") | statistics,
        optim=dict(min_learning_rate=0.0, schedule="cosine_by_epoch", decay_rule="all")
    ) | cite("Sec. 2.5, README", model=dict(layer_scale_init=layer_scale, use_abs_pos=plain,
                                           use_shared_rel_pos=not plain))


def ablation(name: str) -> tuple[dict, dict]:
    """Pre-training and fine-tuning of a row of Tables 4, 5 and 8: 300 epochs, base."""
    table_5 = cite("Table 5; README", model=dict(layer_scale_init=0.1))
    start = pretrain("base") | PLAIN_PRETRAIN | cite("Sec. 3.3", total_epochs=300.0)
    end = finetune("base") | PLAIN | table_13("base", 4e-3) | EVERY_5 | cite(
        "Table 4: as a row without them", model=dict(use_rel_pos=False))
    if name.startswith("layer_scale"):
        start, end = start | table_5, end | table_5
    if name == "layer_scale_rel_pos":
        start |= cite("Table 5", model=dict(use_abs_pos=False, use_shared_rel_pos=True))
        end |= cite("Table 5", model=dict(use_abs_pos=False, use_rel_pos=True))
    if name.endswith("no_blockwise"):
        start = without(start, "mask.") | cite("Table 4", mask=dict(kind="random", num_masked=75))
    if name.startswith("no_tokens"):
        start = without(start, "target.", "data.target_filter") | cite(
            "Table 4", target=dict(kind="pixels"), data=dict(target_px=0))
    if name.startswith("recover_all"):
        start |= cite("Table 4", loss=dict(positions="all"))
    if name == "recover_all_no_mask":
        start = without(start, "mask.") | cite("Table 4", mask=dict(kind="none"))
    if name == "full_800":
        start |= cite("Table 4", total_epochs=800.0)
    return start, end


ABLATIONS = ("full", "no_blockwise", "no_tokens", "no_tokens_no_blockwise", "recover_all",
             "recover_all_no_mask", "full_800", "layer_scale", "layer_scale_rel_pos",
             "own_tokenizer")

RECIPES = {("beit/finetune_cifar100", "base"): CIFAR100,
           ("beit/finetune_cifar100", "intermediate"): CIFAR100}
for size in SIZES:
    pt1k = cite("Table 13", data=IMAGENET, model=dict(drop_path_rate=0.1)) | cite(
        "ours, within Table 13", optim=dict(learning_rate={"base": 4e-3, "large": 2e-3}[size]))
    RECIPES |= {
        ("beit/pretrain_in1k", size): pretrain(size) | beit_plus(size),
        ("beit/pretrain_in1k", f"{size}_plain"): pretrain(size) | PLAIN_PRETRAIN,
        ("beit/pretrain_in22k", size): pretrain_in22k(size),
        ("beit/finetune_in1k", size): finetune(size) | with_tables(size) | cite(
            "as in pre-training", data=HALF),
        ("beit/finetune_in1k", f"{size}_pt1k"): finetune(size) | with_tables(size) | pt1k,
        ("beit/finetune_in1k_plain", size): plain(size),
        ("beit/finetune_in1k_plain", f"{size}_384"): plain_384(size),
        ("beit/finetune_in22k", size): labels_of_22k(size),
        ("beit/finetune_in22k_to_in1k", size): from_22k(size, 224),
        ("beit/finetune_in22k_to_in1k", f"{size}_384"): from_22k(size, 384),
        ("beit/linear_probe", size): probe(size, plain=True, code=False, statistics=IMAGENET),
        ("beit/linear_probe", f"{size}_rel_pos"): probe(
            size, plain=False, code=False, statistics=IMAGENET),
        ("beit/linear_probe", f"{size}_code"): probe(
            size, plain=False, code=True, statistics=HALF),
        ("beit/linear_probe", f"{size}_code_pt1k"): probe(
            size, plain=False, code=True, statistics=IMAGENET),
    }
RECIPES["beit/finetune_in22k_to_in1k", "large_512"] = from_22k("large", 512)
for name in ABLATIONS:
    start, end = ablation(name)
    RECIPES |= {("beit/ablations", name, "pretrain"): start,
                ("beit/ablations", name, "finetune"): end}
RECIPES["beit/ablations", "own_tokenizer", "tokenizer"] = dvae.SHORTER
