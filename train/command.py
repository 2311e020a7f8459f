"""A command line that takes a config: its flags parsed, and what a user can mend said without the program's insides."""

import gc
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags


def start_quickly() -> None:
    """Settings of this process that shorten the way to the first step and lengthen no step. Before jax is used."""
    gc.set_threshold(100_000)  # imports and traces make objects by the million and few cycles: a sixth of their time
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_extra_options" not in flags:  # on CPUs a tenth of the compilation, and steps are as fast
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true".strip()


def main(help: str, work: Callable[[Any], None], *errors: type[Exception], config_required: bool = True) -> None:
    """Parses the flags, `--config` with its overrides among them, and calls `work(config)`, with None where no config
    is given and none is required.

    A ValueError, or one of `errors`, ends the program with `error: ...` and exit code 1. The other flags are defined
    by the caller, before; `help` is what --help says above them.
    """
    start_quickly()
    from ml_collections import config_flags

    mendable: tuple[type[Exception], ...] = (ValueError, *errors)
    config = config_flags.DEFINE_config_file(
        "config", help_string="the config file; its keys are overridden, and others set, by path",
        lock_config=False, accept_new_attributes=True,  # which keys there are, and the nearest, train.build says
    )  # fmt: skip
    if config_required:
        flags.mark_flag_as_required("config")
    sys.modules["__main__"].__doc__ = help
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])  # or --help leaves it out

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except KeyError as error:
            if not _of_ml_collections(error):
                raise  # the config file's own
            key, _, hint = str(error.args[0]).partition("\n")
            sys.exit(f"error: the config has no section {key} to set a key of; {hint or 'add it to the file'}")
        except OSError as error:
            sys.exit(_unreadable(error))
        except flags.Error as error:  # that a config file raises comes with its traceback, as text
            last = str(error).strip().splitlines()[-1].strip()
            ours = last.startswith("ValueError: ")
            path = next((x for x in argv if x.startswith("--config=")), "").removeprefix("--config=").partition(":")[0]
            where = f"the top of {path}, and --help" if ours and os.path.isfile(path) else "--help"
            sys.exit(f"error: {last.removeprefix('ValueError: ') if ours else error}; see {where}")

    def start(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected arguments {' '.join(argv[1:])}; see --help")
        try:
            if config.value is not None:
                config.value.items()  # raises OSError where the file could not be read
        except OSError as error:
            sys.exit(_unreadable(error))
        try:
            work(config.value)
        except mendable as error:
            if _of_the_user(error):
                traceback.print_exception(error)
            sys.exit(f"error: {error}")

    app.run(start, flags_parser=parse)


def _of_the_user(error: BaseException | None) -> bool:
    """Whether it passed through a file that is neither ours nor a library's, as a module with an objective."""
    ours, libraries = Path(__file__).parents[1], [Path(p) for p in sysconfig.get_paths().values()]
    while error is not None:
        for frame in traceback.extract_tb(error.__traceback__):
            file = Path(frame.filename)
            if file.is_file() and not any(file.is_relative_to(known) for known in (ours, *libraries)):
                return True
        error = error.__cause__ or error.__context__
    return False


def _of_ml_collections(error: BaseException) -> bool:
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return "ml_collections" in frames[-1]


def _unreadable(error: OSError) -> str:
    given = next((x for x in sys.argv if x.startswith("--config=")), "")
    path = given.removeprefix("--config=").partition(":")[0]
    if path and not os.path.isfile(path):
        return f"error: --config={path}: there is no such file in {os.getcwd()}"
    return "error: " + " ".join(str(error.__cause__ or error).split())
