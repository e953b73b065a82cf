"""What BEiT v2 predicts and hides, on small photographs: CIFAR-10, 32 px, patches of 8 px.

python -m beit_jax.main --config configs/cifar10/beitv2_ablations.py:DIR --workdir runs/cifar_v2

DIR as for configs/cifar10/beit.py; 500 images of each class are held out. Stages: teacher (a
classifier trained from scratch on all labels: it stands for CLIP), VQ-KD of its features, a dVAE,
then pre-training at equal steps: without aggregation, and with it for VQ-KD or dVAE codes and for
blocks or single patches; after each a linear probe on all labels (of the mean patch without
aggregation, of the class token with it, as in the paper), and fine-tuning on 100 labels a class,
one draw. In place of DIR: "smoke". All numbers are ours.
"""

from configs import common
from configs.cifar10 import beit

EPOCHS = dict(teacher=3.0, tokenizer=1.0, dvae=1.0, pretrain=2.0, probe=0.5)
LABELS_PER_CLASS = 100
SEEDS = (0,)
BACKBONE = dict(image_px=32, patch_size=8, width=128, depth=4, num_heads=4, layer_scale_init=0.1)
VQKD = dict(image_px=32, patch_size=8, width=128, depth=3, num_heads=4, code_dim=16,
            codebook_size=128)
# 16 px views, a code for each 4 px of them: a 4 x 4 grid, as the patches of 8 px
DVAE = dict(vocab_size=128, n_hid=16, n_init=32, num_groups=3, blocks_per_group=1)
# name: (codes, mask, whether the class token gathers), title
RUNS = {
    "flat": ("vqkd", "block_exact", False, "VQ-KD codes, blocks, no aggregation"),
    "vqkd_block": ("vqkd", "block_exact", True, "VQ-KD codes, blocks"),
    "vqkd_random": ("vqkd", "random", True, "VQ-KD codes, single patches"),
    "dvae_block": ("dvae", "block_exact", True, "dVAE codes, blocks"),
    "dvae_random": ("dvae", "random", True, "dVAE codes, single patches"),
}


def get_config(path: str = ""):
    smoke = path == "smoke"
    seeds = SEEDS[:1] if smoke else SEEDS
    config = common.staged()
    config.stages = dict(teacher=teacher(path), tokenizer=tokenizer(path), dvae=dvae(path))
    rows = {}
    runs = {"flat": RUNS["flat"]} if smoke else RUNS  # configs/digits has the others' kinds
    for name, (codes, mask, aggregate, title) in runs.items():
        start = f"stage:pretrain_{name}"
        config.stages[f"pretrain_{name}"] = pretrain(path, codes, mask, aggregate)
        config.stages[f"probe_{name}"] = probe(path, start, "cls" if aggregate else "mean")
        rows[f"probe: {title}"] = {"all labels": (f"probe_{name}",)}
        keys = tuple(f"finetune_{name}_seed{seed}" for seed in seeds)
        rows[f"fine-tuned: {title}"] = {f"{LABELS_PER_CLASS} a class": keys}
        for key, seed in zip(keys, seeds):
            config.stages[key] = finetune(path, start, seed)
    keys = tuple(f"scratch_seed{seed}" for seed in seeds)
    rows["from scratch"] = {f"{LABELS_PER_CLASS} a class": keys}
    for key, seed in zip(keys, seeds):
        config.stages[key] = finetune(path, "", seed)
    config.report = dict(metric="eval/validation/top1", scale=100.0, unit="%", rows=rows,
                         title="CIFAR-10, accuracy on 5,000 held-out training images")
    return common.shrink(config) if smoke else config


def photographs(path: str, epochs: float):
    config = beit.photographs(path, epochs)
    config.data.update(crop_scale=(0.3, 1.0), eval_batch_size=500)
    return config


def teacher(path: str):
    config = photographs(path, EPOCHS["teacher"])
    config.task = "classification"
    config.model = dict(**BACKBONE, use_abs_pos=True, pool="mean", drop_path_rate=0.1,
                        num_classes=-1, head_init_scale=1.0)
    config.loss = dict(label_smoothing=0.1)
    config.optim.update(learning_rate=1e-3, min_learning_rate=1e-6, warmup_epochs=0.5,
                        weight_decay=0.05)
    return config


def tokenizer(path: str):
    config = photographs(path, EPOCHS["tokenizer"])
    config.task = "vqkd_train"
    config.model = dict(**VQKD, decoder_depth=1)
    config.target = dict(
        kind="backbone", checkpoint="stage:teacher", **common.HALF_MEAN_STD,
        model=dict(**BACKBONE, use_abs_pos=True))
    config.loss = dict(commitment_weight=1.0, decay=0.99, kmeans_iterations=10)
    config.optim.update(learning_rate=1e-3, min_learning_rate=1e-5, warmup_epochs=0.2, b2=0.99,
                        weight_decay=1e-4)
    return config


def dvae(path: str):
    config = beit.tokenizer(path)
    config.total_epochs = EPOCHS["dvae"]
    config.model = dict(**DVAE)
    return config


def pretrain(path: str, codes: str, mask: str, aggregate: bool):
    config = photographs(path, EPOCHS["pretrain"])
    config.task = "beitv2_pretrain" if aggregate else "beit_pretrain"
    config.model = dict(**BACKBONE, use_shared_rel_pos=True)
    if aggregate:
        config.model.update(early_layer=2, head_layers=2)
    else:
        config.loss = dict(positions="masked")
    config.mask = dict(kind=mask, num_masked=6)  # 40 % of 16
    if mask != "random":
        config.mask.min_block = 2
    if codes == "vqkd":
        config.target = dict(kind="vqkd", checkpoint="stage:tokenizer", **VQKD)
    else:
        config.data.target_px = 16
        config.target = dict(kind="dvae", checkpoint="stage:dvae", **DVAE)
    config.optim.update(learning_rate=2e-3, min_learning_rate=1e-5, warmup_epochs=0.5,
                        weight_decay=0.05, clip_norm=3.0)
    return config


def finetune(path: str, start: str, seed: int):
    config = photographs(path, 0.0)
    config.task, config.seed, config.total_steps = "classification", seed, 300
    config.data.update(examples_per_class=LABELS_PER_CLASS, subset_seed=seed,
                       global_batch_size=100)
    config.model = dict(**BACKBONE, use_rel_pos=True, pool="mean", drop_path_rate=0.1,
                        num_classes=-1, head_init_scale=1.0)
    config.loss = dict(label_smoothing=0.1)
    config.optim.update(learning_rate=1e-3, min_learning_rate=1e-6, warmup_steps=30,
                        weight_decay=0.05, layer_decay=0.75 if start else 1.0)
    config.checkpoint.every_steps = 0
    if start:
        config.init.update(common.FROM_MIM, checkpoint=start)
    return config


def probe(path: str, start: str, feature: str):
    config = photographs(path, EPOCHS["probe"])
    config.task = "linear_probe"
    config.model = dict(**BACKBONE, use_shared_rel_pos=True)
    config.probe = dict(feature=feature, num_classes=-1)
    config.optim.update(learning_rate=4e-3, weight_decay=1e-4, decay_rule="all")
    config.init.checkpoint = start
    return config
