"""The whole of BEiT v2 on built-in data, on two CPU cores: teacher, tokenizer, pre-training, probe.

python -m beit_jax.main --config configs/digits/beitv2.py --workdir runs/digits_v2

Stages: teacher (a classifier trained with the labels of all training scenes: it stands for CLIP,
which learnt from captions), tokenizer (VQ-KD of the teacher's features), and for each of three
seeds pre-training with patch aggregation and without, at equal steps, and on top of each a linear
probe and fine-tuning with few labels. The table compares with against without; what the teacher
knew is in all rows alike, so that none may be compared with configs/digits/beit.py.
Variants: "" (digit_scenes/plain), "smoke". All numbers are ours; docs/beitv2.md says what mattered.
"""

from configs import common
from configs.digits import beit

SEEDS = (0, 1, 2)
TOKENIZER = dict(image_px=32, patch_size=8, width=96, depth=2, num_heads=3, code_dim=16,
                 codebook_size=64)
BACKBONE = dict(image_px=32, patch_size=8, width=96, depth=4, num_heads=3, layer_scale_init=0.1)
AGGREGATION = dict(early_layer=2, head_layers=2)
ROWS = {"agg": "with aggregation", "flat": "without"}
MEASURES = {"probe_cls": "probe of class token", "probe_mean": "probe of patch mean",
            "finetune": "fine-tuned"}
SETTINGS = {"probe_cls": "best block", "probe_mean": "best block", "finetune": "lr 2e-3"}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("plain",))
    seeds = SEEDS[:1] if smoke else SEEDS
    config = common.staged()
    config.stages = dict(teacher=teacher(name), tokenizer=tokenizer(name))
    kinds = {"agg": ROWS["agg"]} if smoke else ROWS  # configs/cifar10 has the other
    rows = {f"{what}, {row}": {} for what in MEASURES.values() for row in kinds.values()}
    for kind, row in kinds.items():
        names = {what: tuple(f"{what}_{kind}_seed{seed}" for seed in seeds)
                 for what in ("pretrain", *MEASURES)}
        for i, seed in enumerate(seeds):
            start = names["pretrain"][i]
            config.stages[start] = pretrain(name, kind == "agg", seed)
            config.stages[names["probe_cls"][i]] = probe(name, f"stage:{start}", "cls", seed)
            config.stages[names["probe_mean"][i]] = probe(name, f"stage:{start}", "mean", seed)
            config.stages[names["finetune"][i]] = beit.finetune(name, f"stage:{start}", 2e-3, seed)
        for what, title in MEASURES.items():
            rows[f"{title}, {row}"][SETTINGS[what]] = names[what]
    config.report = dict(
        metric="eval/validation/top1", scale=100.0, unit="%", rows=rows,
        title=f"digit_scenes/{name}, {beit.LABELS_PER_CLASS} labels a class, {len(seeds)} seeds")
    return common.shrink(config) if smoke else config


def teacher(name: str):
    config = beit.scenes(name)
    config.task, config.total_steps = "classification", 1500
    config.data.update(global_batch_size=64)
    config.model = dict(**BACKBONE, use_abs_pos=True, pool="mean", drop_path_rate=0.1,
                        num_classes=10, head_init_scale=1.0)
    config.loss = dict(label_smoothing=0.1)
    config.optim.update(learning_rate=2e-3, min_learning_rate=1e-6, warmup_steps=100,
                        weight_decay=0.05)
    return config


def tokenizer(name: str):
    config = beit.scenes(name)
    config.task, config.total_steps = "vqkd_train", 1200
    config.data.update(global_batch_size=64)
    config.model = dict(**TOKENIZER, decoder_depth=1)
    config.target = dict(
        kind="backbone", checkpoint="stage:teacher", **common.HALF_MEAN_STD,
        model=dict(**BACKBONE, use_abs_pos=True))
    config.loss = dict(commitment_weight=1.0, decay=0.99, kmeans_iterations=10)
    config.optim.update(learning_rate=1e-3, min_learning_rate=1e-5, warmup_steps=100, b2=0.99,
                        weight_decay=1e-4)
    return config


def pretrain(name: str, aggregate: bool, seed: int):
    config = beit.scenes(name)
    config.task = "beitv2_pretrain" if aggregate else "beit_pretrain"
    config.seed, config.total_steps = seed, 1000
    config.data.update(global_batch_size=64)
    config.model = dict(**BACKBONE, use_shared_rel_pos=True, **(AGGREGATION if aggregate else {}))
    config.mask = dict(kind="block_exact", num_masked=6, min_block=2)  # 40 % of 16
    config.target = dict(kind="vqkd", checkpoint="stage:tokenizer", **TOKENIZER)
    if not aggregate:
        config.loss = dict(positions="masked")
    config.optim.update(learning_rate=2e-3, min_learning_rate=1e-5, warmup_steps=100,
                        weight_decay=0.05, clip_norm=3.0)
    config.log.every_steps = 100
    return config


def probe(name: str, start: str, feature: str, seed: int):
    config = beit.probe(name, start, seed)
    config.probe.feature = feature
    return config
