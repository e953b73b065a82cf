"""The recipes of MAE and Img2Vec: published numbers, sizes, decay, schedules, what they hand on.

Numbers of Img2Vec that its paper does not state are ours: docs/img2vec.md says which.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_configs import FILES, flat, get_config, runs_of, with_classes

from beit_jax import checkpoint, main, tasks
from beit_jax.training import optim, recipe, state

TARGETS = ("pixels", "hog", "dino", "clip", "ema")
MASKS = {"mask_40": 0.4, "mask_50": 0.5, "mask_60": 0.6, "mask_80": 0.8, "mask_85": 0.85,
         "mask_90": 0.9}
SIZES = ("base", "large", "huge")
VARIANTS = {
    "mae/pretrain": tuple(f"{size}_{length}" for size in SIZES
                          for length in ("300e", "800e", "1600e")),
    "mae/finetune": SIZES,
    "mae/linear_probe": SIZES,
    "mae/ablations": ("full", *TARGETS, *MASKS, "block_50", "block_75",
                      "decoder_1", "decoder_2", "decoder_4", "decoder_12"),
    "img2vec/pretrain": ("base_300e", "base_800e", "large_800e", "huge_800e", "huge16_800e"),
    "img2vec/finetune": SIZES,
    "img2vec/linear_probe": (*SIZES, *(f"{size}_mean" for size in SIZES)),
    "img2vec/ablations": (
        "full", "no_fusion", "no_global", "neither", "decoder_1", "decoder_4", "decoder_8",
        "fusion_norm", "fusion_learned", "fusion_upper", "target_none", "target_l2",
        "target_whiten", "grid_repeat", "grid_resize_teacher", "global_last", "global_after_norm",
        "loss_squared", "loss_beta_1",
        "teacher_dino", "teacher_mae", "teacher_mae_large", "teacher_clip", "teacher_dinov2"),
}
ALL = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
NUM_TRAIN = 1_281_167  # images of ImageNet-1k
TABLES = {"pos_embed", "decoder_pos_embed"}  # fixed positions


def config_of(name: str, variant: str, stage: str = ""):
    config = get_config(name, variant)
    return config.stages[stage] if stage else config


def shapes_of(config) -> dict:
    """Shapes of the parameters of a recipe's task, {"a/b": leaf}."""
    px = config.data.image_px
    batch = {"image": jax.ShapeDtypeStruct((1, px, px, 3), jnp.uint8)}
    task = tasks.make(with_classes(config, 1_000))
    return checkpoint.flatten(jax.eval_shape(task.init, jax.random.key(0), batch)["params"])


def size(leaves: dict) -> int:
    return sum(leaf.size for leaf in leaves.values())


def test_every_file_of_the_papers_recipes_is_tested():
    """diversity has a test of its own."""
    files = {name for name in FILES if name.startswith(("mae/", "img2vec/"))}
    assert files - {"img2vec/diversity"} == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_tested(name):
    with pytest.raises(ValueError, match="is unknown; known: ") as error:
        get_config(name, "?")
    known = str(error.value).partition("known: ")[2].partition(", each")[0]
    assert set(known.split(", ")) == set(VARIANTS[name])


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_key_of_every_variant_is_read(name, variant):
    for asked in (variant, f"{variant}_smoke"):
        for stage in runs_of(config_of(name, asked)).values():
            recipe.read(stage)
            tasks.make(with_classes(stage, 1_000))


# --- numbers --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "variant"), [
    (name, variant) for name, variant in ALL if name.endswith("/pretrain")])
def test_pretraining_has_the_numbers_of_maes_table_8(name, variant):
    config = config_of(name, variant)
    assert config.total_epochs == float(variant.split("_")[1].removesuffix("e"))
    data, optimizer = config.data, config.optim
    assert (data.global_batch_size, data.image_px, tuple(data.crop_scale), tuple(data.crop_ratio),
            data.interpolation, data.flip, data.color_jitter, data.crop, data.mean[0]) == (
                4096, 224, (0.2, 1.0), (3 / 4, 4 / 3), "bicubic", 0.5, 0.0, "resized", 0.485)
    assert optimizer.learning_rate == pytest.approx(1.5e-4 * data.global_batch_size / 256)
    assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay,
            optimizer.warmup_epochs, optimizer.min_learning_rate, optimizer.clip_norm,
            optimizer.layer_decay, optimizer.ema_decay) == (
                "adamw", 0.9, 0.95, 1e-8, 0.05, 40, 0.0, 0.0, 1.0, 0.0)
    assert config.model.get("drop_path_rate", 0.0) == 0.0


# Dosovitskiy et al., Table 1; MAE, Sec. 4: patches of 14 px for huge
ENCODERS = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}


@pytest.mark.parametrize(("name", "variant", "decoder"), [
    ("mae/pretrain", "base_800e", (512, 8, 16)), ("mae/pretrain", "large_800e", (512, 8, 16)),
    ("mae/pretrain", "huge_800e", (512, 8, 16)), ("img2vec/pretrain", "base_800e", (512, 2, 16)),
    ("img2vec/pretrain", "large_800e", (512, 4, 16)),
    ("img2vec/pretrain", "huge_800e", (512, 4, 16))])
def test_networks_have_the_published_sizes(name, variant, decoder):
    model = config_of(name, variant).model
    assert (model.width, model.depth, model.num_heads,
            model.patch_size) == ENCODERS[variant.split("_")[0]]
    assert (model.decoder_width, model.decoder_depth, model.decoder_num_heads) == decoder
    assert model.mlp_ratio == 4.0


@pytest.mark.parametrize(("name", "variant", "ratio", "cells", "visible"), [
    ("mae/pretrain", "base_800e", 0.75, 196, 49), ("mae/pretrain", "huge_800e", 0.75, 256, 64),
    ("img2vec/pretrain", "base_800e", 0.6, 49, 76), ("img2vec/pretrain", "large_800e", 0.6, 49, 76),
    ("img2vec/pretrain", "huge_800e", 0.6, 64, 100),
    ("img2vec/pretrain", "huge16_800e", 0.6, 49, 76)])
def test_masks_keep_the_published_share_rounded_down(name, variant, ratio, cells, visible):
    config = config_of(name, variant)
    kept = int(cells * (1 - ratio) + 1e-6)
    grid = config.model.image_px // config.model.patch_size
    assert (grid // config.mask.cell) ** 2 == cells and config.mask.kind == "random"
    assert config.mask.num_masked == (cells - kept) * config.mask.cell ** 2
    assert grid ** 2 - config.mask.num_masked == visible


def test_img2vec_has_the_numbers_that_the_sources_state():
    """A review: smooth-l1 with beta 2, weight 0.5, DINO's ResNet-50 frozen, all blocks averaged."""
    config = config_of("img2vec/pretrain", "base_800e")
    loss, target = config.loss, config.target
    assert (loss.kind, loss.beta, loss.global_weight) == ("smooth_l1", 2.0, 0.5)
    assert (target.kind, target.image_px, config.data.target_px) == ("dino_resnet50", 224, 0)
    assert (config.model.fusion, config.model.get("fusion_blocks", ())) == ("mean", ())
    # ours
    assert (target.norm, config.model.grid_match, loss.global_source, loss.global_target,
            loss.global_layers, loss.global_hidden) == (
                "layernorm", "pool", "fused", "pool_then_norm", 2, 2048)
    huge = config_of("img2vec/pretrain", "huge_800e")
    assert (huge.target.image_px, huge.data.target_px, huge.data.target_filter) == (
        256, 256, "bicubic")


# facebookresearch/mae FINETUNE.md: epochs, base rate, layer decay, drop path, images per GPU
FINETUNING = {"base": (100, 5e-4, 0.65, 0.1, 32), "large": (50, 1e-3, 0.75, 0.2, 32),
              "huge": (50, 1e-3, 0.75, 0.3, 16)}


@pytest.mark.parametrize("paper", ["mae", "img2vec"])
@pytest.mark.parametrize(("variant", "expected"), FINETUNING.items())
def test_finetuning_has_the_published_numbers(paper, variant, expected):
    config = config_of(f"{paper}/finetune", variant)
    optimizer, data, model = config.optim, config.data, config.model
    epochs, base_rate, layer_decay, drop_path, per_gpu = expected
    assert optimizer.learning_rate == pytest.approx(base_rate * data.global_batch_size / 256)
    assert (config.total_epochs, data.global_batch_size, optimizer.layer_decay,
            model.drop_path_rate, config.augment.group_size) == (
                epochs, 1024, layer_decay, drop_path, per_gpu)
    assert (optimizer.warmup_epochs, optimizer.min_learning_rate, optimizer.weight_decay,
            optimizer.b1, optimizer.b2, optimizer.clip_norm, optimizer.decay_rule) == (
                5, 1e-6, 0.05, 0.9, 0.999, 0.0, "matrices")
    assert (data.randaugment, data.color_jitter, data.interpolation, tuple(data.crop_scale),
            data.eval_crop_ratio, data.flip) == (
                "rand-m9-mstd0.5-inc1", 0.0, "bicubic", (0.08, 1.0), 0.875, 0.5)
    augment = config.augment
    assert (augment.random_erasing, augment.mixup, augment.cutmix, augment.switch_probability,
            config.loss.label_smoothing) == (0.25, 0.8, 1.0, 0.5, 0.1)
    assert (model.pool, model.head_init_scale * 0.02) == ("mean", pytest.approx(2e-5))


@pytest.mark.parametrize("paper", ["mae", "img2vec"])
@pytest.mark.parametrize(("variant", "epochs"), [("base", 90), ("large", 50), ("huge", 50)])
def test_linear_probe_has_the_numbers_of_maes_table_10(paper, variant, epochs):
    config = config_of(f"{paper}/linear_probe", variant)
    optimizer, data = config.optim, config.data
    assert optimizer.learning_rate == pytest.approx(0.1 * data.global_batch_size / 256)
    assert (config.total_epochs, data.global_batch_size, optimizer.name, optimizer.momentum,
            optimizer.trust_coefficient, optimizer.weight_decay, optimizer.warmup_epochs,
            optimizer.min_learning_rate) == (epochs, 16_384, "lars", 0.9, 1e-3, 0.0, 10, 0.0)
    assert (data.crop, tuple(data.crop_scale), data.interpolation, data.randaugment) == (
        "resized_once", (0.08, 1.0), "bicubic", "")
    assert (config.probe.feature, config.probe.normalise) == ("cls", "layer+batch")


def schedule_of(name: str, variant: str):
    """(step -> learning rate, steps, steps of an epoch)."""
    config = config_of(name, variant)
    steps, per_epoch = recipe.lengths(config, recipe.read(config), NUM_TRAIN)
    options = optim.OptimOptions(**config.optim.to_dict())
    return optim.learning_rate_schedule(options, steps, per_epoch), steps, per_epoch


@pytest.mark.parametrize(("name", "variant", "per_epoch", "expected"), [
    ("mae/pretrain", "base_800e", 312, {0: 0.0, 10: 6e-4, 20: 1.2e-3, 40: 2.4e-3, 230: 2.048528e-3,
                                        420: 1.2e-3, 610: 3.514719e-4, 800: 0.0}),
    ("mae/finetune", "base", 1251, {0: 0.0, 5: 2e-3, 100: 1e-6}),
    ("mae/linear_probe", "base", 78, {0: 0.0, 5: 3.2, 10: 6.4, 50: 3.2, 90: 0.0})])
def test_published_learning_rates(name, variant, per_epoch, expected):
    schedule, steps, found = schedule_of(name, variant)
    assert (found, steps) == (per_epoch, per_epoch * max(expected))
    for epoch, value in expected.items():
        assert schedule(epoch * per_epoch) == pytest.approx(value, rel=1e-6, abs=1e-12), epoch


# --- sizes ----------------------------------------------------------------------------------------

# trained numbers, and with the fixed tables; of MAE: facebookresearch/mae's modules
PRETRAINED = {
    ("mae/pretrain", "base_800e"): (111_655_680, 111_907_840),
    ("mae/pretrain", "large_800e"): (329_239_296, 329_541_888),
    ("mae/pretrain", "huge_800e"): (656_613_964, 657_074_508),
    ("img2vec/pretrain", "base_800e"): (99_169_280, 99_169_280 + 197 * (768 + 512)),
    ("img2vec/pretrain", "large_800e"): (323_581_952, 323_581_952 + 197 * (1024 + 512)),
    ("img2vec/pretrain", "huge_800e"): (651_573_248, 651_573_248 + 257 * (1280 + 512)),
    ("img2vec/pretrain", "huge16_800e"): (651_803_648, 651_803_648 + 197 * (1280 + 512)),
}


@pytest.mark.parametrize(("name", "expected"), PRETRAINED.items(), ids=str)
def test_size_of_what_is_pretrained(name, expected):
    leaves = shapes_of(config_of(*name))
    trained = {path: leaf for path, leaf in leaves.items() if path not in TABLES}
    assert (size(trained), size(leaves)) == expected


@pytest.mark.parametrize(("variant", "count"), [
    ("base", 86_567_656), ("large", 304_326_632), ("huge", 632_045_800)])
def test_size_of_the_classifier(variant, count):
    assert size(shapes_of(config_of("mae/finetune", variant))) == count


@pytest.mark.parametrize(("variant", "forward", "frozen"), [
    ("mae/base", 19.5, 0.0), ("mae/large", 41.5, 0.0), ("img2vec/base", 16.3, 8.2),
    ("img2vec/large", 52.8, 8.2)])
def test_work_of_a_step(variant, forward, frozen):
    """10 ** 9 FLOPs per image, one multiply-add being two; of img2vec added up by hand."""
    paper, network = variant.split("/")
    work = tasks.make(config_of(f"{paper}/pretrain", f"{network}_800e")).flops_per_image
    assert work / 1e9 == pytest.approx(3 * forward + frozen, abs=0.15)


# --- weight decay ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["mae/pretrain", "img2vec/pretrain"])
def test_what_is_decayed_in_pretraining_is_what_has_two_axes_or_more(name):
    """Tokens too; tables, which would shrink without a gradient to hold them, are not."""
    config = config_of(name, "base_800e")
    leaves = shapes_of(config)
    options = optim.OptimOptions(**config.optim.to_dict())
    mask = checkpoint.flatten(optim.decay_mask(checkpoint.unflatten(leaves), options))
    decayed = {path for path, decays in mask.items() if decays}
    heads = {"decoder_pred/kernel", "decoder_embed/kernel", "mask_token", "cls_token",
             "patch_embed/proj/kernel"}
    if name.startswith("img2vec"):
        heads |= {"global_head_0/kernel", "global_head_1/kernel"}
    matrices = {f"{blocks}/{path}/kernel" for blocks in ("blocks", "decoder_blocks")
                for path in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")}
    assert decayed == heads | matrices


def test_in_finetuning_tokens_and_positions_are_spared():
    config = config_of("mae/finetune", "base")
    options = optim.OptimOptions(**config.optim.to_dict())
    leaves = shapes_of(config)
    mask = checkpoint.flatten(optim.decay_mask(checkpoint.unflatten(leaves), options))
    spared = {path for path, decays in mask.items() if not decays}
    assert {"cls_token", "pos_embed", "blocks/attn/k_bias", "fc_norm/scale"} <= spared
    assert all(path.endswith("kernel") for path in mask.keys() - spared)


# --- from stage to stage --------------------------------------------------------------------------

@pytest.mark.parametrize(("paper", "variant"), [
    ("mae", "base_800e"), ("img2vec", "base_800e"), ("img2vec", "fusion_learned")])
def test_pretraining_fills_the_classifier_but_for_its_norm_and_head(paper, variant):
    start = (config_of(f"{paper}/pretrain", variant) if variant.endswith("e")
             else config_of(f"{paper}/ablations", variant, "pretrain"))
    loaded = {path: np.broadcast_to(np.float32(0), leaf.shape)
              for path, leaf in shapes_of(start).items()}
    config = config_of(f"{paper}/finetune", "base")
    target = shapes_of(config)
    options = state.InitOptions(**config.init.to_dict() | dict(checkpoint="runs/pretrain"))
    fitted = state.fit(loaded, target, options, "config.init")
    assert target.keys() - fitted.keys() == {
        "fc_norm/scale", "fc_norm/bias", "head/kernel", "head/bias"}


@pytest.mark.parametrize("network", SIZES)
def test_what_is_probed_is_the_encoder(network):
    config = config_of("mae/linear_probe", network)
    frozen = tasks.make(with_classes(config, 1_000)).frozen["backbone"]
    probed = checkpoint.flatten(jax.eval_shape(frozen.init, jax.random.key(0))["params"])
    trained = shapes_of(config_of("mae/pretrain", f"{network}_800e"))
    assert {path: leaf.shape for path, leaf in probed.items()} == {
        path: leaf.shape for path, leaf in trained.items() if path in probed}


# --- ablations ------------------------------------------------------------------------------------

TARGET = {f"target.{key}" for key in ("kind", "image_px", "patch_size", "normalise", "norm",
                                      "mean", "std")}
CELLS = {"mask.cell", "mask.num_masked"}
CHANGED = {
    "mae": {
        "full": set(),
        "pixels": {"target.normalise"},
        "hog": {"target.kind", "target.normalise"},
        **{name: {"target.kind", "target.patch_size", "target.normalise", "target.mean",
                  "target.std", "target.norm", "target.checkpoint", "target.dtype", "loss.kind",
                  "loss.beta"} for name in ("dino", "clip")},
        "ema": TARGET - {"target.norm"} | {"target.decay", "target.blocks", "loss.kind",
                                           "loss.beta"},
        **{name: {"mask.num_masked"} for name in MASKS},
        "block_50": {"mask.kind", "mask.num_masked", "mask.cell", "mask.min_block"},
        "block_75": {"mask.kind", "mask.cell", "mask.min_block"},
        **{f"decoder_{depth}": {"model.decoder_depth"} for depth in (1, 2, 4, 12)},
    },
    "img2vec": {
        "full": set(),
        "no_fusion": {"model.fusion"}, "no_global": {"loss.global_weight"},
        "neither": {"model.fusion", "loss.global_weight"},
        **{f"decoder_{depth}": {"model.decoder_depth"} for depth in (1, 4, 8)},
        "fusion_norm": {"model.fusion"}, "fusion_learned": {"model.fusion"},
        "fusion_upper": {"model.fusion_blocks"},
        "target_none": {"target.norm"}, "target_l2": {"target.norm"},
        "target_whiten": {"target.norm", "target.statistics"},
        "grid_repeat": {"model.grid_match"},
        "grid_resize_teacher": {"target.image_px", "data.target_px", "data.target_filter"},
        "global_last": {"loss.global_source"}, "global_after_norm": {"loss.global_target"},
        "loss_squared": {"loss.kind"}, "loss_beta_1": {"loss.beta"},
        "teacher_dino": {"target.kind", *CELLS}, "teacher_clip": {"target.kind", *CELLS},
        "teacher_mae": {"target.kind", *CELLS}, "teacher_mae_large": {"target.kind", *CELLS},
        "teacher_dinov2": {"target.kind", "target.image_px", "target.adapt", "data.target_px",
                           "data.target_filter", *CELLS},
    },
}


@pytest.mark.parametrize(("paper", "variant"), [
    (paper, variant) for paper, variants in CHANGED.items() for variant in variants])
def test_ablation_changes_what_it_says_and_nothing_else(paper, variant):
    full = flat(config_of(f"{paper}/pretrain", "base_300e"))
    stages = config_of(f"{paper}/ablations", variant).stages
    other = flat(stages.pretrain)
    assert {key for key in full.keys() | other.keys()
            if full.get(key) != other.get(key)} == CHANGED[paper][variant]
    before = ["statistics"] if variant == "target_whiten" else []
    assert main.stage_order(config_of(f"{paper}/ablations", variant)) == [
        *before, "pretrain", "finetune", "probe"]
    assert {stages[name].init.checkpoint for name in ("finetune", "probe")} == {"stage:pretrain"}


def test_every_ablation_is_listed_above():
    for paper, changed in CHANGED.items():
        assert set(changed) == set(VARIANTS[f"{paper}/ablations"])


@pytest.mark.parametrize(("variant", "ratio"), MASKS.items())
def test_mask_ratios_keep_what_maes_rule_keeps(variant, ratio):
    mask = config_of("mae/ablations", variant, "pretrain").mask
    assert mask.num_masked == 196 - int(196 * (1 - ratio))


@pytest.mark.parametrize(("name", "variant"), [
    (name, variant) for name, variant in ALL if name.endswith(("/pretrain", "/ablations"))])
def test_every_variants_pretraining_traces_at_toy_size(name, variant):
    """Shapes of loss and evaluation; what is computed, tests of the tasks tell."""
    config = runs_of(config_of(name, f"{variant}_smoke"))
    config = config.get("pretrain") or config["run"]
    task = tasks.make(config)
    sides = {"image": config.data.image_px, "image_for_target": config.data.target_px}
    batch = {key: jax.ShapeDtypeStruct((8, px, px, 3), jnp.uint8) for key, px in sides.items()
             if px}
    batch |= {"index": jax.ShapeDtypeStruct((8,), jnp.int32),
              "is_example": jax.ShapeDtypeStruct((8,), bool)}

    def everything(key, batch):
        variables = dict(task.init(key, batch))
        frozen = {name: network.init(key) for name, network in task.frozen.items()}
        sums = task.eval_step(variables, frozen, batch)
        return task.loss(variables.pop("params"), variables, frozen, batch, key), sums

    (loss, (_, metrics)), sums = jax.eval_shape(everything, jax.random.key(0), batch)
    assert loss.shape == metrics["loss"].shape == sums["loss"].shape == ()
    assert ("loss_global" in metrics) == (name.startswith("img2vec")
                                          and variant not in ("no_global", "neither"))


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "variant"), [("mae", "ema"), ("img2vec", "target_whiten")])
def test_smoke_of_ablations_that_take_another_path(paper, variant, tmp_path):
    config = config_of(f"{paper}/ablations", f"{variant}_smoke")
    for stage in ("finetune", "probe"):
        del config.stages[stage]
    assert main.run(config, str(tmp_path))["pretrain"]["eval/validation/loss"] > 0
