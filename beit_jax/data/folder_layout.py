"""Which sub-folders of a folder of images are splits, and which are classes.

A split is known by its name, in any case and in the usual spellings (`Train`, `training_set`,
`val`, `test-images`, ...), and by what it holds. What is not certain is refused, and a name that
is written as a path says what is meant: "./test" is that sub-folder, "." the folder itself.
"""
import os
import re
from typing import NamedTuple

from beit_jax.data import folder_files
from beit_jax.data.options import DataOptions
from beit_jax.data.source import MissingSplit

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_WORDS = {TRAIN: "train|training|trn", VALIDATION: "validation|valid|val|evaluation|eval|dev",
          TEST: "test|testing|tst"}
_SPELLINGS = {kind: re.compile(rf"({words})[ _.-]*((data)?set|data|images?|imgs?|split)?[ _.-]*\d*")
              for kind, words in _WORDS.items()}
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SHOWN = 12  # names of sub-folders in a message


class Layout(NamedTuple):
    """What a folder consists of.

    train: folder of the training images. class_names: its sub-folders that are classes, () where
    there are none. others: sub-folders of the whole that are neither `train` nor a class: splits,
    or not used.
    """
    root: str
    train: str
    class_names: tuple[str, ...]
    others: tuple[str, ...]


class Found(NamedTuple):
    """The folder of a split that is not trained on.

    is_stated: it was asked for by its path. is_substitute: a test folder in place of a validation
    folder, which is missing.
    """
    path: str
    is_stated: bool = False
    is_substitute: bool = False


def kind_of(name: str) -> str | None:
    """TRAIN, VALIDATION or TEST where a name is one of their usual spellings."""
    return next((kind for kind, spelling in _SPELLINGS.items()
                 if spelling.fullmatch(name.lower())), None)


def resolve(root: str, train_split: str, eval_split: str, notes: dict[str, str]) -> Layout:
    """Finds the training images.

    Args:
      root: the folder. train_split, eval_split: of config.data.
      notes: path -> what the user should know of it; filled.
    Raises: ValueError: there is no such training split, or it is not certain what is one.
    """
    folders, _ = folder_files.entries(root, notes)
    names = _holding(root, folders, notes)
    own = _own_name(root, names, eval_split, DataOptions.eval_split)
    if _is_path(train_split):
        train = _at(root, train_split)
        if not os.path.isdir(train):
            raise ValueError(f"config.data.train_split={train_split}: {train} is no folder; "
                             f"{_there(root, names)}")
    elif train_split in names and train_split != DataOptions.train_split:
        train = os.path.join(root, train_split)
    elif (kind := kind_of(train_split)) is None:
        raise ValueError(f"config.data.train_split={train_split}: {_there(root, names)}. Name one "
                         'of them, or "." for the folder itself')
    else:
        named = [name for name in names if kind_of(name) == kind and name != own]
        train = _choose(root, names, named, own, train_split, notes)
    if train == root:
        class_names = [name for name in names if name != own]
        if not _is_path(train_split):
            class_names = [name for name in class_names if not _is_split_of(root, name, names)]
            _refuse_splits_inside(root, class_names)
        others = set(names) - set(class_names)
    else:
        inside, _ = folder_files.entries(train, {})
        held_back = _at(root, eval_split) if _is_path(eval_split) else None
        class_names = [name for name in _holding(train, inside, notes)
                       if os.path.join(train, name) != held_back]
        others = {name for name in names if os.path.join(root, name) != train}
    _refuse_eval_inside_a_class(root, train, eval_split)
    return Layout(root, train, tuple(class_names), tuple(sorted(others)))


def _refuse_eval_inside_a_class(root: str, train: str, eval_split: str) -> None:
    """Raises: ValueError: images of the evaluation would be trained on."""
    path = _at(root, eval_split) if _is_path(eval_split) else train
    if path.startswith(train + os.sep) and os.path.dirname(path) != train:
        raise ValueError(f"config.data.eval_split={eval_split}: {path} lies inside a class of the "
                         f"training images in {train}: move it out of there")


def find(layout: Layout, split: str) -> Found:
    """The folder of a split that is not trained on.

    Raises: MissingSplit: there is none. ValueError: there are several.
    """
    if _is_path(split):
        if os.path.isdir(path := _at(layout.root, split)):
            return Found(path, is_stated=True)
        raise MissingSplit(f"split {split}: {path} is no folder; "
                           f"{_there(layout.root, layout.others)}")
    if split in layout.others:
        return Found(os.path.join(layout.root, split))
    kind = kind_of(split)
    # nobody has asked for the default by name: only there another split may stand in
    kinds = (VALIDATION, TEST) if split == DataOptions.eval_split else (kind,) if kind else ()
    for wanted in kinds:
        named = [name for name in layout.others if kind_of(name) == wanted]
        if len(named) > 1:
            raise ValueError(f"{layout.root}: any of {', '.join(named)} could be the split "
                             f"{split}: say which, config.data.eval_split=./{named[0]}")
        if named:
            return Found(os.path.join(layout.root, named[0]), is_substitute=wanted != kind)
    is_class = layout.train == layout.root and split in layout.class_names
    why = (f"{split} is taken as one of the classes: config.data.eval_split=./{split} says "
           "otherwise" if is_class else _there(layout.root, layout.others))
    raise MissingSplit(f"{layout.root} has no split {split!r} ({why}): add a sub-folder val, name "
                       "another one with config.data.eval_split, or set apart some training images "
                       "with config.data.holdout_per_class=50")


def _choose(root, names, named, own, train_split, notes) -> str:
    """The training folder, of which only the kind of its name is known."""
    if len(named) > 1:
        raise ValueError(f"{root}: any of {', '.join(named)} could be the training split: say "
                         f"which, config.data.train_split=./{named[0]}, or . if all are classes")
    splits = [name for name in names if kind_of(name) and name not in (*named, own)]
    rest = [name for name in names if not kind_of(name) and name != own]
    if not named:
        if kind_of(train_split) != TRAIN:
            raise ValueError(f"config.data.train_split={train_split}: {_there(root, names)}")
        if splits and not rest:
            raise ValueError(f"{root} has {', '.join(splits)} and no training folder: add one, or "
                             f"say config.data.train_split=./{splits[0]}")
        for name in splits:
            if not _is_split_of(root, name, names):
                notes[os.path.join(root, name)] = (
                    "taken as a class, not as a split: it has no class folders; "
                    f"config.data.eval_split=./{name} would make it a split")
        return root
    train, = named
    path = os.path.join(root, train)
    doubtful = [name for name in rest if _has_images(os.path.join(root, name))]
    classes = classes_in(path)
    if not doubtful or classes and any(
            set(classes_in(os.path.join(root, name))) & set(classes)
            for name in (*splits, *filter(None, (own,)))):
        notes.update({os.path.join(root, name): "not used: it is no split" for name in rest})
        return path
    if not classes and not splits and not any(classes_in(os.path.join(root, n)) for n in doubtful):
        notes[path] = ("taken as a class, not as a split: it has no class folders; "
                       f"config.data.train_split=./{train} would make it the training split")
        return root
    raise ValueError(f"{root}: is {train} the training split, or a class as {doubtful[0]} may be? "
                     f"Say config.data.train_split=./{train}, or config.data.train_split=. if all "
                     "sub-folders are classes")


def _is_split_of(root, name, names) -> bool:
    """Whether a folder that is named as a validation or test split holds the others' classes.

    Raises: ValueError: it holds other folders.
    """
    if kind_of(name) not in (VALIDATION, TEST):
        return False
    classes = set(classes_in(os.path.join(root, name)))
    if not classes:
        return False
    if unknown := sorted(classes - set(names)):
        raise ValueError(f"{root}: is {name} a split, or a class? It holds a folder {unknown[0]}, "
                         f"and there is no class {unknown[0]}. Say config.data.eval_split=./{name},"
                         " or config.data.train_split=. if all sub-folders are classes")
    return True


def _refuse_splits_inside(root: str, class_names) -> None:
    """Raises: ValueError: what should be classes holds splits, or has the looks of splits."""
    way_out = "if these are classes nevertheless, say config.data.train_split=."
    # of very many classes the first ones tell: to list them all takes long
    inside = {name: classes_in(os.path.join(root, name)) for name in class_names[:_SHOWN]}
    for name, inner in inside.items():
        kinds = {kind_of(one): one for one in inner if kind_of(one)}
        if TRAIN in kinds and len(kinds) > 1:
            raise ValueError(f"{root}: {name} holds splits ({', '.join(kinds.values())}); they "
                             f"come first, train/CLASS. Is config.data.path={root}/{name} meant? "
                             f"{way_out}")
    first = next(iter(inside.values()), [])
    if len(inside) > 1 and len(first) > 1 and all(inner == first for inner in inside.values()):
        one, other, *_ = inside
        raise ValueError(f"{root}: {', '.join(inside)} all hold the same folders "
                         f"({', '.join(first[:_SHOWN])}), as splits do. Say config.data."
                         f"train_split={one} and eval_split={other}; {way_out}")


def _own_name(root: str, names, split: str, default: str) -> str | None:
    """The sub-folder of `root` that a user's own name of a split states, if it does."""
    if _is_path(split):
        path = _at(root, split)
        return os.path.basename(path) if os.path.dirname(path) == root else None
    return split if split in names and split != default else None


def _is_path(split: str) -> bool:
    return split == "." or os.sep in split


def _at(root: str, path: str) -> str:
    return os.path.normpath(os.path.join(root, path))


def _holding(folder: str, names, notes) -> list[str]:
    """The sub-folders that hold files; the others are noted."""
    held = [name for name in names if folder_files.holds_files(os.path.join(folder, name))]
    notes.update({os.path.join(folder, name): "an empty folder is no class"
                  for name in names if name not in held})
    return held


def classes_in(folder: str) -> list[str]:
    """Names of the sub-folders that hold files."""
    folders, _ = folder_files.entries(folder, {})
    return _holding(folder, folders, {})


def _has_images(folder: str) -> bool:
    """Whether a name below a folder is an image's: text files beside the splits are nobody's."""
    seen = {folder_files.identity(folder)}
    return any(path.lower().endswith(_SUFFIXES)
               for path in folder_files.files_below(folder, seen, {}))


def _there(root: str, names) -> str:
    shown = ", ".join(folder_files.shown(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the sub-folders of {root} are {shown}{more}" if names else f"{root} has no sub-folders"
