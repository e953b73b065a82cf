"""The paper's ablations of BEiT v2: base, 300 epochs, then fine-tuning and a linear probe.

python -m beit_jax.main --config configs/beitv2/ablations.py:head_layers_1 --workdir runs/ablation \
    --config.stages.pretrain.target.checkpoint=vqkd.npz

Patch aggregation (Table 5), with a trained tokenizer as above:
  full                      block 9, a head of 2 blocks, shared norm and output layer
  no_aggregation            the codes are predicted once, from the last block
  early_layer_3, _6, _11    patches behind another block
  head_layers_1, _3         another depth of the head
  separate_head             norm and output layer of its own
  head_init_backbone        the head begins as the backbone does; not in the paper
  mask_block, mask_random   BEiT's blocks without topping up; single patches; not in the paper
Tokenizers (Table 4), trained before, and no aggregation. They need a teacher:
--config.stages.tokenizer.target.checkpoint=clip.npz
  decoder_1, _3, _6         blocks of the decoder
  encoder_small             ViT-S instead of ViT-B, the decoder with it
  code_dim_16, _64          instead of 32
  codebook_4096, _16384     instead of 8,192 codes
Teachers (Table 6), each with its own file as above:
  teacher_dino              full, with a tokenizer of DINO ViT-B/16: published 84.4 % (fine-tuned)
  encoder_clip, encoder_dino  no pre-training: the tokenizer's encoder is fine-tuned itself

Published, beside that number: aggregation beats none, most clearly in the probe; heads of 1 and 2
blocks beat 3; sharing helps; a deeper decoder reconstructs better, uses fewer codes and transfers
worse; narrower codes are used more; a VQ-KD encoder is worse than its teacher, and that worse than
the BEiT v2 trained with it. Which layers, sizes and widths the tables have besides the defaults is
unknown to us: those above are ours, as is the rate at which an encoder is fine-tuned.
Source: BEiT v2 (arXiv 2208.06366), Tables 4 to 6, without their segmentation columns and without
  the fine-tuned teachers.
"""

from configs import common
from configs.beitv2 import finetune, linear_probe, pretrain, vqkd

# what each changes in pretrain.py:base_300e
AGGREGATION = {
    "full": {},
    "no_aggregation": {},
    "early_layer_3": dict(model=dict(early_layer=3)),
    "early_layer_6": dict(model=dict(early_layer=6)),
    "early_layer_11": dict(model=dict(early_layer=11)),
    "head_layers_1": dict(model=dict(head_layers=1)),
    "head_layers_3": dict(model=dict(head_layers=3)),
    "separate_head": dict(model=dict(shared_head=False)),
    "head_init_backbone": dict(model=dict(head_init="backbone")),
    "mask_block": dict(mask=dict(kind="block")),
    "mask_random": {},
}
# what each changes in the model of vqkd.py:clip
TOKENIZERS = {
    "decoder_1": dict(decoder_depth=1),
    "decoder_3": {},
    "decoder_6": dict(decoder_depth=6),
    "encoder_small": dict(width=384, num_heads=6),
    "code_dim_16": dict(code_dim=16),
    "code_dim_64": dict(code_dim=64),
    "codebook_4096": dict(codebook_size=4096),
    "codebook_16384": dict(codebook_size=16384),
}
TEACHERS = ("teacher_dino", "encoder_clip", "encoder_dino")


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, (*AGGREGATION, *TOKENIZERS, *TEACHERS))
    config = common.staged()
    if name in AGGREGATION:
        start = pretrain.get_config("base_300e")
        start.update(AGGREGATION[name])
        if name == "mask_random":
            start.mask = dict(kind="random", num_masked=75)
        stages = dict(pretrain=without_aggregation(start) if name == "no_aggregation" else start)
    else:
        stages = dict(tokenizer=vqkd.get_config("dino" if name.endswith("dino") else "clip"))
        stages["tokenizer"].model.update(TOKENIZERS.get(name, {}))
    if name in TOKENIZERS or name == "teacher_dino":
        start = with_tokenizer(pretrain.get_config("base_300e"), stages["tokenizer"].model)
        stages["pretrain"] = without_aggregation(start) if name in TOKENIZERS else start
    if "pretrain" in stages:
        stages["finetune"] = finetune.get_config("base_300e")
        stages["finetune"].init.checkpoint = "stage:pretrain"
        aggregated = stages["pretrain"].task == "beitv2_pretrain"
        stages["probe"] = linear_probe.get_config("base" if aggregated else "base_mean")
        stages["probe"].init.checkpoint = "stage:pretrain"
    else:
        stages["finetune"] = finetune_encoder()
    config.stages.update(stages)
    return common.shrink(config) if smoke else config


def without_aggregation(config):
    """One prediction, from the last block: BEiT's task on the codes of VQ-KD."""
    config.task = "beit_pretrain"
    config.loss = dict(positions="masked")
    for key in ("early_layer", "head_layers", "shared_head", "head_init"):
        del config.model[key]
    return config


def with_tokenizer(config, model):
    """The tokenizer of the stage before, whose sizes are `model` without the decoder's."""
    config.target.update(
        {key: value for key, value in model.items() if key != "decoder_depth"},
        checkpoint="stage:tokenizer")
    return config


def finetune_encoder():
    """The encoder of VQ-KD as a classifier: absolute positions, no layer scale."""
    config = finetune.get_config("base_300e")
    config.data.update(common.HALF_MEAN_STD)  # as the encoder was trained
    config.model.update(layer_scale_init=0.0, use_abs_pos=True, use_rel_pos=False)
    config.init.update(checkpoint="stage:tokenizer", adapt=("take_encoder",),
                       allow_missing=(r"^head/",), allow_unused=())
    return config
