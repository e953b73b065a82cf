"""BEiT-3: captions of images, learnt by masking words and written by beam search, on COCO.

python -m beit_jax.main --config configs/beit3/captioning.py:base --workdir runs/captioning \
    --config.init.checkpoint=runs/beit3 --config.data.tokenizer=beit3.spm \
    --config.data.annotations=dataset_coco.json --config.data.path=coco

Measured are CIDEr-D, BLEU and ROUGE-L of our own: close to the official ones, whose tokenizer is
another program (docs/beit3.md). The step with the best CIDEr-D on Karpathy's validation split stays
in checkpoints/ beside the last two (metrics.jsonl tells which it is); the test split is looked at
once, at the end: another workdir, --config.init.checkpoint=runs/captioning/checkpoints/STEP
--evaluate --config.data.eval_split=test. The captions lie in predictions/validation/captions.json,
in COCO's form; of images without captions, as of NoCaps' splits, they are all there is
(docs/data.md, "Index files", has the keys).
Lengths: training shows 32 tokens of a caption, as published. Written captions have at most 64, the
default of the published evaluation commands, which the figures below come from; the original stops
at 32 where it chooses its best step, which measure.max_length=32 does too.
Not published of the giant, and ours: lengths and RandAugment, as base's; no words are dropped,
where base and large drop a fifth, the worst; evaluation every 1,600 steps.
Variants and what was published (CIDEr, COCO test): base 133.6, base_indomain 135.0, large 143.2,
giant 147.6 (392 px, 16,000 steps); base_nocaps, large_nocaps: the same training at the rate that
served NoCaps (validation CIDEr 104.4 base, 120.2 large).
Source: microsoft/unilm beit3/get_started; BEiT-3 (arXiv 2208.10442), Table 13.
"""

from configs import common

BASE = dict(px=480, drop_path_rate=0.1, mask_rate=0.7, weight_decay=0.05)
RUNS = {
    "base": dict(learning_rate=4e-5, **BASE),
    "base_indomain": dict(learning_rate=4e-5, **BASE),
    "base_nocaps": dict(learning_rate=1e-5, **BASE),
    "large": dict(learning_rate=8e-6, **BASE),
    "large_nocaps": dict(learning_rate=8e-6, **BASE),
    "giant": dict(learning_rate=8e-6, px=392, drop_path_rate=0.3, mask_rate=0.6,
                  weight_decay=0.01),
}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, tuple(RUNS))
    run, size = RUNS[name], name.split("_")[0]
    config = common.base()
    config.task = "captioning"
    config.data.update(
        name="karpathy", annotations="", path="", tokenizer="", text_length=32, captions="each",
        train_split="train+restval", eval_split="val",
        global_batch_size=256, image_px=run["px"], crop_scale=(0.5, 1.0),
        interpolation="bicubic", randaugment="vl-m7", eval_resize="squash", eval_batch_size=64,
        **common.HALF_MEAN_STD)
    config.model = dict(common.BEIT3[size], image_px=run["px"], vocab_size=64010,
                        drop_path_rate=run["drop_path_rate"])
    config.mask = dict(rate=run["mask_rate"], corruption=(0.8, 0.1, 0.1))
    config.loss = dict(label_smoothing=0.1)
    config.measure = dict(beams=3, length_penalty=0.6, max_length=64)
    config.optim.update(
        learning_rate=run["learning_rate"], min_learning_rate=1e-6,
        weight_decay=run["weight_decay"], b1=0.9, b2=0.999)
    if size == "giant":
        config.total_steps, config.optim.warmup_steps = 16_000, 1_600
        config.eval.every_steps = 1_600
    else:
        config.total_epochs, config.optim.warmup_epochs = 10.0, 1.0
        config.loss.update(drop_worst=0.2, drop_worst_after=12_000)
        config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "CIDEr-D"  # as the original
    config.init.update(common.FROM_BEIT3, allow_unused=(r"^mim_head/",))
    if smoke:
        common.shrink(config)
        config.measure.max_length = 8
    return config
