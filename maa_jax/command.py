"""What all programs share: flags, help, errors, and a quiet terminal.

    def define_flags() -> None: ...    # absl flags, or options.define_flags(Request)
    def main() -> None: ...            # reads the flags and makes one call

    def run() -> None:                 # python -m maa_jax.NAME and the console script maa-NAME
        command.run(main, define_flags)

A program's exit status is 0; 2, with one line on stderr, for a mistake that the user can correct
(a ValueError or FileNotFoundError that this package raised, a flag, a missing extra); 1, with one
line, for a full disk; 130 after Ctrl-C. Any other exception is a bug and keeps its traceback.
"""

import errno
import importlib
import logging as python_logging
import os
import pathlib
import re
import runpy
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import flags, logging

from maa_jax.checks import nearest

# {module that the base install lacks: extra of this package that installs it}.
EXTRAS = {
    "PIL": "video",
    "apache_beam": "beam",
    "av": "video",
    "clu": "train",
    "etils": "train",
    "grain": "train",
    "jinja2": "train",
    "librosa": "evaluation",
    "matplotlib": "report",
    "ml_collections": "train",
    "optax": "train",
    "orbax": "train",
    "tensorboard": "train",
    "tensorboardX": "train",
    "tensorflow_datasets": "train",
    "torch": "torch",
    "yaml": "train",
}
_HERE = pathlib.Path(__file__).parent
_CONFIGS = _HERE / "configs"


def run(main: Callable[[], None], define_flags: Callable[[], None]) -> None:
    """Runs a program: parses its flags, calls `main`, and prints a user's mistake as one line.

    The program's help is the docstring of the module that defines `main`, followed by its flags.
    """
    module = main.__globals__
    name = module["__spec__"].name.removesuffix(".__main__")
    before = set(flags.FLAGS)
    try:
        try:
            define_flags()
            own = [flag for flag in flags.FLAGS if flag not in before]
            if {"--help", "-help", "-h"} & set(sys.argv[1:]):
                print(_help(module["__doc__"], own))
                sys.exit(0)
            _parse(sys.argv)
            _quieten()
            main()
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in EXTRAS:
                raise
            extra = EXTRAS[missing]
            message = f"needs the extra `{extra}`: pip install 'maa_jax[{extra}]'"
            _fail(name, f"{message} (there is no {missing} here)")
        except Exception as error:
            logging.debug("where the error below was raised", exc_info=True)
            if place := no_room(error):
                _fail(name, f"no room in {place}: make room and give the same command", 1)
            if not _is_users(error):
                raise
            _fail(name, str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _is_users(error: Exception) -> bool:
    """Whether an exception is a mistake of the user: one that this package, not a library, raised.

    A library's ValueError is a bug here, whose traceback is needed.
    """
    if isinstance(error, flags.Error | FileNotFoundError):
        return True
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename:
        return True
    if not isinstance(error, ValueError):
        return False
    if type(error).__module__.startswith("maa_jax"):
        return True
    place = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if place.is_relative_to(_HERE):
        return True
    paths = sysconfig.get_paths()
    libraries = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(place.is_relative_to(folder) for folder in libraries)


# What the system says of a path that cannot be used as it was given.
_PATH_ERRORS = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_FULL = {errno.ENOSPC: os.strerror(errno.ENOSPC), errno.EDQUOT: os.strerror(errno.EDQUOT)}


def no_room(error: BaseException) -> str:
    """Returns the place that a full disk kept from being written; "" for any other error.

    Libraries wrap the system's error, or pass on its text alone.
    """
    chain = list(_chain(error))
    if not any(
        getattr(e, "errno", None) in _FULL or any(text in str(e) for text in _FULL.values())
        for e in chain
    ):
        return ""
    named = [e.filename for e in chain if isinstance(e, OSError) and e.filename]
    if named:
        return os.path.dirname(os.path.abspath(os.fsdecode(named[-1])))
    given = (flags.FLAGS[name].value for name in ("out", "workdir") if name in flags.FLAGS)
    return next((str(value) for value in given if value), "the folder that is written to")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception, and those that it was raised from or that it groups."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        e = waiting.pop(0)
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        yield e
        waiting += [e.__cause__, e.__context__, *getattr(e, "exceptions", ())]


def define_config_flag() -> None:
    """Defines --config, whose value is a ConfigDict from a file or, by name, from the package.

    `--config=configs/t2a.py:demo` calls `get_config("demo")` of that file; where there is no such
    file, `--config=t2a:demo` calls that of `maa_jax.configs.t2a`. `--config.KEY=VALUE` sets a key.
    """
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "Config: a file, configs/t2a.py[:ARG], or a name, t2a[:ARG]."
    )
    flags.mark_flag_as_required("config")
    # ml_collections' loader reports mistakes as tracebacks, and takes only paths.
    setattr(flags.FLAGS["config"].parser, "parse", read_config)  # noqa: B010 (a method)


def read_config(argument: str) -> Any:
    """Returns the locked config for `--config=ARGUMENT`; see `define_config_flag`.

    Raises:
      ValueError: there is no such file or name, or the config lacks a key on the command line; the
        message has the nearest known one.
    """
    place, _, argument = argument.partition(":")
    if pathlib.Path(place).is_file():
        try:
            get_config = runpy.run_path(place)["get_config"]
        except (KeyError, SyntaxError) as error:
            raise ValueError(
                f"--config={place} is no Python file that defines get_config(arg) ({error})"
            ) from error
    else:
        known = sorted(p.stem for p in _CONFIGS.glob("[!_]*.py") if p.stem != "common")
        if place not in known:
            raise ValueError(
                f"there is no file {place}, nor a config of that name; did you mean"
                f" {nearest(pathlib.Path(place).stem, known)!r}? There are {', '.join(known)}"
            )
        get_config = importlib.import_module(f"maa_jax.configs.{place}").get_config
    config = get_config(*[argument] if argument else [])
    for flag in sys.argv[1:]:
        if match := re.match(r"--?config\.([^=]+)", flag):
            _check_key(config, match[1])
    return config.lock()


def _check_key(config: Any, key: str) -> None:
    """Raises a ValueError that has the nearest key unless a config has `key`, "unet.layers"."""
    node, path = config, "config"
    for name in key.split("."):
        known = list(node) if hasattr(node, "keys") else []
        if name not in known:
            near = f"; did you mean {path}.{nearest(name, known)}?" if known else ""
            raise ValueError(f"{path} has no {name!r}{near}")
        node, path = node[name], f"{path}.{name}"


def _parse(argv: list[str]) -> None:
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --([\w.]+)=None: ", str(error))
        if not match:
            raise
        raise ValueError(f"--{match[1]} is missing: {flags.FLAGS[match[1]].help}") from None
    if rest:
        raise ValueError(
            f"{rest[0]!r} is not a flag: flags begin with --, and values with spaces need quotes"
        )


def _help(doc: str, own: list[str]) -> str:
    lines = [doc.strip(), "", "Flags:"]
    for name in own:
        flag = flags.FLAGS[name]
        text = flag.help.split(";\n")[0]  # absl adds there how a list is given
        if flag.default not in (None, "", []):
            default = flag.default
            default = ",".join(default) if isinstance(default, list) else default
            text += f" Default: {default}."
        lines.append(f"  --{'[no]' if flag.boolean else ''}{name}")
        lines.append(flags.text_wrap(text, indent=" " * 6))
    lines += ["  --verbosity", "      0 and 1 show the logs of libraries. Default: -1."]
    return "\n".join(lines)


def _quieten() -> None:
    """Hides other libraries' warnings and logs, but not this package's, nor any errors.

    --verbosity overrides this, and Python's -W is respected.
    """
    if flags.FLAGS["verbosity"].present:
        logging.use_absl_handler()
        return
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    logging.get_absl_handler().python_handler.addFilter(_is_ours)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"maa_jax\b")
        warnings.showwarning = _show_warning
    sys.unraisablehook = _tell_unraisable
    # For C++ libraries and transformers, which do not log through Python's logging.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning as one line above a progress bar; where it was raised is of no use."""
    import tqdm

    tqdm.tqdm.write(f"Warning: {message}", file=sys.stderr)


def _tell_unraisable(found: Any) -> None:
    # Arrays that Orbax still writes when another has failed report to a loop that is gone.
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _is_ours(record: python_logging.LogRecord) -> bool:
    path = pathlib.Path(record.pathname)
    # What Orbax's threads fail with reaches the program too: as an exception, which is told once.
    raised_too = not {"orbax", "asyncio"}.isdisjoint(path.parts)
    return path.is_relative_to(_HERE) or (record.levelno >= python_logging.ERROR and not raised_too)


def _fail(name: str, message: str, status: int = 2) -> NoReturn:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(status)
