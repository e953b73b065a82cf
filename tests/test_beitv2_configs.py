"""The recipes of BEiT v2: published numbers, sizes, decay groups, schedules and initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_configs import FILES, flat, get_config, runs_of, with_classes

from beit_jax import convert, main, tasks
from beit_jax.models.beit import BeitForClassification, BeitV2ForMim
from beit_jax.training import optim, recipe

ABLATIONS = (
    "full", "no_aggregation", "early_layer_3", "early_layer_6", "early_layer_11", "head_layers_1",
    "head_layers_3", "separate_head", "head_init_backbone", "mask_block", "mask_random",
    "decoder_1", "decoder_3", "decoder_6", "encoder_small", "code_dim_16", "code_dim_64",
    "codebook_4096", "codebook_16384", "teacher_dino", "encoder_clip", "encoder_dino",
)  # fmt: skip
VARIANTS = {
    "vqkd": ("clip", "clip_decoder1", "dino"),
    "pretrain": ("base_300e", "base_1600e", "large_300e", "large_1600e"),
    "finetune": ("base_300e", "base_1600e", "base_in22k", "base_in22k_to_in1k",
                 "base_in22k_to_in1k_384", "large_300e", "large_1600e", "large_in22k",
                 "large_in22k_to_in1k", "large_in22k_to_in1k_384", "large_in22k_to_in1k_512"),
    "linear_probe": ("base", "large", "base_batch", "large_batch", "base_mean", "large_mean"),
    "ablations": ABLATIONS,
}
ALL = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
NUM_TRAIN = 1_281_167  # images of ImageNet-1k


def config_of(name: str, variant: str, stage: str = ""):
    config = get_config(f"beitv2/{name}", variant)
    return config.stages[stage] if stage else config


def shapes_of(config, num_classes: int = 1000) -> dict:
    """Shapes of all variables of a recipe's task."""
    px = config.data.image_px
    batch = {"image": jax.ShapeDtypeStruct((1, px, px, 3), jnp.uint8)}
    task = tasks.make(with_classes(config, num_classes))
    return jax.eval_shape(task.init, jax.random.key(0), batch)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_file_of_the_papers_recipes_is_tested():
    """robustness has a test of its own (tests/tasks/test_class_subset.py)."""
    files = {name.removeprefix("beitv2/") for name in FILES if name.startswith("beitv2/")}
    assert files - {"robustness"} == set(VARIANTS)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_key_of_every_variant_is_read(name, variant):
    for stage in runs_of(config_of(name, variant)).values():
        recipe.read(stage)
        tasks.make(with_classes(stage, 1_000))


# --- numbers --------------------------------------------------------------------------------------

# microsoft/unilm beit2/PRETRAINING.md: epochs, second beta, drop path, layer scale, early layer
PRETRAINING = {
    "base_300e": (300, 0.98, 0.0, 0.1, 9),
    "base_1600e": (1600, 0.999, 0.1, 0.1, 9),
    "large_300e": (300, 0.98, 0.0, 1e-5, 21),
    "large_1600e": (1600, 0.999, 0.1, 1e-5, 21),
}


@pytest.mark.parametrize(("variant", "expected"), PRETRAINING.items())
def test_pretraining_has_the_published_numbers(variant, expected):
    config = config_of("pretrain", variant)
    data, model, mask, optimizer = config.data, config.model, config.mask, config.optim
    assert (config.total_epochs, optimizer.b2, model.drop_path_rate, model.layer_scale_init,
            model.early_layer) == expected
    assert (optimizer.learning_rate, optimizer.min_learning_rate, optimizer.warmup_epochs,
            optimizer.weight_decay, optimizer.b1, optimizer.eps,
            optimizer.clip_norm) == (1.5e-3, 1e-5, 10, 0.05, 0.9, 1e-8, 3.0)
    assert (data.global_batch_size, data.image_px, data.target_px, tuple(data.crop_scale),
            data.interpolation, data.color_jitter, data.mean[0]) == (
                2048, 224, 0, (0.2, 1.0), "bicubic", 0.4, 0.485)
    assert (mask.kind, mask.num_masked, mask.min_block) == ("block_exact", 75, 16)
    assert (model.head_layers, model.shared_head, model.head_init) == (2, True, "torch")


def test_tokenizer_has_the_published_numbers():
    config = config_of("vqkd", "clip")
    data, optimizer = config.data, config.optim
    assert (config.total_epochs, data.global_batch_size, data.image_px, tuple(data.crop_scale),
            data.interpolation, data.color_jitter) == (
                100, 512, 224, (0.08, 1.0), "bicubic", 0.0)
    assert (optimizer.learning_rate, optimizer.min_learning_rate, optimizer.warmup_epochs,
            optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay,
            optimizer.clip_norm) == (2e-4, 1e-5, 10, 0.9, 0.99, 1e-8, 1e-4, 0.0)
    assert (config.loss.decay, config.loss.commitment_weight,
            config.loss.kmeans_iterations) == (0.99, 1.0, 10)
    assert config.loss.kmeans_images * 196 == 12_544


# microsoft/unilm beit2/get_started_for_image_classification.md: epochs, batch, rate, warm-up
# epochs, layer decay, drop path, mixup, side in pixels; 384 and 512 px are unverified
FINETUNING = {
    "base_300e": (100, 1024, 5e-4, 20, 0.65, 0.1, 0.8, 224),
    "base_1600e": (100, 1024, 5e-4, 20, 0.6, 0.2, 0.8, 224),
    "base_in22k_to_in1k": (30, 1024, 5e-5, 20, 0.75, 0.1, 0.0, 224),
    "base_in22k_to_in1k_384": (30, 1024, 5e-5, 20, 0.75, 0.1, 0.0, 384),
    "large_300e": (50, 1024, 5e-4, 5, 0.8, 0.2, 0.8, 224),
    "large_1600e": (50, 1024, 2e-4, 5, 0.8, 0.2, 0.8, 224),
    "large_in22k_to_in1k": (20, 1024, 7e-5, 5, 0.8, 0.25, 0.0, 224),
    "large_in22k_to_in1k_384": (20, 1024, 7e-5, 5, 0.8, 0.25, 0.0, 384),
    "large_in22k_to_in1k_512": (20, 1024, 7e-5, 5, 0.8, 0.25, 0.0, 512),
    "base_in22k": (90, 4096, 6e-4, 20, 0.75, 0.1, 0.8, 224),
    "large_in22k": (90, 4096, 6e-4, 20, 0.75, 0.2, 0.8, 224),
}


@pytest.mark.parametrize(("variant", "expected"), FINETUNING.items())
def test_finetuning_has_the_published_numbers(variant, expected):
    config = config_of("finetune", variant)
    optimizer = config.optim
    assert (config.total_epochs, config.data.global_batch_size, optimizer.learning_rate,
            optimizer.warmup_epochs, optimizer.layer_decay, config.model.drop_path_rate,
            config.augment.get("mixup", 0.0), config.model.image_px) == expected
    assert config.augment.get("cutmix", 0.0) == (1.0 if expected[6] else 0.0)
    assert config.data.image_px == config.model.image_px
    assert (optimizer.min_learning_rate, optimizer.weight_decay, optimizer.b2, optimizer.clip_norm,
            config.loss.label_smoothing, config.augment.random_erasing, config.data.randaugment,
            config.data.mean[0], config.model.pool) == (
                1e-6, 0.05, 0.999, 0.0, 0.1, 0.25, "rand-m9-mstd0.5-inc1", 0.485, "mean")


@pytest.mark.parametrize(("variant", "images"), [
    ("large_300e", 64), ("large_1600e", 64), ("base_300e", 128), ("base_1600e", 128)])
def test_mixup_is_drawn_once_for_the_images_of_a_gpu(variant, images):
    assert config_of("finetune", variant).augment.group_size == images


def schedule_of(name: str, variant: str):
    """(step -> learning rate, steps)."""
    config = config_of(name, variant)
    steps, per_epoch = recipe.lengths(config, recipe.read(config), NUM_TRAIN)
    options = optim.OptimOptions(**config.optim.to_dict())
    return optim.learning_rate_schedule(options, steps, per_epoch), steps


@pytest.mark.parametrize(("name", "variant", "steps", "expected"), [
    ("vqkd", "clip", 250_200, {0: 0.0, 12_510: 1.000040e-4, 25_019: 2e-4, 25_020: 2e-4,
                               137_610: 1.05e-4, 250_199: 1e-5}),
    ("pretrain", "base_1600e", 1_000_000, {6249: 1.5e-3, 6250: 1.5e-3, 503_125: 7.55e-4}),
    ("pretrain", "base_300e", 187_500, {96_875: 7.55e-4}),
], ids=lambda value: value if isinstance(value, str) else "")
def test_published_learning_rates(name, variant, steps, expected):
    schedule, length = schedule_of(name, variant)
    assert length == steps
    for step, value in expected.items():
        assert schedule(step) == pytest.approx(value, rel=1e-6, abs=1e-12), step


@pytest.mark.parametrize(("variant", "embedding", "first_block"), [
    ("base_1600e", 1.306069e-3, 2.176782e-3), ("base_in22k", 2.375726e-2, 3.167635e-2),
    ("large_1600e", 3.777893e-3, 4.722366e-3)])
def test_published_layer_rates(variant, embedding, first_block):
    config = config_of("finetune", variant)
    rates = optim.layer_multipliers(shapes_of(config)["params"], config.optim.layer_decay)
    np.testing.assert_allclose(rates["cls_token"], embedding, rtol=1e-6)
    blocks = rates["blocks"]["mlp"]["fc1"]["kernel"].ravel()
    np.testing.assert_allclose(blocks[0], first_block, rtol=1e-6)
    np.testing.assert_allclose([blocks[-1], rates["head"]["bias"]], [config.optim.layer_decay, 1],
                               rtol=1e-6)


# --- sizes ----------------------------------------------------------------------------------------

# instantiated from the original modules; tiny and small have base's other numbers
@pytest.mark.parametrize(("variant", "change", "count"), [
    ("base_300e", {}, 106_143_056), ("base_300e", dict(shared_head=False), 112_444_240),
    ("large_300e", {}, 336_728_512), ("large_300e", dict(shared_head=False), 345_127_360),
    ("base_300e", dict(width=192, num_heads=3), 7_962_452),
    ("base_300e", dict(width=384, num_heads=6), 28_303_016)],
    ids=["base", "base_separate", "large", "large_separate", "tiny", "small"])
def test_size_of_the_model_that_is_pretrained(variant, change, count):
    config = config_of("pretrain", variant)
    config.model.update(change)
    assert size(shapes_of(config)["params"]) == count


@pytest.mark.parametrize(("variant", "count"), [("base_300e", 14_177_280),
                                                ("large_300e", 25_194_496)])
def test_size_of_the_two_head_blocks(variant, count):
    params = shapes_of(config_of("pretrain", variant))["params"]
    assert size(params["cls_pt_layers"]) == count


@pytest.mark.parametrize(("variant", "count"), [
    ("full", 106_143_056), ("no_aggregation", 91_965_776), ("decoder_1", 91_965_776),
    ("separate_head", 112_444_240), ("codebook_16384", 91_965_776 + 8192 * 769),
    ("codebook_4096", 91_965_776 - 4096 * 769)])
def test_size_of_the_ablations(variant, count):
    assert size(shapes_of(config_of("ablations", variant, "pretrain"))["params"]) == count


@pytest.mark.parametrize(("variant", "num_classes", "count"), [
    ("base_1600e", 1000, 86_530_984), ("large_1600e", 1000, 304_430_568),
    ("base_in22k_to_in1k_384", 1000, 86_744_104), ("large_in22k_to_in1k_512", 1000, 305_674_728),
    ("base_in22k", 21_841, 102_557_713), ("large_in22k", 21_841, 325_792_593)])
def test_size_of_the_classifier(variant, num_classes, count):
    assert size(shapes_of(config_of("finetune", variant), num_classes)["params"]) == count


@pytest.mark.parametrize(("variant", "depth", "decoder", "decode_layer", "total"), [
    ("clip", 3, 21_440_256, 984_320, 108_829_216),
    ("clip_decoder1", 1, 7_266_048, 984_320, 94_655_008),
    ("dino", 1, 7_266_048, 1_181_184, 94_851_872),
    ("dino", 3, 21_440_256, 1_181_184, 109_026_080)])
def test_size_of_the_tokenizer(variant, depth, decoder, decode_layer, total):
    config = config_of("vqkd", variant)
    config.model.decoder_depth = depth
    shapes = shapes_of(config)
    params = shapes["params"]
    assert {name: size(part) for name, part in params.items()} == {
        "encoder": 85_789_440, "encode_task_layer": 615_200, "decoder": decoder,
        "decode_task_layer": decode_layer}
    assert size(params) == total
    # the original keeps a second codebook and a second count, which nothing reads
    assert (size(shapes["codebook"]), size(shapes["usage"])) == (262_144, 8_192)


@pytest.mark.parametrize("variant", ["base_300e", "large_300e"])
def test_what_reads_out_codes_is_the_encoder_and_its_codebook(variant):
    frozen = tasks.make(config_of("pretrain", variant)).frozen["vqkd"]
    variables = jax.eval_shape(frozen.init, jax.random.key(0))
    assert size(variables) == 86_666_784
    trained = shapes_of(config_of("vqkd", "clip"))
    assert jax.tree.map(jnp.shape, variables["codebook"]) == jax.tree.map(
        jnp.shape, trained["codebook"])
    for part, leaves in variables["params"].items():
        assert jax.tree.map(jnp.shape, leaves) == jax.tree.map(jnp.shape, trained["params"][part])


def test_pretraining_fills_the_classifier_but_for_its_norm_and_head():
    """Deployable backbone: what is left of the pre-trained model has the size of BEiT's."""
    params = shapes_of(config_of("pretrain", "base_300e"))["params"]
    kept = {name: part for name, part in params.items()
            if not name.startswith(("cls_pt_", "lm_head", "norm", "mask_token"))}
    tables = size(kept.pop("rel_pos_bias"))
    classifier = shapes_of(config_of("finetune", "base_300e"))["params"]
    own = size(classifier["head"]) + size(classifier["fc_norm"])
    assert size(kept) + 12 * tables == size(classifier) - own


# --- weight decay ---------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "variant", "fmt", "decayed", "undecayed"), [
    ("vqkd", "clip", "vqkd", (108_380_160, 66), (449_056, 149)),
    ("pretrain", "base_300e", "microsoft", (105_981_264, 60), (161_792, 159))])
def test_elements_and_tensors_that_are_decayed(name, variant, fmt, decayed, undecayed):
    """Tensors are counted as the original has them: of every block its own."""
    config = config_of(name, variant)
    params = shapes_of(config)["params"]
    mask = optim.decay_mask(params, optim.OptimOptions(**config.optim.to_dict()))
    # zeros of no memory: only shapes are counted
    filled = jax.tree.map(lambda leaf, decays: np.broadcast_to(np.float32(decays), leaf.shape),
                          params, mask)
    tensors = convert.to_reference(convert.flatten(filled), fmt).values()
    for value, expected in ((1, decayed), (0, undecayed)):
        group = [tensor.size for tensor in tensors if tensor.flat[0] == value]
        assert (sum(group), len(group)) == expected


# --- head of patch aggregation --------------------------------------------------------------------

@pytest.mark.parametrize(("variant", "expected"), [
    ("base_1600e", (0.0818, 0.0909)), ("large_1600e", (0.0913, 0.0957)),
    ("base_300e", (0.0, 0.0))])
def test_head_blocks_have_the_published_drop_path_rates(variant, expected, monkeypatch):
    model = config_of("pretrain", variant).model.to_dict() | dict(
        image_px=32, patch_size=16, width=16, num_heads=2, vocab_size=8)
    seen = []

    def run(self, stack, length, x, *, first=0, **kwargs):
        seen.append((first, np.asarray(self.drop_path_rates(first, length))))
        return x, None, x  # the output of the block that is kept

    monkeypatch.setattr(BeitV2ForMim, "run", run)
    BeitV2ForMim(**model).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)),
                               jnp.zeros((1, 4), bool))
    (_, backbone), (first, head) = seen
    np.testing.assert_allclose(head, expected, atol=5e-5)
    assert first == model["early_layer"] and len(head) == 2
    assert (backbone[0], backbone[-1], len(backbone)) == (
        0, pytest.approx(model["drop_path_rate"]), model["depth"])


@pytest.fixture(scope="module", params=["torch", "backbone"])
def initial(request):
    """(head_init, leaves of both stacks of base as they start); the rest is never made."""
    config = config_of("pretrain", "base_300e").model.to_dict() | dict(
        vocab_size=8, head_init=request.param)
    model = BeitV2ForMim(**config)

    def stacks(key):
        params = model.init(key, jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 196), bool))["params"]
        return params["blocks"]["mlp"]["fc1"]["kernel"][:1], params["cls_pt_layers"]

    backbone, head = jax.device_get(jax.jit(stacks)(jax.random.key(0)))
    return request.param, backbone, head


def test_head_blocks_start_as_published(initial):
    """Uniform within 1 / sqrt(fan in); output projections over sqrt(2 (l + j + 1)), l = 9."""
    head_init, backbone, head = initial
    assert backbone.std() == pytest.approx(0.010789, rel=5e-3)
    fc1, proj, fc2 = (head[part][leaf] for part, leaf in (
        ("mlp", "fc1"), ("attn", "proj"), ("mlp", "fc2")))
    if head_init == "backbone":
        assert fc1["kernel"].std() == pytest.approx(0.010789, rel=5e-3)
        assert not fc1["bias"].any() and not proj["bias"].any() and not fc2["bias"].any()
        for j in range(2):
            assert fc2["kernel"][j].std() == pytest.approx(0.010789 / np.sqrt(20 + 2 * j), rel=5e-3)
        return
    assert fc1["kernel"].std() == pytest.approx(0.02083, rel=2e-3)
    assert np.abs(fc1["kernel"]).max() == pytest.approx(0.03608, abs=1e-5)
    assert proj["kernel"][0].std() == pytest.approx(0.00466, rel=5e-3)
    assert fc2["kernel"][0].std() == pytest.approx(0.00233, rel=5e-3)
    for leaf in (proj, fc2):
        ratio = leaf["kernel"][0].std() / leaf["kernel"][1].std()
        assert ratio == pytest.approx(np.sqrt(22 / 20), rel=5e-3)
    # PyTorch's biases: uniform within the same bound, and not rescaled
    for leaf, fan_in in ((fc1, 768), (proj, 768), (fc2, 3072)):
        assert np.abs(leaf["bias"]).max() == pytest.approx(fan_in ** -0.5, rel=0.02)
    assert not head["attn"]["q_bias"].any() and not head["attn"]["v_bias"].any()
    np.testing.assert_array_equal(head["gamma_1"], np.float32(0.1))
    np.testing.assert_array_equal(head["norm2"]["scale"], 1)


# --- ablations ------------------------------------------------------------------------------------

AGGREGATION = {"model.early_layer", "model.head_layers", "model.shared_head", "model.head_init"}
CHANGED = {
    "full": set(),
    "no_aggregation": AGGREGATION | {"task", "loss.positions"},
    "early_layer_3": {"model.early_layer"},
    "early_layer_6": {"model.early_layer"},
    "early_layer_11": {"model.early_layer"},
    "head_layers_1": {"model.head_layers"},
    "head_layers_3": {"model.head_layers"},
    "separate_head": {"model.shared_head"},
    "head_init_backbone": {"model.head_init"},
    "mask_block": {"mask.kind"},
    "mask_random": {"mask.kind", "mask.min_block"},
    "teacher_dino": {"target.checkpoint"},
}
TOKENIZERS = {
    "decoder_1": {"decoder_depth": 1}, "decoder_3": {}, "decoder_6": {"decoder_depth": 6},
    "encoder_small": {"width": 384, "num_heads": 6},
    "code_dim_16": {"code_dim": 16}, "code_dim_64": {"code_dim": 64},
    "codebook_4096": {"codebook_size": 4096}, "codebook_16384": {"codebook_size": 16_384},
}  # fmt: skip


def differing(one: dict, other: dict) -> set:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize("name", CHANGED)
def test_ablation_changes_in_pretraining_what_it_says_and_nothing_else(name):
    full, other = (flat(config_of("ablations", variant, "pretrain")) for variant in ("full", name))
    assert differing(full, other) == CHANGED[name]
    assert full == flat(config_of("pretrain", "base_300e"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ablation_changes_in_the_tokenizer_what_it_says_and_nothing_else(name):
    changes = TOKENIZERS[name]
    stages = config_of("ablations", name).stages
    ours, default = flat(stages.tokenizer), flat(config_of("vqkd", "clip"))
    assert {key: ours[key] for key in differing(ours, default)} == {
        f"model.{key}": value for key, value in changes.items()}
    target = {f"target.{key}" for key in changes if key != "decoder_depth"}
    assert differing(flat(stages.pretrain), flat(config_of("ablations", "no_aggregation",
                                                           "pretrain"))) == (
        target | {"target.checkpoint"})


def test_ablations_run_their_stages_in_order():
    assert main.stage_order(config_of("ablations", "full")) == ["pretrain", "finetune", "probe"]
    assert main.stage_order(config_of("ablations", "decoder_1")) == [
        "tokenizer", "pretrain", "finetune", "probe"]
    assert main.stage_order(config_of("ablations", "encoder_dino")) == ["tokenizer", "finetune"]


@pytest.mark.parametrize(("name", "feature"), [("full", "cls"), ("no_aggregation", "mean"),
                                               ("decoder_1", "mean"), ("teacher_dino", "cls")])
def test_without_aggregation_the_mean_patch_is_probed(name, feature):
    assert config_of("ablations", name, "probe").probe.feature == feature


def test_a_finetuned_encoder_is_a_plain_vit():
    config = config_of("ablations", "encoder_clip", "finetune")
    model = BeitForClassification(**config.model.to_dict() | dict(num_classes=1000))
    params = shapes_of(config)["params"]
    assert not model.use_rel_pos and "gamma_1" not in params["blocks"]
    encoder = shapes_of(config_of("ablations", "encoder_clip", "tokenizer"))["params"]["encoder"]
    assert jax.tree.map(jnp.shape, encoder) == jax.tree.map(
        jnp.shape, {name: leaf for name, leaf in params.items() if name != "head"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no_aggregation", "separate_head", "encoder_clip"])
def test_smoke_of_ablations_that_take_another_path(name, tmp_path):
    config = config_of("ablations", f"{name}_smoke")
    if name != "encoder_clip":  # of which fine-tuning and probe differ too
        config.stages = {"pretrain": config.stages.pretrain}
    results = main.run(config, str(tmp_path))
    assert all(metrics["eval/validation/loss"] > 0 for metrics in results.values())
