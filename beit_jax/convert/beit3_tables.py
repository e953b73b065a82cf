"""Name tables of BEiT-3: the backbone as torchscale names it, with the heads of its uses, and its
image path as timm names it.

The letter of a modality stands behind the name of a projection or norm, but in front of an
expert's. See tables.py for what a row says. Source: the state dicts of microsoft/unilm beit3/, of
torchscale and of timm's beit3_*.
"""

from beit_jax.convert.tables import HALF, IMAGENET, LINEAR, NORM, under

_MODALITIES = ("A", "B")


def _by_modality(reference: str, ours: str, rows: tuple) -> tuple:
    """The rows for either modality, its letter behind both names."""
    return tuple(row for letter in _MODALITIES
                 for row in under(f"{reference}.{letter}.", f"{ours}/{letter}/", rows))


_EXPERT = (
    under("fc1.", "fc1/", LINEAR)
    + under("ffn_layernorm.", "ffn_layernorm/", NORM)
    + under("fc2.", "fc2/", LINEAR)
)
_BLOCK = (
    tuple(row for name in ("q_proj", "k_proj", "v_proj", "out_proj")
          for row in _by_modality(f"self_attn.{name}", f"self_attn/{name}", LINEAR))
    + _by_modality("self_attn.inner_attn_ln", "self_attn/inner_attn_ln", NORM)
    + _by_modality("self_attn_layer_norm", "self_attn_layer_norm", NORM)
    + _by_modality("final_layer_norm", "final_layer_norm", NORM)
    + _by_modality("ffn", "ffn", _EXPERT)
)
BACKBONE = (
    (
        ("text_embed.weight", "text_embed/embedding", "same"),
        ("vision_embed.mask_token", "vision_embed/mask_token", "same"),
        ("vision_embed.cls_token", "vision_embed/cls_token", "same"),
        ("vision_embed.proj.weight", "vision_embed/proj/kernel", "conv"),
        ("vision_embed.proj.bias", "vision_embed/proj/bias", "same"),
    )
    + _by_modality("encoder.embed_positions", "embed_positions",
                   (("weight", "embedding", "same"),))
    + under("encoder.layers.{i}.", "blocks/", _BLOCK)
    + _by_modality("encoder.layer_norm", "layer_norm", NORM)
)
WITH_HEADS = (
    under("beit3.", "", BACKBONE)
    + (
        ("vision_head.weight", "vision_head/kernel", "transpose"),
        ("language_head.weight", "language_head/kernel", "transpose"),
        ("logit_scale", "logit_scale", "same"),
    )
    + under("mlm_head.", "mlm_head/", LINEAR)
    + under("mim_head.", "mim_head/", LINEAR)
    + under("pooler.norm.", "pooler/norm/", NORM)
    + under("pooler.dense.", "pooler/dense/", LINEAR)
    + under("head.0.", "head/fc1/", LINEAR)  # VQA; 2 is the GELU
    + under("head.1.", "head/norm/", NORM)
    + under("head.3.", "head/fc2/", LINEAR)
    + under("head.norm1.", "head/norm1/", NORM)  # NLVR2
    + under("head.dense1.", "head/dense1/", LINEAR)
    + under("head.norm2.", "head/norm2/", NORM)
    + under("head.dense2.", "head/dense2/", LINEAR)
    + under("fc_norm.", "fc_norm/", NORM)  # ImageNet
    + under("head.", "head/", LINEAR)
)
# The released program classifies ImageNet, by the mean of the patches behind fc_norm, with its
# statistics, and does all else with 0.5; of the pre-training nothing is published.
STATISTICS = (
    (r"^fc_norm\.", IMAGENET),
    (r"^(head\.(\d|norm|dense)|vision_head\.|language_head\.)", HALF),
)
REFUSED = (
    (r"vl_blocks/.*", "the released BEiT-3 has no expert for pairs; its files cannot hold one"),
    (
        r"blocks/self_attn(_layer_norm|/\w+)/(kernel|scale|bias)|layer_norm/(scale|bias)",
        "modalities share it, and the released BEiT-3 has one per modality",
    ),
)

# timm's beit3_*: a plain ViT with norms before the last matrix of either branch
_TIMM_BLOCK = (
    under("norm1.", "self_attn_layer_norm/A/", NORM)
    + tuple((f"attn.qkv.{theirs}", f"self_attn/{name}_proj/A/{ours}", f"part{i}of3")
            for theirs, ours, _ in LINEAR for i, name in enumerate("qkv"))
    + under("attn.norm.", "self_attn/inner_attn_ln/A/", NORM)
    + under("attn.proj.", "self_attn/out_proj/A/", LINEAR)
    + under("norm2.", "final_layer_norm/A/", NORM)
    + under("mlp.fc1.", "ffn/A/fc1/", LINEAR)
    + under("mlp.norm.", "ffn/A/ffn_layernorm/", NORM)
    + under("mlp.fc2.", "ffn/A/fc2/", LINEAR)
)
TIMM = (
    (
        ("cls_token", "vision_embed/cls_token", "same"),
        ("pos_embed", "embed_positions/A/embedding", "offset"),
        ("patch_embed.proj.weight", "vision_embed/proj/kernel", "conv"),
        ("patch_embed.proj.bias", "vision_embed/proj/bias", "same"),
    )
    + under("blocks.{i}.", "blocks/", _TIMM_BLOCK)
    + under("norm.", "layer_norm/A/", NORM)
    + under("fc_norm.", "fc_norm/", NORM)
    + under("head.", "head/", LINEAR)
)
TIMM_LEFT_BEHIND = (
    (r"text_embed/.*|.*/B/.*", "of texts, and timm's BEiT-3 sees images alone"),
    (r"vision_embed/mask_token|m[il]m_head/.*", "of pre-training, which timm's BEiT-3 is not for"),
    (r"(vision|language)_head/.*|logit_scale", "of retrieval, which timm's BEiT-3 is not for"),
)
