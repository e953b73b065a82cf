"""Name tables of other frameworks: (reference, ours, transform), one table for both directions.

{i} is a block number: blocks stand stacked on a leading axis in our leaves, every stack for itself;
{g}, {b} and {j} are numbers that both sides bear. Several rows may name one leaf of ours: as parts
of it (the "join" transforms), or as its name in different models: a fourth column then names a leaf
of ours that must be there ("!": must not be there) for the row to be exported.

Source: the state dicts of microsoft/unilm beit/ and beit2/, of Hugging Face's files (the names of
transformers 4, which version 5 still writes), of openai/DALL-E, facebookresearch/{dino,dinov2,mae},
torchvision and openai/CLIP.
"""

import numpy as np

_PLAIN_BLOCK = (
    ("norm1.weight", "norm1/scale", "same"),
    ("norm1.bias", "norm1/bias", "same"),
    ("norm2.weight", "norm2/scale", "same"),
    ("norm2.bias", "norm2/bias", "same"),
    ("attn.qkv.weight", "attn/qkv/kernel", "transpose"),
    ("attn.proj.weight", "attn/proj/kernel", "transpose"),
    ("attn.proj.bias", "attn/proj/bias", "same"),
    ("mlp.fc1.weight", "mlp/fc1/kernel", "transpose"),
    ("mlp.fc1.bias", "mlp/fc1/bias", "same"),
    ("mlp.fc2.weight", "mlp/fc2/kernel", "transpose"),
    ("mlp.fc2.bias", "mlp/fc2/bias", "same"),
)
_BLOCK = _PLAIN_BLOCK + (
    ("gamma_1", "gamma_1", "same"),
    ("gamma_2", "gamma_2", "same"),
    ("attn.q_bias", "attn/q_bias", "same"),
    ("attn.v_bias", "attn/v_bias", "same"),
    ("attn.relative_position_bias_table", "attn/relative_position_bias_table", "same"),
)
_TOKENS = (
    ("cls_token", "cls_token", "same"),
    ("pos_embed", "pos_embed", "same"),
    ("patch_embed.proj.weight", "patch_embed/proj/kernel", "conv"),
    ("patch_embed.proj.bias", "patch_embed/proj/bias", "same"),
)

# mean and deviation of red, green and blue by which pixels in [0, 1] are normalised
STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
HALF, IMAGENET = STATISTICS["half"], STATISTICS["imagenet"]
ALWAYS_HALF, ALWAYS_IMAGENET = ((r"", HALF),), ((r"", IMAGENET),)

NORM = (("weight", "scale", "same"), ("bias", "bias", "same"))
LINEAR = (("weight", "kernel", "transpose"), ("bias", "bias", "same"))


def under(reference: str, ours: str, rows: tuple) -> tuple:
    """The rows with something in front of both names."""
    return tuple((reference + row[0], ours + row[1], row[2]) for row in rows)


# BEiT and BEiT v2; the cls_pt_ parts are v2's head for patch aggregation
VIT = (
    _TOKENS
    + (
        ("mask_token", "mask_token", "same"),
        (
            "rel_pos_bias.relative_position_bias_table",
            "rel_pos_bias/relative_position_bias_table",
            "same",
        ),
    )
    + under("blocks.{i}.", "blocks/", _BLOCK)
    + under("cls_pt_layers.{i}.", "cls_pt_layers/", _BLOCK)
    + under("norm.", "norm/", NORM)
    + under("cls_pt_norm.", "cls_pt_norm/", NORM)
    + under("fc_norm.", "fc_norm/", NORM)
    + under("lm_head.", "lm_head/", LINEAR)
    + under("cls_pt_lm_head.", "cls_pt_lm_head/", LINEAR)
    + under("head.", "head/", LINEAR)
)

# The released programs train BEiT on ImageNet-22k with 0.5, on ImageNet-1k and BEiT v2 with
# ImageNet's; but for v2's head for patch aggregation the names are the same.
VIT_STATISTICS = ((r"^cls_pt_", IMAGENET),)

# (regular expression over the whole reference name, why nothing is lost by leaving it out)
VIT_IGNORED = (
    (r"(.*\.)?relative_position_index", "follows from the patch grid; our code computes it"),
    (r"blocks\.\d+\.attn\.k_bias", "timm's constant zeros: keys have no bias"),
)

_LAYER = "beit.encoder.layer.{i}."
_ATTENTION = _LAYER + "attention.attention."
HUGGINGFACE = (
    ("beit.embeddings.cls_token", "cls_token", "same"),
    ("beit.embeddings.mask_token", "mask_token", "same"),
    ("beit.embeddings.position_embeddings", "pos_embed", "same"),
    ("beit.embeddings.patch_embeddings.projection.weight", "patch_embed/proj/kernel", "conv"),
    ("beit.embeddings.patch_embeddings.projection.bias", "patch_embed/proj/bias", "same"),
    (
        "beit.encoder.relative_position_bias.relative_position_bias_table",
        "rel_pos_bias/relative_position_bias_table",
        "same",
    ),
    (_LAYER + "lambda_1", "blocks/gamma_1", "same"),
    (_LAYER + "lambda_2", "blocks/gamma_2", "same"),
    (_LAYER + "layernorm_before.weight", "blocks/norm1/scale", "same"),
    (_LAYER + "layernorm_before.bias", "blocks/norm1/bias", "same"),
    (_LAYER + "layernorm_after.weight", "blocks/norm2/scale", "same"),
    (_LAYER + "layernorm_after.bias", "blocks/norm2/bias", "same"),
    (_ATTENTION + "query.weight", "blocks/attn/qkv/kernel", "join0of3"),
    (_ATTENTION + "key.weight", "blocks/attn/qkv/kernel", "join1of3"),
    (_ATTENTION + "value.weight", "blocks/attn/qkv/kernel", "join2of3"),
    (_ATTENTION + "query.bias", "blocks/attn/q_bias", "same"),
    (_ATTENTION + "value.bias", "blocks/attn/v_bias", "same"),
    (
        _ATTENTION + "relative_position_bias.relative_position_bias_table",
        "blocks/attn/relative_position_bias_table",
        "same",
    ),
    (_LAYER + "attention.output.dense.weight", "blocks/attn/proj/kernel", "transpose"),
    (_LAYER + "attention.output.dense.bias", "blocks/attn/proj/bias", "same"),
    (_LAYER + "intermediate.dense.weight", "blocks/mlp/fc1/kernel", "transpose"),
    (_LAYER + "intermediate.dense.bias", "blocks/mlp/fc1/bias", "same"),
    (_LAYER + "output.dense.weight", "blocks/mlp/fc2/kernel", "transpose"),
    (_LAYER + "output.dense.bias", "blocks/mlp/fc2/bias", "same"),
    ("layernorm.weight", "norm/scale", "same", "lm_head/kernel"),
    ("layernorm.bias", "norm/bias", "same", "lm_head/kernel"),
    ("beit.layernorm.weight", "norm/scale", "same", "!lm_head/kernel"),
    ("beit.layernorm.bias", "norm/bias", "same", "!lm_head/kernel"),
    ("lm_head.weight", "lm_head/kernel", "transpose"),
    ("lm_head.bias", "lm_head/bias", "same"),
    ("beit.pooler.layernorm.weight", "fc_norm/scale", "same"),
    ("beit.pooler.layernorm.bias", "fc_norm/bias", "same"),
    ("classifier.weight", "head/kernel", "transpose"),
    ("classifier.bias", "head/bias", "same"),
)

_PATH = "blocks{d}group_{g}{d}block_{b}{d}res_path{d}conv_{j}{d}"
_SKIP = "blocks{d}group_{g}{d}block_{b}{d}id_path{d}"


def _dvae(part: str) -> tuple:
    rows = []
    for pattern in ("blocks{d}input{d}", _PATH, _SKIP, "blocks{d}output{d}conv{d}"):
        for leaf, transform in (("w", "conv"), ("b", "same")):
            reference, ours = (pattern.replace("{d}", d) + leaf for d in "./")
            rows.append((f"{part}/{reference}", f"{part}/{ours}", transform))
    return tuple(rows)


# both networks in one dict: the names of encoder.pkl behind "encoder/", of decoder.pkl likewise
DALLE = _dvae("encoder") + _dvae("decoder")

_TASK_LAYER = (
    ("0.weight", "fc1/kernel", "transpose"),
    ("0.bias", "fc1/bias", "same"),
    ("2.weight", "fc2/kernel", "transpose"),  # 1 is the tanh between
    ("2.bias", "fc2/bias", "same"),
)
_TOWER = _TOKENS + under("blocks.{i}.", "blocks/", _BLOCK) + under("fc_norm.", "fc_norm/", NORM)

# the tokenizer of BEiT v2
VQKD = (
    under("encoder.", "encoder/", _TOWER)
    + under("decoder.", "decoder/", _TOWER)
    + under("encode_task_layer.", "encode_task_layer/", _TASK_LAYER)
    + under("decode_task_layer.", "decode_task_layer/", _TASK_LAYER)
    + (
        ("quantize.embedding.weight", "codebook/embedding", "same"),
        ("quantize.cluster_size", "usage/cluster_size", "same"),
    )
)
VQKD_IGNORED = (
    (r"quantize\.embedding\.(cluster_size|embed_avg|initted)", "never read once codes are there"),
    (r"teacher_model\..*", "the frozen teacher: convert its own file instead"),
    (r"scaling_layer\..*", "constants of the teacher's normalisation"),
    (r"loss.*", "of the training, no weights"),
)

# what a run carries from step to step, and no other program reads
VQKD_LEFT_BEHIND = ((r"pending/.*", "of an unfinished update of the codebook"),)


def vqkd_dead_state(ours) -> dict:
    """What the original keeps beside the codebook and loads strictly, but never reads again.

    Args: ours: our flat leaves; without a codebook there is nothing to add.
    Returns: {reference name: array}; how often codes were used counts as 0 where `ours` lacks it.
    """
    if "codebook/embedding" not in ours:
        return {}
    codebook = np.asarray(ours["codebook/embedding"])
    unused = np.zeros(len(codebook), np.float32)
    added = {
        "quantize.embedding.cluster_size": unused,
        "quantize.embedding.embed_avg": codebook.copy(),
        "quantize.embedding.initted": np.ones(1, np.float32),
    }
    return added if "usage/cluster_size" in ours else added | {"quantize.cluster_size": unused}


# DINO's ViTs, and timm's plain ones
DINO = (
    _TOKENS
    + under("blocks.{i}.", "blocks/", _PLAIN_BLOCK)
    + (("blocks.{i}.attn.qkv.bias", "blocks/attn/qkv/bias", "same"),)
    + under("norm.", "norm/", NORM)
)
# a classifier is not DINO's, and others of these names were trained with 0.5
DINO_STATISTICS = ((r"^head\.(weight|bias)$", None), *ALWAYS_IMAGENET)
DINO_IGNORED = ((r"head\..*", "a projection head or classifier: features end before it"),)

# masked autoencoders: MAE's files, whole or the encoder alone; encoder and decoder have blocks of
# one kind. Their position tables are fixed in pre-training and stored all the same.
_MAE_BLOCK = _PLAIN_BLOCK + tuple(
    ("attn.qkv.bias", f"attn/{part}_bias", f"part{i}of3") for i, part in enumerate("qkv")
)
MAE = (
    _TOKENS
    + under("blocks.{i}.", "blocks/", _MAE_BLOCK)
    + under("norm.", "norm/", NORM)
    + under("fc_norm.", "fc_norm/", NORM)
    + under("head.", "head/", LINEAR)
    + (
        ("mask_token", "mask_token", "same"),
        ("decoder_pos_embed", "decoder_pos_embed", "same"),
    )
    + under("decoder_embed.", "decoder_embed/", LINEAR)
    + under("decoder_blocks.{i}.", "decoder_blocks/", _MAE_BLOCK)
    + under("decoder_norm.", "decoder_norm/", NORM)
    + under("decoder_pred.", "decoder_pred/", LINEAR)
)

# DINOv2's ViTs: layer scale, perhaps registers
DINOV2 = DINO + (
    ("blocks.{i}.ls1.gamma", "blocks/ls1/gamma", "same"),
    ("blocks.{i}.ls2.gamma", "blocks/ls2/gamma", "same"),
    ("register_tokens", "register_tokens", "same"),
)
DINOV2_IGNORED = (
    ("mask_token", "used in its own training alone"),
    (r"((dino|ibot)_)?head\..*", "a projection head or classifier: features end before it"),
)


def dinov2_dead_state(ours) -> dict:
    """The mask token that the original loads strictly and does not use: zeros, as it began."""
    if "cls_token" not in ours:
        return {}
    return {"mask_token": np.zeros((1, np.shape(ours["cls_token"])[-1]), np.float32)}


_STATISTICS = (("running_mean", "mean", "same"), ("running_var", "var", "same"))


def _conv_and_norm(conv: tuple[str, str], norm: tuple[str, str]) -> tuple:
    """A convolution without a bias, and its batch norm: (reference, ours) of each."""
    return (
        ((conv[0] + ".weight", conv[1] + "/kernel", "conv"),)
        + under(norm[0] + ".", norm[1] + "/", NORM)
        + under(norm[0] + ".", f"batch_stats/{norm[1]}/", _STATISTICS)
    )


# ResNets of bottlenecks as torchvision and timm name them; DINO's has no classifier
_BOTTLENECK = ("layer{g}.{b}.", "layer{g}/block{b}/")
RESNET = (
    _conv_and_norm(("conv1", "conv1"), ("bn1", "bn1"))
    + _conv_and_norm(
        tuple(block + "conv{j}" for block in _BOTTLENECK),
        tuple(block + "bn{j}" for block in _BOTTLENECK),
    )
    + _conv_and_norm(
        (_BOTTLENECK[0] + "downsample.0", _BOTTLENECK[1] + "downsample_conv"),
        (_BOTTLENECK[0] + "downsample.1", _BOTTLENECK[1] + "downsample_bn"),
    )
)
RESNET_IGNORED = (
    (r".*\.num_batches_tracked", "a counter of the training; loaders fill it in"),
    (r"(fc|head)\..*", "a classifier or projection head: features end before it"),
)

# CLIP's image tower; its projection is multiplied from the right, as ours
CLIP = (
    (
        ("class_embedding", "cls_token", "token"),
        ("positional_embedding", "pos_embed", "table"),
        ("conv1.weight", "patch_embed/proj/kernel", "conv"),
        ("proj", "proj/kernel", "same"),
    )
    + under("ln_pre.", "pre_norm/", NORM)
    + under("ln_post.", "norm/", NORM)
    + under(
        "transformer.resblocks.{i}.",
        "blocks/",
        under("ln_1.", "norm1/", NORM)
        + under("ln_2.", "norm2/", NORM)
        + under("attn.in_proj_", "attn/qkv/", LINEAR)
        + under("attn.out_proj.", "attn/proj/", LINEAR)
        + under("mlp.c_fc.", "mlp/fc1/", LINEAR)
        + under("mlp.c_proj.", "mlp/fc2/", LINEAR),
    )
)
CLIP_IGNORED = ((r"input_resolution|context_length|vocab_size", "sizes that the arrays tell"),)
