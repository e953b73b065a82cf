"""BEiT-3's recipes hold the numbers of the paper and of the released program."""

import importlib

import jax
import numpy as np
import pytest

from beit_jax import convert, tasks
from beit_jax.training import recipe, state
from configs.digits import beit3 as digits

VARIANTS = {
    "pretrain": ("base", "large", "giant", "giant_paper", "small", "base24"),
    "itc": ("base", "large", "giant"),
    "vqa": ("base", "large", "large_768", "giant"),
    "nlvr2": ("base", "base_indomain", "large", "large_indomain", "giant"),
    "captioning": ("base", "base_indomain", "base_nocaps", "large", "large_nocaps", "giant"),
    "retrieval": ("coco_base", "f30k_base", "coco_large", "f30k_large", "coco_giant",
                  "f30k_giant"),
    "finetune": ("base", "large"),
}
ALL = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


def get_config(name, variant=""):
    return importlib.import_module(f"configs.beit3.{name}").get_config(variant)


def complete(config):
    """What the loop does once it knows the data."""
    if config.model.get("num_classes") == -1:
        config.model.num_classes = 3129 if config.task == "vqa" else 1000
    return config


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_key_of_every_variant_is_read(name, variant):
    config = complete(get_config(name, variant))
    recipe.read(config)
    tasks.make(config)


def test_pretraining_has_the_numbers_of_table_11():
    config = get_config("pretrain", "giant_paper")
    optim, streams = config.optim, config.data.streams
    assert (config.total_steps, optim.warmup_steps, optim.learning_rate, optim.b1, optim.b2,
            optim.eps, optim.weight_decay, optim.clip_norm, optim.schedule) == (
                1_000_000, 10_000, 1e-3, 0.9, 0.98, 1e-6, 0.05, 3.0, "cosine")
    assert (optim.min_learning_rate, optim.decay_rule) == (1e-5, "kernels_and_words")
    assert (config.data.global_batch_size, config.data.color_jitter, config.data.image_px,
            config.model.patch_size, config.model.drop_path_rate) == (6144, 0.4, 224, 14, 0.1)
    assert {name: stream.get("share", 1) for name, stream in streams.items()} == {
        "images": 1, "texts": 1, "pairs": 1}
    # the tokenizer's 16 x 16 codes are the model's 16 x 16 patches, of which 40 % are hidden
    assert (config.target.image_px // 16) ** 2 == (224 // 14) ** 2 and config.data.target_px == 256
    assert (config.mask.image.num_masked, config.mask.text.rate, config.mask.pair.rate) == (
        102, 0.15, 0.5)
    # the view of 256 px is resampled as the model's own; base has one view for both
    assert config.data.target_filter == config.data.interpolation == "bicubic"
    base = get_config("pretrain")
    assert base.mask.image.num_masked == 78 and base.data.target_px == 0
    # ImageNet-21k, for which there is no TFDS name, not ImageNet-1k
    assert {name: stream.name for name, stream in streams.items()} == {
        "images": "folder", "texts": "documents", "pairs": "pairs"}


def test_the_giant_takes_a_tokenizer_that_was_trained_at_224_px():
    def arrays(variant):
        task = tasks.make(get_config("pretrain", variant))
        shapes = jax.eval_shape(task.frozen["vqkd"].init, jax.random.key(0))
        return {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
                for part in shapes.values() for name, leaf in convert.flatten(part).items()}

    adapt = tuple(get_config("pretrain", "giant").target.adapt)
    of_file, wanted = arrays("base"), arrays("giant")
    fitted = state.fit(of_file, wanted, state.InitOptions(checkpoint="x", adapt=adapt), "target")
    assert {name: leaf.shape for name, leaf in fitted.items()} == {
        name: leaf.shape for name, leaf in wanted.items()}
    changed = [name for name in wanted if wanted[name].shape != of_file[name].shape]
    assert [wanted[name].shape[1] for name in changed] == [257]


@pytest.mark.parametrize(("variant", "count"), [  # instantiated reference modules, both heads
    ("base", 276_510_730), ("large", 746_709_514), ("giant", 2_215_725_322),
    ("giant_paper", 1_948_917_642)])
def test_pretraining_trains_a_model_of_the_published_size(variant, count):
    task = tasks.make(get_config("pretrain", variant))
    params = jax.eval_shape(task.init, jax.random.key(0), {"images": {}})["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


# px, rate, epochs, warm-up, batch, b2, weight decay, layer decay, head rate, drop path
FINETUNING = {
    ("vqa", "base"): (480, 3e-5, 10, 1, 128, 0.98, 0.01, 1.0, 20, 0.1),
    ("vqa", "large"): (480, 2e-5, 10, 1, 128, 0.98, 0.01, 1.0, 20, 0.15),
    ("vqa", "large_768"): (768, 2e-5, 10, 1, 128, 0.98, 0.01, 1.0, 20, 0.15),
    ("vqa", "giant"): (756, 1e-5, 10, 1, 128, 0.999, 0.01, 1.0, 1, 0.4),
    ("nlvr2", "base"): (224, 7e-4, 20, 5, 256, 0.999, 0.2, 0.65, 1, 0.2),
    ("nlvr2", "base_indomain"): (224, 5e-4, 20, 5, 256, 0.999, 0.2, 0.65, 1, 0.2),
    ("nlvr2", "large"): (224, 3e-4, 20, 5, 256, 0.999, 0.2, 0.85, 1, 0.2),
    ("nlvr2", "large_indomain"): (224, 1e-4, 20, 5, 256, 0.999, 0.2, 0.85, 1, 0.2),
    ("nlvr2", "giant"): (224, 1e-3, 20, 5, 256, 0.999, 0.05, 0.8, 1, 0.4),
    ("captioning", "base"): (480, 4e-5, 10, 1, 256, 0.999, 0.05, 1.0, 1, 0.1),
    ("captioning", "base_nocaps"): (480, 1e-5, 10, 1, 256, 0.999, 0.05, 1.0, 1, 0.1),
    ("captioning", "large"): (480, 8e-6, 10, 1, 256, 0.999, 0.05, 1.0, 1, 0.1),
    ("captioning", "large_nocaps"): (480, 8e-6, 10, 1, 256, 0.999, 0.05, 1.0, 1, 0.1),
    ("retrieval", "coco_base"): (384, 2e-4, 15, 3, 3072, 0.999, 0.05, 0.65, 1, 0.2),
    ("retrieval", "f30k_base"): (384, 1e-4, 20, 5, 3072, 0.999, 0.05, 0.65, 1, 0.2),
    ("retrieval", "coco_large"): (384, 5e-5, 15, 3, 3072, 0.999, 0.05, 0.85, 1, 0.2),
    ("retrieval", "f30k_large"): (384, 5e-5, 20, 5, 3072, 0.999, 0.05, 0.85, 1, 0.2),
    ("retrieval", "coco_giant"): (420, 1e-5, 15, 3, 3072, 0.999, 0.05, 0.95, 1, 0.3),
    ("retrieval", "f30k_giant"): (420, 1e-5, 20, 5, 3072, 0.999, 0.05, 0.95, 1, 0.3),
    ("itc", "giant"): (224, 3e-5, 5, 1, 16384, 0.999, 0.05, 0.95, 1, 0.3),
    ("finetune", "base"): (224, 7e-4, 50, 5, 1024, 0.999, 0.05, 0.65, 1, 0.15),
    ("finetune", "large"): (224, 2e-4, 50, 5, 1024, 0.999, 0.05, 0.8, 1, 0.25),
}


@pytest.mark.parametrize(("name", "expected"), FINETUNING.items(), ids=str)
def test_uses_have_the_published_numbers(name, expected):
    config = get_config(*name)
    optim = config.optim
    assert (config.data.image_px, optim.learning_rate, config.total_epochs, optim.warmup_epochs,
            config.data.global_batch_size, optim.b2, optim.weight_decay, optim.layer_decay,
            optim.head_rate, config.model.drop_path_rate) == expected
    assert config.model.image_px == config.data.image_px
    assert (optim.min_learning_rate, optim.eps, optim.b1) == (1e-6, 1e-8, 0.9)
    has_text = name[0] != "finetune"
    assert (config.data.eval_resize == "squash") == has_text
    assert (config.data.crop_scale == (0.5, 1.0)) == has_text
    assert config.data.text_length == {"finetune": 0, "captioning": 32}.get(name[0], 64)
    assert (config.data.randaugment == "vl-m7") == (name[0] in ("vqa", "captioning"))


@pytest.mark.parametrize(("name", "split", "metric"), [
    ("vqa", "holdout", "accuracy"), ("nlvr2", "dev", "accuracy"), ("captioning", "val", "CIDEr-D"),
    ("retrieval", "val", "mean")])
def test_the_best_step_is_chosen_on_validation_not_on_test(name, split, metric):
    for variant in VARIANTS[name]:
        config = get_config(name, variant)
        assert (config.data.eval_split, config.checkpoint.keep_best) == (split, metric)
        assert config.eval.every_epochs == 1.0 or config.eval.every_steps == 1_600


def test_captioning_has_the_published_numbers():
    config, giant = get_config("captioning"), get_config("captioning", "giant")
    assert (config.mask.rate, config.loss.label_smoothing, config.loss.drop_worst,
            config.loss.drop_worst_after, config.data.text_length) == (0.7, 0.1, 0.2, 12_000, 32)
    assert config.measure.to_dict() == dict(beams=3, length_penalty=0.6, max_length=64)
    assert (giant.total_steps, giant.optim.warmup_steps, giant.mask.rate, giant.data.image_px,
            giant.optim.weight_decay) == (16_000, 1_600, 0.6, 392, 0.01)


@pytest.mark.parametrize("use", digits.USES)
def test_on_digits_pre_training_and_scratch_have_the_same_budget_and_examples(use):
    stages = digits.get_config().stages
    for seed in digits.USES[use][4]:
        tuned, scratch = (stages[f"{use}_{start}_seed{seed}"] for start in ("tuned", "scratch"))
        assert tuned.init.checkpoint == "stage:pretrain" and not scratch.init.checkpoint
        assert tuned.total_steps == scratch.total_steps and tuned.seed == seed
        assert tuned.data.to_dict() == scratch.data.to_dict()
        assert tuned.optim.to_dict() == scratch.optim.to_dict()
    # what is measured was not seen in pre-training
    assert {stream.get("text", "") for stream in stages.pretrain.data.streams.values()} == {
        "", "captions"}
