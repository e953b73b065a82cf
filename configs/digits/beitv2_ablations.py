"""What BEiT v2 predicts and hides, on built-in data: VQ-KD or dVAE codes, blocks or single patches.

python -m beit_jax.main --config configs/digits/beitv2_ablations.py --workdir runs/digits_v2_abl

Stages: teacher and tokenizer as in configs/digits/beitv2.py, the dVAE of configs/digits/beit.py,
then four runs of pre-training with patch aggregation at equal steps, each with a linear probe of
the class token and fine-tuning for three draws of few labels. Variants: "", "smoke". All numbers
are ours.
"""

from configs import common
from configs.digits import beit, beitv2

CODES = {"vqkd": "VQ-KD codes", "dvae": "dVAE codes"}
MASKS = {"block_exact": "blocks", "random": "single patches"}
MEASURES = {"probe_cls": "probe of class token", "finetune": "fine-tuned"}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("plain",))
    seeds = beitv2.SEEDS[:1] if smoke else beitv2.SEEDS
    config = common.staged()
    config.stages = dict(teacher=beitv2.teacher(name), tokenizer=beitv2.tokenizer(name),
                         dvae=beit.tokenizer(name))
    rows, all_codes, masks = {}, CODES, MASKS
    if smoke:  # beitv2.py has the other codes and masks
        all_codes, masks = {"dvae": CODES["dvae"]}, {"random": MASKS["random"]}
    for codes, of_codes in all_codes.items():
        for mask, of_mask in masks.items():
            start = f"pretrain_{codes}_{mask}"
            config.stages[start] = pretrain(name, codes, mask)
            for what, title in MEASURES.items():
                keys = tuple(f"{what}_{codes}_{mask}_seed{seed}" for seed in seeds)
                rows[f"{title}: {of_codes}, {of_mask}"] = {beitv2.SETTINGS[what]: keys}
                for key, seed in zip(keys, seeds):
                    config.stages[key] = (
                        beitv2.probe(name, f"stage:{start}", "cls", seed) if what == "probe_cls"
                        else beit.finetune(name, f"stage:{start}", 2e-3, seed))
    config.report = dict(
        metric="eval/validation/top1", scale=100.0, unit="%", rows=rows,
        title=f"digit_scenes/{name}, {beit.LABELS_PER_CLASS} labels a class, {len(seeds)} draws")
    return common.shrink(config) if smoke else config


def pretrain(name: str, codes: str, mask: str):
    config = beitv2.pretrain(name, aggregate=True, seed=0)
    if codes == "dvae":
        config.data.target_px = 16
        config.target = dict(kind="dvae", checkpoint="stage:dvae", **beit.TOKENIZER)
    if mask == "random":
        config.mask = dict(kind="random", num_masked=config.mask.num_masked)
    return config
