"""Checkpoints: asynchronous Orbax saves, a manifest that proves a step whole, weights from files.

The only module that knows Orbax. A step is a folder `<workdir>/checkpoints/<step>`; its
`integrity.json` lists the size and CRC-32 of every file and appears together with the folder.
"""

import dataclasses
import errno
import fnmatch
import functools
import json
import logging
import os
import shlex
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint._src.serialization import tensorstore_utils

from beit_jax import array_files
from beit_jax.lazy_array import printable
from beit_jax.options import Count, Natural

log = logging.getLogger(__name__)

MANIFEST = "integrity.json"
BROKEN = "checkpoints_broken"  # beside checkpoints/
RECORD = "beit_jax"  # key in the metadata of a converted file, see `recorded`
_HEADER_BYTES = 100_000_000  # more than this no .safetensors header may have
# Orbax writes these two after the manifest is made
_NOT_LISTED = {MANIFEST, f"{MANIFEST}.tmp", "commit_success.txt", "_CHECKPOINT_METADATA"}


def _glob(self: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Entries below a folder whose own name is no pattern, whatever brackets and stars it has."""
    found = [self]
    for part in pattern.split("/"):
        found = [entry for folder in found if folder.is_dir() for entry in folder.iterdir()
                 if fnmatch.fnmatchcase(entry.name, part)]
    yield from found


# epath's own reads the folder's name as a pattern too: below runs/lr[3e-4] Orbax, which looks for
# what it has just written that way, would find nothing, and save nothing
type(epath.Path()).glob = _glob
# for a number that only Orbax's own monitoring reads: what tensorstore counts for it is never
# freed, so that every save would cost memory
tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """config.checkpoint.

    Attributes:
      every_steps: steps between saves; 0 saves only at the end.
      keep_last: newest steps that are kept.
      keep_best: evaluation metric whose best step is kept too: "top1", or "-loss" where smaller is
        better; "" keeps none. Saves then happen at every evaluation as well.
      keep_every_steps: steps that are multiples of this are kept for good; 0 = none.
    """

    every_steps: Natural = 1000
    keep_last: Count = 2
    keep_best: str = ""
    keep_every_steps: Natural = 0


class Checkpoints:
    """The saved steps of one run. Every process makes one and calls it in lock step.

    Args:
      workdir: the run's folder, local or a bucket path.
      options: what to keep.
      read_only: change nothing, for a look at a run that another process may be training.
    """

    def __init__(self, workdir: str, options: CheckpointOptions, read_only: bool = False):
        self.directory = absolute(workdir) / "checkpoints"
        self._saving = None
        self._best = options.keep_best
        self.read_only = read_only
        self._newest = None  # of a look from outside
        if read_only:
            self._newest, broken = find_whole(self.directory)
            for folder, fault in broken.items():
                log.warning("checkpoint %s is broken (%s): taking step %s in its place", folder,
                            fault, self._newest.name)
        else:
            on_first_process(lambda: set_broken_aside(self.directory))
        keep = [policies.LatestN(options.keep_last)]
        if self._best:
            keep.append(policies.BestN(
                get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False))
        if options.keep_every_steps:
            keep.append(policies.EveryNSteps(options.keep_every_steps))
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state",),
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=1,
                preservation_policy=policies.AnyPreservationPolicy(keep),
                # only so that the metrics are stored: the policies alone decide what stays
                best_fn=self._score if self._best else None,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
        )
        # it would ask jax with the step's number, training/preemption.py with another count
        self._manager.reached_preemption = lambda step: False

    def _score(self, metrics: Mapping[str, float]) -> float:
        """The metric that picks the best step, larger is better."""
        name = self._best.removeprefix("-")
        if name not in metrics:
            raise ValueError(f"config.checkpoint.keep_best={self._best!r} is none of the metrics "
                             f"of the evaluation: {', '.join(sorted(metrics))}")
        return -metrics[name] if self._best.startswith("-") else metrics[name]

    def _write_manifest(self) -> None:
        """Lists the files of the step being saved, before Orbax gives its folder the final name."""
        if jax.process_index() != 0:
            return
        begins = f"{self._saving}.orbax-checkpoint-tmp"
        unfinished = sorted(p for p in self.directory.iterdir() if p.name.startswith(begins))
        folder = unfinished[-1] if unfinished else self.directory / str(self._saving)
        (folder / MANIFEST).write_text(json.dumps(fingerprint(folder)))

    def latest_step(self) -> int | None:
        """The newest whole step, or None."""
        if self.read_only:
            return self._newest and int(self._newest.name)
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """All kept steps, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing `state`; returns once it is copied, so that it may be donated.

        Args:
          step: the step's number; the newest one of all.
          state: pytree of jax arrays.
          metrics: evaluation of this very state, for `keep_best`.
        Raises: OSError: the disk is full or not writable. Earlier steps stay. ValueError, after
          the state is saved: `metrics` lack the one of `keep_best`.
        """
        if step == self._manager.latest_step():
            return
        metrics, unknown = dict(metrics) if metrics and self._best else None, None
        if metrics:
            try:
                self._score(metrics)
            except ValueError as error:  # what was trained is saved all the same
                metrics, unknown = None, error
        self.wait()
        self._saving = step
        try:
            saved = self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=metrics)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error
        if not saved:  # Orbax refuses silently to save a step that is older than its newest
            raise RuntimeError(f"step {step} was not saved: {self.directory} holds step "
                               f"{self._manager.latest_step()}")
        if unknown:
            self.wait()
            raise unknown

    def rate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the evaluation of a step that was saved before it, for `keep_best`."""
        if not self._best or not metrics:
            return
        self._score(metrics)
        folder = self.directory / str(step)

        def add() -> None:
            (folder / "metrics").mkdir(exist_ok=True)
            (folder / "metrics" / "metrics").write_text(json.dumps(dict(metrics)))
            (folder / f"{MANIFEST}.tmp").write_text(json.dumps(fingerprint(folder)))
            (folder / f"{MANIFEST}.tmp").replace(folder / MANIFEST)

        on_first_process(add)
        self._manager.reload()

    def disown(self, step: int) -> str:
        """Sets a step aside that is saved but led to nothing, if there is another one.

        Returns: what is left to go on from, in words.
        """
        self.wait()
        steps = self.all_steps()
        if steps == [step]:
            return (f"step {step}, the only checkpoint in {self.directory}, leads to it whatever "
                    "the rate: start again in another --workdir")
        if step in steps and not self.read_only:
            steps.remove(step)
            folder = self.directory / str(step)
            if jax.process_index() == 0:
                log.warning("checkpoint %s led to it: moved to %s", folder, _move_aside(folder))
        if not steps:
            return "no checkpoint was saved"
        return f"last checkpoint: step {steps[-1]} in {self.directory}"

    def wait(self) -> None:
        """Returns when the last save is on the disk. Raises: OSError: as `save`."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Exception:
        """A full or read-only disk as an OSError of one line; any other error as it is."""
        text = str(error)
        reasons = {errno.ENOSPC: ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC"),
                   errno.EDQUOT: ("quota exceeded",), errno.EROFS: ("Read-only file system",),
                   errno.EACCES: ("Permission denied",), errno.EFBIG: ("File too large",)}
        for number, marks in reasons.items():
            same = isinstance(error, OSError) and error.errno == number
            if same or any(mark in text for mark in marks):
                kept = [int(p.name) for p in step_folders(self.directory) if p.name != str(
                    self._saving)]
                after = f"step {kept[-1]} is kept" if kept else "no earlier step was saved"
                return OSError(number, f"cannot save step {self._saving} in {self.directory}: "
                               f"{os.strerror(number)}; {after}: make room and start again")
        return error

    def restore(self, step: int, target: Any) -> Any:
        """Reads a step.

        Args:
          step: one of `all_steps`.
          target: pytree of jax.ShapeDtypeStruct with shardings, of this run's state; the devices
            may be others than those that saved.
        Returns: pytree of jax arrays like `target`.
        Raises: ValueError: the saved tree or a shape differs from `target`.
        """
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
        except (ValueError, KeyError, TypeError) as error:
            reason = self._misfit(step, target) or " ".join(str(error).split())[:300]
            raise ValueError(f"checkpoint {self.directory / str(step)} does not fit this config's "
                             f"model and optimizer: {reason}") from error
        return restored["state"]

    def _misfit(self, step: int, target: Any) -> str:
        """How the arrays of a step differ from `target`, and what to do; "" if they do not."""
        def shapes(tree):
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
                    for path, leaf in leaves}

        saved = shapes(ocp.PyTreeCheckpointer().metadata(
            self.directory / str(step) / "state").item_metadata.tree)
        wanted, found = shapes(target), []
        for path in sorted(saved.keys() | wanted.keys()):
            if path not in saved:
                found.append(f"{path} is missing")
            elif path not in wanted:
                found.append(f"{path} is left over")
            elif saved[path] != wanted[path]:
                found.append(f"{path} is {saved[path]}, not {wanted[path]}")
        if not found:
            return ""
        # the optimizer has arrays like those of the parameters
        found = [text for text in found if text.startswith("params/")] or found
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        return (f"{'; '.join(found[:3])}{more}. Give the config it was made with, or start from "
                f"its weights in another --workdir: config.init.checkpoint={self.directory.parent}")

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        self.wait()
        self._manager.close()


def absolute(path: str) -> epath.Path:
    """A local path made absolute, a bucket path as it is.

    Raises: ValueError: a kind of bucket that nobody here knows. OSError: the bucket cannot be
      reached: no network, no credentials, no program for its kind.
    """
    path = os.fspath(path)
    if "://" not in path:
        return epath.Path(os.path.abspath(os.path.expanduser(path)))
    try:
        made = epath.Path(path)
    except KeyError as error:
        raise ValueError(f"{path}: {error} is none of gs://, s3://, az://; give one of these, or a "
                         "local folder") from None
    _reach(made)
    return made


@functools.cache  # a question to the bucket once, and again only where it failed
def _reach(path: epath.Path) -> None:
    """Asks for a path in a bucket, whatever the answer. Raises: OSError: there is none."""
    try:
        path.exists()
    except Exception as error:  # each kind of bucket has errors of its own, of no common class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{os.fspath(path)} cannot be reached: {reason}; set up its credentials, or "
                      "give a local folder") from error


def step_folders(directory: epath.Path) -> list[epath.Path]:
    """The folders of finished steps, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def kept(workdir: str) -> str:
    """What a run has saved, in words. Looks at the disk alone: it may be asked during a save."""
    folders = step_folders(absolute(workdir) / "checkpoints")
    whole = [folder.name for folder in folders if (folder / MANIFEST).exists()]
    if not whole:
        return "no step is saved: the same command starts from the beginning"
    return f"step {whole[-1]} is kept: the same command goes on from it"


def fingerprint(folder: epath.Path) -> dict[str, list[int]]:
    """{relative path: [bytes, CRC-32]} of all files; the CRC is -1 on remote file systems."""
    files, pending = {}, [(folder, "")]
    while pending:
        where, prefix = pending.pop()
        for entry in where.iterdir():
            name = prefix + entry.name
            if entry.is_dir():
                pending.append((entry, name + "/"))
            elif entry.name not in _NOT_LISTED:
                files[name] = [entry.stat().length, _crc(entry)]
    return files


def _crc(path: epath.Path) -> int:
    """CRC-32 of a local file. A bucket checks its objects itself and would send them all again."""
    if "://" in os.fspath(path):
        return -1
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def fault_of(folder: epath.Path) -> str:
    """What is wrong with the files of a step, in a few words; "" if it is whole."""
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    try:
        expected = json.loads((folder / MANIFEST).read_text())
    except (ValueError, RecursionError):
        return f"{MANIFEST} is not readable"
    if not isinstance(expected, dict) or not all(map(_is_entry, expected.values())):
        return f"{MANIFEST} is not a list of files with sizes and sums"
    for name, (length, _) in expected.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        found = (folder / name).stat().length
        if found != length:
            return f"{name} has {found} bytes, {length} were written"
    for name, (_, crc) in expected.items():
        if crc >= 0 and _crc(folder / name) != crc:
            return f"{name} has changed since it was written"
    return ""


def _is_entry(value: Any) -> bool:
    """Whether it is [bytes, CRC-32] of a file, as `fingerprint` gives them."""
    return isinstance(value, list) and [type(number) for number in value] == [int, int]


def newest_whole(directory: epath.Path) -> epath.Path | None:
    """The newest step folder whose files are all as they were written."""
    for folder in reversed(step_folders(directory)):
        if not fault_of(folder):
            return folder
    return None


def find_whole(directory: epath.Path) -> tuple[epath.Path | None, dict[epath.Path, str]]:
    """The newest whole step, and what is wrong with those after it, newest first.

    Raises: ValueError: steps were saved, and none is whole: going on as if there were none would
      train anew from step 0 and drop what metrics.jsonl holds.
    """
    faults = {}
    for folder in reversed(step_folders(directory)):
        faults[folder] = fault_of(folder)
        if not faults[folder]:
            return folder, {broken: fault for broken, fault in faults.items() if fault}
    aside = directory.parent / BROKEN
    if faults or (aside.is_dir() and any(aside.iterdir())):
        told = "; ".join(f"{folder.name}: {fault}" for folder, fault in faults.items())
        where = f"in {directory} is whole ({told})" if faults else f"is left beside {aside}"
        raise ValueError(f"no saved step {where}, and nothing was changed: put the files back, or "
                         f"move {directory} and {BROKEN} away to start again from step 0")
    return None, {}


def set_broken_aside(directory: epath.Path) -> None:
    """Moves broken newest steps to `checkpoints_broken/`, down to the first whole one.

    A run then goes on from that one and may save the moved steps again.

    Raises: ValueError: none is whole; they stay where they are.
    """
    whole, broken = find_whole(directory)
    for folder, fault in broken.items():
        log.warning("checkpoint %s is broken (%s): moved to %s, going on from step %s", folder,
                    fault, _move_aside(folder), whole.name)


def _move_aside(folder: epath.Path) -> epath.Path:
    """Moves a step out of the way, beside others of its number. Returns: where to."""
    aside = folder.parent.parent / BROKEN
    aside.mkdir(parents=True, exist_ok=True)
    taken = {p.name for p in aside.iterdir()}
    names = [folder.name] + [f"{folder.name}.{i}" for i in range(len(taken))]
    return folder.rename(aside / next(name for name in names if name not in taken))


def on_first_process(work: Callable[[], None]) -> None:
    """Runs `work` on process 0, before any goes on; its error ends all, which would wait for it.

    Raises: OSError, ValueError: as `work`.
    """
    error = None
    if jax.process_index() == 0:
        try:
            work()
        except (OSError, ValueError) as caught:
            error = caught
    if multihost_utils.broadcast_one_to_all(np.int32(error is not None)):
        raise error or ValueError("process 0 has ended: see its error")


def load_variables(path: str, use_ema: bool = True, collections: bool = False,
                   ) -> dict[str, np.ndarray]:
    """Reads weights without knowing the network.

    Args:
      path: a run's workdir (its newest whole step), one `checkpoints/<step>` folder, or a .npz or
        .safetensors file of flat names.
      use_ema: of a run, the averaged parameters where it has them.
      collections: of a run, also the further collections, as "collection/a/b".
    Returns: {"a/b/c": array} of the parameters.
    Raises: FileNotFoundError: nothing there. ValueError: a broken or unknown file.
    """
    where = absolute(path)
    if where.is_file():
        return _read_file(where)
    step = where
    if (where / "checkpoints").is_dir():
        step = newest_whole(where / "checkpoints")
        if step is None:
            raise FileNotFoundError(f"{where / 'checkpoints'} holds no whole checkpoint")
    if not (step / "state").is_dir():
        raise _nothing_to_read(where)
    if fault := fault_of(step):
        raise ValueError(f"checkpoint {step} is broken: {fault}")
    saved = ocp.PyTreeCheckpointer().metadata(step / "state").item_metadata.tree
    name = "ema_params" if use_ema and saved.get("ema_params") else "params"
    wanted = {name: saved[name]}
    if collections and saved.get("model_state"):
        wanted["model_state"] = saved["model_state"]
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    tree = ocp.PyTreeCheckpointer().restore(step / "state", args=ocp.args.PyTreeRestore(
        item=wanted, partial_restore=True, restore_args=as_numpy))
    return flatten(tree[name]) | flatten(tree.get("model_state", {}))


def recorded(path: str) -> dict[str, Any]:
    """What is known of weights beside their arrays: how they were trained.

    Args:
      path: as of `load_variables`.
    Returns: of a run, its config; of a file that `beit_jax.convert` made, what it recorded, in the
      same form: {"data": {"mean": [...], "std": [...]}, ...}. {} where nothing is recorded.
    Raises: ValueError: a record that cannot be read; the message names the file.
      FileNotFoundError: nothing there.
    """
    where = absolute(path)
    if where.is_file():
        record = _metadata(where).get(RECORD)
        return _record(record, where) if isinstance(record, str) else {}
    if not where.exists():
        raise _nothing_to_read(where)
    is_step = where.name.isdigit() and where.parent.name == "checkpoints"
    file = (where.parent.parent if is_step else where) / "config.json"
    return _record(file.read_bytes(), file) if file.exists() else {}


def _metadata(path: epath.Path) -> Mapping[str, Any]:
    """Of a .npz the archive's comment, of a .safetensors file the metadata of its header.

    {} where they are none of ours, or the file is no such file, which `load_variables` explains.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                with zipfile.ZipFile(file) as archive:
                    metadata = json.loads(archive.comment)
            else:
                file.seek(0)
                length = min(int.from_bytes(file.read(8), "little"), _HEADER_BYTES)
                metadata = json.loads(file.read(length))["__metadata__"]
    except (zipfile.BadZipFile, ValueError, LookupError, TypeError, RecursionError,
            NotImplementedError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _record(text: str | bytes, path: epath.Path) -> dict[str, Any]:
    """JSON of one object. Raises ValueError naming the file."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: what it says of the weights is no JSON ({error})"
                         ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: what it says of the weights is no JSON object")
    return record


def _read_file(path: epath.Path) -> dict[str, np.ndarray]:
    """A flat .npz or .safetensors file, whatever its suffix is.

    Raises: ValueError: it is something else: what, and what to do.
    """
    with path.open("rb") as file, array_files.errors_of(f"checkpoint {path} cannot be read"):
        kind = array_files.kind_of(file)
        arrays = {} if kind == array_files.TORCH else array_files.arrays_of(file, kind)
        # our names have slashes; other programs put dots there
        if kind != array_files.TORCH and not (
                any("." in name for name in arrays) and not any("/" in name for name in arrays)):
            return {name: np.asarray(value) for name, value in arrays.items()}
        what = "what torch.save writes" if kind == array_files.TORCH else (
            f"{printable(next(name for name in arrays if '.' in name))} and the like, the names of "
            "another program")
        raise ValueError(f"it holds {what}: convert it first, {convert_command(path)}, and name "
                         "the new file")


def convert_command(path: epath.Path) -> str:
    """How a file of another program becomes one of ours."""
    return (f"python -m beit_jax.convert --source microsoft --input {shlex.quote(str(path))} "
            f"--output {shlex.quote(str(path.with_suffix('')) + '_ours.npz')} (or another --source,"
            " see docs/checkpoints.md)")


def _nothing_to_read(path: epath.Path) -> Exception:
    """The error for a path that is no run, no step and no file."""
    known = ("give a run's workdir, one of its checkpoints/<step> folders, a .npz or a .safetensors"
             " file")
    if not path.exists():
        return FileNotFoundError(f"checkpoint {path} does not exist: {known}")
    if not path.is_dir():
        return ValueError(f"checkpoint {path} is neither a folder nor a file: {known}")
    suffixes = (".npz", ".safetensors", ".pth", ".pt", ".bin", ".pkl", ".ckpt")
    found = sorted(entry for entry in path.iterdir() if entry.suffix in suffixes)
    if found and found[0].suffix == ".npz":
        known = f"give the file, {printable(found[0].name)}"
    elif found:
        known = f"convert the file in it, {convert_command(found[0])}"
    return FileNotFoundError(f"checkpoint {path} is a folder without a run's checkpoints: {known}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"a/b/c": leaf}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
