"""The recorded losses and gradients of the original programs, through the loss of our tasks.

Only what is drawn or loaded is put in from the file: masks, and codes of the tokenizer.
"""

import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beit import FINETUNE, MIM, assert_grads_close
from test_beit2 import AGGREGATED, mim_of
from vit_models import image_of, model_of, weights_of

from beit_jax import masking, tasks
from beit_jax.targets.vqkd import VqkdTokenizer
from beit_jax.tasks import image_codes
from configs import common

FIELDS = ("image_px", "patch_size", "width", "depth", "num_heads", "mlp_ratio", "layer_scale_init",
          "epsilon", "use_abs_pos", "use_shared_rel_pos", "use_rel_pos")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def config_of(task, model, *more):
    config = common.base()
    config.update(task=task, dtype="float32")
    config.model = {name: getattr(model, name) for name in (*FIELDS, *more)}
    # the files hold normalized images, and tasks divide by 255
    config.data.update(mean=(0.0,) * 3, std=(1 / 255,) * 3)
    return config


def through_the_task(config, golden, monkeypatch, **batch):
    """(loss, metrics, gradient) of the file's weights."""
    if "mask" in golden.inputs:
        is_masked = jnp.asarray(golden.inputs["mask"])
        codes = jnp.asarray(golden.inputs["target_ids"])

        class Recorded(VqkdTokenizer):
            def codes(self, variables, image01, positions=None):
                return jnp.take_along_axis(codes, positions, axis=1)

        monkeypatch.setattr(masking.MaskOptions, "draw", lambda self, keys, grid: is_masked)
        monkeypatch.setitem(image_codes.TOKENIZERS, "vqkd", Recorded)
        slots = int(is_masked.sum(axis=1).max()) + 1  # one more than any image needs
        config.mask = dict(kind="block", num_masked=slots, min_block=1)
        config.target = dict(kind="vqkd", image_px=golden.config["img_size"],
                             patch_size=golden.config["patch_size"], width=8, depth=1, num_heads=1,
                             codebook_size=golden.config["vocab_size"])
    task = tasks.make(config)
    (loss, (_, metrics)), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
        weights_of(golden), {}, {"vqkd": {}}, {"image": image_of(golden)} | batch,
        jax.random.key(0))
    return loss, metrics, grads


@pytest.mark.parametrize("golden", MIM, ids=golden_files.name)
def test_the_loss_of_beit(golden, monkeypatch):
    config = config_of("beit_pretrain", model_of(golden.config))
    loss, metrics, grads = through_the_task(config, golden, monkeypatch)
    golden_files.assert_close(loss, golden.outputs["loss"])
    golden_files.assert_close(metrics["accuracy"], golden.outputs["acc"])
    assert float(metrics["masked_share"]) == pytest.approx(golden.inputs["mask"].mean())
    assert_grads_close(grads, golden)


@pytest.mark.parametrize("golden", AGGREGATED, ids=golden_files.name)
def test_both_losses_of_beit_v2(golden, monkeypatch):
    config = config_of("beitv2_pretrain", mim_of(golden.config), "early_layer", "head_layers",
                       "shared_head")
    loss, metrics, grads = through_the_task(config, golden, monkeypatch)
    golden_files.assert_close(loss, golden.outputs["loss"])
    golden_files.assert_close(metrics["loss_final"], golden.outputs["loss_1"])
    golden_files.assert_close(metrics["loss_aggregated"], golden.outputs["loss_2"])
    assert_grads_close(grads, golden)


@pytest.mark.parametrize(
    "golden", [g for g in FINETUNE if g.config.get("grad_of") == "out/loss_label_smoothing"],
    ids=golden_files.name)
def test_the_smoothed_loss_of_the_classifier(golden, monkeypatch):
    config = config_of("classification", model_of(golden.config), "num_classes", "pool")
    config.loss = dict(label_smoothing=golden.config["label_smoothing"])
    config.data.global_batch_size = len(golden.inputs["label"])
    label = golden.inputs["label"].astype(np.int32)
    loss, _, grads = through_the_task(config, golden, monkeypatch, label=label)
    golden_files.assert_close(loss, golden.outputs["loss_label_smoothing"])
    assert_grads_close(grads, golden)
