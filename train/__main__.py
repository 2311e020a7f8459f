"""Runs the stages of a config, one after another, each resumed where it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import flags, logging

_HELP = """Trains the stages of a config.

  python -m train --config=configs/demo.py --workdir=runs/demo
  python -m train --config=configs/demo.py --workdir=runs/demo --config.pretrain.steps=100
  python -m train --config=configs/demo.py --workdir=runs/demo --stage=pretrain
  python -m train --config=configs/demo.py --workdir=runs/other --fork=runs/demo --config.pretrain.seed=1

On several processes, each runs the same command on one shared workdir: with --distributed=auto on a TPU pod, under
SLURM, Open MPI or a Kubernetes indexed job; else with its number, how many there are and where the first one listens:

  python -m train --config=configs/demo.py --workdir=runs/demo --distributed=0/2@localhost:9876 &
  python -m train --config=configs/demo.py --workdir=runs/demo --distributed=1/2@localhost:9876

Run again on the same workdir, it resumes exactly. What may change then: steps, evaluations, what is the best, logging,
saving, layout, mesh and microbatches. What may not: objective, data, optimizer, schedule, batch, seed, carry, learned,
view, backbone, tokenizer (an error names the difference; --fork starts a new workdir from the old one's checkpoints).
Any key of the config is overridden by its path, as in --config.STAGE.key=value.
"""


def compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start is quick."""
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/rootstock/xla").expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def join(text: str) -> None:
    """Makes this process one of several: "auto", or "0/2@host:port", its number, how many there are, and the first's
    address. To be called before anything asks for a device.
    """
    import re

    import jax

    if text == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                f"--distributed=auto finds no cluster ({error}): write --distributed=i/n@host:port, as in "
                f"0/2@localhost:9876"
            ) from None
        return
    found = re.fullmatch(r"(\d+)/(\d+)@(.+:\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"--distributed={text!r}: expected auto, or i/n@host:port with i below n, as in 0/2@host:9876")
    jax.distributed.initialize(found[3], num_processes=int(found[2]), process_id=int(found[1]))


def run(config, workdir: Path, stage: str | None = None, fork: Path | None = None) -> None:
    """Trains all the stages of a config, or one; a notebook may call this."""
    from train import build, loop, sharding
    from train.checkpoint import steps_in
    from train.data import tokenizer

    sharding.enough_threads()
    config = build.plain(config)
    names = build.stages(config)
    if stage is not None and stage not in names:
        raise ValueError(f"--stage={stage}: the config's stages are {', '.join(names)}")
    wanted = names if stage is None else (stage,)
    if ":/" in str(workdir):  # a Path has one slash of a bucket's two
        raise ValueError(f"--workdir={workdir}: expected a folder; mount the bucket, as by gcsfuse")
    build.check_ahead(config, wanted)
    begun = any(steps_in(at / name / "checkpoints") for at in (workdir, fork) if at is not None for name in wanted)
    if fork is not None and not begun and tokenizer.find(fork) is None:
        what = f"no tokenizer and no checkpoint of {', '.join(wanted)} there" if fork.is_dir() else "no such folder"
        raise ValueError(f"--fork={fork}: {what}; expected the workdir of another run")
    with first_process_first("the tokenizer is there"):
        if fork is not None and tokenizer.find(workdir) is None and tokenizer.find(fork) is not None:
            tokenizer.save(tokenizer.load(fork), workdir)
    for name in wanted:
        with first_process_first(f"{name} is made"):
            made = build.stage(config, name, workdir)
        loop.fit(made, workdir, fork=fork)


@contextmanager
def first_process_first(what: str) -> Iterator[None]:
    """The other processes begin when the first is done: what it left in the workdir they find there. Its error is
    theirs too, as a ValueError.
    """
    import jax

    if jax.process_count() == 1:
        yield
        return
    if jax.process_index() > 0:
        if error := _heard(""):
            raise ValueError(f"the first process, before {what}: {error}")
        yield
        return
    try:
        yield
    except BaseException as error:
        _heard(str(error) or type(error).__name__)
        raise
    _heard("")


def _heard(text: str) -> str:
    """What the first process says, of which all others wait here; at most a kilobyte."""
    import numpy as np
    from jax.experimental import multihost_utils

    said = np.frombuffer(text.encode()[:1024].ljust(1024, b"\0"), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(said))).rstrip(b"\0").decode(errors="replace")


def check_package() -> None:
    """`train` is a common name: raises ValueError where another package of that name comes first on the path."""
    import train

    here = Path(__file__).resolve().parent
    found = Path(train.__file__ or "").resolve().parent
    if found != here:
        raise ValueError(f"`import train` finds {found}, not Rootstock's {here}: run from the repository's root")


def main() -> None:
    from train import command
    from train.loop import Stopped

    workdir = flags.DEFINE_string("workdir", None, "the folder for checkpoints, data, logs; made where absent")
    stage = flags.DEFINE_string("stage", None, "the one stage to run, instead of all in order")
    fork = flags.DEFINE_string("fork", None, "a workdir to start a new one from")
    distributed = flags.DEFINE_string("distributed", None, "one of several processes: auto, or i/n@host:port")
    flags.mark_flag_as_required("workdir")

    def work(config) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
        check_package()
        if distributed.value is not None:
            join(distributed.value)
        compilation_cache()
        run(config, Path(workdir.value or ""), stage.value, Path(fork.value) if fork.value else None)

    command.main(_HELP, work, Stopped)


if __name__ == "__main__":
    main()
