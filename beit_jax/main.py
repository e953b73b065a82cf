"""The command line: python -m beit_jax.main --config FILE[:VARIANT] --workdir DIR [--config.a.b=1].

Runs a recipe, or its stages one after the other, each in its own folder of the workdir.
"""

import json
import logging
import os
import signal
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_flags as loader

from beit_jax import compile_cache, options

log = logging.getLogger("beit_jax")

# open to new keys, so that a recipe need not list every option; the readers refuse unknown ones
CONFIG = config_flags.DEFINE_config_file("config", None, "config file, FILE[:VARIANT]",
                                         lock_config=False, accept_new_attributes=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and figures")
EVALUATE = flags.DEFINE_bool("evaluate", False, "measure the newest checkpoint and stop")
FORCE = flags.DEFINE_bool(
    "force", False, "accept a workdir of another config: a finished run's numbers as they are, an "
    "unfinished run to go on with this config")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "start jax.distributed; the cluster is detected (TPU slice, Slurm, ...)")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "processes of the run")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "number of this process, from 0")

STAGE = "stage:"
_USAGE = """\
The same command resumes a run that was stopped. BEIT_JAX_TRACEBACK=1 shows where an error comes
from. Exit codes: 0; 1 input that cannot be used; 2 a wrong command line; 130 or 143 stopped by
Ctrl-C or SIGTERM, with the state saved. A second Ctrl-C ends at once, as either does before the
first step is done. Recipes lie in configs/; README.md lists them. docs/architecture.md, "A config",
says where the keys are explained. A demo without any download:
  python -m beit_jax.main --config configs/digits/beit.py --workdir runs/digits"""
HELP = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort", "--helpfull", "-helpfull")


class _Console(logging.Handler):
    """Writes to whatever sys.stderr is now, so that the live progress line stays whole."""

    def emit(self, record):
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(level + self.format(record), file=sys.stderr, flush=True)


def start_process() -> None:
    """Logging, the compilation cache, and jax.distributed where flags or environment say so.

    Raises: ValueError: flags of several processes that do not go together.
    """
    import jax

    first = PROCESS_ID.value in (None, 0)
    console = _Console()
    # Orbax reports what it then raises anyway
    console.addFilter(lambda record: "orbax" not in record.pathname)
    for logger, level in ((log, logging.INFO), (logging.getLogger("absl"), logging.WARNING)):
        logger.setLevel(level if first else logging.WARNING)
        logger.handlers = [console]
        logger.propagate = False
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    compile_cache.enable(os.path.join(cache, "beit_jax", "xla"))
    given = [flag.value is not None for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)]
    if any(given):
        if not all(given):
            raise ValueError("--coordinator, --num_processes and --process_id go together: give "
                             "all three, or --distributed alone where the cluster is detected")
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    elif DISTRIBUTED.value or _cluster_in_environment():
        jax.distributed.initialize()
    if jax.process_index() == 0:
        log.info("%d process(es), %d %s device(s)", jax.process_count(), jax.device_count(),
                 jax.default_backend())


def _cluster_in_environment() -> bool:
    """Whether a launcher started several processes of this program."""
    env = os.environ
    if env.get("BEIT_JAX_DISTRIBUTED", "") not in ("", "0"):
        return True
    slurm = "SLURM_STEP_ID" in env and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    mpi = int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    tpu = len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    return slurm or mpi or tpu or "JAX_COORDINATOR_ADDRESS" in env


def stage_order(config) -> list[str]:
    """Stages in the order of the config file. ConfigDict iterates by name, its JSON does not."""
    return list(json.loads(config.to_json()).get("stages") or {})


def resolve_stage(config, name: str, before: list[str], workdir: str):
    """A copy of a stage's config with "stage:NAME" replaced by that stage's folder.

    Args:
      before: stages that have run when this one starts.
    Raises: ValueError: a stage that is not there, or comes later.
    """
    stage = config.stages[name].copy_and_resolve_references()
    for where, section in _loading(stage):
        path = section.get("checkpoint") or ""
        if path.startswith(STAGE):
            wanted = path.removeprefix(STAGE)
            if wanted not in before:
                raise ValueError(
                    f"config.stages.{name}.{where}.checkpoint={path!r} is no stage before "
                    f"{name}; those are: {', '.join(before) or 'none'}")
            section.checkpoint = os.path.join(workdir, wanted)
    return stage


def _loading(stage) -> list[tuple]:
    """(name, section) of the parts of a stage's config that name weights to be loaded."""
    target = stage.get("target") or {}
    return [("init", stage.get("init") or {}), ("target", target),
            ("target.statistics", target.get("statistics") or {})]


def run(config, workdir: str, evaluate_only: bool = False, force: bool = False) -> dict:
    """Runs a recipe: its stages in order, or itself. Then the report and the curves.

    Args: see `loop.run`.
    Returns: metrics of the last evaluation; {stage: metrics} of a recipe with stages.
    """
    import jax

    from beit_jax import report
    from beit_jax.training import loop

    order = stage_order(config)
    table = json.loads(config.to_json()).get("report")
    if table:
        report.read(table, order)  # a typo is found now, not after days of training
    if not order:
        results = loop.run(config, workdir, name=os.path.basename(os.path.normpath(workdir)),
                           evaluate_only=evaluate_only, force=force)
        log.info("%s: %s", workdir, _line(results))
    else:
        _check_keys(config, order)
        configs = {name: resolve_stage(config, name, order[:i], workdir)
                   for i, name in enumerate(order)}
        _check_stages(configs, workdir)
        if not evaluate_only:
            measured = _rehearse(configs, workdir, force)
            if table:
                report.check_metrics(table, measured)
        results = {}
        for i, name in enumerate(order):
            log.info("stage %d of %d: %s", i + 1, len(order), name)
            results[name] = loop.run(configs[name], os.path.join(workdir, name), name=name,
                                     evaluate_only=evaluate_only, force=force)
    if jax.process_index() == 0:
        if table:
            report.make(table, results, workdir)
        if not evaluate_only:
            from beit_jax.visualize import __main__ as figures

            figures.collect(workdir)
    return results


def _check_keys(config, order: list[str]) -> None:
    """Refuses what a recipe with stages would not read: only the stages are configs of runs."""
    for name in order:
        if not isinstance(config.stages[name], ConfigDict):
            raise ValueError(f"config.stages.{name}={config.stages[name]!r} is no stage: a stage "
                             "is a whole config")
    for key in config:
        if key not in ("stages", "report"):
            raise ValueError(f"config.{key} has no effect in a recipe with stages: set it in a "
                             f"stage, for example config.stages.{order[0]}.{key}")


def _check_stages(configs, workdir: str) -> None:
    """Finds mistakes of the last stage before the first one has trained for hours."""
    from beit_jax import checkpoint
    from beit_jax.training import recipe, state

    to_come = {}  # folder -> config of the stages before
    for name, config in configs.items():
        own = os.path.join(workdir, name)
        try:
            recipe.read(config)
            state.check_statistics(
                config, recipe.frozen_networks(config), own, tell=False,
                record_of=lambda path: to_come.get(path) or checkpoint.recorded(path))
        except (ValueError, OSError) as error:
            raise ValueError(f"stage {name}: {one_line(error)}") from error
        to_come[own] = config


def _rehearse(configs, workdir: str, force: bool) -> dict[str, tuple[str, ...]]:
    """Finds what a network or a finished stage refuses before an earlier stage trains for hours.

    Returns: {stage: names of what it measures}.
    """
    from beit_jax.training import records, rehearsal

    measured, known, going_on = {}, {}, {}
    for name, config in configs.items():
        # stages that differ in these alone are refused alike
        plain = json.loads(config.to_json())
        for key in ("seed", "init", "log"):
            plain.pop(key, None)
        for key in ("learning_rate", "min_learning_rate"):
            plain.get("optim", {}).pop(key, None)
        shapes, own = json.dumps(plain), os.path.join(workdir, name)
        try:
            result = records.finished(config, own, force)
            if result is None and shapes not in known:
                known[shapes] = rehearsal.of_config(config)
        except (ValueError, OSError) as error:
            raise ValueError(f"stage {name}: {one_line(error)}") from error
        measured[name] = tuple(known[shapes] if result is None else result)
        stale = [going_on[path] for _, section in _loading(config)
                 if (path := section.get("checkpoint") or "") in going_on]
        if result is None and records.gives_other_weights(config, own):
            going_on[own] = name
        elif result is not None and stale and not force:
            raise ValueError(
                f"stage {name} is finished, but stage {stale[0]}, whose weights it took, is to go "
                f"on: take another --workdir, remove {own}, or --force to keep its numbers")
    return measured


def _line(metrics) -> str:
    """Metrics as one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or (
        "nothing was measured: no examples to evaluate on, or none with what is measured")


def one_line(error: BaseException) -> str:
    """An error as the user sees it."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    else:
        text = str(error) or type(error).__name__
    before, traced, after = text.partition("Traceback (most recent call last):")
    if traced:  # an error inside a config file comes with the stack of its loader
        text = f"{before} {after.strip().splitlines()[-1]}"
    return " ".join(text.split())


def _fail(error: BaseException, code: int) -> int:
    """Prints one line, or everything if BEIT_JAX_TRACEBACK=1."""
    if os.environ.get("BEIT_JAX_TRACEBACK", "") not in ("", "0"):
        traceback.print_exception(error)
    print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    return code


def parse(argv: list[str]) -> ConfigDict:
    """Reads the command line into the flags, and the config file.

    Raises: ValueError, flags.Error, OSError: what is wrong with it, or with the file.
    """
    stray = _read_flags(argv)[1:]
    if stray:
        raise ValueError(f"{stray[0]!r} is no flag: values of the config are given as "
                         "--config.a.b=value, and all else by --name=value (see --help)")
    if not CONFIG.present or WORKDIR.value is None:
        raise ValueError("--config and --workdir are needed: python -m beit_jax.main "
                         "--config configs/digits/beit.py --workdir runs/digits (see --help)")
    if not WORKDIR.value.strip():
        raise ValueError("--workdir is empty, where a folder is needed: is the shell's variable "
                         "set that it was made of?")
    if "://" in WORKDIR.value:
        from beit_jax.checkpoint import absolute

        absolute(WORKDIR.value)  # refuses a kind of bucket that nobody knows
    if isinstance(CONFIG.value, ConfigDict):
        return CONFIG.value
    hasattr(CONFIG.value, "keys")  # an unreadable file is reported on first use only
    raise ValueError(f"config file {_config_path(argv)}: get_config() returned "
                     f"{type(CONFIG.value).__name__}, not an ml_collections.ConfigDict")


def _read_flags(argv: list[str]) -> list[str]:
    """Reads the flags, and with them the config file. Returns: what is none of them."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, OSError):
        raise
    except Exception as error:  # of the config file, a program that may raise anything
        raise ValueError(_unknown_override(argv) or f"config file {_config_path(argv)}: "
                         f"{type(error).__name__}: {error}") from error


def _config_path(argv: list[str]) -> str:
    """What --config names, FILE or FILE:VARIANT; "" if nothing."""
    for i, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value or "".join(argv[i + 1:i + 2])
    return ""


def _unknown_override(argv: list[str]) -> str:
    """What is wrong with the first --config.a.b.c whose section a.b is not there; "" if none is.

    ml_collections says no more of it than the name.
    """
    try:
        config = loader.ConfigFileFlagParser("config", lock_config=False).parse(_config_path(argv))
    except Exception:  # the file itself is at fault, which `parse` tells
        return ""
    for argument in argv:
        name = argument.partition("=")[0].lstrip("-")
        node, where = config, "config"
        for key in name.split(".")[1:-1] if name.startswith("config.") else ():
            if key not in node:
                return f"--{name}: {options.unknown_key(key, node.keys(), where)}"
            node, where = node[key], f"{where}.{key}"
            if not isinstance(node, ConfigDict):
                return f"--{name}: {where}={node!r} is a value, not a section"
    return ""


def usage(argv: list[str]) -> str:
    """What --help prints: the flags, and what the named config holds."""
    rest = [argument for argument in argv if argument not in HELP]
    _read_flags(rest)
    shown = [__doc__.strip(), "", "Flags:"]
    for holder in (CONFIG, WORKDIR, EVALUATE, FORCE, DISTRIBUTED, COORDINATOR,
                   NUM_PROCESSES, PROCESS_ID):
        shown.append(f"  --{holder.name:<14} {flags.FLAGS[holder.name].help}")
    shown += [f"  --{'config.a.b=V':<14} any value of the config; tuples as "
              "--config.data.crop_scale='(0.2, 1.0)'", "", _USAGE]
    if isinstance(CONFIG.value, ConfigDict):
        shown += ["", f"Values of {_config_path(rest)}, overrides included:", str(CONFIG.value)]
    return "\n".join(shown)


def main(argv: list[str]) -> int:
    """Parses the flags and runs.

    Args:
      argv: as sys.argv.
    Returns: 0; 1: input that cannot be used, or a loss that is not a number; 2: a wrong command
      line; 130, 143: stopped by Ctrl-C or SIGTERM, with its state saved, so that a scheduler
      knows that the run is to go on.
    """
    try:
        if set(argv[1:]) & set(HELP):
            print(usage(argv))
            return 0
        config = parse(argv)
    except (flags.Error, ValueError, LookupError, AttributeError, TypeError, OSError,
            ImportError, SyntaxError, NotImplementedError) as error:
        return _fail(error, 2)
    try:
        # before the imports that take seconds
        start_process()
        from beit_jax.training import preemption

        try:
            with preemption.listen(signal.SIGINT, signal.SIGTERM):
                run(config, WORKDIR.value, EVALUATE.value, FORCE.value)
        except preemption.Stopped as stopped:
            print(stopped, file=sys.stderr, flush=True)
            return stopped.code
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:  # later ones are taken down by preemption.listen
        print("stopped by Ctrl-C before anything was begun", file=sys.stderr)
        return 130
    return 0


def entry() -> None:
    """`python -m beit_jax.main`, and of scripts that bring tasks of their own."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    entry()
