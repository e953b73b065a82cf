"""Our BEiT v2 against the original: quantizer, k-means, VQ-KD, and both prediction heads."""


import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_models import image_of, weights_of

from beit_jax import convert, losses, masking
from beit_jax.models.beit import BeitV2ForMim
from beit_jax.targets import quantizer
from beit_jax.targets.vqkd import VqkdTokenizer
from beit_jax.tasks import teacher_features, vqkd_train
from configs import common

CODEBOOK = "codebook/embedding"
# process_type of the original: what its encoder sees of x in [0, 1], as mean and deviation
PIXELS = {"default": common.HALF_MEAN_STD, "imagenet_norm": common.IMAGENET_MEAN_STD,
          "dall-e": dict(mean=(-0.125,) * 3, std=(1.25,) * 3)}  # 0.8 x + 0.1


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def channels_last(array):
    """[b, c, h, w] -> [b, h * w, c]."""
    return np.moveaxis(array, 1, -1).reshape(array.shape[0], -1, array.shape[1])


def assert_grads_close(ours, golden, fmt):
    ours = convert.to_reference(convert.flatten(ours), fmt)
    scale = golden_files.largest_grad(golden)
    assert scale > 0
    assert set(golden.grads) <= set(ours)
    for name, grad in golden.grads.items():
        golden_files.assert_close(ours[name], grad, scale=scale)


# --- quantizer ------------------------------------------------------------------------------------

def one_update(codebook, usage, quantized, decay):
    count, total = quantizer.statistics(quantized.unit, quantized.codes, codebook.shape[0])
    return quantizer.update(codebook, count, total, decay), decay * usage + (1 - decay) * count


@pytest.mark.parametrize("golden", golden_files.load("quantizer"), ids=golden_files.name)
def test_quantizer_over_five_updates_and_one_evaluation(golden):
    config, arrays = golden.config, golden.arrays
    codebook = jnp.asarray(arrays["state0/embedding.weight"])
    usage = jnp.asarray(arrays["state0/cluster_size"])
    cotangent = channels_last(arrays["in/cotangent_zq"])
    for step in range(1, config["steps"] + 1):
        z = channels_last(arrays[f"in/step{step}/z"])

        def output(z, codebook=codebook):
            return quantizer.quantize(z, codebook).output

        def commitment(z, codebook=codebook):
            return config["beta"] * quantizer.quantize(z, codebook).commitment.mean()

        quantized = quantizer.quantize(z, codebook)
        out = f"out/step{step}"
        np.testing.assert_array_equal(quantized.codes.reshape(-1), arrays[f"{out}/indices"].ravel())
        golden_files.assert_close(quantized.output, channels_last(arrays[f"{out}/z_q"]))
        golden_files.assert_close(commitment(z), arrays[f"{out}/loss"])
        golden_files.assert_close(jax.vjp(output, z)[1](jnp.asarray(cotangent))[0],
                                  channels_last(arrays[f"{out}/grad_z_from_zq"]))
        golden_files.assert_close(jax.grad(commitment)(z),
                                  channels_last(arrays[f"{out}/grad_z_from_loss"]))
        codebook, usage = one_update(codebook, usage, quantized, config["decay"])
        golden_files.assert_close(codebook, arrays[f"state{step}/embedding.weight"])
        golden_files.assert_close(usage, arrays[f"state{step}/cluster_size"])
    never = arrays["out/never_used_codes"]
    golden_files.assert_close(codebook[never], arrays["state0/embedding.weight"][never])
    assert float(usage[never].max()) == 0
    quantized = quantizer.quantize(channels_last(arrays["in/eval/z"]), codebook)
    np.testing.assert_array_equal(quantized.codes.reshape(-1), arrays["out/eval/indices"].ravel())
    golden_files.assert_close(quantized.output, channels_last(arrays["out/eval/z_q"]))
    golden_files.assert_close(config["beta"] * quantized.commitment.mean(), arrays["out/eval/loss"])
    golden_files.assert_close(codebook, arrays["state_after_eval/embedding.weight"])


@pytest.mark.parametrize("golden", golden_files.load("kmeans"), ids=golden_files.name)
def test_kmeans_on_the_sphere_and_the_quantizer_that_begins_with_it(golden):
    """The Euclidean variant of the file is of no use to a codebook of unit vectors: not ours."""
    arrays, decay = golden.arrays, golden.config["decay_of_quantizer"]
    start = jnp.asarray(arrays["in/init_means"])
    for iterations in golden.config["iters"]:
        means, count = quantizer.kmeans(jnp.asarray(arrays["in/samples"]), start, iterations)
        golden_files.assert_close(means, arrays[f"out/means_after_{iterations}"])
        np.testing.assert_array_equal(count, arrays[f"out/bins_after_{iterations}"])
    z = channels_last(arrays["in/z"])
    samples = quantizer.to_unit(z).reshape(-1, z.shape[-1])
    codebook, count = quantizer.kmeans(samples, start, 10)
    np.testing.assert_array_equal(count, arrays["state1/embedding.cluster_size"])
    usage = jnp.zeros(start.shape[0])
    for step in (1, 2):
        quantized = quantizer.quantize(z, codebook)
        out = f"out/q_step{step}"
        np.testing.assert_array_equal(quantized.codes.reshape(-1), arrays[f"{out}/indices"])
        golden_files.assert_close(quantized.output, channels_last(arrays[f"{out}/z_q"]))
        golden_files.assert_close(quantized.commitment.mean(), arrays[f"{out}/loss"])
        codebook, usage = one_update(codebook, usage, quantized, decay)
        golden_files.assert_close(codebook, arrays[f"state{step}/embedding.weight"])
        golden_files.assert_close(usage, arrays[f"state{step}/cluster_size"])


# --- VQ-KD ----------------------------------------------------------------------------------------

def recorded_teacher(golden):
    """Gives the features that the golden file holds."""
    features = jnp.asarray(golden.inputs["teacher_features"])
    side = round(features.shape[1] ** 0.5)
    return teacher_features.TeacherFeatures(features.shape[-1], (side, side), {},
                                            lambda frozen, batch: features, 0.0)


def vqkd_config(golden):
    encoder = golden.config["encoder"]
    config = common.base()
    config.task = "vqkd_train"
    config.data.update(PIXELS[golden.config["process_type"]])
    config.model = dict(
        image_px=encoder["img_size"], patch_size=encoder["patch_size"], width=encoder["embed_dim"],
        depth=encoder["depth"], num_heads=encoder["num_heads"], mlp_ratio=encoder["mlp_ratio"],
        decoder_depth=golden.config["decoder"]["depth"], code_dim=golden.config["code_dim"],
        codebook_size=golden.config["n_embed"], epsilon=golden.config["norm_eps"])
    config.loss = dict(commitment_weight=golden.config["beta"], decay=golden.config["decay"],
                       kmeans_iterations=0)
    return config


def vqkd_variables(golden):
    """(parameters, collections) as the task keeps them."""
    tree = weights_of(golden, "vqkd")
    codebook = tree.pop("codebook")
    usage = tree.pop("usage")
    size, dim = codebook["embedding"].shape
    pending = {"count": jnp.zeros(size), "total": jnp.zeros((size, dim))}
    return tree, {"codebook": codebook, "usage": usage, "pending": pending}


@pytest.mark.parametrize("golden", golden_files.load("vqkd"), ids=golden_files.name)
def test_vqkd_step_losses_gradients_update_and_evaluation(golden, monkeypatch):
    monkeypatch.setattr(teacher_features, "make", lambda config: recorded_teacher(golden))
    task = vqkd_train.make(vqkd_config(golden))
    params, state = vqkd_variables(golden)
    image = jnp.asarray(np.moveaxis(golden.inputs["image_0_1"], 1, -1))
    batch = {"image": image, "is_example": jnp.ones(image.shape[0], bool)}
    frozen = {}

    (loss, (after, values)), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
        params, state, frozen, batch, jax.random.key(0))
    golden_files.assert_close(loss, golden.outputs["train/loss"])
    golden_files.assert_close(values["commitment"], golden.outputs["train/quant_loss"])
    golden_files.assert_close(values["reconstruction"], golden.outputs["train/rec_loss"])
    assert_grads_close(grads, golden, "vqkd")

    after = task.end_step(params, after)
    golden_files.assert_close(after["codebook"]["embedding"],
                              golden.arrays["state1/quantize.embedding.weight"])
    golden_files.assert_close(after["usage"]["cluster_size"],
                              golden.arrays["state1/quantize.cluster_size"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after["pending"]))

    sums = jax.jit(task.eval_step)({"params": params, **after}, frozen, batch)
    result = task.summarize(jax.device_get(sums))
    for name, key in (("loss", "loss"), ("commitment", "quant_loss"),
                      ("reconstruction", "rec_loss")):
        golden_files.assert_close(result[name], golden.outputs[f"eval_after_step/{key}"])
    # the original counts evaluations into its statistic; we keep an exact histogram instead
    decay = golden.config["decay"]
    golden_files.assert_close(
        decay * after["usage"]["cluster_size"] + (1 - decay) * sums["code_counts"],
        golden.arrays["state_after_eval/quantize.cluster_size"])


@pytest.mark.parametrize("golden", golden_files.load("vqkd"), ids=golden_files.name)
def test_vqkd_network_and_codes(golden):
    model = vqkd_train.Vqkd(**vqkd_config(golden).model.to_dict(),
                            teacher_dim=golden.inputs["teacher_features"].shape[-1])
    params, state = vqkd_variables(golden)
    image01 = jnp.asarray(np.moveaxis(golden.inputs["image_0_1"], 1, -1)).astype(jnp.float32) / 255
    pixels = PIXELS[golden.config["process_type"]]
    image = (image01 - jnp.asarray(pixels["mean"])) / jnp.asarray(pixels["std"])
    golden_files.assert_close(np.moveaxis(np.asarray(image), -1, 1), golden.outputs["preprocessed"])
    tokens = model.apply({"params": params}, image, method=lambda m, x: m.encoder(x))
    golden_files.assert_close(tokens, golden.outputs["encoder_tokens"])
    vectors = model.apply({"params": params}, image, method="encode")
    golden_files.assert_close(vectors, golden.outputs["to_quantizer"])
    # out/quantized, emb_loss and reconstruction belong to the training call: the first codebook
    quantized = quantizer.quantize(vectors, state["codebook"]["embedding"])
    golden_files.assert_close(quantized.output, channels_last(golden.outputs["quantized"]))
    golden_files.assert_close(model.apply({"params": params}, quantized.output, method="decode"),
                              golden.outputs["reconstruction"])
    sizes = {key: value for key, value in vqkd_config(golden).model.to_dict().items()
             if key not in ("decoder_depth", "epsilon")}
    variables = {"params": params, "codebook": state["codebook"]}
    codes = VqkdTokenizer(**sizes, **pixels).codes(variables, image01)
    np.testing.assert_array_equal(codes, golden.outputs["codebook_indices"])


# --- patch aggregation ----------------------------------------------------------------------------

AGGREGATED = golden_files.load("mim_aggregated")


def mim_of(config):
    return BeitV2ForMim(
        image_px=config["img_size"], patch_size=config["patch_size"], width=config["embed_dim"],
        depth=config["depth"], num_heads=config["num_heads"], mlp_ratio=config["mlp_ratio"],
        layer_scale_init=config["init_values"], epsilon=config["norm_eps"],
        use_abs_pos=config["use_abs_pos_emb"], use_shared_rel_pos=config["use_shared_rel_pos_bias"],
        vocab_size=config["vocab_size"], early_layer=config["early_layers"],
        head_layers=config["head_layers"], shared_head=config["shared_lm_head"])


@pytest.mark.parametrize("golden", AGGREGATED, ids=golden_files.name)
def test_parameter_tree_is_that_of_the_original(golden):
    model, image = mim_of(golden.config), image_of(golden)
    made = jax.eval_shape(lambda key: model.init(key, image, golden.inputs["mask"]),
                          jax.random.key(0))["params"]
    wanted = {k: v.shape for k, v in convert.flatten(weights_of(golden)).items()}
    assert {k: v.shape for k, v in convert.flatten(made).items()} == wanted


@pytest.mark.parametrize("golden", AGGREGATED, ids=golden_files.name)
def test_logits_of_both_predictions(golden):
    model, params, image = mim_of(golden.config), weights_of(golden), image_of(golden)
    is_masked = jnp.asarray(golden.inputs["mask"])
    logits = jax.jit(lambda p: model.apply({"params": p}, image, is_masked))(params)
    for ours, suffix in zip(logits, ("", "_cls_branch"), strict=True):
        golden_files.assert_close(ours, golden.outputs[f"logits_all{suffix}"])
        golden_files.assert_close(np.asarray(ours)[np.asarray(is_masked)],
                                  golden.outputs[f"logits_masked{suffix}"])
    features = model.apply({"params": params}, image, is_masked, method="features")
    golden_files.assert_close(features, golden.outputs["features"])


@pytest.mark.parametrize("golden", AGGREGATED, ids=golden_files.name)
def test_both_losses_and_gradients(golden):
    model, image = mim_of(golden.config), image_of(golden)
    is_masked = jnp.asarray(golden.inputs["mask"])
    positions, is_hidden = masking.masked_positions(is_masked, int(is_masked.sum(axis=1).max()))
    codes = jnp.take_along_axis(jnp.asarray(golden.inputs["target_ids"]), positions, axis=1)

    def loss(params):
        both = model.apply({"params": params}, image, is_masked, positions)
        parts = [losses.weighted_mean(losses.cross_entropy(logits, codes), is_hidden)
                 for logits in both]
        return sum(parts), parts

    (total, parts), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights_of(golden))
    golden_files.assert_close(total, golden.outputs["loss"])
    for part, name in zip(parts, ("loss_1", "loss_2"), strict=True):
        golden_files.assert_close(part, golden.outputs[name])
    assert_grads_close(grads, golden, "microsoft")
