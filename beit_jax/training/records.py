"""What a workdir says of the run in it: its config, its data, its result, and who is at work there.

A workdir belongs to one config. What has changed since is named: some changes are only told, some
are refused unless forced, and those that were let pass stand in `config_history.jsonl`.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from beit_jax.checkpoint import absolute, flatten, on_first_process, step_folders
from beit_jax.training import recipe

log = logging.getLogger(__name__)

HISTORY, DATA = "config_history.jsonl", "data.json"
_NAMED = 8  # differences that a message names
# what a finished run's numbers do not depend on: sections, and keys of whatever section
_HARMLESS_SECTIONS = ("log", "checkpoint", "mesh")
_HARMLESS_KEYS = ("every_steps", "every_epochs", "pictures", "threads", "eval_batch_size",
                  "accept_other_statistics", "accept_changed")
# what makes saved weights, or the count of their steps, mean something else
_OF_THE_MODEL, _OF_THE_STEPS = ("task", "model"), ("data/global_batch_size",)
_PATHS = ("checkpoint", "path", "annotations", "questions", "answers", "tokenizer")
_FROM_THE_DATA = ("num_classes", "vocab_size")  # -1 in a config, a number in the workdir's
_WAYS_OUT = "take another --workdir, or the config it was made with"


class _NotSet:
    """The value of a key that a config does not have."""

    def __repr__(self):
        return "not set"


_NOT_SET = _NotSet()


def finished(config, workdir: str, force: bool = False) -> dict[str, float] | None:
    """The final metrics of a run that came to the end that `config` asks for, else None.

    Args:
      force: take them even if the run was made with another config.
    Raises: ValueError: the run is at its end, but of another config: its numbers are no answer.
    """
    folder = absolute(workdir)
    result = _result(folder / "result.json")
    if result is None or result["length"] != _length(plain(config)):
        return None
    if not (folder / "config.json").exists():
        return None  # nothing to compare with: the saved weights are measured again
    changed = _differences(_read(folder / "config.json"), plain(config), workdir)
    changed = {path: values for path, values in changed.items() if not _is_harmless(path)}
    if changed and not force:
        raise ValueError(f"workdir {workdir} holds a finished run of another config "
                         f"({_told(changed)}), whose numbers are not those of this one: "
                         f"{_WAYS_OUT}, or --force to take its numbers all the same")
    if changed:
        log.warning("taking the numbers of the finished run in %s, forced, although %s", workdir,
                    _told(changed))
    return result["metrics"]


def gives_other_weights(config, workdir: str) -> bool:
    """Whether a run that is not finished will end with other weights than it had when it was.

    A run whose result alone is lost will not.
    """
    folder = absolute(workdir)
    result = _result(folder / "result.json")
    is_longer = result is not None and result["length"] != _length(plain(config))
    return is_longer or not step_folders(folder / "checkpoints")


@contextlib.contextmanager
def taken(config, workdir: str, info, total: int, force: bool = False,
          ) -> Iterator[Callable[[], None]]:
    """Takes a workdir for a run: nobody else may, and its config is compared with the one there.

    Yields: what writes the config anew, to be called once the saved state is known to fit it: a
      config that does not fit must not take the place of the one that does.

    Args:
      info: data.pipeline.DataInfo.
      total: steps at the end of the run.
      force: let changes pass that are refused otherwise.
    Raises: ValueError: another run is at work there; another task, model or batch, or other data,
      unless forced; more steps than `total` are done; a config.json that cannot be read.
      OSError: the folder cannot be written.
    """
    with lock(workdir):
        yield _compare(config, workdir, info, total, force)


def _compare(config, workdir: str, info, total: int, force: bool) -> Callable[[], None]:
    """See `taken`."""
    folder, new, changed = absolute(workdir), plain(config), {}
    path = folder / "config.json"
    done = max((int(step.name) for step in step_folders(folder / "checkpoints")), default=0)
    if path.exists():
        changed = _differences(_read(path), new, workdir)
    elif done:
        log.warning("%s is missing: taking this config for the one that step %d was trained with",
                    path, done)
    if done:  # else there is nothing yet that a change could spoil
        accepted = force or config.data.get("accept_changed", False)
        of_data = _compare_data(folder, info, done, accepted)
        _refuse(changed, workdir, done, total, force)
        changed |= of_data
    if changed:
        log.warning("this config is not the one in %s: %s", path, _told(changed, len(changed)))

    def write() -> None:
        if jax.process_index() != 0:
            return
        if changed:
            _remember(folder / HISTORY, done, changed, force)
        _write(path, new)
        _write(folder / DATA, _facts(info))

    return write


def _facts(info) -> dict[str, Any]:
    """What is kept of the data."""
    return {"num_train": info.num_train, "num_eval": info.num_eval,
            "class_names": list(info.class_names), "digest": info.digest}


def _compare_data(folder, info, done: int, accepted: bool) -> dict[str, tuple]:
    """What is not as it was when the run began.

    Raises: ValueError: the training examples, unless that is accepted.
    """
    if not (folder / DATA).exists():
        return {}
    old, new = _read(folder / DATA), _facts(info)
    changed = {key: (old.get(key, _NOT_SET), new[key]) for key in new if old.get(key) != new[key]}
    found = []
    if "num_train" in changed:
        found.append("there were {} training examples, there are {}".format(*changed["num_train"]))
    if "class_names" in changed:
        before, after = changed["class_names"]
        before = before if isinstance(before, list) else []
        gone, more = ([str(name) for name in one if name not in other][:_NAMED]
                      for one, other in ((before, after), (after, before)))
        found.append("; ".join((*(f"class {name} is gone" for name in gone),
                                *(f"class {name} is new" for name in more)))
                     or "the classes have another order")
    if "digest" in changed and not found:
        found.append("names, sizes, labels or texts of the training examples are others")
    if found and not accepted:
        raise ValueError(
            f"the data are not those that {folder} was trained with up to step {done}: "
            f"{'; '.join(found)}, so that order and labels would be others: put the data back, "
            "take another --workdir, or accept it with --config.data.accept_changed=True")
    changed.pop("class_names", None)  # thousands, of some data
    return {f"{DATA}/{key}": values for key, values in changed.items()}


def _refuse(changed: Mapping[str, tuple], workdir: str, done: int, total: int, force: bool) -> None:
    """Raises ValueError where what is saved cannot be, or would not mean, what the config says."""
    of_model = {path: changed[path] for path in changed if path.split("/")[0] in _OF_THE_MODEL}
    of_steps = {path: changed[path] for path in changed if path in _OF_THE_STEPS}
    if of_model and not force:
        raise ValueError(f"workdir {workdir} holds a run of another model ({_told(of_model)}): "
                         f"{_WAYS_OUT}; --force tries to go on from step {done} all the same")
    if of_steps and not force:
        raise ValueError(f"workdir {workdir} is at step {done} of a run with another batch "
                         f"({_told(of_steps)}), and its steps are no steps of this one: "
                         f"{_WAYS_OUT}, or --force to go on from there to step {total}")
    if done > total or (of_steps and done == total):
        length = {path: changed[path] for path in changed
                  if path in ("total_steps", "total_epochs") or path in of_steps}
        raise ValueError(f"workdir {workdir} is at step {done} already, and this config ends at "
                         f"step {total}{f' ({_told(length)})' if length else ''}: nothing is left "
                         f"to train; make the run longer, or {_WAYS_OUT}")


def finish(config, workdir: str, step: int, metrics: Mapping[str, float]) -> None:
    """Records that the run is at its end. Process 0 writes."""
    if jax.process_index() == 0:
        result = {"step": step, "length": _length(plain(config)), "metrics": dict(metrics)}
        _write(absolute(workdir) / "result.json", result)


def write_predictions(workdir: str, split: str, files: Mapping[str, str]) -> None:
    """Writes what a task predicted for a split into predictions/<split>/. Process 0 writes."""
    if not files or jax.process_index() != 0:
        return
    folder = absolute(workdir) / "predictions" / split
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        _write_text(folder / name, text)


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
    """Keeps other runs out of a workdir until it is left, or the process ends, by a kill too.

    Process 0 holds it, by flock on `.lock`. Buckets, and file systems without flock, have none:
    there nobody is kept out.

    Raises: ValueError: another run is at work there. OSError: the folder cannot be written.
    """
    folder, held = absolute(workdir), contextlib.ExitStack()

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if "://" in os.fspath(folder):
            return
        file = held.enter_context(open(folder / ".lock", "a+", encoding="utf-8"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"workdir {workdir} is in use by another run ({file.read() or 'no name'}): wait "
                "for it, stop it, or give another --workdir") from None
        except OSError as error:
            log.warning("workdir %s cannot be locked (%s): start no second run in it", workdir,
                        error.strerror)
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()

    with held:
        try:
            on_first_process(take)
        except OSError as error:
            raise OSError(error.errno, f"workdir {workdir} cannot be written: {error.strerror}; "
                          "give another --workdir") from error
        yield


def plain(config) -> dict[str, Any]:
    """The config as JSON knows it (tuples become lists), in the order of the file."""
    return json.loads(config.to_json())


def _length(config: Mapping[str, Any]) -> list[float]:
    """What decides where a run ends."""
    return [config.get("total_steps", 0), config.get("total_epochs", 0.0)]


def _result(path) -> dict[str, Any] | None:
    """What `finish` wrote; None, and a line in the log, of a file that is not what it wrote."""
    if not path.exists():
        return None
    try:
        result = _read(path)
        if not isinstance(result.get("length"), list):
            raise ValueError(f"{path} is damaged: it says no length")
        metrics = result.get("metrics")
        if not isinstance(metrics, dict) or not all(
                isinstance(value, int | float) for value in metrics.values()):
            raise ValueError(f"{path} is damaged: its metrics are no numbers")
    except ValueError as error:
        log.warning("%s: the last step is measured again", error)
        return None
    return result


def _read(path) -> dict[str, Any]:
    """A JSON object. Raises: ValueError naming the file."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: no JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: no JSON object, but {type(value).__name__}")
    return value


def _write(path, value) -> None:
    """JSON, see `_write_text`."""
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path, text: str) -> None:
    """At once: a kill leaves the old file or the new one."""
    unfinished = path.parent / (path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _remember(path, step: int, changed: Mapping[str, tuple], force: bool) -> None:
    """Adds a line on changes that were let pass."""
    line = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": step, "forced": force,
            "changed": {name.replace("/", "."): [None if value is _NOT_SET else value
                                                 for value in values]
                        for name, values in changed.items()}}
    before = path.read_bytes().decode(errors="replace") if path.exists() else ""
    _write_text(path, before + json.dumps(line) + "\n")


def _told(changed: Mapping[str, tuple], named: int = _NAMED) -> str:
    """Differences in words."""
    texts = [f"{path.replace('/', '.')} was {old}, is {new}"
             for path, (old, new) in changed.items()]
    more = f"; and {len(texts) - named} more" if len(texts) > named else ""
    return "; ".join(texts[:named]) + more


def _is_harmless(path: str) -> bool:
    """Whether a finished run's numbers do not depend on a key."""
    return path.split("/")[0] in _HARMLESS_SECTIONS or path.split("/")[-1] in _HARMLESS_KEYS


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], workdir: str) -> dict[str, tuple]:
    """{"a/b": (old, new)} of all values that differ.

    A key that one config lacks has its default: recipes of a newer version list more of them.
    """
    defaults, found = flatten(_defaults()), {}
    old, new = defaults | flatten(old), defaults | flatten(new)
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path, _NOT_SET), new.get(path, _NOT_SET)
        if before != after and not _means_the_same(path, before, after, workdir):
            found[path] = before, after
    return found


def _defaults() -> dict[str, Any]:
    """The sections that the training floor reads, with the values of keys that are not given."""
    def of(cls):
        return {field.name: field.default for field in dataclasses.fields(cls)
                if field.default is not dataclasses.MISSING}

    return json.loads(json.dumps({name: of(cls) for name, cls in recipe.SECTIONS.items()}))


def _means_the_same(path: str, old: Any, new: Any, workdir: str) -> bool:
    """Whether two values that are written otherwise are one: a path, or a number of the data."""
    key = path.split("/")[-1]
    if key in _FROM_THE_DATA:
        return new == -1 and isinstance(old, int)
    if key not in _PATHS or not (isinstance(old, str) and isinstance(new, str) and old and new):
        return False
    if "://" in old + new:
        return old == new
    old, new = (os.path.abspath(os.path.expanduser(value)) for value in (old, new))
    # of a recipe's other stage: the folder of all stages may have been moved
    is_stage = os.path.dirname(new) == os.path.dirname(os.path.abspath(workdir))
    return old == new or (is_stage and os.path.basename(old) == os.path.basename(new))
