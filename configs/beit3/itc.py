"""BEiT-3: contrastive tuning of image-text pairs between pre-training and retrieval.

python -m beit_jax.main --config configs/beit3/itc.py:base --workdir runs/itc \
    --config.init.checkpoint=runs/beit3 --config.data.tokenizer=beit3.spm \
    --config.data.annotations='pairs/{split}.jsonl' --config.data.path=pairs/images

The dual encoder: images and texts in passes of their own. The result suits retrieval and tasks of
images alone better than plain pre-training does; for tasks that fuse both, start from the latter.
Variants: base, large, giant. The numbers are the giant's; those of base and large were not
published, and their layer decay here is that of their fine-tuning for retrieval. Crops, the last
learning rate and the length of texts are ours.
Source: BEiT-3 (arXiv 2208.10442), Appendix A; microsoft/unilm issue 1347 for the two passes.
"""

from configs import common

LAYER_DECAY = {"base": 0.65, "large": 0.85, "giant": 0.95}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, tuple(LAYER_DECAY))
    config = common.base()
    config.task = "retrieval"
    config.total_epochs = 5.0
    config.data.update(
        name="pairs", annotations="", path="", tokenizer="", text_length=64, captions="drawn",
        global_batch_size=16384, image_px=224, crop_scale=(0.5, 1.0), interpolation="bicubic",
        eval_resize="squash", eval_batch_size=1024, **common.HALF_MEAN_STD)
    config.model = dict(image_px=224, **common.BEIT3[name], vocab_size=64010, drop_path_rate=0.3)
    config.optim.update(
        learning_rate=3e-5, min_learning_rate=1e-6, warmup_epochs=1.0, weight_decay=0.05,
        b1=0.9, b2=0.999, layer_decay=LAYER_DECAY[name])
    config.init.update(common.FROM_BEIT3, allow_missing=common.BEIT3_VECTORS)
    config.eval.update(every_epochs=1.0, limit=5_000)
    return common.shrink(config) if smoke else config
