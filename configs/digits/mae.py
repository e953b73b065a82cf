"""The whole of MAE on built-in data, in minutes on two CPU cores.

python -m beit_jax.main --config configs/digits/mae.py --workdir runs/digits_mae

Stages: pretrain (pixels of hidden patches, no labels), then, on the same few labels of each seed,
fine-tuning from pre-training and from scratch at two learning rates, and linear probes on frozen
features of the pre-trained and of an untrained backbone. The last table compares them.
Variants: "" (digit_scenes/plain), "smoke". All numbers are ours; docs/mae.md says what mattered.
"""

from configs import common
from configs.digits import beit

SEEDS = beit.SEEDS
LEARNING_RATES = (2e-3, 7e-4)
BACKBONE = dict(image_px=32, patch_size=8, width=96, depth=4, num_heads=3)
DECODER = dict(decoder_width=64, decoder_depth=2, decoder_num_heads=2)
# the encoder as a plain ViT, for what comes after pre-training
PLAIN = dict(**BACKBONE, layer_scale_init=0.0, use_abs_pos=True, use_k_bias=True,
             initializer="xavier")
ROWS = {"finetune": "fine-tuned from pre-training", "scratch": "trained from scratch",
        "probe": "linear probe, pre-trained features",
        "probe_untrained": "linear probe, untrained features"}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("plain",))
    config = common.staged()
    config.stages = dict(pretrain=pretrain(name))
    config.report = dict(
        metric="eval/validation/top1", scale=100.0, unit="%",
        rows=add_comparison(config, name, smoke),
        title=f"digit_scenes/{name}, {beit.LABELS_PER_CLASS} labels a class, 3 seeds")
    return common.shrink(config) if smoke else config


def add_comparison(config, name: str, smoke: bool):
    """Adds the stages after "pretrain". Returns: rows of the report."""
    # other seeds and rates run the same code
    seeds, rates = (SEEDS[:1], LEARNING_RATES[:1]) if smoke else (SEEDS, LEARNING_RATES)
    rows = {row: {} for row in ROWS.values()}
    for stage, start in (("finetune", "stage:pretrain"), ("scratch", "")):
        for rate in rates:
            written = f"{rate:.0e}".replace("e-0", "e-")  # keys of a config hold no dots
            names = tuple(f"{stage}_{written}_seed{seed}" for seed in seeds)
            rows[ROWS[stage]][f"lr {written}"] = names
            config.stages.update({
                key: finetune(name, start, rate, seed) for key, seed in zip(names, seeds)})
    for stage, start in (("probe", "stage:pretrain"), ("probe_untrained", "random")):
        names = tuple(f"{stage}_seed{seed}" for seed in seeds)
        rows[ROWS[stage]]["best block"] = names
        config.stages.update({key: probe(name, start, seed) for key, seed in zip(names, seeds)})
    return rows


def pretrain(name: str):
    config = beit.scenes(name)
    config.task, config.total_steps = "mae_pretrain", 3000
    config.data.update(global_batch_size=64)
    config.model = dict(**BACKBONE, **DECODER)
    config.mask = dict(kind="random", num_masked=12)  # 75 % of 16
    config.target = dict(kind="pixels", image_px=32, patch_size=8, normalise=True,
                         **common.HALF_MEAN_STD)
    config.loss = dict(kind="squared")
    config.optim.update(learning_rate=2e-3, min_learning_rate=0.0, warmup_steps=200, b2=0.95,
                        weight_decay=0.05)
    config.log.every_steps = 200
    return config


def finetune(name: str, start: str, learning_rate: float, seed: int):
    config = beit.finetune(name, start, learning_rate, seed)
    # from scratch, positions begin with the same table, which is not trained there
    config.model = dict(**PLAIN, fixed_pos=not start, pool="mean", drop_path_rate=0.1,
                        num_classes=10, head_init_scale=1.0)
    if start:
        config.init.update(common.FROM_MAE, checkpoint=start)
    return config


def probe(name: str, start: str, seed: int):
    config = beit.probe(name, start, seed)
    config.model = dict(**PLAIN, fixed_pos=True)
    config.probe.normalise = "layer"
    return config
