"""BEiT-3: masked data modelling of images, texts and pairs, all three in every step.

python -m beit_jax.main --config configs/beit3/pretrain.py:base --workdir runs/beit3 \
    --config.target.checkpoint=vqkd.npz --config.data.tokenizer=beit3.spm \
    --config.data.streams.images.path=imagenet21k \
    --config.data.streams.texts.annotations='texts/{split}.txt' \
    --config.data.streams.pairs.annotations='pairs/{split}.jsonl' \
    --config.data.streams.pairs.path=pairs/images

On a CPU, in seconds: ":smoke". Images alone are ImageNet-21k (14 M; paper, Table 3), as a folder: a
million steps go through it 145 times, and would go through ImageNet-1k 1,600 times, which short
runs may take: --config.data.streams.images.name=imagenet2012. A folder without a val/ of its own
has no images to evaluate on; losses of pairs are measured all the same.

Pairs of COCO or Visual Genome must leave out the images of the splits that are measured later:
Karpathy's val and test, and COCO's val among Visual Genome's.

The authors never published this program, and no weights of the giant. What the paper and its
authors say: the objective, the masked shares, one step of 2048 images, 2048 texts and 2048 pairs,
the optimizer, its schedule, drop path, colour jitter and resolution. All of Table 11 is the
giant's: how base and large were trained for their release (steps, batch, rate) was never published,
and here they take the giant's numbers. Ours, where they are silent:
equal weights of the losses, lengths of texts, 80/10/10, crops, no weight decay on tokens and
positions, the last learning rate, the initial values; docs/beit3.md has the reasons.
Variants: base, large, giant (the released layout of weights, separate attention for images and
texts), giant_paper (the paper's: shared attention, a third expert in the top 3 blocks), and for
smaller budgets small and base24 (24 blocks of width 544, as in Magneto), at a quarter of the batch
and, so, of the peak learning rate.
Source: BEiT-3 (arXiv 2208.10442), Sec. 2 and Tables 2 and 11; Magneto (arXiv 2210.06423), Sec. 7.
"""

from configs import common

PAPER = dict(batch=6144, learning_rate=1e-3, steps=1_000_000, warmup=10_000, drop_path_rate=0.1)
# ours: batch and rate by one factor, no drop path in a short run
SHORT = dict(batch=1536, learning_rate=2.5e-4, steps=100_000, warmup=2_000, drop_path_rate=0.0)
RUNS = {"base": PAPER, "large": PAPER, "giant": PAPER, "giant_paper": PAPER,
        "small": SHORT, "base24": SHORT}


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, tuple(RUNS))
    run, size = RUNS[name], name.removesuffix("_paper")
    network = common.BEIT3[size]
    config = common.base()
    config.task = "beit3_pretrain"
    config.total_steps = run["steps"]
    config.data.update(
        name="mixture", tokenizer="", text_length=196, global_batch_size=run["batch"],
        image_px=224, color_jitter=0.4, interpolation="bicubic", **common.HALF_MEAN_STD,
        # the same crop; 16 px of it for each patch of the model, so that the grids agree
        **({} if network["patch_size"] == 16 else dict(target_px=256, target_filter="bicubic")),
        streams=dict(
            images=dict(name="folder", path="", text_length=0, crop_scale=(0.2, 1.0)),
            texts=dict(name="documents", annotations=""),
            # larger crops than of images alone, so that the captions stay true
            pairs=dict(name="pairs", annotations="", path="", text_length=64,
                       crop_scale=(0.5, 1.0)),
        ),
    )
    config.model = dict(image_px=224, **network, vocab_size=64010,
                        drop_path_rate=run["drop_path_rate"])
    if name == "giant_paper":
        config.model.update(attention_experts="shared", vl_layers=3, subln=False,
                            initializer="beit")
    patches = (224 // network["patch_size"]) ** 2
    config.mask = dict(
        image=dict(kind="block_exact", num_masked=patches * 4 // 10, min_block=16),  # 78 or 102
        text=dict(rate=0.15, corruption=(0.8, 0.1, 0.1)),
        pair=dict(rate=0.5, corruption=(0.8, 0.1, 0.1)),
    )
    config.target = dict(
        kind="vqkd", checkpoint="",
        image_px=224 if network["patch_size"] == 16 else 256, patch_size=16, **common.VIT["base"],
        code_dim=32, codebook_size=8192,
    )
    if network["patch_size"] != 16:  # the public tokenizer was trained at 224 px
        config.target.adapt = ("resize_pos_embed_offset",)
    config.loss = dict(sequential=size == "giant")
    config.optim.update(
        learning_rate=run["learning_rate"], min_learning_rate=1e-5, warmup_steps=run["warmup"],
        weight_decay=0.05, decay_rule="kernels_and_words", b1=0.9, b2=0.98, eps=1e-6,
        clip_norm=3.0,
    )
    config.eval.update(every_steps=10_000, limit=10_000)
    return common.shrink(config) if smoke else config
