"""configs/beit3.

Sources: BEiT-3 (arXiv 2208.10442); microsoft/unilm beit3/: get_started (one page a task),
run_beit3_finetuning.py, datasets.py, utils.py. Where base and large have no published number, the
giant's or ours stands, and that is said.
"""

from recipe_numbers.table import CROPS, HALF, IMAGENET, MIX, OURS, RAND_M9, UNILM, cite

# Table 2 and the released files; small is ours, base24 Magneto's (arXiv 2210.06423, Sec. 7)
NETWORK = {
    name: cite("Table 2; microsoft/unilm beit3/modeling_utils.py", model=dict(
        width=width, depth=depth, num_heads=heads, patch_size=patch))
    for name, width, depth, heads, patch in (
        ("small", 384, 12, 6, 16), ("base24", 544, 24, 16, 16), ("base", 768, 12, 12, 16),
        ("large", 1024, 24, 16, 16), ("giant", 1408, 40, 16, 14))}
NETWORK["giant"] |= cite("Table 2: 6,144 hidden", model=dict(mlp_ratio=6144 / 1408))
WORDS = cite("issue 1318: 64,010 rows", model=dict(vocab_size=64010))
TEXT_CROPS = cite("datasets.py", data=dict(crop_scale=(0.5, 1.0)))
SQUASH = cite("datasets.py", data=dict(eval_resize="squash", eval_crop_ratio=0.0))
TEXTS = UNILM | OURS | CROPS | WORDS | TEXT_CROPS | SQUASH | cite(
    "utils.py", optim=dict(min_learning_rate=1e-6)) | cite(
    "datasets.py", data=HALF) | cite(
    "get_started, --num_max_bpe_tokens", data=dict(text_length=64))
EVERY_EPOCH = cite("run_beit3_finetuning.py", eval=dict(every_epochs=1.0, every_steps=0))
# of VQA and captioning
VL_M7 = cite("get_started, --randaug; randaug.py", data=dict(randaugment="vl-m7"))


def sized(px: int, source: str = "get_started") -> dict:
    return cite(source, data=dict(image_px=px), model=dict(image_px=px))


# --- pre-training ---------------------------------------------------------------------------------

CORRUPTION = (0.8, 0.1, 0.1)


def pretrain(name: str) -> dict:
    is_giant, is_short = name.startswith("giant"), name in ("small", "base24")
    network = name.removesuffix("_paper")
    table = UNILM | OURS | CROPS | NETWORK[network] | WORDS | sized(224, "Table 11") | cite(
        "Table 11; of base and large nothing was published", total_steps=1_000_000,
        total_epochs=0.0, data=dict(global_batch_size=6144, color_jitter=0.4, flip=0.5),
        model=dict(drop_path_rate=0.1),
        optim=dict(learning_rate=1e-3, warmup_steps=10_000, weight_decay=0.05, b1=0.9, b2=0.98,
                   eps=1e-6, clip_norm=3.0),
    ) | cite(
        "Sec. 2.2: 40 % of the patches, 15 % and 50 % of the words", mask=dict(
            image=dict(num_masked=102 if is_giant else 78), text=dict(rate=0.15),
            pair=dict(rate=0.5))
    ) | cite(
        "microsoft/unilm beit2/masking_generator.py",
        mask=dict(image=dict(kind="block_exact", min_block=16))
    ) | cite(
        "ours: as in captioning", mask=dict(text=dict(corruption=CORRUPTION),
                                            pair=dict(corruption=CORRUPTION))
    ) | cite(
        "Sec. 2.2: BEiT v2's tokenizer", target=dict(
            kind="vqkd", image_px=256 if is_giant else 224, patch_size=16, width=768, depth=12,
            num_heads=12, mlp_ratio=4.0, code_dim=32, codebook_size=8192)
    ) | cite(
        "ours: lengths and crops, BEiT v2's of images alone", data=HALF | dict(
            text_length=196, streams=dict(images=dict(text_length=0, crop_scale=(0.2, 1.0)),
                                          pairs=dict(text_length=64, crop_scale=(0.5, 1.0))))
    ) | cite(
        "ours: BEiT's", optim=dict(min_learning_rate=1e-5)
    ) | cite(
        "ours: no token, no position", optim=dict(decay_rule="kernels_and_words")
    ) | cite("ours", eval=dict(every_steps=10_000, every_epochs=0.0, limit=10_000))
    if is_giant:  # the tokenizer's grid of 16 px is to be the model's of 14 px
        table |= cite("ours", data=dict(target_px=256, target_filter="bicubic"))
    if name == "giant_paper":
        table |= cite("Sec. 2.1, Table 2", model=dict(attention_experts="shared", vl_layers=3)) | \
            cite("Sec. 2.3, footnote", model=dict(initializer="beit")) | cite(
                "Table 2: as many numbers as without these norms", model=dict(subln=False))
    if is_short:
        table |= cite(
            "ours: a quarter of batch and rate", total_steps=100_000,
            data=dict(global_batch_size=1536), model=dict(drop_path_rate=0.0),
            optim=dict(learning_rate=2.5e-4, warmup_steps=2_000))
    return table


def itc(size: str, layer_decay: float) -> dict:
    return TEXTS | EVERY_EPOCH | NETWORK[size] | sized(224, "Appendix A") | cite(
        "Appendix A: the giant's", total_epochs=5.0, total_steps=0,
        data=dict(global_batch_size=16384), model=dict(drop_path_rate=0.3),
        optim=dict(learning_rate=3e-5, warmup_epochs=1.0, weight_decay=0.05)
    ) | cite(
        "Appendix A" if size == "giant" else "as in retrieval", optim=dict(layer_decay=layer_decay)
    ) | cite("ours", eval=dict(limit=5_000), data=dict(captions="drawn"))


# --- fine-tuning ----------------------------------------------------------------------------------

def vqa(size: str, px: int, learning_rate: float, b2: float, drop_path_rate: float,
        head_rate: float) -> dict:
    source = "Table 12" if size == "giant" else "get_started_for_vqav2.md"
    return TEXTS | VL_M7 | EVERY_EPOCH | NETWORK[size] | sized(px, source) | cite(
        source, total_epochs=10.0, total_steps=0, data=dict(global_batch_size=128),
        model=dict(drop_path_rate=drop_path_rate),
        optim=dict(learning_rate=learning_rate, warmup_epochs=1.0, weight_decay=0.01, b1=0.9,
                   b2=b2, layer_decay=1.0, head_rate=head_rate)
    ) | cite(
        "of the answers", model=dict(num_classes=-1)
    ) | cite(
        "datasets.py: train and val but 1,000 images",
        data=dict(train_split="train2014+val2014", eval_split="holdout", holdout_images=1000,
                  answers_min_count=9))


def nlvr2(size: str, learning_rate: float, layer_decay: float, drop_path_rate: float,
          weight_decay: float) -> dict:
    source = "Table 12" if size == "giant" else "get_started_for_nlvr2.md"
    return TEXTS | EVERY_EPOCH | NETWORK[size] | sized(224, source) | cite(
        source, total_epochs=20.0, total_steps=0, data=dict(global_batch_size=256),
        model=dict(drop_path_rate=drop_path_rate),
        optim=dict(learning_rate=learning_rate, warmup_epochs=5.0, weight_decay=weight_decay,
                   layer_decay=layer_decay)
    ) | cite("get_started_for_nlvr2.md", data=dict(eval_split="dev"))


def captioning(size: str, learning_rate: float) -> dict:
    table = TEXTS | VL_M7 | NETWORK[size] | cite(
        "engine_for_finetuning.py", mask=dict(corruption=CORRUPTION)
    ) | cite(
        "get_started_for_captioning.md", data=dict(text_length=32, global_batch_size=256),
        optim=dict(learning_rate=learning_rate, layer_decay=1.0),
        loss=dict(label_smoothing=0.1), measure=dict(beams=3, length_penalty=0.6, max_length=64)
    ) | cite(
        "Karpathy's splits: train with restval", data=dict(
            train_split="train+restval", eval_split="val", captions="each"))
    if size == "giant":
        return table | sized(392, "Table 13") | cite(
            "Table 13", total_steps=16_000, total_epochs=0.0, model=dict(drop_path_rate=0.3),
            mask=dict(rate=0.6), optim=dict(warmup_steps=1_600, weight_decay=0.01)
        ) | cite("ours", eval=dict(every_steps=1_600, every_epochs=0.0))
    return table | EVERY_EPOCH | sized(480) | cite(
        "get_started_for_captioning.md", total_epochs=10.0, total_steps=0,
        model=dict(drop_path_rate=0.1), mask=dict(rate=0.7),
        optim=dict(warmup_epochs=1.0, weight_decay=0.05),
        loss=dict(drop_worst=0.2, drop_worst_after=12_000))


def retrieval(data: str, size: str, learning_rate: float) -> dict:
    source = "Table 14" if size == "giant" else "get_started_for_retrieval.md"
    epochs, warmup = {"coco": (15.0, 3.0), "f30k": (20.0, 5.0)}[data]
    return TEXTS | EVERY_EPOCH | NETWORK[size] | sized(
        420 if size == "giant" else 384, source) | cite(
        source, total_epochs=epochs, total_steps=0, data=dict(global_batch_size=3072),
        model=dict(drop_path_rate=0.3 if size == "giant" else 0.2),
        optim=dict(learning_rate=learning_rate, warmup_epochs=warmup, weight_decay=0.05,
                   layer_decay={"base": 0.65, "large": 0.85, "giant": 0.95}[size])
    ) | cite(
        "Karpathy's splits; COCO's 5,000 test images also as five times 1,000",
        data=dict(train_split="train+restval" if data == "coco" else "train", eval_split="val",
                  captions="each"),
        measure=dict(folds=5 if data == "coco" else 0))


def classifier(size: str, learning_rate: float, layer_decay: float,
               drop_path_rate: float) -> dict:
    return UNILM | OURS | CROPS | RAND_M9 | MIX | EVERY_EPOCH | NETWORK[size] | sized(224) | cite(
        "get_started_for_image_classification.md", total_epochs=50.0, total_steps=0,
        data=dict(global_batch_size=1024), model=dict(drop_path_rate=drop_path_rate),
        optim=dict(learning_rate=learning_rate, warmup_epochs=5.0, weight_decay=0.05,
                   layer_decay=layer_decay), augment=dict(group_size=128)  # 8 x 128
    ) | cite(
        "run_beit3_finetuning.py", optim=dict(min_learning_rate=1e-6),
        data=dict(color_jitter=0.4), augment=dict(random_erasing=0.25),
        loss=dict(label_smoothing=0.1)
    ) | cite(
        "datasets.py: crop_pct 1.0 and ImageNet's statistics",
        data=dict(eval_crop_ratio=1.0, eval_resize="crop") | IMAGENET
    ) | cite("of the data", model=dict(num_classes=-1))


RECIPES = {
    **{("beit3/pretrain", name): pretrain(name)
       for name in ("base", "large", "giant", "giant_paper", "small", "base24")},
    ("beit3/itc", "base"): itc("base", 0.65),
    ("beit3/itc", "large"): itc("large", 0.85),
    ("beit3/itc", "giant"): itc("giant", 0.95),
    ("beit3/vqa", "base"): vqa("base", 480, 3e-5, 0.98, 0.1, 20.0),
    ("beit3/vqa", "large"): vqa("large", 480, 2e-5, 0.98, 0.15, 20.0),
    ("beit3/vqa", "large_768"): vqa("large", 768, 2e-5, 0.98, 0.15, 20.0),
    ("beit3/vqa", "giant"): vqa("giant", 756, 1e-5, 0.999, 0.4, 1.0),
    ("beit3/nlvr2", "base"): nlvr2("base", 7e-4, 0.65, 0.2, 0.2),
    ("beit3/nlvr2", "base_indomain"): nlvr2("base", 5e-4, 0.65, 0.2, 0.2),
    ("beit3/nlvr2", "large"): nlvr2("large", 3e-4, 0.85, 0.2, 0.2),
    ("beit3/nlvr2", "large_indomain"): nlvr2("large", 1e-4, 0.85, 0.2, 0.2),
    ("beit3/nlvr2", "giant"): nlvr2("giant", 1e-3, 0.8, 0.4, 0.05),
    ("beit3/captioning", "base"): captioning("base", 4e-5),
    ("beit3/captioning", "base_indomain"): captioning("base", 4e-5),
    ("beit3/captioning", "base_nocaps"): captioning("base", 1e-5),
    ("beit3/captioning", "large"): captioning("large", 8e-6),
    ("beit3/captioning", "large_nocaps"): captioning("large", 8e-6),
    ("beit3/captioning", "giant"): captioning("giant", 8e-6),
    ("beit3/retrieval", "coco_base"): retrieval("coco", "base", 2e-4),
    ("beit3/retrieval", "f30k_base"): retrieval("f30k", "base", 1e-4),
    ("beit3/retrieval", "coco_large"): retrieval("coco", "large", 5e-5),
    ("beit3/retrieval", "f30k_large"): retrieval("f30k", "large", 5e-5),
    ("beit3/retrieval", "coco_giant"): retrieval("coco", "giant", 1e-5),
    ("beit3/retrieval", "f30k_giant"): retrieval("f30k", "giant", 1e-5),
    ("beit3/finetune", "base"): classifier("base", 7e-4, 0.65, 0.15),
    ("beit3/finetune", "large"): classifier("large", 2e-4, 0.8, 0.25),
}
