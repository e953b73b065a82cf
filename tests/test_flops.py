"""Work of published networks: in 10 ** 9 FLOPs per image, one multiply-add being two."""

import importlib

import pytest

from beit_jax import flops, tasks
from beit_jax.models.beit3 import Beit3
from beit_jax.targets.dvae import DvaeTokenizer
from beit_jax.targets.teachers import TEACHERS
from beit_jax.targets.vqkd import VqkdTokenizer
from configs.beit import ablations


def task_of(recipe, variant):
    config = importlib.import_module(f"configs.beit.{recipe}").get_config(variant)
    if config.task == "classification":
        config.model.num_classes = 1000
    return tasks.make(config)


@pytest.mark.parametrize(("variant", "forward"), [("base", 36.1), ("large", 124.4)])
def test_pretraining_on_given_codes(variant, forward):
    frozen = flops.dvae_encoder(DvaeTokenizer(), 112)
    work = task_of("pretrain_in22k", variant).flops_per_image
    assert (work - frozen) / 3e9 == pytest.approx(forward, abs=0.05)


@pytest.mark.parametrize(("recipe", "variant", "forward"), [
    ("finetune_in1k", "base", 35.1), ("finetune_in1k", "large", 123.1),
    ("finetune_in22k_to_in1k", "base_384", 111.0), ("finetune_in22k_to_in1k", "large_384", 382.1)])
def test_classification(recipe, variant, forward):
    work = task_of(recipe, variant).flops_per_image
    assert work / 3e9 == pytest.approx(forward, abs=0.05)


@pytest.mark.parametrize(("sizes", "image", "text", "pair"), [
    (dict(patch_size=16, width=768, depth=12, num_heads=12), 34.9, 34.7, 46.8),
    (dict(patch_size=16, width=1024, depth=24, num_heads=16), 122.8, 122.2, 164.3),
    (dict(patch_size=14, width=1408, depth=40, num_heads=16, mlp_ratio=6144 / 1408), 533.6, 404.3,
     671.2)], ids=["base", "large", "giant"])
def test_blocks_of_beit3(sizes, image, text, pair):
    model = Beit3(image_px=224, **sizes)
    num_image = model.num_patches + 1
    pixels = flops.linear(model.num_patches, 3 * model.patch_size**2, model.width)  # not in theirs
    ours = [flops.multiway(model, num_image, 0) - pixels, flops.multiway(model, 0, 196),
            flops.multiway(model, num_image, 64) - pixels]
    assert [work / 1e9 for work in ours] == pytest.approx([image, text, pair], abs=0.05)


def test_frozen_tokenizers():
    assert flops.dvae_encoder(DvaeTokenizer(), 112) / 1e9 == pytest.approx(52.1, abs=0.05)
    assert flops.vqkd_encoder(VqkdTokenizer()) / 1e9 == pytest.approx(35.5, abs=0.05)


def test_the_head_counts_where_it_is_applied():
    def work(variant):
        return tasks.make(ablations.get_config(variant).stages.pretrain).flops_per_image

    head = flops.linear(1, 768, 8192)
    assert work("recover_all") - work("full") == pytest.approx(3 * (196 - 75) * head)
    pixels = 3 * 75 * (head - flops.linear(1, 768, 768)) + flops.dvae_encoder(DvaeTokenizer(), 112)
    assert work("full") - work("no_tokens") == pytest.approx(pixels)


@pytest.mark.parametrize(("kind", "forward"), [
    ("dino_resnet50", 8.174), ("dino_vits16", 9.197), ("dino_vitb16", 35.13),
    ("clip_vitb16", 35.28), ("dinov2_vitb14", 35.07)])
def test_teachers(kind, forward):
    assert TEACHERS[kind]().flops / 1e9 == pytest.approx(forward, abs=0.005)
