"""Ten optimizer steps of the original, loss by loss and weight by weight."""

import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from vit_models import image_of, model_of, weights_of

from beit_jax import convert, losses, masking
from beit_jax.models.beit import BeitForMim
from beit_jax.training import optim

FILES = golden_files.load("train_trace")


def make_loss(golden):
    """(model loss, batch of step t) of a trace."""
    model, images, inputs = model_of(golden.config), image_of(golden, "images"), golden.inputs
    if isinstance(model, BeitForMim):
        slots = int(inputs["masks"].sum(axis=-1).max())

        def loss(params, image, is_masked, codes):
            positions, is_hidden = masking.masked_positions(is_masked, slots)
            logits = model.apply({"params": params}, image, is_masked, positions)
            codes = jnp.take_along_axis(codes, positions, axis=1)
            return losses.weighted_mean(losses.cross_entropy(logits, codes), is_hidden)

        return loss, lambda t: (images[t], inputs["masks"][t], inputs["target_ids"][t])

    def loss(params, image, label):
        return losses.cross_entropy(model.apply({"params": params}, image), label).mean()

    return loss, lambda t: (images[t], inputs["labels"][t])


@pytest.mark.parametrize("golden", FILES, ids=golden_files.name)
def test_losses_norms_and_final_weights(golden, monkeypatch):
    config, params = golden.config, weights_of(golden)
    rates = jnp.asarray(golden.outputs["lr"])
    monkeypatch.setattr(optim, "learning_rate_schedule", lambda *_: lambda step: rates[step])
    options = optim.OptimOptions(
        learning_rate=config["base_lr"], b1=config["betas"][0], b2=config["betas"][1],
        eps=config["eps"], weight_decay=config["weight_decay_start"],
        weight_decay_end=config["weight_decay_end"], clip_norm=config["clip_global_norm"] or 0.0,
        layer_decay=config["layer_decay"])
    steps = config["steps"]
    tx, schedules = optim.make_optimizer(options, params, steps, steps)
    decay = jax.vmap(schedules["weight_decay"])(np.arange(steps))
    np.testing.assert_allclose(decay, golden.outputs["wd"], rtol=1e-6)
    loss, batch = make_loss(golden)

    @jax.jit
    def step(params, opt_state, *args):
        value, grads = jax.value_and_grad(loss)(params, *args)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value, optax.tree.norm(grads)

    opt_state, trace = tx.init(params), []
    with jax.default_matmul_precision("highest"):
        for t in range(steps):
            params, opt_state, *row = step(params, opt_state, *batch(t))
            trace.append(row)
    values, norms = np.array(trace).T
    np.testing.assert_allclose(values, golden.outputs["losses"], rtol=1e-4)
    np.testing.assert_allclose(norms, golden.outputs["grad_norms"], rtol=1e-4)
    ours = convert.to_reference(
        {k: np.asarray(v) for k, v in convert.flatten(params).items()}, "microsoft")
    final = {k.removeprefix("final/"): v for k, v in golden.outputs.items()
             if k.startswith("final/")}
    assert set(final) <= set(ours)
    for name, theirs in final.items():
        error = np.linalg.norm(ours[name] - theirs) / max(np.linalg.norm(theirs), 1e-12)
        assert error < 3e-4, (name, error)
