"""How the tables of this folder are written: keys of a recipe, each with its value and its source.

Written down from the papers and the original commands, not taken from configs/.
"""

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def cite(source: str, **keys) -> dict:
    """{"section.key": (value, source)} of nested dicts: optim=dict(b1=0.9) is "optim.b1"."""
    return {key: (value, source) for key, value in flat(keys).items()}


def flat(section, above: str = "") -> dict:
    """{"section.key": value} of a config or of nested dicts; lists become tuples."""
    pairs = {}
    for key, value in section.items():
        path = f"{above}{key}"
        if hasattr(value, "items"):
            pairs |= flat(value, f"{path}.")
        else:
            pairs[path] = tuple(value) if isinstance(value, list) else value
    return pairs


def without(table: dict, *above: str) -> dict:
    """A table without the keys that begin so."""
    return {key: row for key, row in table.items() if not key.startswith(above)}


# Dosovitskiy et al. (arXiv 2010.11929), Table 1
VIT = {size: cite("ViT, Table 1", model=dict(width=width, depth=depth, num_heads=heads,
                                             mlp_ratio=4.0))
       for size, width, depth, heads in (("base", 768, 12, 12), ("large", 1024, 24, 16),
                                         ("huge", 1280, 32, 16))}

# what AdamW does in every program of microsoft/unilm unless its recipe says otherwise
UNILM = cite(
    "microsoft/unilm beit/optim_factory.py, beit/utils.py", optim=dict(
        name="adamw", b1=0.9, b2=0.999, eps=1e-8, schedule="cosine", decay_steps=0,
        warmup_steps=0, warmup_epochs=0.0, weight_decay_end=-1.0, decay_rule="matrices",
        decay_rel_pos_bias=True, clip_norm=0.0, layer_decay=1.0, head_rate=1.0, ema_decay=0.0))
OURS = cite("ours: float32 moments, a whole batch at once",
            optim=dict(mu_dtype="float32", accumulation_steps=1))

# microsoft/unilm beit/datasets.py and timm 0.3.2: crops of training, and no second view
CROPS = cite("RandomResizedCrop's defaults", data=dict(
    crop="resized", crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5,
    interpolation="bicubic", target_px=0, color_jitter=0.0, randaugment="", fast=False))
# evaluation: 0 stands for 0.875 below 384 px and 1.0 from there on
EVALUATION = cite("beit/datasets.py: 0.875 below 384 px, else 1.0",
                  data=dict(eval_resize="crop", eval_crop_ratio=0.0))
RAND_M9 = cite("--aa rand-m9-mstd0.5-inc1", data=dict(randaugment="rand-m9-mstd0.5-inc1"))
MIX = cite("--mixup 0.8 --cutmix 1.0, run_class_finetuning.py",
           augment=dict(mixup=0.8, cutmix=1.0, switch_probability=0.5))
