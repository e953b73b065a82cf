"""Schedules, layer-wise rates and the decay mask against the original."""

import dataclasses
import re

import golden as golden_files
import jax
import numpy as np
import pytest

from beit_jax import convert
from beit_jax.training import optim

SCHEDULES = golden_files.load("cosine_schedule")
GROUPS = [(g, key.removesuffix("/names")) for g in golden_files.load("param_groups")
          for key in g.arrays if key.endswith("/names")]


@pytest.mark.parametrize("golden", SCHEDULES, ids=golden_files.name)
def test_schedules(golden):
    for index, case in enumerate(golden.config["cases"]):
        theirs = golden.outputs[f"case{index}"]
        per_epoch = case["niter_per_ep"]
        warmup = case.get("warmup_steps", 0)
        if warmup <= 0:
            warmup = case.get("warmup_epochs", 0) * per_epoch
        schedule = optim.warmup_cosine(case["base_value"], case["final_value"],
                                       case["epochs"] * per_epoch, warmup,
                                       start=case.get("start_warmup_value", 0.0))
        ours = jax.vmap(schedule)(np.arange(len(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


# every published parameter group is laid out on a tree of tiny leaves with the right rank
def stand_in(names, fmt="microsoft"):
    reference = {}
    for name in map(str, names):
        is_matrix = (name.endswith("weight") and not re.search(r"norm|_ln\.|head\.1\.", name)
                     or name.endswith("bias_table"))
        shape = (2, 2) if is_matrix else () if name == "logit_scale" else (2,)
        if name.split(".")[-1] in ("cls_token", "mask_token", "pos_embed"):
            shape = (1, 1, 2)
        if name.endswith("_embed.proj.weight"):
            shape = (2, 2, 2, 2)
        if name.endswith("qkv.weight"):
            shape = (6, 2)
        reference[name] = np.zeros(shape, np.float32)
    return convert.unflatten(convert.to_ours(reference, fmt))


def by_reference_name(tree, params, fmt="microsoft"):
    """A tree of values per leaf (or per layer) as reference name -> one value."""
    full = jax.tree.map(lambda value, leaf: np.broadcast_to(np.asarray(value), leaf.shape), tree,
                        params)
    reference = convert.to_reference(convert.flatten(full), fmt)
    return {name: np.unique(value) for name, value in reference.items()}


@pytest.mark.parametrize(("golden", "case"), GROUPS, ids=lambda v: v if isinstance(v, str) else "")
def test_parameter_groups(golden, case):
    names = [str(n) for n in golden.arrays[f"{case}/names"]]
    params = stand_in(names)
    options = optim.OptimOptions(learning_rate=1.0, decay_rel_pos_bias="no_wd_relpos" not in case)
    decayed = by_reference_name(optim.decay_mask(params, options), params)
    expected = golden.arrays[f"{case}/decayed"]
    assert {n: bool(decayed[n]) for n in names} == dict(zip(names, map(bool, expected),
                                                            strict=True))
    has_layers = f"{case}/layer_id" in golden.arrays
    decay = golden.config["layer_decay"] if has_layers else 1.0
    rates = by_reference_name(optim.layer_multipliers(params, decay), params)
    for name, rate in zip(names, golden.arrays[f"{case}/lr_scale"], strict=True):
        np.testing.assert_allclose(rates[name], rate, rtol=1e-6, err_msg=name)


MULTIWAY = [(g, key.removesuffix("/names")) for g in golden_files.load("multiway_param_groups")
            for key in g.arrays if key.endswith("/names")]


@pytest.mark.parametrize(("golden", "use"), MULTIWAY,
                         ids=lambda v: v if isinstance(v, str) else "")
def test_parameter_groups_of_beit3(golden, use):
    names = [str(name) for name in golden.arrays[f"{use}/names"]]
    params, decay = stand_in(names, "beit3"), golden.config["layer_decay"]
    options = optim.OptimOptions(learning_rate=1.0)
    decayed = by_reference_name(optim.decay_mask(params, options), params, "beit3")
    assert {name: bool(decayed[name]) for name in names} == dict(
        zip(names, map(bool, golden.arrays[f"{use}/decayed"]), strict=True))
    assert not any(decayed[name] for name in map(str, golden.arrays[f"{use}/skip"])
                   if name in decayed)
    rates = by_reference_name(optim.layer_multipliers(params, decay), params, "beit3")
    heads = by_reference_name(optim.head_multipliers(params, 20.0), params, "beit3")
    depth = golden.config["layers"]
    for name, layer, rate, head in zip(
            names, *(golden.arrays[f"{use}/{key}"]
                     for key in ("layer_id", "lr_scale", "head_lr_weight_20")), strict=True):
        np.testing.assert_allclose(rates[name], rate, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(rates[name], decay ** (depth + 1 - layer), rtol=1e-6)
        np.testing.assert_array_equal(heads[name], head, err_msg=name)


def test_layers_of_the_stack_for_pairs_count_on():
    shape = jax.ShapeDtypeStruct
    params = {"embed_positions": {"A": shape((2, 2), np.float32)},
              "blocks": {"w": shape((3, 2), np.float32)},
              "vl_blocks": {"w": shape((2, 2), np.float32)}}
    rates = optim.layer_multipliers(params, 0.5)
    np.testing.assert_allclose(rates["blocks"]["w"].ravel(), [2**-5, 2**-4, 2**-3])
    np.testing.assert_allclose(rates["vl_blocks"]["w"].ravel(), [0.25, 0.5])
    assert rates["embed_positions"]["A"] == 2**-6


def test_the_rate_of_the_head_acts_on_updates():
    params = {"head": {"kernel": np.ones((2, 2), np.float32)},
              "pooler": {"kernel": np.ones((2, 2), np.float32)}}
    options = optim.OptimOptions(learning_rate=0.1, schedule="constant", head_rate=20.0,
                                 weight_decay=0.0)
    tx, _ = optim.make_optimizer(options, params, 10, 10)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], -2.0, rtol=1e-5)
    np.testing.assert_allclose(updates["pooler"]["kernel"], -0.1, rtol=1e-5)


@pytest.mark.parametrize(("depth", "decay", "expected"), [
    (12, 0.65, (3.697206e-3, 5.688009e-3, 0.65, 1)), (12, 0.85, (0.1209055, 0.1422418, 0.85, 1)),
    (24, 0.75, (7.525435e-4, 1.003391e-3, 0.75, 1)), (24, 0.9, (7.178980e-2, 7.976644e-2, 0.9, 1))])
def test_published_layer_rates(depth, decay, expected):
    shape = jax.ShapeDtypeStruct
    params = {"cls_token": shape((1, 1, 2), np.float32), "head": {"bias": shape((2,), np.float32)},
              "blocks": {"gamma_1": shape((depth, 2), np.float32)}}
    rates = optim.layer_multipliers(params, decay)
    blocks = rates["blocks"]["gamma_1"].ravel()
    ours = (rates["cls_token"], blocks[0], blocks[-1], rates["head"]["bias"])
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_published_schedule_values():
    base = optim.OptimOptions(learning_rate=1.5e-3, min_learning_rate=1e-5, warmup_epochs=10)
    schedule = optim.learning_rate_schedule(base, 800 * 625, 625)
    expected = {0: 0.0, 1: 2.400384e-7, 625: 1.500240e-4, 3125: 7.501200e-4, 6249: 1.5e-3,
                6250: 1.5e-3, 253_125: 7.55e-4, 499_999: 1.0e-5}
    for step, value in expected.items():
        assert schedule(step) == pytest.approx(value, rel=1e-6, abs=1e-12)
    short = optim.learning_rate_schedule(base, 300 * 625, 625)
    last = jax.vmap(short)(np.arange(299 * 625, 300 * 625))
    assert np.asarray(last).mean(dtype=np.float64) == pytest.approx(1.0014606556e-5, rel=1e-6)
    tune = dataclasses.replace(base, learning_rate=4e-3, min_learning_rate=1e-6, warmup_epochs=20)
    schedule = optim.learning_rate_schedule(tune, 100 * 1251, 1251)
    expected = {25_019: 4e-3, 25_020: 4e-3, 75_060: 2.0005e-3, 125_099: 1.000001e-6}
    for step, value in expected.items():
        assert schedule(step) == pytest.approx(value, rel=1e-6)


def test_schedule_by_epoch_is_constant_within_an_epoch():
    options = optim.OptimOptions(learning_rate=1.0, schedule="cosine_by_epoch")
    values = jax.vmap(optim.learning_rate_schedule(options, 40, 10))(np.arange(40))
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(values, np.repeat(expected, 10), rtol=1e-6)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warm-up of 20 steps"):
        optim.warmup_cosine(1.0, 0.0, 10, 20)
