"""The whole of BEiT on built-in data, in minutes on two CPU cores: what `make demo` runs.

python -m beit_jax.main --config configs/digits/beit.py --workdir runs/demo

Stages: tokenizer (a dVAE), pretrain (its codes, no labels), then, on the same few labels of each
seed, fine-tuning from pre-training and from scratch at two learning rates, and linear probes on
frozen features of the pre-trained and of an untrained backbone. The last table compares them.
Variants: "" (digit_scenes/plain), "varied" (harder: other sizes, places and contrasts; needs far
more compute), "smoke". All numbers are ours; docs/beit.md says what mattered.
"""

from configs import common

SEEDS = (0, 1, 2)
LABELS_PER_CLASS = 10
LEARNING_RATES = (2e-3, 7e-4)
CODES = 128
# 16 px views, a code for each 4 px of them: a 4 x 4 grid, as the patches of 8 px
TOKENIZER = dict(vocab_size=CODES, n_hid=16, n_init=16, num_groups=3, blocks_per_group=1)
BACKBONE = dict(image_px=32, patch_size=8, width=96, depth=4, num_heads=3, layer_scale_init=0.1)


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("plain", "varied"))
    config = common.staged()
    config.stages = dict(tokenizer=tokenizer(name), pretrain=pretrain(name))
    rows = {"fine-tuned from pre-training": {}, "trained from scratch": {},
            "linear probe, pre-trained features": {}, "linear probe, untrained features": {}}
    seeds = SEEDS[:1] if smoke else SEEDS
    rates = LEARNING_RATES[:1] if smoke else LEARNING_RATES  # the others run the same code
    for stage, row, start in (("finetune", "fine-tuned from pre-training", "stage:pretrain"),
                              ("scratch", "trained from scratch", "")):
        for rate in rates:
            written = f"{rate:.0e}".replace("e-0", "e-")  # keys of a config hold no dots
            names = tuple(f"{stage}_{written}_seed{seed}" for seed in seeds)
            rows[row][f"lr {written}"] = names
            config.stages.update({
                key: finetune(name, start, rate, seed) for key, seed in zip(names, seeds)})
    for stage, row, start in (
            ("probe", "linear probe, pre-trained features", "stage:pretrain"),
            ("probe_untrained", "linear probe, untrained features", "random")):
        names = tuple(f"{stage}_seed{seed}" for seed in seeds)
        rows[row]["best block"] = names
        config.stages.update({key: probe(name, start, seed) for key, seed in zip(names, seeds)})
    config.report = dict(
        metric="eval/validation/top1", scale=100.0, unit="%", rows=rows,
        title=f"digit_scenes/{name}, {LABELS_PER_CLASS} labels a class, {len(seeds)} seeds")
    return common.shrink(config) if smoke else config


def scenes(name: str):
    """What all stages share: whole images, no augmentation (a mirrored 2 is no digit)."""
    config = common.base()
    config.data.update(name=f"digit_scenes/{name}", image_px=32, crop="none", flip=0.0,
                       eval_batch_size=500, **common.HALF_MEAN_STD)
    config.checkpoint.every_steps = 0  # stages are short: only the end is saved
    return config


def tokenizer(name: str):
    config = scenes(name)
    config.task = "dvae_train"
    config.total_steps = 1500
    config.data.update(image_px=16, global_batch_size=32)
    config.model = dict(**TOKENIZER)
    config.loss = dict(kl_weight=6.6, kl_steps=500, tau_start=0.5, tau_end=1 / 16, tau_steps=1000)
    config.optim.update(learning_rate=5e-3, min_learning_rate=1e-4, weight_decay=1e-4,
                        decay_rule="kernels")
    return config


def pretrain(name: str):
    config = scenes(name)
    config.task = "beit_pretrain"
    config.total_steps = 3500
    config.data.update(target_px=16, global_batch_size=64)
    config.model = dict(**BACKBONE, use_shared_rel_pos=True)
    config.mask = dict(kind="block", num_masked=6, min_block=2)  # 40 % of 16
    config.target = dict(kind="dvae", checkpoint="stage:tokenizer", **TOKENIZER)
    config.loss = dict(positions="masked")
    config.optim.update(learning_rate=2e-3, min_learning_rate=1e-5, warmup_steps=200,
                        weight_decay=0.05, clip_norm=3.0)
    config.log.every_steps = 200
    return config


def finetune(name: str, start: str, learning_rate: float, seed: int):
    config = scenes(name)
    config.task, config.seed, config.total_steps = "classification", seed, 150
    config.data.update(global_batch_size=50, examples_per_class=LABELS_PER_CLASS, subset_seed=seed)
    config.model = dict(**BACKBONE, use_rel_pos=True, pool="mean", drop_path_rate=0.1,
                        num_classes=10, head_init_scale=1.0)
    config.loss = dict(label_smoothing=0.1)
    config.optim.update(learning_rate=learning_rate, min_learning_rate=1e-6, warmup_steps=15,
                        weight_decay=0.05, layer_decay=0.75 if start else 1.0)
    if start:
        config.init.update(common.FROM_MIM, checkpoint=start)
    return config


def probe(name: str, start: str, seed: int):
    config = scenes(name)
    config.task, config.seed, config.total_steps = "linear_probe", seed, 300
    config.data.update(global_batch_size=50, examples_per_class=LABELS_PER_CLASS, subset_seed=seed)
    config.model = dict(**BACKBONE, use_shared_rel_pos=True)
    config.probe = dict(feature="mean", num_classes=10)
    config.optim.update(learning_rate=4e-3, weight_decay=1e-4, decay_rule="all")
    config.init.checkpoint = start
    return config
