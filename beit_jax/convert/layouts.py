"""What belongs to a network: which of our leaves, with which dimensions, in sizes that agree.

A row is (our name, its dimensions, group). A dimension is a letter, which means one size wherever
it stands in a layout, a number, or a multiple as "3d". A leaf without a group is needed; those of
one group are all there, or none. Shapes are checked before anything is written.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping

_FLOATS = ("float16", "float32", "float64", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the leaves of a format's networks are.

    Attributes:
      rows: (our name, dimensions, group), see above.
      one_of: groups of which at least one is there.
      parts: (prefix, Layout): of a network of parts, either of which may be there alone.
      further: (shapes by name) -> faults that rows cannot tell.
    """

    rows: tuple[tuple[str, str, str], ...] = ()
    one_of: tuple[tuple[str, ...], ...] = ()
    parts: tuple[tuple[str, "Layout"], ...] = ()
    further: Callable[[Mapping[str, tuple[int, ...]]], list[str]] = lambda shapes: []


def check(leaves: Mapping, layout: Layout, dropped: Collection[str] = ()) -> None:
    """Raises ValueError, in one line, where something is missing or does not fit.

    Args:
      leaves: our flat names -> anything with shape and dtype. Names that no row has are left to
        the name tables.
      dropped: leaves that the user left out on purpose: they are not missed.
    """
    if not leaves:
        raise ValueError("there are no weights to convert")
    for name, leaf in leaves.items():
        if leaf.dtype.name not in _FLOATS:
            raise ValueError(f"{name} holds numbers of type {leaf.dtype}; weights are of "
                             f"{', '.join(_FLOATS)}")
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    faults = _faults(shapes, layout, set(dropped))
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ValueError(f"these are not the weights of a whole network: {'; '.join(faults[:4])}"
                         f"{more}")


def _faults(shapes: Mapping[str, tuple], layout: Layout, dropped: set[str]) -> list[str]:
    if layout.parts:
        found = [(prefix, part) for prefix, part in layout.parts
                 if any(name.startswith(prefix) for name in shapes)]
        faults = [] if found else [f"{' or '.join(p for p, _ in layout.parts)} is missing"]
        for prefix, part in found:
            own = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
            gone = {name.removeprefix(prefix) for name in dropped if name.startswith(prefix)}
            faults += [f"{prefix}{fault}" for fault in _faults(own, part, gone)]
        return faults
    present = {group for name, _, group in layout.rows if name in shapes}
    missing = [f"{name} is missing" for name, _, group in layout.rows
               if name not in shapes and name not in dropped and (not group or group in present)]
    gone = {group for name, _, group in layout.rows if name in dropped}
    missing += [f"{' or '.join(groups)} is missing" for groups in layout.one_of
                if not (present | gone) & set(groups)]
    return missing + _misfits(shapes, layout.rows) + layout.further(shapes)


def _misfits(shapes: Mapping[str, tuple], rows) -> list[str]:
    """Leaves whose dimensions are not those of their rows, or differ from what others say."""
    faults, sizes = [], {}  # letter -> (size, the leaf that said so)
    for name, dimensions, _ in rows:
        if name not in shapes:
            continue
        wanted, shape = dimensions.split(), shapes[name]
        if len(wanted) != len(shape) or 0 in shape:
            faults.append(f"{name} has shape {shape}, {len(wanted)} dimensions [{dimensions}] are "
                          "expected")
            continue
        for size, term in zip(shape, wanted):
            factor, letter = re.fullmatch(r"(\d*)(\w?)", term).groups()
            factor = int(factor or 1)
            if not letter:
                fits, known = size == factor, ""
            else:
                here = size // factor
                known_size, said_by = sizes.setdefault(letter, (here, name))
                fits = size % factor == 0 and known_size == here
                known = f", where {said_by} says {letter} = {known_size}"
            if not fits:
                faults.append(f"{name} has shape {shape}, [{dimensions}] is expected{known}")
                break
    return faults


def under(prefix: str, rows: tuple, leading: str = "", group: str = "") -> tuple:
    """The rows with something in front of names and dimensions, all of one group if it is named."""
    return tuple((prefix + name, f"{leading} {dimensions}".strip(), group or own)
                 for name, dimensions, own in rows)


def norm(size: str) -> tuple:
    return (("scale", size, ""), ("bias", size, ""))


def linear(size_in: str, size_out: str) -> tuple:
    return (("kernel", f"{size_in} {size_out}", ""), ("bias", size_out, ""))


_PLAIN_BLOCK = (
    under("norm1/", norm("d")) + under("norm2/", norm("d"))
    + (("attn/qkv/kernel", "d 3d", ""),) + under("attn/proj/", linear("d", "d"))
    + under("mlp/fc1/", linear("d", "m")) + under("mlp/fc2/", linear("m", "d"))
)
_BLOCK = _PLAIN_BLOCK + (
    ("gamma_1", "d", "layer scale"), ("gamma_2", "d", "layer scale"),
    ("attn/q_bias", "d", "query and value biases"), ("attn/v_bias", "d", "query and value biases"),
    ("attn/relative_position_bias_table", "t h", "position tables of the blocks"),
)
_TOKENS = (
    ("cls_token", "1 1 d", ""), ("pos_embed", "1 n d", "pos_embed"),
    ("patch_embed/proj/kernel", "p q 3 d", ""), ("patch_embed/proj/bias", "d", ""),
)


def _positions(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Relative-position tables have an odd square's rows, or product's, and 3 more; heads divide
    the width."""
    faults = []
    for name in ("rel_pos_bias/relative_position_bias_table",
                 "blocks/attn/relative_position_bias_table"):
        shape = shapes.get(name, ())
        if len(shape) < 2:
            continue
        *_, rows, heads = shape
        odd = rows - 3
        if odd < 1 or not odd % 2:
            faults.append(f"{name} has {rows} rows, which no grid of patches has")
        width = shapes.get("cls_token", (0,))[-1]
        if width % heads:
            faults.append(f"{name} is of {heads} heads, which do not divide the width {width}")
    return faults


# BEiT and BEiT v2, under every name
VIT = Layout(
    _TOKENS
    + (("mask_token", "1 1 d", "mask_token"),
       ("rel_pos_bias/relative_position_bias_table", "T h", "rel_pos_bias"))
    + under("blocks/", _BLOCK, "l")
    + tuple((f"cls_pt_layers/{name}", f"k {dimensions}", f"cls_pt_layers{group and ' '}{group}")
            for name, dimensions, group in _BLOCK)
    + under("norm/", norm("d"), group="norm")
    + under("cls_pt_norm/", norm("d"), group="cls_pt_norm")
    + under("fc_norm/", norm("d"), group="fc_norm")
    + under("lm_head/", linear("d", "v"), group="lm_head")
    + under("cls_pt_lm_head/", linear("d", "v"), group="cls_pt_lm_head")
    + under("head/", linear("d", "c"), group="head"),
    one_of=(("norm", "fc_norm"),), further=_positions)

_TOWER = under("blocks/", _BLOCK, "l") + under("fc_norm/", norm("d"), group="fc_norm")
_PLAIN_TOKENS = tuple((name, dimensions, "") for name, dimensions, _ in _TOKENS)
_OTHER_SIZES = str.maketrans("ldmth", "LDMTH")  # of a decoder: depth, width, ...
VQKD = Layout(
    under("encoder/", _PLAIN_TOKENS + _TOWER)
    + tuple((f"decoder/{name}", dimensions.translate(_OTHER_SIZES).replace("p q 3", "1 1 e"),
             group and f"decoder's {group}")
            for name, dimensions, group in _PLAIN_TOKENS + _TOWER)
    + under("encode_task_layer/fc1/", linear("d", "d"))
    + under("encode_task_layer/fc2/", linear("d", "e"))
    + under("decode_task_layer/fc1/", linear("D", "D"))
    + under("decode_task_layer/fc2/", linear("D", "f"))
    + (("codebook/embedding", "v e", ""), ("usage/cluster_size", "v", "usage")))

_BIASED_BLOCK = _PLAIN_BLOCK + (("attn/qkv/bias", "3d", ""),)
DINO = Layout(_PLAIN_TOKENS + under("blocks/", _BIASED_BLOCK, "l") + under("norm/", norm("d")))
DINOV2 = Layout(DINO.rows + under("blocks/", (("ls1/gamma", "d", ""), ("ls2/gamma", "d", "")), "l")
                + (("register_tokens", "1 r d", "register_tokens"),))
CLIP = Layout(
    tuple(row for row in _PLAIN_TOKENS if row[0] != "patch_embed/proj/bias")
    + (("proj/kernel", "d c", ""),) + under("pre_norm/", norm("d"))
    + under("blocks/", _BIASED_BLOCK, "l") + under("norm/", norm("d")))

_MAE_BLOCK = _PLAIN_BLOCK + tuple((f"attn/{part}_bias", "d", "") for part in "qkv")
_DECODER = "decoder"
MAE = Layout(
    _PLAIN_TOKENS + under("blocks/", _MAE_BLOCK, "l")
    + under("norm/", norm("d"), group="norm") + under("fc_norm/", norm("d"), group="fc_norm")
    + under("head/", linear("d", "c"), group="head")
    + (("mask_token", "1 1 D", _DECODER), ("decoder_pos_embed", "1 n D", _DECODER))
    + under("decoder_embed/", linear("d", "D"), group=_DECODER)
    + tuple((f"decoder_blocks/{name}", f"L {dimensions.translate(_OTHER_SIZES)}", _DECODER)
            for name, dimensions, _ in _MAE_BLOCK)
    + under("decoder_norm/", norm("D"), group=_DECODER)
    + under("decoder_pred/", linear("D", "x"), group=_DECODER),
    one_of=(("norm", "fc_norm"),))


def _expert(letter: str, group: str) -> tuple:
    """What either modality of BEiT-3 has of its own in a block."""
    rows = tuple(row for name in ("q_proj", "k_proj", "v_proj", "out_proj")
                 for row in under(f"self_attn/{name}/{letter}/", linear("d", "d")))
    rows += under(f"self_attn/inner_attn_ln/{letter}/", norm("d"))
    rows += under(f"self_attn_layer_norm/{letter}/", norm("d"))
    rows += under(f"final_layer_norm/{letter}/", norm("d"))
    rows += under(f"ffn/{letter}/fc1/", linear("d", "m"))
    rows += under(f"ffn/{letter}/ffn_layernorm/", norm("m"))
    rows += under(f"ffn/{letter}/fc2/", linear("m", "d"))
    return under("blocks/", rows, "l", group)


_TEXT = "experts of text"
BEIT3 = Layout(
    (("vision_embed/cls_token", "1 1 d", ""), ("vision_embed/mask_token", "1 1 d", "mask_token"),
     ("vision_embed/proj/kernel", "p q 3 d", ""), ("vision_embed/proj/bias", "d", ""),
     ("embed_positions/A/embedding", "n d", ""), ("embed_positions/B/embedding", "t d", _TEXT),
     ("text_embed/embedding", "v d", _TEXT))
    + _expert("A", "") + _expert("B", _TEXT)
    + under("layer_norm/A/", norm("d"), group="layer_norm/A")
    + under("layer_norm/B/", norm("d"), group="layer_norm/B")
    + (("vision_head/kernel", "d o", "retrieval"), ("language_head/kernel", "d o", "retrieval"),
       ("logit_scale", "", "retrieval"))
    + under("mlm_head/", linear("d", "v"), group="mlm_head")
    + under("mim_head/", linear("d", "w"), group="mim_head")
    + under("pooler/norm/", norm("d"), group="pooler")
    + under("pooler/dense/", linear("d", "d"), group="pooler")
    + under("head/fc1/", linear("d", "2d"), group="head of VQA")
    + under("head/norm/", norm("2d"), group="head of VQA")
    + under("head/fc2/", linear("2d", "a"), group="head of VQA")
    + under("head/norm1/", norm("4d"), group="head of NLVR2")
    + under("head/dense1/", linear("4d", "x"), group="head of NLVR2")
    + under("head/norm2/", norm("x"), group="head of NLVR2")
    + under("head/dense2/", linear("x", "y"), group="head of NLVR2")
    + under("fc_norm/", norm("d"), group="fc_norm")
    + under("head/", linear("d", "c"), group="head"),
    one_of=(("layer_norm/A", "fc_norm", "pooler"),))


class _Chain:
    """Follows the channels through convolutions, and collects what does not fit."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes, self.faults = shapes, []

    def leaf(self, name: str, rank: int) -> tuple[int, ...] | None:
        """Its shape, or None, and then a fault."""
        shape = self.shapes.get(name)
        if shape is None:
            self.faults.append(f"{name} is missing")
        elif len(shape) != rank or 0 in shape:
            self.faults.append(f"{name} has shape {shape}, {rank} dimensions are expected")
            shape = None
        return shape

    def convolution(self, name: str, channels: int | None, biases: tuple[str, ...]) -> int | None:
        """Channels that leave a kernel [kh, kw, in, out] and its biases [out]; None: not known."""
        kernel = self.leaf(name, 4)
        if kernel is None:
            return None
        if channels not in (None, kernel[2]):
            self.faults.append(f"{name} takes {kernel[2]} channels, {channels} come in")
        for bias in biases:
            shape = self.leaf(bias, 1)
            if shape is not None and shape[0] != kernel[3]:
                self.faults.append(f"{bias} has {shape[0]} numbers, {name} makes {kernel[3]}")
        return kernel[3]

    def numbers(self, pattern: str, first: int, what: str) -> list[int]:
        """The numbers that stand in names, which must be first, first + 1, ..."""
        found = sorted({int(m[1]) for name in self.shapes if (m := re.match(pattern, name))})
        if not found or found != list(range(first, first + len(found))):
            self.faults.append(f"{what} {found[:20]} are there, {first} to the last are needed")
        return found


def _dvae(channels_in: int | None) -> Callable:
    """Faults of one network of DALL-E's dVAE: input, groups of residual blocks, output."""
    def faults(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        chain, lengths = _Chain(shapes), set()

        def convolution(path: str, channels: int | None) -> int | None:
            return chain.convolution(f"{path}/w", channels, (f"{path}/b",))

        x = convolution("blocks/input", channels_in)
        for group in chain.numbers(r"blocks/group_(\d+)/", 1, "groups"):
            blocks = chain.numbers(rf"blocks/group_{group}/block_(\d+)/", 1, f"blocks of {group}")
            for block in blocks:
                path = f"blocks/group_{group}/block_{block}"
                convs = chain.numbers(rf"{path}/res_path/conv_(\d+)/", 1, f"layers of {path}")
                lengths.add((len(blocks), len(convs)))
                y = x
                for conv in convs:
                    y = convolution(f"{path}/res_path/conv_{conv}", y)
                if x != y or f"{path}/id_path/w" in shapes:
                    skip = convolution(f"{path}/id_path", x)
                    if None not in (skip, y) and skip != y:
                        chain.faults.append(f"{path}: {skip} and {y} channels are to be added")
                x = y
        if len(lengths) > 1:
            chain.faults.append("groups differ in their numbers of blocks or layers")
        convolution("blocks/output/conv", x)
        return chain.faults

    return faults


def _resnet(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Faults of a ResNet of bottlenecks, with the running averages of its norms."""
    chain = _Chain(shapes)

    def convolution(path: str, conv: str, norm_name: str, channels: int | None) -> int | None:
        of_norm = tuple(f"{collection}{path}{norm_name}/{leaf}" for collection, leaf in (
            ("", "scale"), ("", "bias"), ("batch_stats/", "mean"), ("batch_stats/", "var")))
        return chain.convolution(f"{path}{conv}/kernel", channels, of_norm)

    x = convolution("", "conv1", "bn1", 3)
    for stage in (1, 2, 3, 4):
        for block in chain.numbers(rf"layer{stage}/block(\d+)/", 0, f"blocks of stage {stage}"):
            path, y = f"layer{stage}/block{block}/", x
            for j in (1, 2, 3):
                y = convolution(path, f"conv{j}", f"bn{j}", y)
            if block == 0 or x != y or f"{path}downsample_conv/kernel" in shapes:
                convolution(path, "downsample_conv", "downsample_bn", x)
            x = y
    return chain.faults


DALLE = Layout(parts=(("encoder/", Layout(further=_dvae(3))),
                      ("decoder/", Layout(further=_dvae(None)))))
RESNET = Layout(further=_resnet)
