"""Name tables of other frameworks: (reference, ours, transform), one table for both directions.

{i} is a block number: blocks stand stacked on a leading axis in our leaves; {g}, {b} and {j} are
numbers that both sides bear. Several rows may name one leaf of ours: as parts of it (the "join"
transforms), or as its name in different models: a fourth column then names a leaf of ours that
must be there ("!": must not be there) for the row to be exported.

Source: the state dicts of microsoft/unilm beit/, of Hugging Face's files (the names of transformers
4, which version 5 still writes) and of openai/DALL-E.
"""

VIT = (
    ("cls_token", "cls_token", "same"),
    ("mask_token", "mask_token", "same"),
    ("pos_embed", "pos_embed", "same"),
    ("patch_embed.proj.weight", "patch_embed/proj/kernel", "conv"),
    ("patch_embed.proj.bias", "patch_embed/proj/bias", "same"),
    (
        "rel_pos_bias.relative_position_bias_table",
        "rel_pos_bias/relative_position_bias_table",
        "same",
    ),
    ("blocks.{i}.gamma_1", "blocks/gamma_1", "same"),
    ("blocks.{i}.gamma_2", "blocks/gamma_2", "same"),
    ("blocks.{i}.norm1.weight", "blocks/norm1/scale", "same"),
    ("blocks.{i}.norm1.bias", "blocks/norm1/bias", "same"),
    ("blocks.{i}.norm2.weight", "blocks/norm2/scale", "same"),
    ("blocks.{i}.norm2.bias", "blocks/norm2/bias", "same"),
    ("blocks.{i}.attn.qkv.weight", "blocks/attn/qkv/kernel", "transpose"),
    ("blocks.{i}.attn.q_bias", "blocks/attn/q_bias", "same"),
    ("blocks.{i}.attn.v_bias", "blocks/attn/v_bias", "same"),
    (
        "blocks.{i}.attn.relative_position_bias_table",
        "blocks/attn/relative_position_bias_table",
        "same",
    ),
    ("blocks.{i}.attn.proj.weight", "blocks/attn/proj/kernel", "transpose"),
    ("blocks.{i}.attn.proj.bias", "blocks/attn/proj/bias", "same"),
    ("blocks.{i}.mlp.fc1.weight", "blocks/mlp/fc1/kernel", "transpose"),
    ("blocks.{i}.mlp.fc1.bias", "blocks/mlp/fc1/bias", "same"),
    ("blocks.{i}.mlp.fc2.weight", "blocks/mlp/fc2/kernel", "transpose"),
    ("blocks.{i}.mlp.fc2.bias", "blocks/mlp/fc2/bias", "same"),
    ("norm.weight", "norm/scale", "same"),
    ("norm.bias", "norm/bias", "same"),
    ("lm_head.weight", "lm_head/kernel", "transpose"),
    ("lm_head.bias", "lm_head/bias", "same"),
    ("fc_norm.weight", "fc_norm/scale", "same"),
    ("fc_norm.bias", "fc_norm/bias", "same"),
    ("head.weight", "head/kernel", "transpose"),
    ("head.bias", "head/bias", "same"),
)

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
