"""Work of published networks: in 10 ** 9 FLOPs per image, one multiply-add being two."""

import importlib

import pytest

from beit_jax import flops, tasks
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
