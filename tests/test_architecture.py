"""Imports run downwards only. Every import of the package is read from its syntax tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "beit_jax").rglob("*.py"))

PURE = {"options", "augment", "masking", "losses", "dvae_losses", "metrics", "flops", "vectors",
        "checkpoint", "token_ids", "text_masking", "caption_metrics", "caption_words",
        "caption_java", "vqa_metrics", "retrieval_metrics"}
# what a folder or file may import of beit_jax; a longer name wins over its folder's
MAY = {
    # options: what a value of a config may be stands beside it, wherever it is read
    "options": set(), "augment": {"options"}, "masking": {"options"}, "losses": {"vectors"},
    "dvae_losses": set(), "vectors": set(),
    "metrics": {"vectors"}, "flops": set(), "compile_cache": set(),
    "checkpoint": {"array_files", "lazy_array", "options"},
    "report": {"checkpoint", "options"},
    "token_ids": set(), "text_masking": {"token_ids", "options"},
    "caption_java": set(), "caption_words": set(), "caption_metrics": {"caption_words"},
    "vqa_metrics": set(),
    "retrieval_metrics": set(), "train_tokenizer": {"token_ids", "data.text_ops"},
    # vqa_metrics: answers are normalised alike where they are read and where they are scored
    "data": {"data", "options", "token_ids", "vqa_metrics"},
    "lazy_array": set(), "array_files": {"lazy_array"},
    "convert": {"convert", "checkpoint", "array_files", "lazy_array"},
    "models": {"models", "vectors", "options"},
    "targets": {"targets", "models", "vectors", "flops", "options"},
    # class_lists: which classes evaluation chooses among is part of a task, and pure
    "tasks": {"tasks", "targets", "models", "data.text_ops", "data.class_lists"}
             | PURE - {"checkpoint"},
    "training": {"training", "tasks", "data", "checkpoint", "models.adapt", "options"},
    # data: captions are drawn beside their pictures
    "visualize": {"visualize", "training.metric_writer", "checkpoint", "data", "options"},
    "main": {"training", "report", "visualize", "checkpoint", "options", "tasks", "data",
             "compile_cache"},
}
HEAVY = {"tensorflow", "tensorflow_datasets"}


def module_name(path):
    parts = list(path.relative_to(ROOT / "beit_jax").with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """(imported module, whether it stands at the top of the file)."""
    tree = ast.parse(path.read_text())
    inner = {id(node) for function in ast.walk(tree)
             if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
             for node in ast.walk(function)}
    for node in ast.walk(tree):
        top = id(node) not in inner
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # "from beit_jax.data import pipeline" imports a module, "... import P" a value
            yield from ((name if is_module(name) else node.module, top) for name in names)


def is_module(name):
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def ours(path):
    return {name.removeprefix("beit_jax.") for name, _ in imports(path)
            if name.startswith("beit_jax.")}


def covers(rule, name):
    return name == rule or name.startswith(rule + ".")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_downwards(path):
    name = module_name(path)
    if name == "":
        assert not ours(path)
        return
    own = name.split(".")[0]
    assert own in MAY, f"{path}: give it a floor in tests/test_architecture.py"
    wrong = {other for other in ours(path) if not any(covers(rule, other) for rule in MAY[own])}
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_what_is_logged_reaches_the_console(path):
    """main.py shows the loggers below "beit_jax" in full, and absl's warnings alone."""
    names = {alias.name for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.ImportFrom) and node.module == "absl" for alias in node.names}
    assert "logging" not in names


def test_no_circles():
    known = {module_name(path) for path in FILES}
    graph = {module_name(path): {name for name, top in imports(path) if top}
             for path in FILES}
    graph = {name: {other.removeprefix("beit_jax.") for other in others} & known
             for name, others in graph.items()}
    done = set()

    def visit(name, above):
        assert name not in above, f"circle: {' -> '.join([*above, name])}"
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, [*above, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_tensorflow_only_under_data(path):
    if module_name(path).split(".")[0] == "data":
        return
    assert not {name for name, _ in imports(path) if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")),
                         ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_configs_hold_numbers_and_strings_only(path):
    allowed = {"ml_collections", "configs", "math", "functools", "itertools"}
    assert {name.split(".")[0] for name, _ in imports(path)} <= allowed


def test_the_reader_of_imports_sees_what_it_should(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from beit_jax.training import loop\nimport tensorflow as tf\n"
                    "def f():\n    from beit_jax.data.pipeline import describe\n")
    assert list(imports(path)) == [("beit_jax.training.loop", True), ("tensorflow", True),
                                   ("beit_jax.data.pipeline", False)]
    assert covers("training", "training.loop") and not covers("models.adapt", "models.vit")
