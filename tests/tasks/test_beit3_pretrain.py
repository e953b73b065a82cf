"""BEiT-3's pre-training: three streams in one step, on tiny networks."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax import tasks, token_ids
from beit_jax.tasks import beit3_pretrain
from beit_jax.tasks import streams as stream_losses
from beit_jax.training import loop, optim, recipe, sharding
from beit_jax.training.metric_writer import read_metrics
from configs.beit3 import pretrain

B, LENGTH, PIECES = 4, 12, 40
STREAMS = ("images", "texts", "pairs")


def config_of(**sections):
    config = pretrain.get_config("smoke")
    config.dtype = "float32"
    config.model.update(vocab_size=token_ids.table_rows(PIECES), drop_path_rate=0.0)
    config.target.checkpoint = "random"
    for name, values in sections.items():
        with config.unlocked():
            config[name].update(values)
    return config


@pytest.fixture(scope="module")
def batch():
    """Rows of all three streams; the last text is shorter."""
    random = np.random.default_rng(0)

    def images():
        return {"image": random.integers(0, 256, (B, 32, 32, 3), dtype=np.uint8)}

    def texts():
        text = random.integers(token_ids.FIRST_PIECE, PIECES + 1, (B, LENGTH)).astype(np.int32)
        text[:, 0], text[:, -1] = token_ids.BOS, token_ids.EOS
        text[-1, 7], text[-1, 8:] = token_ids.EOS, token_ids.PAD
        return {"text": text, "text_is_valid": text != token_ids.PAD}

    def rows(values):
        return values | {"index": np.arange(B, dtype=np.int32), "is_example": np.ones(B, bool)}

    return {"images": rows(images()), "texts": rows(texts()), "pairs": rows(images() | texts())}


@pytest.fixture(scope="module")
def started(batch):
    """(task, variables, frozen)."""
    task = tasks.make(config_of())
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    frozen = {name: network.init(jax.random.key(1)) for name, network in task.frozen.items()}
    return task, variables, frozen


def gradients(task, started, batch):
    """(loss, metrics, gradients) of one step."""
    _, variables, frozen = started
    compute = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (loss, (state, metrics)), grads = compute(variables["params"], {}, frozen, batch,
                                              jax.random.key(2))
    assert state == {}
    return loss, metrics, grads


def test_the_loss_is_the_sum_of_four_and_begins_near_chance(started, batch):
    loss, metrics, _ = gradients(started[0], started, batch)
    parts = [float(metrics[f"loss_{part}"]) for part in ("image", "text", "pair_image",
                                                         "pair_text")]
    assert float(loss) == pytest.approx(sum(parts), rel=1e-6)
    chance = [np.log(16), np.log(token_ids.table_rows(PIECES))] * 2
    np.testing.assert_allclose(parts, chance, atol=0.25)


def test_one_stream_after_the_other_gives_the_same_loss_and_gradient(started, batch):
    loss, metrics, grads = gradients(started[0], started, batch)
    again = gradients(tasks.make(config_of(loss=dict(sequential=True))), started, batch)
    assert float(again[0]) == pytest.approx(float(loss), rel=1e-6)
    assert again[1].keys() == metrics.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, again[2])
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(grads))


def test_weights_of_the_four_losses(started, batch):
    _, metrics, _ = gradients(started[0], started, batch)
    weights = dict(image=0.5, text=2.0, pair_image=0.0, pair_text=3.0)
    loss, again, _ = gradients(tasks.make(config_of(loss=weights)), started, batch)
    assert float(loss) == pytest.approx(sum(
        weight * float(metrics[f"loss_{part}"]) for part, weight in weights.items()), rel=1e-5)
    assert float(again["loss_pair_image"]) == pytest.approx(float(metrics["loss_pair_image"]))


def test_the_gradient_is_taken_with_the_value_and_scales_with_what_follows():
    def double(x):
        total, _ = stream_losses.add([lambda x: (jnp.sum(x**2), {})] * 2, x, sequential=True)
        return 3.0 * total

    np.testing.assert_allclose(jax.grad(double)(jnp.array([1.0, -2.0])), [12.0, -24.0])


@pytest.mark.parametrize("kept", STREAMS)
def test_a_stream_does_not_depend_on_the_others(started, batch, kept):
    whole = gradients(started[0], started, batch)[1]
    alone = gradients(started[0], started, {kept: batch[kept]})[1]
    assert len(alone) == (7 if kept == "pairs" else 5)  # two are norms of parameters
    for name in alone.keys() - {"loss"}:
        assert float(alone[name]) == pytest.approx(float(whole[name]), abs=1e-6), name


def test_norms_of_the_parameters_by_modality(started, batch):
    params = started[1]["params"]
    squares = {sharding.path_of(path): float(np.sum(np.square(leaf)))
               for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    of_text = sum(value for path, value in squares.items()
                  if path.startswith(("text_embed", "mlm_head")) or "B" in path.split("/"))
    metrics = gradients(started[0], started, batch)[1]
    assert float(metrics["norm_text"]) == pytest.approx(of_text ** 0.5, rel=1e-5)
    rest = (sum(squares.values()) - of_text) ** 0.5
    assert float(metrics["norm_image"]) == pytest.approx(rest, rel=1e-5)
    shared = {"blocks": {"ffn": {"VL": {"kernel": jnp.full(4, 2.0)}, "A": {"bias": jnp.ones(9)}}}}
    assert beit3_pretrain.parameter_norms(shared) == {"shared": 4.0, "image": 3.0}


def test_images_train_experts_for_images_alone_and_texts_those_for_texts(started, batch):
    for kept, idle in (("images", "B"), ("texts", "A")):
        grads = gradients(started[0], started, {kept: batch[kept]})[2]
        leaves = {sharding.path_of(path): np.abs(leaf).max()
                  for path, leaf in jax.tree_util.tree_leaves_with_path(grads)}
        assert all(value == 0 for path, value in leaves.items() if idle in path.split("/"))
        own = {"A": "B", "B": "A"}[idle]
        assert all(value > 0 for path, value in leaves.items()
                   if f"/{own}/" in path and path.startswith("blocks") and "k_proj" not in path)


def test_evaluation_counts_hidden_places_of_examples_and_asks_with_another_text(started, batch):
    task, variables, frozen = started
    step = jax.jit(task.eval_step)
    sums = step(variables, frozen, batch)
    assert float(sums["loss_image"][1]) == B * 6
    # a text of n pieces hides round(0.15 n), a pair's round(0.5 n), half rounded up
    assert float(sums["loss_text"][1]) == 2 * (B - 1) + 1
    assert float(sums["loss_pair_text"][1]) == 5 * (B - 1) + 3
    assert float(sums["loss_pair_text_mismatched"][1]) == float(sums["loss_pair_text"][1])
    assert float(sums["loss_pair_text_mismatched"][0]) != float(sums["loss_pair_text"][0])
    alone = {"pairs": {name: values[:1] for name, values in batch["pairs"].items()}}
    assert not [name for name in jax.eval_shape(task.eval_step, variables, frozen, alone)
                if "mismatched" in name]  # one pair has no other text

    def filled_up(rows):
        rows = {name: np.concatenate([values, values]) for name, values in rows.items()}
        rows["is_example"][B:] = False
        if "text" in rows:
            rows["text"][B:] = token_ids.PAD
            rows["text"][B:, 0] = token_ids.BOS
            rows["text_is_valid"][B:] = np.arange(LENGTH) == 0
        return rows

    padded = step(variables, frozen, {name: filled_up(rows) for name, rows in batch.items()})
    for name, expected in sums.items():
        if "mismatched" in name:  # the first row, which met the last one's text, now meets none
            assert 0 < padded[name][1] < expected[1], name
        else:
            np.testing.assert_allclose(padded[name], expected, rtol=1e-5, err_msg=name)
    assert sums["codes"].shape == (16,) and float(sums["codes"].sum()) == B * 6
    values = task.summarize(jax.device_get(sums))
    assert 1 <= values["code_perplexity"] <= 16
    assert values["loss"] == pytest.approx(sum(
        values[f"loss_{part}"] for part in ("image", "text", "pair_image", "pair_text")))


def test_of_several_captions_evaluation_takes_the_first(started, batch):
    task, variables, frozen = started
    pairs = dict(batch["pairs"])
    for name in ("text", "text_is_valid"):
        pairs[name] = np.stack([pairs[name], pairs[name][::-1]], axis=1)
    sums, several = (jax.jit(task.eval_step)(variables, frozen, {"pairs": rows})
                     for rows in (batch["pairs"], pairs))
    jax.tree.map(np.testing.assert_array_equal, sums, several)


@pytest.mark.slow
def test_fixed_masks_are_learnt_by_heart(batch):
    task = tasks.make(config_of(model=dict(init_std=0.1, width=64)))
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    frozen = {name: network.init(jax.random.key(1)) for name, network in task.frozen.items()}
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, 200))

    @jax.jit
    def step(params, state):
        (_, (_, metrics)), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, {}, frozen, batch, jax.random.key(2))
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    params, state = variables["params"], tx.init(variables["params"])
    for _ in range(200):
        params, state, metrics = step(params, state)
    for part in ("image", "text", "pair_image", "pair_text"):
        assert float(metrics[f"loss_{part}"]) < 0.1, part
        assert float(metrics[f"accuracy_{part}"]) == 1.0


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    config = pretrain.get_config("smoke")
    config.log.update(every_steps=1, tensorboard=False)
    config.eval.update(pictures=0, limit=4)
    config.total_steps, config.checkpoint.every_steps = 4, 2
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    loop.run(config, str(whole))
    # as if it had been killed between its two checkpoints
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "4")
    for name in ("result.json", "metrics.jsonl"):
        (resumed / name).unlink()
    loop.run(config, str(resumed))
    found, expected = ({line["step"]: line["train/loss"] for line in read_metrics(str(folder))
                        if "train/loss" in line} for folder in (resumed, whole))
    assert list(found) == [3, 4] and len(set(expected.values())) == 4
    assert found == {step: expected[step] for step in found}


def test_tokens_and_positions_are_not_decayed_but_words_are(started):
    options = optim.OptimOptions(1e-3, decay_rule="kernels_and_words")
    mask = optim.decay_mask(started[1]["params"], options)
    decayed = {sharding.path_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
               if leaf}
    assert "text_embed/embedding" in decayed and "vision_embed/proj/kernel" in decayed
    assert {path.split("/")[-1] for path in decayed} == {"kernel", "embedding"}
    assert not any(path.startswith("embed_positions") for path in decayed)


@pytest.mark.parametrize(("sections", "message"), [
    (dict(data=dict(streams=dict(images=dict(name="synthetic"), texts=dict(
        name="synthetic", text="sentences", text_length=2000), pairs=dict(name="synthetic")))),
     "config.data.streams.texts.text_length=2000"),
    (dict(mask=dict(pair=dict(rate=0.0))), "config.mask.pair.rate=0.0 must be above 0"),
    (dict(mask=dict(image=dict(num_maskd=3))), "config.mask.image.num_maskd is unknown"),
    (dict(mask=dict(texts=dict(rate=0.1))), "config.mask.texts is unknown"),
    (dict(model=dict(vocab_size=5)), "vocab_size=5"),
    (dict(loss=dict(text=-1.0)), "config.loss.text=-1.0 must be 0 or more"),
])
def test_values_that_do_not_fit_are_refused_in_one_line(sections, message):
    with pytest.raises(ValueError, match=message):
        tasks.make(config_of(**sections))


def test_data_that_are_no_mixture_and_shares_that_no_device_divides_are_refused(batch):
    task = tasks.make(config_of())
    with pytest.raises(ValueError, match="trains on streams images, texts, pairs.*name=mixture"):
        task.init(jax.random.key(0), {"image": jnp.zeros((2, 32, 32, 3))})
    config = config_of(data=dict(global_batch_size=9), optim=dict(accumulation_steps=2))
    with pytest.raises(ValueError, match=r"global_batch_size \(share of images\)=3 cannot be"):
        opts = recipe.read(config)
        recipe.check_batch(opts, sharding.make_mesh(opts.mesh))
