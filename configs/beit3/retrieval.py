"""BEiT-3: fine-tuning for retrieval, image to text and text to image, on COCO and Flickr30K.

python -m beit_jax.main --config configs/beit3/retrieval.py:coco_base --workdir runs/retrieval \
    --config.init.checkpoint=runs/itc --config.data.tokenizer=beit3.spm \
    --config.data.annotations=dataset_coco.json --config.data.path=coco

data.annotations is Karpathy's file, data.path the folder of its images. Measured are recall at 1,
5 and 10 both ways, for COCO also as the mean of five folds of 1,000 images ("1k_"); the step with
the best mean of the six on the validation split stays in checkpoints/ beside the last two
(metrics.jsonl tells which it is). The test split: another workdir,
--config.init.checkpoint=runs/retrieval/checkpoints/STEP --evaluate --config.data.eval_split=test.
Variants and what was published (R@1, image to text / text to image): coco_base 79.1 / 61.4,
coco_large 82.1 / 63.4, f30k_base 96.3 / 86.2, f30k_large 97.2 / 88.1; coco_giant 84.8 / 67.2,
f30k_giant 98.0 / 90.3 (Table 14, 420 px).
Source: microsoft/unilm beit3/get_started; BEiT-3 (arXiv 2208.10442), Table 14.
"""

from configs import common

SIZES = {
    "base": dict(px=384, batch=3072, layer_decay=0.65, drop_path_rate=0.2),
    "large": dict(px=384, batch=3072, layer_decay=0.85, drop_path_rate=0.2),
    "giant": dict(px=420, batch=3072, layer_decay=0.95, drop_path_rate=0.3),
}
LEARNING_RATE = {"coco_base": 2e-4, "f30k_base": 1e-4, "coco_large": 5e-5, "f30k_large": 5e-5,
                 "coco_giant": 1e-5, "f30k_giant": 1e-5}
EPOCHS = {"coco": (15.0, 3.0), "f30k": (20.0, 5.0)}  # of all, of warm-up
TRAIN_SPLIT = {"coco": "train+restval", "f30k": "train"}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, tuple(LEARNING_RATE))
    (data, size), run = name.split("_"), SIZES[name.split("_")[1]]
    config = common.base()
    config.task = "retrieval"
    config.total_epochs, warmup = EPOCHS[data]
    config.data.update(
        name="karpathy", annotations="", path="", tokenizer="", text_length=64, captions="each",
        train_split=TRAIN_SPLIT[data], eval_split="val",
        global_batch_size=run["batch"], image_px=run["px"], crop_scale=(0.5, 1.0),
        interpolation="bicubic", eval_resize="squash", eval_batch_size=256,
        **common.HALF_MEAN_STD)
    config.model = dict(common.BEIT3[size], image_px=run["px"], vocab_size=64010,
                        drop_path_rate=run["drop_path_rate"])
    config.measure = dict(folds=5 if data == "coco" else 0)
    config.optim.update(
        learning_rate=LEARNING_RATE[name], min_learning_rate=1e-6, warmup_epochs=warmup,
        weight_decay=0.05, b1=0.9, b2=0.999, layer_decay=run["layer_decay"])
    config.init.update(common.FROM_BEIT3, allow_missing=common.BEIT3_VECTORS)
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "mean"
    if smoke:
        common.shrink(config)
        config.measure.folds = 0
    return config
