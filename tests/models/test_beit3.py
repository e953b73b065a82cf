"""BEiT-3: sizes, initial values, who serves which tokens, and what must not change its result."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import convert
from beit_jax.models import adapt, beit3_heads
from beit_jax.models.beit3 import Beit3
from beit_jax.models.multiway import Cache
from beit_jax.training import sharding

BASE = dict(image_px=224, patch_size=16, width=768, depth=12, num_heads=12)
LARGE = dict(image_px=224, patch_size=16, width=1024, depth=24, num_heads=16)
GIANT = dict(image_px=224, patch_size=14, width=1408, depth=40, num_heads=16,
             mlp_ratio=6144 / 1408)
PAPER = GIANT | dict(attention_experts="shared", vl_layers=3, subln=False)
VISION = dict(modalities="vision")
PRETRAIN, VQA = beit3_heads.Beit3ForPretraining, beit3_heads.Beit3ForVqa
NLVR2, CAPTION = beit3_heads.Beit3ForNlvr2, beit3_heads.Beit3ForCaptioning
RETRIEVAL, CLASSES = beit3_heads.Beit3ForRetrieval, beit3_heads.Beit3ForClassification
COUNTS = {  # measured on the released modules; the paper's giant follows from its Table 2
    "base": (Beit3, BASE, 220_987_392),
    "large": (Beit3, LARGE, 672_702_464),
    "giant": (Beit3, GIANT, 2_113_992_704),
    "giant_paper": (Beit3, PAPER, 1_847_185_024),
    "base_vision": (Beit3, BASE | VISION, 85_893_120),
    "large_vision": (Beit3, LARGE | VISION, 303_550_464),
    "giant_vision": (Beit3, GIANT | VISION, 1_011_810_816),
    "base_pretrain": (PRETRAIN, BASE, 276_510_730),
    "large_pretrain": (PRETRAIN, LARGE, 746_709_514),
    "giant_pretrain": (PRETRAIN, GIANT, 2_215_725_322),
    "giant_paper_pretrain": (PRETRAIN, PAPER, 1_948_917_642),
    "base_retrieval_224": (RETRIEVAL, BASE, 222_167_041),
    "large_retrieval_384": (RETRIEVAL, LARGE | dict(image_px=384), 675_188_737),
    "base_vqa_480": (VQA, BASE | dict(image_px=480), 228_110_649),
    "large_vqa_768": (VQA, LARGE | dict(image_px=768), 684_423_225),
    "base_nlvr2": (NLVR2, BASE, 225_719_810),
    "large_nlvr2": (NLVR2, LARGE, 681_109_506),
    "base_captioning_480": (CAPTION, BASE | dict(image_px=480), 270_751_754),
    "large_captioning_480": (CAPTION, LARGE | dict(image_px=480), 739_033_610),
    "base_classes": (CLASSES, BASE, 221_754_856),
    "large_classes": (CLASSES, LARGE, 673_725_416),
    "base_classes_vision": (CLASSES, BASE | VISION, 86_662_120),
    "large_classes_vision": (CLASSES, LARGE | VISION, 304_575_464),
}
TINY = dict(image_px=32, patch_size=8, width=32, depth=3, num_heads=4, mlp_ratio=2.0,
            vocab_size=20, text_positions=12, unroll=1)
PAIRS = dict(attention_experts="shared", vl_layers=1, subln=False)
DUAL = {"vision_head": {"kernel": np.eye(32)}, "language_head": {"kernel": np.eye(32)},
        "logit_scale": 0.0}  # vectors as they are read
IDS = jnp.array([[0, 5, 9, 2, 1, 1], [0, 7, 8, 9, 4, 2]])
IS_VALID = IDS != 1


def image_of(px, b=2):
    return jax.random.normal(jax.random.key(3), (b, px, px, 3))


def shapes_of(cls, sizes):
    model, image = cls(**sizes), jnp.zeros((1, sizes["image_px"], sizes["image_px"], 3))
    args, method = (image, IDS[:1], IS_VALID[:1]), "encode_pair" if cls is Beit3 else None
    if cls is NLVR2:
        args = (image[:, None].repeat(2, axis=1), *args[1:])
    if cls is CLASSES or sizes.get("modalities") == "vision":
        args, method = (image,), "encode_image" if cls is Beit3 else None
    return jax.eval_shape(lambda key: model.init(key, *args, method=method),
                          jax.random.key(0))["params"]


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    cls, sizes, count = COUNTS[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(cls, sizes))) == count


def test_tensors_of_the_released_base():
    flat = convert.flatten(shapes_of(Beit3, BASE))
    zeros = {name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in flat.items()}
    depth = {name: leaf.shape[0] for name, leaf in flat.items() if name.startswith("blocks/")}
    assert set(depth.values()) == {12} and len(depth) == 40
    assert len(zeros) - len(depth) == 11
    assert flat["embed_positions/A/embedding"].shape == (199, 768)


def test_the_papers_layout_cannot_be_exported():
    for more, message in ((PAIRS, "modalities share it"), (dict(vl_layers=1), "expert for pairs")):
        flat = convert.flatten(shapes_of(Beit3, TINY | more))
        with pytest.raises(ValueError, match=message):
            convert.to_reference({k: np.zeros(v.shape) for k, v in flat.items()}, "beit3")


@functools.cache
def made(**more):
    """(model, parameters) of a tiny network whose biases and norms are no zeros and ones."""
    rng = np.random.default_rng(1)  # no initialiser: it takes longer to compile than the network
    params = {name: jnp.asarray(name.endswith("/scale") + 0.1 * rng.standard_normal(leaf.shape),
                                leaf.dtype)
              for name, leaf in convert.flatten(shapes_of(Beit3, TINY | more)).items()}
    return Beit3(**TINY | more), convert.unflatten(params)


@functools.cache
def compiled(model, method, keywords):
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args, method=method,
                                                     **dict(keywords)))


def run(model, params, *args, method="encode_pair", **keywords):
    return compiled(model, method, tuple(keywords.items()))(params, *args)


@functools.cache
def compiled_gradient(model, method, num_tokens):
    def total(params, *args):
        tokens = model.apply({"params": params}, *args, method=method)
        return jnp.sum(jnp.square(tokens[:, :num_tokens]))

    return jax.jit(jax.grad(total))


def grads_of(model, params, *args, method, num_tokens=None):
    """Of the first tokens, or of all."""
    return convert.flatten(compiled_gradient(model, method, num_tokens)(params, *args))


def experts_of(name):
    return [part for part in name.split("/") if part in ("A", "B", "VL")]


def test_images_and_texts_have_experts_of_their_own_and_pairs_train_both():
    model, params = made()
    image = image_of(32)
    for args, method, idle in (((image,), "encode_image", "B"),
                               ((IDS, IS_VALID), "encode_text", "A")):
        grads = grads_of(model, params, *args, method=method)
        for name, grad in grads.items():
            if experts_of(name):
                assert bool(np.any(grad)) == (experts_of(name) != [idle]), name
    # the first token alone: text reaches the image through attention
    grads = grads_of(model, params, image, IDS, IS_VALID, method="encode_pair", num_tokens=1)
    assert all(np.any(grads[f"blocks/self_attn/v_proj/{e}/kernel"][0]) for e in "AB")


def test_top_blocks_of_the_papers_layout_serve_pairs_by_one_expert():
    model, params = made(**PAIRS)
    image = image_of(32)
    for args, method, active in (((image, IDS, IS_VALID), "encode_pair", "VL"),
                                 ((image,), "encode_image", "A"),
                                 ((IDS, IS_VALID), "encode_text", "B")):
        grads = grads_of(model, params, *args, method=method)
        top = {name: grad for name, grad in grads.items() if name.startswith("vl_blocks/")}
        assert {e for name in top for e in experts_of(name)} == {"A", "B", "VL"}
        for name, grad in top.items():
            if experts_of(name):
                assert bool(np.any(grad)) == (experts_of(name) == [active]), name


def test_equal_experts_make_a_plain_transformer():
    model, params = made(attention_experts="shared", subln=True)
    flat, separate = convert.flatten(params), {}
    for name, leaf in flat.items():
        if experts_of(name) == ["B"] and "embed_positions" not in name:
            leaf = flat[name.replace("/B/", "/A/")]
        shared = not experts_of(name) and ("self_attn" in name or name.startswith("layer_norm"))
        front, last = name.rsplit("/", 1)
        names = [f"{front}/{e}/{last}" for e in "AB"] if shared else [name]
        separate |= dict.fromkeys(names, leaf)
    for name in [name for name in flat if "/B/" in name and "embed_positions" not in name]:
        flat[name] = flat[name.replace("/B/", "/A/")]
    args = (image_of(32), IDS, IS_VALID)
    one = run(model, convert.unflatten(flat), *args)
    two = run(Beit3(**TINY), convert.unflatten(separate), *args)
    np.testing.assert_allclose(two, one, atol=1e-5)


def test_padding_and_hidden_patches_do_not_matter():
    model, params = made()
    image, is_masked = image_of(32), jnp.zeros((2, 16), bool).at[:, 5].set(True)
    first = run(model, params, image, IDS, IS_VALID, is_masked)
    other = image.at[:, 8:16, 8:16].add(1.0)  # patch 5 of a 4 x 4 grid
    second = run(model, params, other, jnp.where(IS_VALID, IDS, 13), IS_VALID, is_masked)
    keep = np.pad(IS_VALID, ((0, 0), (17, 0)), constant_values=True)
    np.testing.assert_array_equal(np.asarray(first)[keep], np.asarray(second)[keep])
    assert not np.allclose(first, run(model, params, other, IDS, IS_VALID))


def test_the_mean_of_tokens_leaves_padding_out():
    params = made()[1] | DUAL
    models = {cls: cls(**TINY | dict(pool="mean")) for cls in (RETRIEVAL, VQA, NLVR2)}
    image, is_valid = np.asarray(image_of(32)), np.asarray(IS_VALID)

    def tokens(model, *args, method):
        return np.asarray(run(model, params, *args, method=method))

    def mean(x, counts):
        return np.stack([row[kept].mean(axis=0) for row, kept in zip(x, counts)])

    model, every = models[RETRIEVAL], np.ones((2, 17), bool)
    wanted = {"image_vector": mean(tokens(model, image, method="encode_image"), every),
              "text_vector": mean(tokens(model, IDS, IS_VALID, method="encode_text"), is_valid)}
    for method, args in (("image_vector", (image,)), ("text_vector", (IDS, IS_VALID))):
        said = run(model, params, *args, method=method)
        length = np.linalg.norm(wanted[method], axis=1, keepdims=True)
        np.testing.assert_allclose(said, wanted[method] / length, atol=1e-5)
    # what the heads of the others are given
    pair = tokens(models[NLVR2], image, IDS, IS_VALID, method="encode_pair")
    wanted[NLVR2] = np.concatenate([mean(pair[:, :17], every), mean(pair[:, 17:], is_valid)], 1)
    wanted[VQA] = mean(tokens(models[VQA], image, IDS, IS_VALID, method="encode_pair"),
                       np.concatenate([every, is_valid], axis=1))

    def given(next_fun, args, kwargs, context):
        module = context.module.name, context.method_name
        return args[0] if module in (("pooler", "__call__"), ("head", "__call__")) else next_fun(
            *args, **kwargs)

    with nn.intercept_methods(given):
        vqa = run(models[VQA], params, image, IDS, IS_VALID, method="__call__")
        nlvr2 = run(models[NLVR2], params, image[:, None].repeat(2, axis=1), IDS, IS_VALID,
                    method="__call__")
    np.testing.assert_allclose(vqa, wanted[VQA], atol=1e-5)
    np.testing.assert_allclose(nlvr2, np.tile(wanted[NLVR2], 2), atol=1e-5)


def test_an_absent_text_has_a_finite_mean_and_other_pools_are_refused():
    model, params = RETRIEVAL(**TINY | dict(pool="mean")), made()[1]
    absent = run(model, params | DUAL, IDS, jnp.zeros_like(IS_VALID), method="text_vector")
    assert not np.any(absent)
    with pytest.raises(ValueError, match="model.pool='max' is none of cls, mean"):
        shapes_of(RETRIEVAL, TINY | dict(pool="max"))


def test_generation_sees_no_later_text_and_its_image_no_text():
    model, params = made()
    image = image_of(32)
    first = run(model, params, image, IDS, IS_VALID, causal_text=True)
    np.testing.assert_allclose(first[:, :17], run(model, params, image, method="encode_image"),
                               atol=1e-5)
    changed = run(model, params, image, IDS.at[:, 2].set(11), IS_VALID, causal_text=True)
    same = np.isclose(first, changed, atol=1e-6).all(axis=-1)
    assert same[:, :19].all() and not same[:, 19].any() and not same[1, 20:].any()


@pytest.mark.parametrize("more", [{}, PAIRS], ids=["released", "paper"])
def test_decoding_with_a_cache_equals_full_decoding(more):
    model, params = made(**more)
    image, whole = image_of(32), jnp.ones(IDS.shape, bool)
    full = run(model, params, image, IDS, whole, causal_text=True)[:, 17:]
    cache = run(model, params, image, method="start_text", max_length=6)
    step = jax.jit(lambda cache, ids, index: model.apply(
        {"params": params}, cache, ids, index, method="continue_text"))
    for index in range(4):  # the second token of each call is overwritten by the next
        out, cache = step(cache, jnp.stack([IDS[:, index], IDS[:, index + 1]], axis=1), index)
        np.testing.assert_allclose(out, full[:, index:index + 2], atol=2e-5)
        cache = Cache(*(each.at[:, :, 17 + index + 1].set(1e3) for each in cache))


def test_samples_are_dropped_whole_and_never_by_the_first_block():
    sizes = TINY | dict(depth=2, drop_path_rate=0.999, final_norm=False)
    model, params = Beit3(**sizes), made(depth=2, final_norm=False)[1]
    args = (image_of(32), IDS, IS_VALID)
    dropped = jax.jit(lambda key: model.apply(
        {"params": params}, *args, method="encode_pair", train=True, rngs={"drop_path": key}))(
            jax.random.key(0))
    first = Beit3(**sizes | dict(depth=1))
    one = {**params, "blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    np.testing.assert_allclose(dropped, run(first, one, *args), atol=1e-5)
    assert not np.allclose(dropped, run(model, params, *args), atol=1e-2)


def test_images_and_texts_of_a_sample_share_the_draw():
    sizes = TINY | dict(depth=2, drop_path_rate=0.5)
    args = (image_of(32, 1), IDS[:1], IS_VALID[:1])
    args = [np.repeat(each, 24, axis=0) for each in args]  # one sample, drawn 24 times
    said = jax.jit(lambda key: Beit3(**sizes).apply(
        {"params": made(depth=2)[1]}, *args, method="encode_pair", train=True,
        rngs={"drop_path": key}))(jax.random.key(0))
    kinds = []
    for row in np.asarray(said):
        if not any(np.allclose(row, kind, atol=1e-4) for kind in kinds):
            kinds.append(row)
    assert len(kinds) == 4  # each of the last block's two branches is there or is not


@pytest.mark.parametrize("more", [dict(remat="full"), dict(unroll=0)], ids=str)
def test_gradients_do_not_depend_on_how_it_is_compiled(more):
    model, params = made()
    args = (image_of(32), IDS, IS_VALID)
    wanted = grads_of(model, params, *args, method="encode_pair")
    ours = grads_of(Beit3(**TINY | more), params, *args, method="encode_pair")
    for name, grad in wanted.items():
        np.testing.assert_allclose(ours[name], grad, atol=1e-4 * np.abs(grad).max(), err_msg=name)


def test_bfloat16_is_close_to_float32():
    model, params = made()
    args = (image_of(32), IDS, IS_VALID)
    half = run(Beit3(**TINY | dict(dtype=jnp.bfloat16)), params, *args)
    assert half.dtype == jnp.float32  # the sum over blocks; products alone are bfloat16
    whole = np.asarray(run(model, params, *args))
    error = np.asarray(half, np.float32) - whole
    assert np.sqrt(np.mean(error**2)) < 2e-2 * np.sqrt(np.mean(whole**2))


@pytest.mark.parametrize(("name", "factors"), [
    ("magneto", dict(q_proj=[1, 1], v_proj=[math.log(12)**0.5] * 2,
                     out_proj=[math.log(12)**0.5] * 2, fc1=[math.log(12)**0.5] * 2,
                     fc2=[math.log(12)**0.5] * 2)),
    ("beit", dict(q_proj=[1, 1], v_proj=[1, 1], out_proj=[2**-0.5, 12**-0.5], fc1=[1, 1],
                  fc2=[2**-0.5, 12**-0.5]))], ids=["magneto", "beit"])
def test_initial_values(name, factors):
    model = Beit3(**TINY | dict(depth=6, width=64, initializer=name, vocab_size=200))
    params = jax.jit(lambda key: model.init(key, image_of(32), method="encode_image"))(
        jax.random.key(0))["params"]
    flat, std = convert.flatten(params), 0.02 * 0.8796  # of a normal cut at two sigma
    for part, (first, last) in factors.items():
        for expert in "AB":
            path = f"ffn/{expert}/{part}" if part[0] == "f" else f"self_attn/{part}/{expert}"
            kernel = flat[f"blocks/{path}/kernel"]
            assert np.std(kernel[0]) == pytest.approx(first * std, rel=0.06)
            assert np.std(kernel[-1]) == pytest.approx(last * std, rel=0.06)
            assert not np.any(flat[f"blocks/{path}/bias"])
    assert not np.array_equal(flat["blocks/ffn/A/fc1/kernel"], flat["blocks/ffn/B/fc1/kernel"])
    assert np.std(flat["text_embed/embedding"]) == pytest.approx(std, rel=0.06)
    assert np.abs(flat["embed_positions/B/embedding"]).max() <= 0.04


def test_the_vision_part_of_a_file_runs_alone():
    model, params = made()
    kept = adapt.take_vision(convert.flatten(params), {})
    alone = Beit3(**TINY | VISION)
    shapes = convert.flatten(shapes_of(Beit3, TINY | VISION))
    assert {k: v.shape for k, v in kept.items()} == {k: v.shape for k, v in shapes.items()}
    np.testing.assert_allclose(
        run(alone, convert.unflatten(kept), image_of(32), method="encode_image"),
        run(model, params, image_of(32), method="encode_image"), atol=1e-6)


@pytest.mark.parametrize(("more", "message"), [
    (dict(initializer="xavier"), "model.initializer='xavier' is none of magneto, beit"),
    (dict(attention_experts="both"), "model.attention_experts='both' is none of separate, shared"),
    (dict(vl_layers=3), "model.vl_layers=3 must be 0 or more and below model.depth=3"),
    (dict(vl_layers=1, modalities="vision"), "set vl_layers=0"),
    (dict(num_heads=5), "model.width=32 is no multiple of model.num_heads=5"),
    (dict(image_px=40), "the image is 32x32, the model expects 40x40"),
    (dict(image_px=36), "model.image_px=36 is no multiple"),
    (dict(text_positions=7), "6 text tokens, but the model has positions for 5"),
    (dict(modalities="vision"), "has no experts for text")])
def test_what_does_not_fit_is_refused(more, message):
    model = Beit3(**TINY | more)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: model.init(key, image_of(32), IDS, IS_VALID,
                                              method="encode_pair"), jax.random.key(0))


def test_a_generator_has_no_room_beyond_its_positions():
    model, params = made()
    with pytest.raises(ValueError, match="11 text tokens, but the model has positions for 10"):
        jax.eval_shape(lambda p: model.apply({"params": p}, image_of(32), 11, method="start_text"),
                       params)


@pytest.mark.parametrize("more", [{}, PAIRS], ids=["released", "paper"])
def test_matrices_are_split_over_the_mesh(more):
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    split = {name: tuple(sharding.partition_spec(name, leaf.shape, mesh))
             for name, leaf in convert.flatten(shapes_of(Beit3, TINY | more)).items()}
    for name, spec in split.items():
        if name.endswith("kernel") and "vision_embed" not in name:
            ends = name.split("/")[2 if "self_attn" in name else 3] in ("out_proj", "fc2")
            wanted = ("tensor", "fsdp") if ends else ("fsdp", "tensor")
            assert spec == (None, *wanted), name
    assert split["text_embed/embedding"] == (None, "fsdp")
    assert split["embed_positions/A/embedding"] == ()
