"""Our BEiT-3 backbone against torchscale's: images, texts, pairs, masks, gradients, names."""

import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beit3_models import (
    apply_of,
    assert_grads_close,
    assert_tree_is_that_of_the_original,
    format_of,
    image_and_text,
    model_of,
    params_of,
    text_of,
)
from vit_models import image_of

from beit_jax import convert
from beit_jax.models import adapt
from beit_jax.models.beit3 import causal

ALL = golden_files.load("multiway")
ENCODERS = [golden for golden in ALL if "out/pair_causal/encoder_out" in golden.arrays]
PLAIN = [golden for golden in ALL if "out/encoder_out" in golden.arrays]


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def cases_of(golden):
    """name -> (method, arguments, keywords) of everything that the file records."""
    image, (ids, padded) = image_of(golden), text_of(golden)
    whole, hidden = jnp.ones_like(padded), jnp.asarray(golden.inputs["vision_masked"])
    return {
        "image": ("encode_image", (image,), {}),
        "image_masked": ("encode_image", (image, hidden), {}),
        "text": ("encode_text", (ids, whole), {}),
        "text_padded": ("encode_text", (ids, padded), {}),
        "pair": ("encode_pair", (image, ids, whole), {}),
        "pair_padded": ("encode_pair", (image, ids, padded), {}),
        "pair_padded_masked": ("encode_pair", (image, ids, padded, hidden), {}),
        "pair_causal": ("encode_pair", (image, ids, whole), dict(causal_text=True)),
        "pair_causal_padded": ("encode_pair", (image, ids, padded), dict(causal_text=True)),
    }


def is_token(golden, case):
    """Which outputs of a case are no padding: bool [b, n]."""
    valid = np.asarray(text_of(golden)[1]) | ("padded" not in case)
    image = np.ones((len(valid), 1 + golden.inputs["vision_masked"].shape[1]), bool)
    parts = {"image": [image], "text": [valid], "pair": [image, valid]}
    return np.concatenate(parts[case.split("_")[0]], axis=1)


@pytest.mark.parametrize("golden", ALL, ids=golden_files.name)
@pytest.mark.parametrize("method", ["encode_image", "encode_text", "encode_pair"])
def test_the_parameter_tree_is_that_of_the_original(golden, method):
    image, ids, is_valid = image_and_text(golden)
    args = {"encode_image": (image,), "encode_text": (ids, is_valid)}.get(
        method, (image, ids, is_valid))
    assert_tree_is_that_of_the_original(golden, model_of(golden), *args, method=method)


@pytest.mark.parametrize("golden", ENCODERS, ids=golden_files.name)
def test_every_use_gives_the_tokens_of_the_original(golden):
    apply, cases = apply_of(golden, model_of(golden)), cases_of(golden)
    recorded = {name.split("/")[0] for name in golden.outputs if name.endswith("/encoder_out")}
    assert recorded == set(cases)
    for case, (method, args, keywords) in cases.items():
        ours, keep = apply(*args, method=method, **keywords), is_token(golden, case)
        theirs = golden.outputs[f"{case}/encoder_out"]
        golden_files.assert_close(np.asarray(ours)[keep], theirs[keep])


@pytest.mark.parametrize("golden", ENCODERS, ids=golden_files.name)
def test_embeddings_before_positions(golden):
    apply, cases = apply_of(golden, model_of(golden)), cases_of(golden)
    for case, (_, args, _) in cases.items():
        parts = []
        if not case.startswith("text"):
            hidden = args[-1] if case.endswith("_masked") else None
            parts.append(apply(args[0], hidden, method="embed_image"))
        if not case.startswith("image"):
            parts.append(apply(text_of(golden)[0], method="embed_text"))
        golden_files.assert_close(jnp.concatenate(parts, axis=1),
                                  golden.outputs[f"{case}/encoder_embedding"])


@pytest.mark.parametrize("golden", ENCODERS, ids=golden_files.name)
def test_the_mask_of_generation(golden):
    length = golden.inputs["text_ids"].shape[1]
    forbidden = golden.inputs["attn_mask"] == 1
    np.testing.assert_array_equal(causal(len(forbidden) - length, length), ~forbidden)


@pytest.mark.parametrize("golden", ENCODERS, ids=golden_files.name)
def test_gradients_of_a_pair(golden):
    model, args = model_of(golden), image_and_text(golden)
    weights = golden.inputs["cotangent"] * is_token(golden, "pair_padded")[..., None]

    def scalar_of(params):
        return jnp.sum(model.apply({"params": params}, *args, method="encode_pair") * weights)

    scalar, grads = jax.jit(jax.value_and_grad(scalar_of))(params_of(golden))
    golden_files.assert_close(scalar, golden.outputs["pair_padded/scalar"])
    others = assert_grads_close(grads, golden)
    assert others.keys() == {"vision_embed.mask_token"}  # nothing is hidden here
    assert not np.any(others["vision_embed.mask_token"])


@pytest.mark.parametrize("golden", PLAIN, ids=golden_files.name)
def test_epsilon_of_every_norm(golden):
    args = image_and_text(golden)
    ours = apply_of(golden, model_of(golden))(*args, method="encode_pair")
    keep = np.pad(np.asarray(args[2]), ((0, 0), (ours.shape[1] - args[2].shape[1], 0)),
                  constant_values=True)
    golden_files.assert_close(np.asarray(ours)[keep], golden.outputs["encoder_out"][keep])


@pytest.mark.parametrize("golden", ALL, ids=golden_files.name)
def test_the_round_trip_of_names_is_exact_and_keeps_float16(golden):
    fmt = format_of(golden)
    back = convert.to_reference(convert.to_ours(golden.params, fmt), fmt)
    assert back.keys() == golden.params.keys()
    for name, value in golden.params.items():
        np.testing.assert_array_equal(back[name], value)
    half = {name: value.astype(np.float16) for name, value in golden.params.items()}
    back = convert.to_reference(convert.to_ours(half, fmt), fmt)
    assert all(back[name].astype(np.float16).tobytes() == half[name].tobytes() for name in half)


RESIZED = [(golden, key) for golden in golden_files.load("multiway_posembed")
           for key in golden.inputs]


@pytest.mark.parametrize(("golden", "key"), RESIZED,
                         ids=lambda value: value if isinstance(value, str) else "")
def test_image_positions_at_another_resolution(golden, key):
    loaded, wanted = {adapt.IMAGE_POSITIONS: golden.inputs[key]}, golden.outputs[key]
    assert [int(side) for side in key.split("to")] in golden.config["pairs"]
    assert wanted.shape[1] == golden.config["dim"]
    ours = adapt.resize_image_positions(loaded, {adapt.IMAGE_POSITIONS: wanted})
    np.testing.assert_allclose(ours[adapt.IMAGE_POSITIONS], wanted, rtol=0, atol=5e-6)
