"""BEiT-3: visual question answering on VQAv2, a choice among 3,129 answers.

python -m beit_jax.main --config configs/beit3/vqa.py:base --workdir runs/vqa \
    --config.init.checkpoint=runs/beit3 --config.data.tokenizer=beit3.spm \
    --config.data.questions='v2_OpenEnded_mscoco_{split}_questions.json' \
    --config.data.annotations='v2_mscoco_{split}_annotations.json' --config.data.path=coco

Training takes train and val but 1,000 images, which are the split "holdout" (drawn by a fixed
seed; the original's were drawn anew each time). The step with the best accuracy on them stays in
checkpoints/ beside the last two (metrics.jsonl tells which it is). For the test server: another
workdir, --config.init.checkpoint=runs/vqa/checkpoints/STEP --evaluate
--config.data.eval_split=test-dev2015 write predictions/validation/answers.json there.
config.data.answers names a list of answers; without one it is made of the annotations. Questions of
your own: docs/data.md, "Texts, captions, questions" (data.image_pattern, answers_min_count).
Variants and what was published (test-dev / test-std): base 77.65, large 81.85 (480 px), large_768
82.97 / 83.03 (with questions of Visual Genome added), giant 84.19 / 84.03 (756 px).
Of the giant RandAugment, length of questions and rate of the head are not published: the first two
are base's, the head's rate is that of all other layers (Table 12 has no other, layer decay 1.0).
Source: microsoft/unilm beit3/get_started; BEiT-3 (arXiv 2208.10442), Table 12.
"""

from configs import common

RUNS = {
    "base": dict(px=480, learning_rate=3e-5, b2=0.98, drop_path_rate=0.1, head_rate=20.0),
    "large": dict(px=480, learning_rate=2e-5, b2=0.98, drop_path_rate=0.15, head_rate=20.0),
    "large_768": dict(px=768, learning_rate=2e-5, b2=0.98, drop_path_rate=0.15, head_rate=20.0),
    "giant": dict(px=756, learning_rate=1e-5, b2=0.999, drop_path_rate=0.4, head_rate=1.0),
}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, tuple(RUNS))
    run = RUNS[name]
    config = common.base()
    config.task = "vqa"
    config.total_epochs = 10.0
    config.data.update(
        name="vqa", questions="", annotations="", path="", answers="", tokenizer="",
        text_length=64, train_split="train2014+val2014", eval_split="holdout",
        holdout_images=1000, global_batch_size=128, image_px=run["px"], crop_scale=(0.5, 1.0),
        interpolation="bicubic", randaugment="vl-m7", eval_resize="squash", eval_batch_size=128,
        **common.HALF_MEAN_STD)
    config.model = dict(common.BEIT3[name.split("_")[0]], image_px=run["px"], vocab_size=64010,
                        num_classes=-1,  # from the list of answers: 3,129
                        drop_path_rate=run["drop_path_rate"])
    config.optim.update(
        learning_rate=run["learning_rate"], min_learning_rate=1e-6, warmup_epochs=1.0,
        weight_decay=0.01, b1=0.9, b2=run["b2"], head_rate=run["head_rate"])
    config.init.update(common.FROM_BEIT3, allow_missing=(r"^pooler/", r"^head/"),
                       allow_unused=(*common.FROM_BEIT3["allow_unused"], r"^layer_norm/"))
    config.eval.every_epochs = 1.0
    config.checkpoint.keep_best = "accuracy"  # as the original
    return common.shrink(config) if smoke else config
