"""The two tasks of BEiT v2: VQ-KD, and pre-training with patch aggregation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from stopping import stop_at

from beit_jax import checkpoint, losses, tasks
from beit_jax.data import digit_scenes
from beit_jax.models.beit import BeitV2ForMim
from beit_jax.training import loop, sharding, state, step
from beit_jax.training.metric_writer import read_metrics
from beit_jax.training.preemption import Stopped
from configs import common

GRID = dict(image_px=32, patch_size=8)
VIT = GRID | dict(width=32, depth=2, num_heads=2)
TOKENIZER = VIT | dict(code_dim=8, codebook_size=64)
SMALL = GRID | dict(width=16, depth=1, num_heads=2, decoder_depth=1, code_dim=8, codebook_size=64)
TEACHER = dict(kind="backbone", checkpoint="random", model=VIT | dict(use_abs_pos=True),
               **common.HALF_MEAN_STD)


def config_of(task, **sections):
    config = common.base()
    config.task, config.dtype = task, "float32"
    for name, section in sections.items():
        config[name] = section
    return config


def tokenizing(**changes):
    sections = dict(model=TOKENIZER | dict(decoder_depth=1), target=TEACHER, loss={}) | changes
    return config_of("vqkd_train", **sections)


def pretraining(**changes):
    sections = dict(
        model=VIT | dict(use_shared_rel_pos=True, early_layer=1, head_layers=1),
        mask=dict(kind="block_exact", num_masked=6, min_block=2),
        target=dict(kind="vqkd", **TOKENIZER)) | changes
    return config_of("beitv2_pretrain", **sections)


def rows_of(image):
    size = len(image)
    return {"image": image, "label": np.arange(size, dtype=np.int32) % 10,
            "index": np.arange(size, dtype=np.int32), "is_example": np.ones(size, bool)}


def noise(size=8, seed=0):
    """A batch of coarse noise."""
    coarse = np.random.RandomState(seed).randint(0, 256, (size, 8, 8, 3))
    return rows_of(coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8))


def filled(init, *args, seed=0):
    """Variables from numpy: compiling an initialiser takes far longer."""
    random = np.random.RandomState(seed)
    shapes = jax.eval_shape(init, jax.random.key(0), *args)
    return jax.tree.map(lambda s: random.standard_normal(s.shape).astype(np.float32) / 5, shapes)


def start_of(task, batch):
    """(parameters, collections, frozen) of a tokenizer; the codebook has unit length."""
    variables = dict(filled(task.init, batch))
    embedding = variables["codebook"]["embedding"]
    embedding = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
    zeros = {name: jax.tree.map(np.zeros_like, variables[name]) for name in ("usage", "pending")}
    variables |= {"codebook": {"embedding": embedding}, **zeros}
    frozen = {name: filled(network.init, seed=1) for name, network in task.frozen.items()}
    return variables.pop("params"), variables, frozen


# --- VQ-KD ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def scenes():
    """uint8 images: 256 to train on, 128 of other handwriting."""
    return [digit_scenes.make_scenes("multi", split, size)["image"][:, ::2, ::2]
            for split, size in (("train", 256), ("validation", 128))]


@pytest.fixture(scope="module")
def trained(scenes):
    """A tokenizer trained as the loop does it: the state at its end, metrics, the evaluation."""
    task = tasks.make(tokenizing())
    mesh = sharding.make_mesh(sharding.MeshOptions())
    train, validation = scenes
    order = np.random.RandomState(0).permutation(np.tile(np.arange(256), 40)).reshape(-1, 64)
    batches = [rows_of(train[rows]) for rows in order]
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batches[0].items()}
    tx = optax.adam(2e-3, b2=0.99)
    with sharding.use(mesh):
        _, make = state.create(task, tx, jax.random.key(0), shapes, mesh, with_ema=False)
        frozen = state.load_frozen(task, {"target": {"checkpoint": "random"}}, jax.random.key(1),
                                   mesh)
        before = jax.tree.map(np.array, frozen)
        current = state.begin(make(), task, state.InitOptions(), frozen, batches[0],
                              jax.random.key(2), mesh)
        train_step, history = step.make_train_step(task, tx, jax.random.key(3)), []
        for batch in batches:
            current, metrics = train_step(current, frozen, batch)
            history.append(metrics)
        variables = {"params": current.params, **current.model_state}
        summary = task.summarize(jax.jit(task.eval_step)(variables, frozen, rows_of(validation)))
    return current, (before, frozen), jax.device_get(history), summary


@pytest.mark.slow
def test_the_tokenizer_learns_and_uses_its_codes(trained):
    _, _, history, summary = trained
    assert len(history) == 160
    first, last = history[0], history[-1]
    assert first["loss"] == pytest.approx(1.0, abs=0.1)  # the decoder knows no direction yet
    assert last["loss"] < 0.6 * first["loss"]
    assert summary["loss"] < 0.65 * first["loss"]
    assert summary["usage"] > 0.5
    assert summary["perplexity"] > 16
    assert summary["dead_codes"] == 64 * (1 - summary["usage"])


@pytest.mark.slow
def test_the_teacher_is_bit_identical_after_training_and_has_no_slots(trained):
    current, (before, after), _, _ = trained
    jax.tree.map(np.testing.assert_array_equal, before, after)
    moments = jax.tree.structure(current.params)
    assert jax.tree.structure(current.opt_state[0].mu) == moments
    assert current.params.keys() == {"encoder", "encode_task_layer", "decoder",
                                     "decode_task_layer"}


def test_the_codebook_moves_at_the_end_of_the_step_and_as_by_hand():
    """Two codes chosen once, one never: the numbers of test_quantizer.py."""
    config = tokenizing(model=VIT | dict(decoder_depth=1, code_dim=2, codebook_size=3))
    task = tasks.make(config)
    before = {"codebook": {"embedding": jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])},
              "usage": {"cluster_size": jnp.zeros(3)},
              "pending": {"count": jnp.array([1.0, 1.0, 0.0]),
                          "total": jnp.array([[0.8, 0.6], [0.6, 0.8], [0.0, 0.0]])}}
    after = task.end_step({}, before)
    expected = [[0.999982, 0.006012], [0.006012, 0.999982], [-1.0, 0.0]]
    np.testing.assert_allclose(after["codebook"]["embedding"], expected, atol=1e-6)
    np.testing.assert_allclose(after["usage"]["cluster_size"], [0.01, 0.01, 0.0], atol=1e-7)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after["pending"]))


@pytest.fixture(scope="module")
def tokenizer():
    """(task, batch, parameters, collections, frozen) at step 0."""
    task, batch = tasks.make(tokenizing(model=SMALL)), noise()
    return task, batch, *start_of(task, batch)


def test_the_loss_leaves_the_codebook_and_counts_every_patch(tokenizer):
    task, batch, params, collections, frozen = tokenizer
    loss = jax.jit(task.loss)
    value, (after, metrics) = loss(params, collections, frozen, batch, jax.random.key(0))
    for name in ("codebook", "usage"):
        jax.tree.map(np.testing.assert_array_equal, after[name], collections[name])
    assert float(after["pending"]["count"].sum()) == 8 * 16
    assert float(value) == pytest.approx(
        float(metrics["commitment"] + metrics["reconstruction"]), rel=1e-5)
    _, (twice, _) = loss(params, after, frozen, batch, jax.random.key(0))
    jax.tree.map(lambda one, two: np.testing.assert_allclose(two, 2 * one, atol=1e-4),
                 after["pending"], twice["pending"])


@pytest.mark.slow
def test_parts_of_a_batch_move_the_codebook_as_the_whole(tokenizer, mesh):
    task, batch, params, collections, frozen = tokenizer
    tx, results = optax.sgd(0.1), {}
    for parts in (1, 2):
        train_step = step.make_train_step(task, tx, jax.random.key(0), accumulation_steps=parts)
        current = state.TrainState(
            step=jnp.zeros((), jnp.int32), params=jax.tree.map(jnp.array, params),
            model_state=jax.tree.map(jnp.array, collections), opt_state=tx.init(params),
            ema_params=None)
        results[parts], _ = train_step(current, frozen, batch)
    whole, split = results[1], results[2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 (whole.model_state, whole.params), (split.model_state, split.params))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(split.model_state["pending"]))
    embedding = split.model_state["codebook"]["embedding"]
    assert np.abs(embedding - collections["codebook"]["embedding"]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1.0, atol=1e-6)
    assert float(split.model_state["usage"]["cluster_size"].sum()) == pytest.approx(1.28, rel=1e-5)


def test_filler_rows_do_not_count_and_evaluation_adds_up(tokenizer):
    task, batch, params, collections, frozen = tokenizer
    evaluate = jax.jit(task.eval_step)
    variables = {"params": params, **collections}
    whole = evaluate(variables, frozen, batch)
    total = jax.tree.map(jnp.zeros_like, whole)
    for shift, size in ((0, 5), (-5, 3)):
        part = {name: np.roll(rows, shift, axis=0) for name, rows in batch.items()}
        part["is_example"] = np.arange(8) < size
        total = jax.tree.map(jnp.add, total, evaluate(variables, frozen, part))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, total)
    assert float(whole["code_counts"].sum()) == 8 * 16
    value, _ = jax.jit(task.loss)(params, collections, frozen, batch, jax.random.key(0))
    assert task.summarize(jax.device_get(whole))["loss"] == pytest.approx(float(value), rel=1e-5)


def test_kmeans_sees_the_images_it_is_told_and_may_be_left_out(tokenizer):
    _, batch, params, collections, _ = tokenizer
    variables = {"params": params, **collections}
    others = {name: np.concatenate([rows[:4], rows[:4]]) for name, rows in batch.items()}

    def begun(batch, **loss):
        task = tasks.make(tokenizing(model=SMALL, loss=loss))
        made = jax.jit(task.begin)(variables, {}, batch, jax.random.key(0))
        assert made.keys() == collections.keys()
        return np.asarray(made["codebook"]["embedding"])

    four = begun(batch, kmeans_images=4)
    np.testing.assert_array_equal(four, begun(others, kmeans_images=4))
    assert np.abs(four - begun(batch)).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(four, axis=-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(begun(batch, kmeans_iterations=0),
                                  collections["codebook"]["embedding"])


def test_kmeans_of_fewer_vectors_than_codes_is_refused(tokenizer):
    _, batch, params, collections, _ = tokenizer
    task = tasks.make(tokenizing(model=SMALL, loss=dict(kmeans_images=3)))
    with pytest.raises(ValueError, match="codebook_size=64, .* of 3 images, 48 vectors.* Take 4 "):
        jax.eval_shape(task.begin, {"params": params, **collections}, {}, batch, jax.random.key(0))


# --- a tokenizer's run ----------------------------------------------------------------------------

def run_config():
    """Five steps on noise, saved at the end only."""
    config = tokenizing(model=SMALL)
    config.total_steps = 5
    config.data.update(name="synthetic", image_px=32, global_batch_size=8)
    config.optim.learning_rate = 1e-3
    config.eval.pictures = 0
    config.checkpoint.every_steps = 0
    config.log.update(every_steps=1, tensorboard=False)
    return config


def numbers(workdir):
    return {(line["step"], name): value for line in read_metrics(workdir)
            for name, value in line.items() if not name.startswith("perf/")}


def assert_same_state(one, other):
    """Bit-equal parameters and collections of two runs."""
    one, other = (checkpoint.load_variables(w, collections=True) for w in (one, other))
    assert one.keys() == other.keys()
    assert {"codebook/embedding", "usage/cluster_size", "pending/count"} <= one.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Workdir of a run of 5 steps."""
    workdir = tmp_path_factory.mktemp("unbroken")
    loop.run(run_config(), workdir)
    return workdir


@pytest.mark.slow
def test_a_stopped_tokenizer_goes_on_bit_for_bit_and_draws_no_new_codebook(
        unbroken, tmp_path, monkeypatch):
    begun, make = [], tasks.TASKS["vqkd_train"]

    def counting(config):
        task = make(config)
        return task._replace(begin=lambda *args: begun.append(1) or task.begin(*args))

    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS) | {"vqkd_train": counting})
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Stopped, match="at step 3 of 5"):
            loop.run(run_config(), tmp_path)
    assert begun == [1]
    loop.run(run_config(), tmp_path)
    assert begun == [1]
    assert numbers(tmp_path) == numbers(unbroken)
    assert_same_state(tmp_path, unbroken)


# --- patch aggregation ----------------------------------------------------------------------------

class Perturbed(BeitV2ForMim):
    """Adds a variable to the tokens after the last block, so that they have a gradient."""

    def run(self, stack, length, x, **kwargs):
        x, every, total = super().run(stack, length, x, **kwargs)
        if length == self.depth:  # the blocks; the head's are fewer
            x = x + self.get_variable("perturbations", "final")
        return x, every, total


def model_of(cls=BeitV2ForMim, **changes):
    sizes = VIT | dict(depth=3, use_shared_rel_pos=True, vocab_size=16, early_layer=2,
                       head_layers=1) | changes
    return cls(**sizes)


@pytest.fixture(scope="module")
def masked():
    """(image float [2, 32, 32, 3], is_masked [2, 16])."""
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    return image, jnp.arange(32).reshape(2, 16) % 3 == 0


def test_the_second_prediction_sees_the_last_block_through_the_class_token_alone(masked):
    model, (image, is_masked) = model_of(Perturbed), masked
    params = filled(model_of().init, image, is_masked)["params"]
    codes = jnp.arange(32).reshape(2, 16) % 16

    @jax.jit
    @jax.jacrev
    def both(delta):
        variables = {"params": params, "perturbations": {"final": delta}}
        return jnp.stack([losses.weighted_mean(losses.cross_entropy(logits, codes), is_masked)
                          for logits in model.apply(variables, image, is_masked)])

    of_final, of_aggregated = np.asarray(both(jnp.zeros((2, 17, 32))))
    assert not of_aggregated[:, 1:].any()
    assert np.abs(of_aggregated[:, 0]).max() > 1e-4
    assert np.abs(of_final[:, 1:][is_masked]).max(axis=-1).min() > 1e-4
    assert not of_final[:, 0].any()


def test_the_head_gets_the_patches_of_the_early_layer(masked):
    """Behind the last block it gets the sequence as it is; before, other patches."""
    image, is_masked = masked
    params = filled(model_of().init, image, is_masked)["params"]

    def features(early_layer):
        model = model_of(early_layer=early_layer)

        def plain(model, x):
            return model.run(model.cls_pt_layers, model.head_layers, x, first=early_layer)[0]

        @jax.jit
        def run(params):
            x, aggregated = model.apply({"params": params}, image, is_masked,
                                        method="both_features")
            return x, aggregated, model.apply({"params": params}, x, method=plain)
        return run(params)

    x, aggregated, plain = features(3)
    np.testing.assert_allclose(aggregated, plain, atol=1e-6)
    early_x, aggregated, plain = features(2)
    np.testing.assert_allclose(early_x, x, atol=1e-6)  # the blocks themselves do not change
    assert np.abs(aggregated - plain).max() > 0.1


@pytest.mark.slow
def test_both_predictions_learn_fixed_masks_by_heart(trained, scenes):
    """16 images, codes of the trained tokenizer."""
    config = pretraining(model=GRID | dict(width=64, depth=3, num_heads=4, use_shared_rel_pos=True,
                                           early_layer=2, head_layers=1))
    task, batch = tasks.make(config), rows_of(scenes[0][:16])
    current = trained[0]
    frozen = {"vqkd": {"params": {name: current.params[name]
                                  for name in ("encoder", "encode_task_layer")},
                       "codebook": current.model_state["codebook"]}}
    params = jax.jit(task.init)(jax.random.key(0), batch)["params"]
    tx = optax.adam(optax.cosine_decay_schedule(4e-3, 240))

    @jax.jit
    def update(params, opt_state, frozen, batch):
        grads, (_, metrics) = jax.grad(task.loss, has_aux=True)(params, {}, frozen, batch,
                                                                jax.random.key(1))
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state, history = tx.init(params), []
    for _ in range(240):
        params, opt_state, metrics = update(params, opt_state, frozen, batch)
        history.append(metrics)
    first, last = jax.device_get((history[0], history[-1]))
    assert first["masked_share"] == 6 / 16
    for name in ("loss_final", "loss_aggregated"):
        assert first[name] == pytest.approx(np.log(64), abs=0.5)
    assert first["accuracy"] < 0.3  # the codes differ, so that there is something to learn
    assert last["accuracy"] > 0.9 and last["accuracy_aggregated"] > 0.9


# --- errors ---------------------------------------------------------------------------------------

def aggregating(**changes):
    return pretraining(model=pretraining().model.to_dict() | changes)


@pytest.mark.parametrize(("config", "message"), [
    (tokenizing(model=TOKENIZER | dict(image_px=64)), "the teacher has 4x4 patches.*model 8x8"),
    (tokenizing(target=TEACHER | dict(kind="sift")), "kind='sift' is none of backbone, clip"),
    (tokenizing(target=TEACHER | dict(widht=8)), "config.target.widht is unknown; known: block"),
    (tokenizing(model=TOKENIZER | dict(teacher_dim=8)), "model.teacher_dim=8 has no effect"),
    (tokenizing(model=TOKENIZER | dict(decoder_dept=1)), "did you mean decoder_depth"),
    (tokenizing(loss=dict(beta=1.0)), "config.loss.beta is unknown"),
    (tokenizing(mask=dict(kind="random")), "config.mask is set, but task vqkd_train"),
    (pretraining(target=dict(kind="sift")), "target.kind='sift' is none of dvae, vqkd"),
    (pretraining(target=dict(kind="vqkd", **TOKENIZER | dict(patch_size=16))),
     "4 codes for images of 32 px, the model has 16 patches"),
    (pretraining(target=dict(kind="vqkd", **TOKENIZER | dict(image_px=16))),
     "the image is 32x32, the model expects 16x16"),
    (pretraining(target=dict(kind="vqkd", **TOKENIZER, decoder_depth=1)),
     "config.target.decoder_depth is unknown"),
    (aggregating(vocab_size=8), "model.vocab_size=8, but the target has 64 codes"),
    (aggregating(early_layer=0), "config.model.early_layer=0 must be 1 or more"),
    (aggregating(early_layer=3), "model.early_layer=3 must lie between 1 and model.depth=2"),
    (aggregating(head_layers=0), "model.head_layers=0 must be 1 or more"),
    (aggregating(head_init="zeros"), "model.head_init='zeros' is none of torch, backbone"),
    (pretraining(mask=dict(kind="none")), "mask.kind='none' is none of block_exact"),
    (pretraining(mask=dict(kind="stripes")), "mask.kind='stripes' is none of block"),
    (pretraining(mask=dict(num_masked=16, min_block=2)), "mask.num_masked=16"),
    (pretraining(mask=dict(kind="random", num_masked=6, min_block=2)), "mask.min_block=2 has no"),
    (pretraining(loss=dict(positions="all")), "config.loss is set"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_impossible_recipes_are_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as error:
        task, batch = tasks.make(config), noise(2)
        variables = jax.eval_shape(task.init, jax.random.key(0), batch)
        frozen = {name: jax.eval_shape(network.init, jax.random.key(0))
                  for name, network in task.frozen.items()}
        jax.eval_shape(lambda params, frozen: task.loss(
            params, {}, frozen, batch, jax.random.key(1)), variables["params"], frozen)
    assert "\n" not in str(error.value)
