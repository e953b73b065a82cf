"""Does token diversity of the teacher matter? Img2Vec's thesis at toy size, on built-in data.

python -m beit_jax.main --config configs/digits/img2vec_teachers.py --workdir runs/digits_teachers

Stages: three teachers are trained (a classifier that reads the mean patch, one that reads the class
token, both with all labels; an MAE, with none); with an early block of the first and an untrained
network that makes five. The diversity of each one's tokens is measured, and each is predicted by
three runs of Img2Vec at equal steps, followed by a linear probe and fine-tuning with few labels.
The table gives accuracy beside diversity; report_against_*.png shows it.
Five teachers and one kind of data prove nothing about ImageNet: see docs/img2vec.md.
Variants: "" (digit_scenes/plain), "smoke". All numbers are ours.
"""

from configs import common
from configs.digits import beit, beitv2, img2vec, mae

LEARNING_RATE = 2e-3  # of fine-tuning
MAE_TEACHER = dict(beitv2.BACKBONE, layer_scale_init=0.0, use_abs_pos=True, fixed_pos=True,
                   use_k_bias=True, initializer="xavier")
CLASSIFIER = dict(beitv2.BACKBONE, use_abs_pos=True)
# name: (title, stage of its training or "random", sizes, block whose output is read)
TEACHERS = {
    "mean": ("classifier by mean patch", "stage:teacher_mean", CLASSIFIER, -1),
    "early": ("its first block", "stage:teacher_mean", CLASSIFIER, 0),
    "cls": ("classifier by class token", "stage:teacher_cls", CLASSIFIER, -1),
    "mae": ("MAE", "stage:teacher_mae", MAE_TEACHER, -1),
    "untrained": ("untrained network", "random", CLASSIFIER, -1),
}
MEASURES = {"probe": "probe", "finetune": "fine-tuned"}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("plain",))
    seeds = mae.SEEDS[:1] if smoke else mae.SEEDS
    config = common.staged()
    config.stages = dict(teacher_mae=mae_teacher(name))
    if not smoke:
        config.stages.update(teacher_mean=beitv2.teacher(name), teacher_cls=beitv2.teacher(name))
        config.stages.teacher_cls.model.pool = "cls"
    rows, measured = {}, {}
    kinds = ("mae",) if smoke else TEACHERS
    for kind in kinds:
        title = TEACHERS[kind][0]
        config.stages[f"diversity_{kind}"] = diversity(name, kind)
        names = {what: tuple(f"{what}_{kind}_seed{seed}" for seed in seeds)
                 for what in ("pretrain", *MEASURES)}
        for i, seed in enumerate(seeds):
            start = names["pretrain"][i]
            config.stages[start] = pretrain(name, kind, seed)
            config.stages[names["probe"][i]] = mae.probe(name, f"stage:{start}", seed)
            config.stages[names["finetune"][i]] = mae.finetune(name, f"stage:{start}",
                                                               LEARNING_RATE, seed)
        for what, of_what in MEASURES.items():
            rows[f"{of_what}: {title}"] = {"3 seeds": names[what]}
            measured[f"{of_what}: {title}"] = f"diversity_{kind}"
    for what, stage in (("probe: no pre-training", mae.probe(name, "random", 0)),
                        ("fine-tuned: no pre-training", mae.finetune(name, "", LEARNING_RATE, 0))):
        keys = tuple(f"none_{what.split(':')[0].replace('-', '_')}_seed{seed}" for seed in seeds)
        rows[what] = {"3 seeds": keys}
        for key, seed in zip(keys, seeds):
            config.stages[key] = stage.copy_and_resolve_references()
            config.stages[key].seed = config.stages[key].data.subset_seed = seed
    config.report = dict(
        metric="eval/validation/top1", scale=100.0, unit="%", rows=rows, setting="runs",
        columns={title: dict(metric=f"eval/validation/{metric}", stages=measured)
                 for title, metric in (("diversity", "diversity"),
                                       ("diversity centred", "diversity_centred"))},
        title=f"digit_scenes/{name}, {beit.LABELS_PER_CLASS} labels a class")
    return common.shrink(config) if smoke else config


def target(kind: str):
    _, checkpoint, model, block = TEACHERS[kind]
    return dict(kind="backbone", checkpoint=checkpoint, model=dict(model), block=block,
                **common.HALF_MEAN_STD)


def mae_teacher(name: str):
    config = mae.pretrain(name)
    config.total_steps = 1500
    config.model.update(beitv2.BACKBONE, layer_scale_init=0.0)
    config.mask = dict(kind="random", num_masked=12)  # 75 % of 16
    return config


def diversity(name: str, kind: str):
    config = beit.scenes(name)
    config.task, config.total_steps = "token_diversity", 20
    config.data.global_batch_size = 100
    config.target = target(kind)
    return config


def pretrain(name: str, kind: str, seed: int):
    config = img2vec.pretrain(name)
    config.seed, config.total_steps = seed, 800
    config.target = dict(target(kind), norm="layernorm")
    config.optim.warmup_steps = 80
    return config
