"""What lies in a folder: sub-folders and regular files, without litter, no folder visited twice.

Names need not be UTF-8: Python keeps such bytes as surrogates, and `shown` makes them printable.
Throughout, `left_out` is a dict path -> why it is not used, to which the functions add.
"""
import os
from collections.abc import Iterator

# What operating systems and programs leave behind, in lower case; beside names with a dot in front.
_LITTER = frozenset({
    "__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found",
    "thumbs.db", "ehthumbs.db", "desktop.ini"})
_NAMED = 50  # paths that one line of the log names


def entries(folder: str, left_out: dict[str, str]) -> tuple[list[str], list[str]]:
    """Names of the sub-folders and of the regular files, links followed, each sorted.

    Hidden files are passed over without a word. Raises: OSError: the folder cannot be listed.
    """
    folders, files = [], []
    with os.scandir(folder) as found:
        for entry in found:
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:  # a link that leads to itself
                left_out[entry.path] = error.strerror
                continue
            if entry.name.startswith("."):
                if is_folder:
                    left_out[entry.path] = "hidden"
            elif entry.name.lower() in _LITTER:
                left_out[entry.path] = "litter of a program"
            elif is_folder:
                folders.append(entry.name)
            elif is_file:
                files.append(entry.name)
            else:
                left_out[entry.path] = ("a link to nothing" if entry.is_symlink() else
                                        "no regular file")
    return sorted(folders), sorted(files)


def files_below(folder: str, visited: set, left_out: dict[str, str]) -> Iterator[str]:
    """Paths of all files in a folder and below it: its own by name, then each sub-folder's.

    Args: visited: `identity` of folders that are not entered, those entered are added. It keeps
      links that lead upwards, or in a circle, from showing images many times.
    """
    waiting = [folder]
    while waiting:
        base = waiting.pop()
        folders, files = entries(base, left_out)
        yield from (os.path.join(base, name) for name in files)
        inner = []
        for path in (os.path.join(base, name) for name in folders):
            if (number := identity(path)) in visited:
                left_out[path] = "leads to a folder that is here already"
            else:
                visited.add(number)
                inner.append(path)
        waiting += reversed(inner)


def holds_files(folder: str) -> bool:
    """Whether there is any file in a folder or below it; looks no further than the first."""
    waiting, visited = [folder], {identity(folder)}
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                if is_litter(entry.name):
                    continue
                try:
                    if entry.is_file():
                        return True
                    if entry.is_dir() and (number := identity(entry.path)) not in visited:
                        visited.add(number)
                        waiting.append(entry.path)
                except OSError:  # a link that leads to itself: no file
                    continue
    return False


def is_litter(name: str) -> bool:
    """Whether a name is hidden, or one that programs leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def identity(path: str) -> tuple[int, int]:
    """What two paths of one folder or file have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def with_all_above(folder: str) -> set:
    """`identity` of a folder and of those that it lies in."""
    path, found = os.path.realpath(folder), set()
    while True:
        found.add(identity(path))
        if path == os.path.dirname(path):
            return found
        path = os.path.dirname(path)


def shown(name: str) -> str:
    """A name as text that can be written anywhere: bytes that are no UTF-8 as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def listed(left_out: dict[str, str]) -> str:
    """"a/b.jpg (empty); ...", the first fifty of them, for the log."""
    said = [f"{shown(path)} ({reason})" for path, reason in left_out.items()]
    more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return "; ".join(said[:_NAMED]) + more
