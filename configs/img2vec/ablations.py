"""What the sources of Img2Vec leave open, and what they claim: base, 300 epochs, then two readings.

python -m beit_jax.main --config configs/img2vec/ablations.py:no_fusion --workdir runs/ablation \
    --config.stages.pretrain.target.checkpoint=dino_resnet50.npz

Three stages: pre-training (pretrain.py:base_300e with one change), fine-tuning, linear probe. Whose
each number is: [P], [R], [M] and [D] as in pretrain.py.
  full                      what pretrain.py says
Claims of the paper [R]:
  no_fusion                 the decoder gets the last block, as MAE's [M]
  no_global                 without the global loss
  neither                   without both: features of a teacher in MAE's network
  decoder_1, _4, _8         instead of 2 blocks [R]; 8 are MAE's [M]
  teacher_dino              DINO ViT-B/16, 16 px cells as for all ViTs [R]
  teacher_mae, teacher_mae_large    MAE ViT-B/16, ViT-L/16
  teacher_clip, teacher_dinov2      CLIP ViT-B/16, DINOv2 ViT-B/14: not in the paper [D]
Open choices [D]; the default stands in pretrain.py:
  fusion_norm, fusion_learned      mean of normalised outputs; learned shares
  fusion_upper              mean of the upper six blocks
  target_none, target_l2    raw features; unit length
  target_whiten             each channel by mean and variance over 50,000 images, which a stage
                            before gathers: --config.stages.statistics.target.checkpoint, too
  grid_repeat               every patch predicts the token it lies in, 120 predictions for 30
  grid_resize_teacher       the teacher sees 448 px, so that its grid is the patches': four times
                            its work, and other statistics than it was trained on
  global_last               the global loss reads the last block
  global_after_norm         its target is the mean of the normalised tokens
  loss_squared, loss_beta_1 other errors
No result of these was published in a form that we have.
Source: Img2Vec (arXiv 2304.12535), by way of the sources named in pretrain.py.
"""

from configs import common
from configs.img2vec import diversity, finetune, linear_probe, pretrain

# 60 % of 196 patches, kept ones rounded down [M]
CELLS_OF_16_PX = dict(kind="random", num_masked=118, cell=1)
VIT_TEACHER = dict(checkpoint="", image_px=224, dtype="bfloat16", norm="layernorm")

# what each changes in sections of pretrain.py:base_300e
CHANGES = {
    "full": {},
    "no_fusion": dict(model=dict(fusion="last")),
    "no_global": dict(loss=dict(global_weight=0.0)),
    "neither": dict(model=dict(fusion="last"), loss=dict(global_weight=0.0)),
    **{f"decoder_{depth}": dict(model=dict(decoder_depth=depth)) for depth in (1, 4, 8)},
    "fusion_norm": dict(model=dict(fusion="mean_norm")),
    "fusion_learned": dict(model=dict(fusion="learned")),
    "fusion_upper": dict(model=dict(fusion_blocks=(6, 7, 8, 9, 10, 11))),
    "target_none": dict(target=dict(norm="none")),
    "target_l2": dict(target=dict(norm="l2")),
    "target_whiten": dict(target=dict(norm="whiten",
                                      statistics=dict(checkpoint="stage:statistics"))),
    "grid_repeat": dict(model=dict(grid_match="repeat")),
    "grid_resize_teacher": dict(target=dict(image_px=448),
                                data=dict(target_px=448, target_filter="bicubic")),
    "global_last": dict(loss=dict(global_source="last")),
    "global_after_norm": dict(loss=dict(global_target="mean_of_normalised")),
    "loss_squared": dict(loss=dict(kind="squared")),
    "loss_beta_1": dict(loss=dict(beta=1.0)),
}
TEACHERS = {
    "teacher_dino": dict(kind="dino_vitb16", **VIT_TEACHER),
    "teacher_mae": dict(kind="mae_vitb16", **VIT_TEACHER),
    "teacher_mae_large": dict(kind="mae_vitl16", **VIT_TEACHER),
    "teacher_clip": dict(kind="clip_vitb16", **VIT_TEACHER),
    # 14x14 tokens of 14 px, as many as the patches of 16 px; its own positions are for 518 px
    "teacher_dinov2": dict(kind="dinov2_vitb14", **VIT_TEACHER | dict(
        image_px=196, adapt=("resize_pos_embed_offset",))),
}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, (*CHANGES, *TEACHERS))
    start = pretrain.get_config("base_300e")
    start.update(CHANGES.get(name, {}))
    if name in TEACHERS:
        start.target, start.mask = TEACHERS[name], CELLS_OF_16_PX
    if name == "teacher_dinov2":
        start.data.update(target_px=196, target_filter="bicubic")
    config = common.staged()
    if name == "target_whiten":
        config.stages.statistics = diversity.teacher(start.target.kind, "", "")
    config.stages.update(pretrain=start, finetune=finetune.get_config("base"),
                         probe=linear_probe.get_config("base"))
    config.stages.finetune.init.checkpoint = "stage:pretrain"
    config.stages.probe.init.checkpoint = "stage:pretrain"
    return common.shrink(config) if smoke else config
