"""MAE and Img2Vec as tasks: losses of the papers, targets of every kind, and that they learn."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from stopping import stop_at

from beit_jax import checkpoint, losses, masking, tasks
from beit_jax.models.vit import VisionTransformer
from beit_jax.targets import normalise, pixels
from beit_jax.tasks import masked_prediction, self_teacher, teacher_features
from beit_jax.training import loop, sharding
from beit_jax.training import state as run_state
from beit_jax.training.preemption import Stopped
from configs import common

VIT = dict(image_px=32, patch_size=4, width=24, depth=3, num_heads=2, unroll=1)  # compiles faster
MODEL = VIT | dict(decoder_width=16, decoder_depth=1, decoder_num_heads=2)
TEACHER = dict(kind="backbone", checkpoint="random", **common.HALF_MEAN_STD,
               model=dict(image_px=32, patch_size=8, width=12, depth=1, num_heads=2))
PIXELS = dict(kind="pixels", image_px=32, patch_size=4, **common.HALF_MEAN_STD)


def config_of(task, **sections):
    config = common.base()
    config.task, config.dtype = task, "float32"
    config.model, config.mask = MODEL, dict(kind="random", num_masked=48)
    for name, section in sections.items():
        config[name] = section
    return config


def img2vec(**sections):
    return config_of("img2vec_pretrain", **dict(
        mask=dict(kind="random", num_masked=40, cell=2), target=TEACHER | dict(norm="layernorm"),
        loss=dict(global_hidden=8)) | sections)


def mae(**sections):
    return config_of("mae_pretrain", **dict(target=PIXELS) | sections)


@pytest.fixture(scope="module")
def batch():
    image = np.random.RandomState(0).randint(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    return {"image": image, "label": np.arange(4, dtype=np.int32),
            "index": np.arange(4, dtype=np.int32), "is_example": np.array([1, 1, 1, 0], bool)}


def filled(init, *args, seed=0):
    """Variables from numpy: compiling an initialiser takes far longer."""
    random = np.random.RandomState(seed)
    shapes = jax.eval_shape(init, jax.random.key(0), *args)
    return jax.tree.map(lambda s: random.standard_normal(s.shape).astype(np.float32) / 5, shapes)


def started(task, batch):
    """(parameters, collections, frozen)."""
    variables = dict(filled(task.init, batch))
    frozen = {name: filled(network.init, seed=1) for name, network in task.frozen.items()}
    if "statistics" in frozen:
        frozen["statistics"]["statistics"]["variance"] = np.full_like(
            frozen["statistics"]["statistics"]["variance"], 4.0)
    return variables.pop("params"), variables, frozen


def loss_of(config, batch):
    task = tasks.make(config)
    params, collections, frozen = started(task, batch)
    (value, (_, metrics)), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
        params, collections, frozen, batch, jax.random.key(3))
    return value, metrics, grads


# --- numbers of the specification -----------------------------------------------------------------

@pytest.fixture(scope="module")
def drawn():
    """(teacher tokens [2, 49, c], per-patch predictions, is_masked of cells, pooled prediction)."""
    draw = [np.random.RandomState(seed) for seed in (0, 1, 3)]
    tokens = np.maximum(draw[0].standard_normal((2, 7, 7, 2048)), 0).reshape(2, 49, 2048)
    predicted = 0.1 * draw[1].standard_normal((2, 14, 14, 2048))
    hidden = np.ones((2, 49), bool)
    order = np.argsort(np.random.RandomState(2).rand(2, 49), axis=1)
    np.put_along_axis(hidden, order[:, :19], False, axis=1)
    return (tokens.astype(np.float32), predicted.astype(np.float32), hidden,
            (0.1 * draw[2].standard_normal((2, 2048))).astype(np.float32))


@pytest.mark.parametrize("norm, kind, beta, expected", [
    ("layernorm", "smooth_l1", 2.0, 0.236347), ("none", "smooth_l1", 2.0, 0.123826),
    ("layernorm", "smooth_l1", 1.0, 0.386058), ("layernorm", "squared", 2.0, 1.002691)])
def test_patch_loss_of_pooled_predictions(drawn, norm, kind, beta, expected):
    tokens, predicted, hidden, _ = drawn
    pooled = predicted.reshape(2, 7, 2, 7, 2, -1).mean(axis=(2, 4)).reshape(2, 49, -1)
    errors = masked_prediction.error_function(kind, beta)(
        pooled, normalise.normalise(jnp.asarray(tokens), norm))
    assert float(losses.weighted_mean(errors, hidden)) == pytest.approx(expected, abs=2e-6)


def test_patch_loss_of_repeated_targets_and_of_a_silent_network(drawn):
    tokens, predicted, hidden, _ = drawn
    target = normalise.normalise(jnp.asarray(tokens), "layernorm")
    errors = losses.smooth_l1(jnp.zeros_like(target), target, 2.0)
    assert float(losses.weighted_mean(errors, hidden)) == pytest.approx(0.235709, abs=2e-6)
    repeated = target.reshape(2, 7, 7, -1).repeat(2, axis=1).repeat(2, axis=2)
    errors = losses.smooth_l1(predicted, repeated, 2.0)
    patches = masking.refine(hidden, (7, 7), 2).reshape(2, 14, 14)
    assert float(losses.weighted_mean(errors, patches)) == pytest.approx(0.238111, abs=2e-6)


def test_global_loss(drawn):
    tokens, _, _, pooled = drawn
    wanted = jnp.mean(jnp.asarray(tokens), axis=1)
    for norm, expected in (("layernorm", 0.248678), ("none", 0.044716)):
        error = losses.smooth_l1(pooled, normalise.normalise(wanted, norm), 2.0)
        assert float(jnp.mean(error)) == pytest.approx(expected, abs=2e-6)


def test_smooth_l1_and_its_gradient():
    d = jnp.array([0.0, 1.0, 2.0, 3.0, -4.0])
    values, pull = jax.vjp(lambda d: losses.smooth_l1(d[:, None], 0.0, 2.0), d)
    np.testing.assert_allclose(values, [0, 0.25, 1, 2, 3])
    np.testing.assert_allclose(pull(jnp.ones(5))[0], [0, 0.5, 1, 1, -1])
    normal = np.random.RandomState(0).standard_normal(1_000_000)
    mean = float(losses.smooth_l1(jnp.asarray(normal), 0.0, 2.0))
    assert mean == pytest.approx(0.24712, abs=1e-3)


# --- targets --------------------------------------------------------------------------------------

@pytest.mark.parametrize("norm", ["layernorm", "l2", "whiten"])
def test_scaled_tokens_have_unit_scale(norm):
    tokens = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (4, 50, 16))
    statistics = {"mean": jnp.mean(tokens, (0, 1)), "variance": jnp.var(tokens, (0, 1))}
    scaled = normalise.normalise(tokens, norm, statistics)
    axis = {"layernorm": -1, "l2": -1, "whiten": (0, 1)}[norm]
    if norm != "l2":
        np.testing.assert_allclose(jnp.mean(scaled, axis), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.mean(scaled ** 2, axis), 1.0, atol=1e-4)


@pytest.mark.parametrize("config", [
    mae(), mae(target=PIXELS | dict(normalise=False)),
    mae(mask=dict(kind="block_exact", num_masked=40, min_block=4)),
    mae(target=dict(kind="hog", image_px=32, patch_size=8, **common.HALF_MEAN_STD),
        model=MODEL | dict(patch_size=8), mask=dict(kind="random", num_masked=12)),
    mae(target=TEACHER | dict(norm="l2"), loss=dict(kind="cosine"),
        mask=dict(kind="random", num_masked=40, cell=2)),
    mae(target=dict(kind="ema", decay=0.9, blocks=2), loss=dict(kind="smooth_l1")),
    img2vec(), img2vec(model=MODEL | dict(grid_match="repeat", fusion="mean_norm")),
    img2vec(target=TEACHER | dict(norm="whiten", statistics=dict(checkpoint="random")),
            model=MODEL | dict(fusion="learned")),
    img2vec(loss=dict(global_hidden=8, global_source="last",
                      global_target="mean_of_normalised"), model=MODEL | dict(fusion="mean")),
], ids=["norm_pix", "pixels", "blocks", "hog", "cosine", "ema", "img2vec", "repeat", "whiten",
        "last"])
def test_every_target_has_a_finite_loss_that_reaches_every_trained_leaf(config, batch):
    value, metrics, grads = loss_of(config, batch)
    assert np.isfinite(value) and metrics["target_std"] > 0 and metrics["predicted_std"] > 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        fixed = path[0].key in ("pos_embed", "decoder_pos_embed")
        quiet = path[-1].key == "k_bias"  # changes nothing but by rounding
        assert bool(np.any(leaf)) != fixed or quiet, path
    task = tasks.make(config)
    params, collections, frozen = started(task, batch)
    sums = jax.jit(task.eval_step)({"params": params} | collections, frozen, batch)
    assert float(sums["count"]) == 3 and np.isfinite(task.summarize(sums)["loss"])


def test_the_total_is_the_patch_loss_and_half_the_global_loss(batch):
    value, metrics, _ = loss_of(img2vec(), batch)
    expected = float(metrics["loss_patch"]) + 0.5 * float(metrics["loss_global"])
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_img2vec_without_its_three_changes_is_mae(batch):
    plain = dict(target=PIXELS | dict(normalise=True), mask=dict(kind="random", num_masked=48))
    ours = loss_of(img2vec(**plain, loss=dict(kind="squared", global_weight=0.0)), batch)
    theirs = loss_of(mae(**plain), batch)
    assert float(ours[0]) == float(theirs[0])
    jax.tree.map(np.testing.assert_array_equal, ours[2], theirs[2])


def test_repeat_gives_every_patch_the_token_it_lies_in(batch, monkeypatch):
    """A teacher whose token is its own number."""
    numbers = jnp.broadcast_to(jnp.arange(16.0)[None, :, None], (4, 16, 1))
    teacher = teacher_features.TeacherFeatures(1, (4, 4), {}, lambda frozen, batch: numbers, 0.0)
    monkeypatch.setattr(teacher_features, "make", lambda config, beside: teacher)
    seen = []

    def values(out, scale):
        seen.append(out.target)
        return {"loss": jnp.mean(out.target, axis=(1, 2))}

    for match, patches_per_cell in (("pool", 1), ("repeat", 4)):
        config = img2vec(model=MODEL | dict(grid_match=match), target=TEACHER)
        task = masked_prediction.make(config, values, global_layers=0)
        params, collections, frozen = started(task, batch)
        task.eval_step({"params": params} | collections, frozen, batch)
        mask = masking.MaskOptions(kind="random", num_masked=40, cell=2)
        cells = masking.coarsen(mask.draw_for(jnp.arange(4), (8, 8)), (8, 8), 2)
        for found, hidden in zip(seen[-1], cells):
            expected = np.repeat(np.flatnonzero(hidden), patches_per_cell)
            assert sorted(np.asarray(found)[:, 0]) == list(expected)


def test_reconstructions_show_true_pixels_where_they_were_seen(batch):
    teacher = pixels.Pixels(32, 4, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), normalise=True)
    image01 = batch["image"] / np.float32(255)
    back = teacher.picture(teacher.features({}, image01), image01)
    np.testing.assert_allclose(back, image01, atol=1e-5)
    task = tasks.make(mae(target=PIXELS | dict(normalise=True)))
    params, collections, frozen = started(task, batch)
    drawn = task.pictures({"params": params} | collections, frozen, batch, jax.random.key(0))
    original, seen, made = np.split(np.asarray(drawn["reconstructions"]), 3, axis=2)
    np.testing.assert_array_equal(original, batch["image"])
    visible = np.any(seen != 128, axis=-1)
    np.testing.assert_array_equal(made[visible], original[visible])
    assert np.any(made != original)


# --- the student's own average --------------------------------------------------------------------

def test_the_average_moves_once_an_update_and_starts_as_the_student(batch):
    task = tasks.make(mae(target=dict(kind="ema", decay=0.9, blocks=2)))
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    begun = task.begin(variables, {}, batch, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, begun["average"]["blocks"],
                 variables["params"]["blocks"])
    zeros = jax.tree.map(jnp.zeros_like, begun)
    ones = jax.tree.map(jnp.ones_like, variables["params"])
    current = zeros
    for count in range(1, 4):
        current = task.end_step(ones, current)
        for leaf in jax.tree.leaves(current):
            np.testing.assert_allclose(leaf, 1 - 0.9 ** count, rtol=1e-5)


def test_targets_of_the_average_are_normed_and_always_the_same(batch):
    task = tasks.make(mae(target=dict(kind="ema", decay=0.9, blocks=2)))
    params, collections, _ = started(task, batch)
    model = masked_prediction.MaskedAutoencoder(**MODEL)
    image = jnp.asarray(batch["image"]) / 127.5 - 1.0
    tokens = functools.partial(self_teacher.tokens, model, collections["average"], image, 2)
    np.testing.assert_array_equal(tokens(), tokens())
    backbone = VisionTransformer(**VIT, layer_scale_init=0.0, use_abs_pos=True, use_k_bias=True)
    _, outputs = backbone.apply({"params": collections["average"]}, image, all_blocks=True,
                                method="encode")

    def norm(values):
        values = values - values.mean(-1, keepdims=True)
        return values / np.sqrt(values.var(-1, keepdims=True) + 1e-5)

    mean = norm(np.asarray(outputs)[-2:, :, 1:]).mean(0)
    assert mean.var(-1).mean() < 0.98  # so that the last norm is seen
    np.testing.assert_allclose(tokens(), norm(mean), atol=1e-4)
    assert set(self_teacher.ENCODER) == set(collections["average"])
    assert "norm" in params and "norm" not in collections["average"]


# --- mistakes -------------------------------------------------------------------------------------

@pytest.mark.parametrize("config, message", [
    (mae(mask=dict(kind="block", num_masked=40, min_block=4)), "mask.kind='block' is none of"),
    (mae(target=TEACHER), "none may be half hidden: set mask.kind=random, mask.cell=2"),
    (img2vec(mask=dict(kind="random", num_masked=42, cell=2)), "nearest: 40"),
    (img2vec(target=TEACHER | dict(norm="batch")), "target.norm='batch' is none of"),
    (img2vec(target=TEACHER | dict(norm="whiten")), "needs statistics"),
    (img2vec(target=TEACHER | dict(statistics=dict(checkpoint="random"))), "needs statistics"),
    (mae(target=dict(kind="ema", blocks=4)), "target.blocks=4, but the model has 3"),
    (mae(target=dict(kind="ema", blocks=2, momentum=0.9)), "config.target.momentum is unknown"),
    (mae(loss=dict(kind="huber")), "loss.kind='huber' is none of"),
    (mae(loss=dict(beta=1.0)), "loss.beta=1.0 has no effect with loss.kind=squared"),
    (img2vec(loss=dict(global_target="mean")), "global_target='mean' is none of"),
    (img2vec(loss=dict(global_layers=0)), "global_weight=0 leaves the head out"),
    (img2vec(model=MODEL | dict(global_layers=1)), "model.global_layers=1 has no effect"),
    (mae(target=PIXELS | dict(checkpoint="x")), "has no weights to load"),
    (mae(target=dict(kind="clip")), "target.kind='clip' is none of ema, backbone"),
    (mae(model=MODEL | dict(global_hidden=9)), "global_hidden=9 has no effect"),
    (img2vec(loss=dict(kind="squared", beta=1.0)), "loss.beta=1.0 has no effect"),
    (img2vec(loss=dict(global_hidden=0)), "global_hidden=0 must be 1 or more"),
    (mae(model=MODEL | dict(use_abs_pos=False, fixed_pos=False)), "nobody knows which patches"),
    (mae(model=MODEL | dict(decoder_width=18)), "decoder_width=18"),
    (mae(model=MODEL | dict(decoder_depth=0)), "decoder_depth=0"),
    (img2vec(model=MODEL | dict(fusion="mean", fusion_blocks=1)), "is no list: write .1,."),
    (mae(target=dict(kind="hog", image_px=32, patch_size=4)), "no multiple of its cells of 8 px"),
], ids=lambda value: value.split()[0] if isinstance(value, str) else None)
def test_mistakes_are_one_clear_line(config, message):
    with pytest.raises(ValueError, match=message):
        tasks.make(config)


def test_statistics_come_from_a_section_in_a_section(tmp_path):
    config = img2vec(target=TEACHER | dict(norm="whiten", statistics=dict(checkpoint="")))
    task = tasks.make(config)
    with pytest.raises(ValueError, match="config.target.statistics.checkpoint is empty"):
        run_state.load_frozen(task, config, jax.random.key(0),
                              sharding.make_mesh(sharding.MeshOptions()))


# --- learning -------------------------------------------------------------------------------------

def test_img2vec_learns_features_of_a_random_convolutional_teacher(monkeypatch):
    """Fresh masks, one batch: the patch loss falls below a third of where it started."""
    random = np.random.RandomState(0)
    kernels = [random.standard_normal((3, 3, i, o)).astype(np.float32) * (2 / (9 * i)) ** 0.5
               for i, o in ((3, 16), (16, 32), (32, 32))]
    coarse = jnp.asarray(random.rand(16, 6, 6, 3), jnp.float32)
    image = jnp.clip(jax.image.resize(coarse, (16, 64, 64, 3), "cubic"), 0, 1)

    def features(frozen, batch):
        x = batch["image"] / 255.0 * 2 - 1
        for kernel in kernels:
            x = jax.nn.relu(jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
        x = x.reshape(-1, 4, 2, 4, 2, 32).mean((2, 4))
        return jax.lax.stop_gradient(x.reshape(-1, 16, 32))

    teacher = teacher_features.TeacherFeatures(32, (4, 4), {}, features, 0.0)
    monkeypatch.setattr(teacher_features, "make", lambda config, beside: teacher)
    task = tasks.make(img2vec(
        model=dict(image_px=64, patch_size=8, width=48, depth=4, num_heads=4, decoder_width=32,
                   decoder_depth=2, decoder_num_heads=4, fusion="mean"),
        loss=dict(global_hidden=32)))
    batch = {"image": image * 255.0}
    params = jax.jit(task.init)(jax.random.key(0), batch)["params"]
    optimizer = optax.adam(1e-3, b2=0.95)

    @jax.jit
    def update(params, opt_state, key):
        (_, (_, metrics)), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, {}, {}, batch, key)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state, first = optimizer.init(params), None
    for step in range(300):
        params, opt_state, metrics = update(params, opt_state, jax.random.key(step))
        first = first or {name: float(value) for name, value in metrics.items()}
    assert 0.3 < first["loss_patch"] < 0.6 and 0.15 < first["loss_global"] < 0.5
    assert float(metrics["loss_patch"]) < first["loss_patch"] / 3
    assert float(metrics["loss_global"]) < 0.05
    # not collapsed to the mean of all tokens
    assert float(metrics["predicted_std"]) > 0.25 * float(metrics["target_std"])


# --- in a run -------------------------------------------------------------------------------------

RUN = dict(data=dict(name="synthetic", image_px=32, global_batch_size=8), total_steps=4,
           optim=dict(learning_rate=1e-3), checkpoint=dict(every_steps=2),
           log=dict(every_steps=1, tensorboard=False))


def running(config, **changes):
    for name, value in (RUN | changes).items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    config.eval.pictures = 2
    return config


def averaging(**changes):
    return running(mae(target=dict(kind="ema", decay=0.9, blocks=2)), **changes)


def test_a_run_with_a_self_teacher_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole = loop.run(averaging(), str(tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Stopped):
            loop.run(averaging(), str(tmp_path / "parts"))
    assert loop.run(averaging(), str(tmp_path / "parts")) == whole
    kept = [checkpoint.load_variables(str(tmp_path / name), collections=True)
            for name in ("whole", "parts")]
    assert kept[0].keys() == kept[1].keys() and any(k.startswith("average/") for k in kept[0])
    for name, leaf in kept[0].items():
        np.testing.assert_array_equal(leaf, kept[1][name])


def test_the_average_of_a_started_run_is_of_the_weights_that_it_started_from(tmp_path):
    loop.run(averaging(total_steps=2), str(tmp_path / "first"))
    config = averaging(total_steps=1, optim=dict(learning_rate=0.0))
    config.init.checkpoint = str(tmp_path / "first")
    loop.run(config, str(tmp_path / "second"))
    first = checkpoint.load_variables(str(tmp_path / "first"))
    second = checkpoint.load_variables(str(tmp_path / "second"), collections=True)
    for name in ("cls_token", "blocks/mlp/fc1/kernel"):
        np.testing.assert_allclose(second[f"average/{name}"], first[name], rtol=1e-6)


def test_the_average_moves_once_however_many_parts_a_batch_has(tmp_path):
    ends = []
    for parts in (1, 2):
        where = str(tmp_path / str(parts))
        loop.run(averaging(total_steps=1, optim=dict(learning_rate=1e-3,
                                                     accumulation_steps=parts)), where)
        ends.append(checkpoint.load_variables(where, collections=True))
    for leaves in ends:  # one Adam step of at most 1e-3, of which a tenth arrives
        distance = np.abs(leaves["average/cls_token"] - leaves["cls_token"])
        assert 0 < distance.max() < 1e-3


def test_a_second_view_of_pixels_draws_masks_in_place_of_reconstructions(batch):
    config = mae(target=PIXELS | dict(image_px=64, patch_size=8))
    config.data.target_px = 64
    task = tasks.make(config)
    params, collections, frozen = started(task, batch)
    drawn = task.pictures({"params": params} | collections, frozen, batch, jax.random.key(0))
    assert set(drawn) == {"masks"}


def test_a_checkpoint_with_positions_does_not_fit_a_teacher_without(tmp_path):
    """Whole parts may stay behind, but not what the blocks' input is made of."""
    target = TEACHER | dict(norm="layernorm", model=TEACHER["model"] | dict(use_abs_pos=True))
    source = tasks.make(img2vec(target=target)).frozen["teacher"].init(jax.random.key(0))
    path = tmp_path / "teacher.npz"
    np.savez(path, **checkpoint.flatten(source["params"]))
    config = img2vec(target=TEACHER | dict(norm="layernorm", checkpoint=str(path)))
    mesh = sharding.make_mesh(sharding.MeshOptions())
    with pytest.raises(ValueError, match="also has pos_embed"):
        run_state.load_frozen(tasks.make(config), config, jax.random.key(0), mesh)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_teacher_is_an_argument_of_the_step_and_stays_as_it_is(batch, dtype):
    task = tasks.make(img2vec(target=TEACHER | dict(norm="layernorm", dtype=dtype)))
    params, collections, frozen = started(task, batch)
    before = jax.tree.map(np.copy, frozen)
    gradient = jax.jit(jax.grad(task.loss, has_aux=True))
    text = gradient.lower(params, collections, frozen, batch, jax.random.key(0)).as_text()
    largest = max(leaf.size for leaf in jax.tree.leaves(frozen))
    constants = [int(np.prod([int(n) for n in found.split("x")[:-1]] or [1]))
                 for found in re.findall(r"stablehlo.constant dense<\"[^\"]*\"> : tensor<([^>]*)>",
                                         text)]
    assert max(constants, default=0) < largest
    gradient(params, collections, frozen, batch, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
