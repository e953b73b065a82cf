"""BEiT-3: is a sentence true of two photographs? NLVR2.

python -m beit_jax.main --config configs/beit3/nlvr2.py:base --workdir runs/nlvr2 \
    --config.init.checkpoint=runs/beit3 --config.data.tokenizer=beit3.spm \
    --config.data.annotations='nlvr2/{split}.json' --config.data.path='nlvr2/images/{split}'

Variants and what was published (dev / test-P): base 83.6 / 84.4, base_indomain 84.6 / 85.3, large
88.5 / 89.4, large_indomain 89.2 / 90.0 (indomain: pre-training went on with pairs of COCO and
Visual Genome), giant 91.51 / 92.58. Chance is about 50 %. The step with the best accuracy on dev
stays in checkpoints/ beside the last two (metrics.jsonl tells which it is). The public test:
another workdir, --config.init.checkpoint=runs/nlvr2/checkpoints/STEP --evaluate
--config.data.eval_split=test1.
Source: microsoft/unilm beit3/get_started; BEiT-3 (arXiv 2208.10442), Table 12.
"""

from configs import common

RUNS = {
    "base": dict(learning_rate=7e-4, layer_decay=0.65, drop_path_rate=0.2, weight_decay=0.2),
    "base_indomain": dict(learning_rate=5e-4, layer_decay=0.65, drop_path_rate=0.2,
                          weight_decay=0.2),
    "large": dict(learning_rate=3e-4, layer_decay=0.85, drop_path_rate=0.2, weight_decay=0.2),
    "large_indomain": dict(learning_rate=1e-4, layer_decay=0.85, drop_path_rate=0.2,
                           weight_decay=0.2),
    "giant": dict(learning_rate=1e-3, layer_decay=0.8, drop_path_rate=0.4, weight_decay=0.05),
}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, tuple(RUNS))
    run = RUNS[name]
    config = common.base()
    config.task = "nlvr2"
    config.total_epochs = 20.0
    config.data.update(
        name="nlvr2", annotations="", path="", tokenizer="", text_length=64, eval_split="dev",
        global_batch_size=256, image_px=224, crop_scale=(0.5, 1.0), interpolation="bicubic",
        eval_resize="squash", **common.HALF_MEAN_STD)
    config.model = dict(image_px=224, **common.BEIT3[name.split("_")[0]], vocab_size=64010,
                        drop_path_rate=run["drop_path_rate"])
    config.optim.update(
        learning_rate=run["learning_rate"], min_learning_rate=1e-6, warmup_epochs=5.0,
        weight_decay=run["weight_decay"], b1=0.9, b2=0.999, layer_decay=run["layer_decay"])
    config.init.update(common.FROM_BEIT3, allow_missing=(r"^head/",))
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "accuracy"  # as the original
    return common.shrink(config) if smoke else config
