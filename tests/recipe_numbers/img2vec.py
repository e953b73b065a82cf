"""configs/img2vec.

Sources: Img2Vec (arXiv 2304.12535), by its abstract and a public review of it (review); what
neither states is MAE's, or ours.
"""

from recipe_numbers import mae
from recipe_numbers.table import cite

SIZES = ("base", "large", "huge")


def pretrain(size: str, epochs: float) -> dict:
    """size: "huge16" has patches of 16 px."""
    small = size == "huge"  # patches of 14 px: 16 x 16 patches, 8 x 8 cells
    table = mae.pretrain_without_task(size.removesuffix("16"), epochs) | cite(
        "ours: 800 epochs, 300 for ablations", total_epochs=epochs
    ) | cite(
        "MAE; ours", model=dict(patch_size=14 if small else 16)
    ) | cite(
        "review; of huge ours", model=dict(fusion="mean", decoder_depth=2 if size == "base" else 4)
    ) | cite(
        "review: 60 % of 7 x 7 cells of 32 px; 8 x 8 of 28 px",
        mask=dict(kind="random", cell=2, num_masked=4 * mae.kept(64 if small else 49, 0.6))
    ) | cite(
        "review", target=dict(kind="dino_resnet50"),
        loss=dict(kind="smooth_l1", beta=2.0, global_weight=0.5)
    ) | cite(
        "ours", model=dict(grid_match="pool"),
        target=dict(image_px=256 if small else 224, dtype="bfloat16", norm="layernorm"),
        loss=dict(global_layers=2, global_hidden=2048, global_source="fused",
                  global_target="pool_then_norm"))
    if small:
        table |= cite("ours", data=dict(target_px=256, target_filter="bicubic"))
    return table


FULL = pretrain("base", 300.0)
CELLS_OF_16_PX = cite("review: 60 % of patches with a ViT as teacher",
                      mask=dict(cell=1, num_masked=mae.kept(196, 0.6)))


def with_teacher(kind: str, px: int = 224) -> dict:
    table = FULL | CELLS_OF_16_PX | cite("review", target=dict(kind=kind, image_px=px))
    if px != 224:  # the same grid, at another size
        table |= cite("ours", data=dict(target_px=px, target_filter="bicubic"))
    return table


def changed(source: str, **keys) -> dict:
    return FULL | cite(source, **keys)


ABLATIONS = {
    "full": FULL,
    "no_fusion": changed("MAE", model=dict(fusion="last")),
    "no_global": changed("review", loss=dict(global_weight=0.0)),
    "neither": changed("MAE", model=dict(fusion="last"), loss=dict(global_weight=0.0)),
    "decoder_1": changed("ours", model=dict(decoder_depth=1)),
    "decoder_4": changed("ours", model=dict(decoder_depth=4)),
    "decoder_8": changed("MAE", model=dict(decoder_depth=8)),
    "fusion_norm": changed("ours", model=dict(fusion="mean_norm")),
    "fusion_learned": changed("ours", model=dict(fusion="learned")),
    "fusion_upper": changed("ours", model=dict(fusion_blocks=(6, 7, 8, 9, 10, 11))),
    "target_none": changed("ours", target=dict(norm="none")),
    "target_l2": changed("ours", target=dict(norm="l2")),
    "target_whiten": changed("ours", target=dict(norm="whiten")),
    "grid_repeat": changed("ours", model=dict(grid_match="repeat")),
    "grid_resize_teacher": changed("ours", target=dict(image_px=448), data=dict(
        target_px=448, target_filter="bicubic")),
    "global_last": changed("ours", loss=dict(global_source="last")),
    "global_after_norm": changed("ours", loss=dict(global_target="mean_of_normalised")),
    "loss_squared": changed("ours", loss=dict(kind="squared")),
    "loss_beta_1": changed("ours", loss=dict(beta=1.0)),
    "teacher_dino": with_teacher("dino_vitb16"),
    "teacher_mae": with_teacher("mae_vitb16"),
    "teacher_mae_large": with_teacher("mae_vitl16"),
    "teacher_clip": with_teacher("clip_vitb16"),
    "teacher_dinov2": with_teacher("dinov2_vitb14", 196),  # 14 x 14 tokens of 14 px
}


def diversity(name: str) -> dict:
    """50,000 images, unaugmented, of which a teacher sees 224 px."""
    table = cite("our names", target=dict(kind=name)) | cite(
        "ours: the standard error of S is below 0.001", eval=dict(split="train", limit=50_000),
        total_steps=196, total_epochs=0.0, data=dict(global_batch_size=256)
    ) | cite(
        "the evaluation of the teachers: 256 px, then 224", data=dict(
            image_px=224, eval_resize="crop", eval_crop_ratio=0.875, crop="none", flip=0.0,
            color_jitter=0.0, randaugment="", eval_split="train"))
    if name in ("hog", "pixels"):
        return table | cite("ViT, MAE", target=dict(image_px=224, patch_size=16))
    if name.startswith("dinov2"):
        return table | cite("16 x 16 tokens", target=dict(image_px=224))
    return table


TEACHERS = ("dino_resnet50", "dino_vits16", "dino_vitb16", "mae_vitb16", "mae_vitl16",
            "clip_vitb16", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "hog", "pixels")
RECIPES = {
    ("img2vec/pretrain", "base_300e"): FULL,
    ("img2vec/pretrain", "base_800e"): pretrain("base", 800.0),
    ("img2vec/pretrain", "large_800e"): pretrain("large", 800.0),
    ("img2vec/pretrain", "huge_800e"): pretrain("huge", 800.0),
    ("img2vec/pretrain", "huge16_800e"): pretrain("huge16", 800.0),
    **{("img2vec/finetune", size): mae.finetune(size) for size in SIZES},
    **{("img2vec/linear_probe", size): mae.probe(size) for size in SIZES},
    **{("img2vec/linear_probe", f"{size}_mean"): mae.probe(size) | cite(
        "ours: what the global loss has trained", probe=dict(feature="mean")) for size in SIZES},
    **{("img2vec/ablations", name, "pretrain"): table for name, table in ABLATIONS.items()},
    **{("img2vec/ablations", name, "finetune"): mae.finetune("base") for name in ABLATIONS},
    **{("img2vec/ablations", name, "probe"): mae.probe("base") for name in ABLATIONS},
    ("img2vec/ablations", "target_whiten", "statistics"): diversity("dino_resnet50"),
    **{("img2vec/diversity", "", name): diversity(name) for name in TEACHERS},
}
