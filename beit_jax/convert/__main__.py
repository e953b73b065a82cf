"""python -m beit_jax.convert --source microsoft --input beit_base_patch16_224.pth --output beit.npz

Converts weights from another framework's file into one of ours, or with --reverse from a run's
workdir (or a file of ours) into the other framework's. Every array must find its place.
"""

import argparse
import contextlib
import json
import os
import re
import sys

import numpy as np

from beit_jax import checkpoint, convert
from beit_jax.convert import engine, files, huggingface, layouts, tables
from beit_jax.lazy_array import printable


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 1 after one line about what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m beit_jax.convert", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--source", required=True, choices=tuple(convert.FORMATS),
                        help="the other framework")  # fmt: skip
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE",
                        help="what to read; dalle takes encoder and decoder")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FILE",
                        help=".npz or .safetensors; with --reverse also .pth")  # fmt: skip
    parser.add_argument("--reverse", action="store_true", help="from ours to the other framework")
    parser.add_argument("--drop", action="append", default=[], metavar="REGEX", type=_regex,
                        help="leave out input arrays whose whole name matches")  # fmt: skip
    parser.add_argument("--num_heads", type=int, default=0,
                        help="huggingface, --reverse: if no table tells")  # fmt: skip
    parser.add_argument("--statistics", choices=tuple(tables.STATISTICS),
                        help="mean and deviation of the pixels that the weights were trained on, "
                        "where the names do not tell: 0.5, or ImageNet's, or CLIP's")  # fmt: skip
    parser.add_argument("--helpfull", action="help", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    try:
        export(arguments) if arguments.reverse else import_(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()), 2000)}", file=sys.stderr)
        return 1
    return 0


def import_(arguments) -> None:
    """Another framework's files -> one file of our flat names."""
    if os.path.splitext(arguments.output)[1] not in (".npz", ".safetensors"):
        raise ValueError(f"--output={arguments.output}: we read .npz and .safetensors; name it so")
    if len(arguments.input) > 1 and arguments.source != "dalle":
        raise ValueError(f"--input names {len(arguments.input)} files; {arguments.source} has one")
    with contextlib.ExitStack() as stack:
        reference = {}
        for path in arguments.input:
            arrays = stack.enter_context(files.opened(path))
            if arguments.source == "dalle":
                arrays = _with_part(path, arrays)
            if reference.keys() & arrays.keys():
                raise ValueError(f"{path} is the same part of DALL-E as the file before it")
            reference |= arrays
        fmt = convert.get_format(arguments.source)
        kept = _drop(reference, arguments.drop)
        prefix = engine.common_prefix(kept, fmt)
        if prefix:
            print(f"all names stand behind {prefix!r}: read without it")
            rest = [regex for regex in arguments.drop  # what meant the full names has had its say
                    if not any(map(regex.fullmatch, reference))]
            reference, kept = ({name.removeprefix(prefix): value for name, value in arrays.items()}
                               for arrays in (reference, kept))
            kept = _drop(kept, rest)
        # what is dropped tells of the rest, too
        record = engine.record_of(reference, arguments.source, fmt,
                                  tables.STATISTICS.get(arguments.statistics))
        ours, report = engine.plan_import(kept, fmt)
        layouts.check(ours, fmt.layout, engine.targets(reference.keys() - kept.keys(), fmt))
        files.write(arguments.output, ours, record=record)
    _tell(report, ours, arguments.output)
    _tell_statistics(record)


def export(arguments) -> None:
    """A run's workdir, or a file of ours -> another framework's file."""
    if len(arguments.input) > 1:
        raise ValueError("--reverse reads one --input: a workdir or a file of ours")
    if arguments.statistics:
        raise ValueError("--statistics belongs to an import: other programs' files have no place "
                         "for them")
    is_vqkd = arguments.source == "vqkd"  # its codebook is no parameter
    folder = os.path.dirname(os.path.abspath(arguments.output))
    if arguments.source == "huggingface":
        _check_no_config_is_lost(folder)
    ours = checkpoint.load_variables(arguments.input[0], collections=is_vqkd)
    kept, fmt = _drop(ours, arguments.drop), convert.get_format(arguments.source)
    reference, report = engine.plan_export(kept, fmt)
    layouts.check(kept, fmt.layout, ours.keys() - kept.keys())
    config = None
    if arguments.source == "huggingface":
        config = huggingface.config_of(kept, arguments.num_heads)
    if arguments.source == "dalle":
        _write_parts(arguments.output, reference)
    else:
        nest = "model" if arguments.source in ("microsoft", "vqkd") else ""
        files.write(arguments.output, reference, nest)
    if config is not None:
        path = os.path.join(folder, "config.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)
        print(f"wrote {path} (layer_norm_eps {huggingface.LAYER_NORM_EPS}, as trained)")
    _tell(report, reference, arguments.output)


def _check_no_config_is_lost(folder: str) -> None:
    """Raises ValueError where the config.json of an export would take the place of another's."""
    path = os.path.join(folder, "config.json")
    is_workdir = any(os.path.exists(os.path.join(folder, name))
                     for name in ("checkpoints", "metrics.jsonl", "result.json"))
    try:
        with open(path, encoding="utf-8") as file:
            is_theirs = json.load(file)["model_type"] == "beit"
    except FileNotFoundError:
        is_theirs = True
    except (ValueError, LookupError, TypeError, RecursionError):
        is_theirs = False
    if is_workdir or not is_theirs:
        what = "is a run's workdir" if is_workdir else "holds a config.json of something else"
        raise ValueError(f"{folder} {what}, and the export writes a config.json of its own: name "
                         "another folder in --output")


def _with_part(path: str, arrays: dict) -> dict:
    """DALL-E's two files have equal names: the first layer's shape says which one it is."""
    if "blocks.input.w" not in arrays or len(arrays["blocks.input.w"].shape) != 4:
        raise ValueError(f"{path} has no blocks.input.w: neither encoder nor decoder of DALL-E")
    part = "encoder" if arrays["blocks.input.w"].shape[-1] > 1 else "decoder"
    return {f"{part}/{name}": value for name, value in arrays.items()}


def _write_parts(path: str, reference: dict) -> None:
    """One file per network, with _encoder and _decoder in the name if there are both."""
    parts = sorted({name.split("/")[0] for name in reference})
    for part in parts:
        root, suffix = os.path.splitext(path)
        where = path if len(parts) == 1 else f"{root}_{part}{suffix}"
        own = {n.removeprefix(part + "/"): v for n, v in reference.items() if n.startswith(part)}
        files.write(where, own)
        print(f"wrote {part} to {where}")


def _regex(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _drop(arrays: dict, patterns: list[re.Pattern]) -> dict:
    kept = {k: v for k, v in arrays.items() if not any(p.fullmatch(k) for p in patterns)}
    if patterns and len(kept) < len(arrays):
        print(f"dropped {len(arrays) - len(kept)} arrays by --drop")
    return kept


def _tell(report: engine.Report, made: dict[str, np.ndarray], path: str) -> None:
    for name, reason in report.ignored:
        print(f"ignored {name}: {reason}")
    numbers = sum(value.size for value in made.values())
    print(
        f"used {len(report.used)} arrays, ignored {len(report.ignored)}; "
        f"wrote {len(made)} arrays, {numbers:,} numbers, to {path}"
    )


def _tell_statistics(record: dict) -> None:
    """What the file now says of the pixels that its weights were trained on."""
    if "data" in record:
        mean, std = (", ".join(f"{value:.3g}" for value in record["data"][key])
                     for key in ("mean", "std"))
        print(f"recorded: trained on pixels of mean {mean} and deviation {std}")
    elif record["source"] != "dalle":  # which takes pixels as they are
        print("the names do not tell by which mean and deviation pixels were normalised: say it by "
              f"--statistics {' or '.join(tables.STATISTICS)}, and a run that differs is refused")


if __name__ == "__main__":
    sys.exit(main())
