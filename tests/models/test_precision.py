"""In bfloat16 the products are bfloat16 and the sums over blocks are not, in every network."""

import functools

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.models import beit, beit3_heads, blocks, dvae, multiway, plain_vit, resnet
from beit_jax.models.masked_autoencoder import MaeEncoder, MaskedAutoencoder
from beit_jax.models.vit import VisionTransformer
from beit_jax.models.vqkd import Vqkd

VIT = dict(image_px=16, patch_size=8, width=16, depth=2, num_heads=2)
MAE = VIT | dict(target_dim=5, decoder_width=8, decoder_depth=2, decoder_num_heads=2)
BEIT3 = VIT | dict(vocab_size=20, text_positions=12)
DVAE = dict(vocab_size=8, n_hid=8, n_init=8, num_groups=2, blocks_per_group=1)
IMAGE = jnp.zeros((2, 16, 16, 3))
IS_MASKED = jnp.array([[True, False, False, True]] * 2)
IDS, IS_VALID = jnp.zeros((2, 4), int), jnp.ones((2, 4), bool)
POSITIONS = jnp.zeros((2, 2), int)
BLOCKS = (blocks.Block, plain_vit.Block, multiway.Block, resnet.Bottleneck, dvae.Block)
NETWORKS = {  # (network, arguments, method); all that is not said is called
    "beit": (beit.BeitForMim(**VIT, use_shared_rel_pos=True), (IMAGE, IS_MASKED, POSITIONS)),
    "beit positions": (beit.BeitForMim(**VIT, use_abs_pos=True, layer_scale_init=0.0,
                                       remat="dots"), (IMAGE, IS_MASKED)),
    "beit features": (beit.BeitForMim(**VIT), (IMAGE, None), "features"),
    "beit v2": (beit.BeitV2ForMim(**VIT, early_layer=1), (IMAGE, IS_MASKED, POSITIONS)),
    "classifier": (beit.BeitForClassification(**VIT, use_rel_pos=True), (IMAGE,)),
    "classifier of the class token": (beit.BeitForClassification(**VIT, pool="cls"), (IMAGE,)),
    "all blocks": (VisionTransformer(**VIT, token_multiple=8),
                   (IMAGE, ), functools.partial(VisionTransformer.encode, all_blocks=True)),
    "mae": (MaskedAutoencoder(**MAE), (IMAGE, IS_MASKED, 2, POSITIONS)),
    "img2vec": (MaskedAutoencoder(**MAE, fusion="mean", global_layers=2, global_hidden=8),
                (IMAGE, IS_MASKED, 2)),
    "fused": (MaskedAutoencoder(**MAE, fusion="mean_norm", target_grid=(1, 1), global_layers=1,
                                global_source="last"), (IMAGE, IS_MASKED, 2)),
    "mae as a teacher": (MaeEncoder(**VIT), (IMAGE,), "features"),
    "dino": (plain_vit.PlainVit(**VIT), (IMAGE,)),
    "dinov2": (plain_vit.PlainVit(**VIT, layer_scale_init=1.0, num_registers=2), (IMAGE,)),
    "clip": (plain_vit.PlainVit(**VIT, patch_bias=False, use_pre_norm=True, output_dim=8,
                                activation="quick_gelu"), (IMAGE,)),
    "vqkd": (Vqkd(**VIT, codebook_size=8, code_dim=4, teacher_dim=8), (IMAGE,)),
    "beit3 images": (beit3_heads.Beit3ForPretraining(**BEIT3), (IMAGE, IS_MASKED),
                     "predict_patches"),
    "beit3 texts": (beit3_heads.Beit3ForPretraining(**BEIT3), (IDS, IS_VALID, POSITIONS),
                    "predict_words"),
    "beit3 pairs": (beit3_heads.Beit3ForPretraining(
        **BEIT3, attention_experts="shared", vl_layers=1, subln=False),
        (IMAGE, IDS, IS_VALID, IS_MASKED, POSITIONS, POSITIONS)),
    "retrieval": (beit3_heads.Beit3ForRetrieval(**BEIT3, pool="mean"), (IMAGE, IDS, IS_VALID)),
    "captioning": (beit3_heads.Beit3ForCaptioning(**BEIT3), (IMAGE, IDS, IS_VALID)),
    "vqa": (beit3_heads.Beit3ForVqa(**BEIT3, num_classes=3), (IMAGE, IDS, IS_VALID)),
    "nlvr2": (beit3_heads.Beit3ForNlvr2(**BEIT3), (jnp.stack([IMAGE] * 2, 1), IDS, IS_VALID)),
    "beit3 classifier": (beit3_heads.Beit3ForClassification(**BEIT3, modalities="vision"),
                         (IMAGE,)),
    "resnet": (resnet.ResNet((1, 2, 1, 1), (8, 8, 8, 8), 8), (IMAGE,)),
    "dvae": (dvae.Dvae(**DVAE), (IMAGE,)),
}


# products in float32 on purpose: what picks positions, codes and pixels, and small heads
IN_FLOAT32 = {"beit": 1, "beit v2": 2, "classifier": 1, "classifier of the class token": 1,
              "mae": 1, "clip": 1, "vqkd": 2, "beit3 texts": 1, "beit3 pairs": 2, "vqa": 3,
              "nlvr2": 2, "beit3 classifier": 1, "dvae": 3}


def products(jaxpr):
    """Types of both factors of all matrix products and convolutions, in loops and calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield tuple(str(factor.aval.dtype) for factor in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_over_blocks_are_float32_and_products_bfloat16(name):
    network, args, *method = NETWORKS[name]
    network, method = network.clone(dtype=jnp.bfloat16), (method or [None])[0]
    shapes = jax.eval_shape(lambda key: network.init(key, *args, method=method), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    streams = []

    def look(next_function, args, kwargs, context):
        result = next_function(*args, **kwargs)
        if isinstance(context.module, BLOCKS) and context.method_name == "__call__":
            is_scanned = isinstance(result, tuple)  # (carry, scan output)
            streams.append((args[0], result[0] if is_scanned else result))
        return result

    with nn.intercept_methods(look):
        program = jax.make_jaxpr(lambda variables: network.apply(variables, *args, method=method))(
            shapes)
    assert streams
    for array in (*jax.tree.leaves(streams), *program.out_avals):
        assert array.dtype == jnp.float32
    found = list(products(program.jaxpr))
    wide = [types for types in found if types != ("bfloat16", "bfloat16")]
    assert len(found) - len(wide) > 3
    assert wide == [("float32", "float32")] * IN_FLOAT32.get(name, 0)


def test_a_small_layer_scale_is_not_lost_in_bfloat16():
    """With 1e-5, as in all large recipes, a bfloat16 sum keeps 0.02 % of what 24 blocks add."""
    model = VisionTransformer(image_px=16, patch_size=8, width=128, depth=24, num_heads=4,
                              layer_scale_init=1e-5, use_rel_pos=True, unroll=1)
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = jax.jit(functools.partial(model.init, method="encode"))(jax.random.key(0), image)
    exact, rough = (np.asarray(jax.jit(functools.partial(
        model.clone(dtype=dtype).apply,
        method=lambda module, image: module.encode(image) - module.embed(image)))(variables, image))
        for dtype in (jnp.float32, jnp.bfloat16))
    assert np.mean(rough != 0) > 0.9
    assert np.linalg.norm(rough - exact) < 0.1 * np.linalg.norm(exact)
