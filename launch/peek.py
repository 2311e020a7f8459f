"""Rows of a step as the model sees them: decoded, with what the objective changed in them marked."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_HELP = """Prints rows of a step exactly as the model sees them, corrupted by the step's own key.

  python -m launch.peek --config=configs/demo.py --workdir=runs/demo
  python -m launch.peek --config=configs/demo.py --workdir=runs/demo --stage=pretrained_0 --step=120 --rows=4
  python -m launch.peek --config=configs/demo.py --workdir=runs/demo --config.pretrain.objective.rate=0.4 | less

Steps count from 0: step 0 is the one that the log calls 1. Tokens that the objective changed are coloured on a
terminal, masked ones in red and replaced ones in yellow, and stand in ⟦ ⟧ elsewhere. A tokenizer and rows that the
workdir does not hold yet are made there, as training would. Nothing is trained, and no accelerator is used.
"""


class Token(NamedTuple):
    """A token of a row. `mark` is "masked", "replaced", or "" where it is as it was."""

    piece: str
    mark: str


class Segment(NamedTuple):
    """A packed segment: its example (source, index), its tokens, how many of each type, its label with its class."""

    example: tuple[int, int]
    tokens: list[Token]
    types: dict[int, int]
    label: str | None


class Target(NamedTuple):
    """A position that the objective asks about: what the model sees there, what it should say, what it counts."""

    position: int
    seen: str
    piece: str
    weight: float


class Row(NamedTuple):
    """A row of a batch.

    number:   of the row in the stage's data, or in the batch where its layout makes rows anew
    targets:  those of weight above 0, by position; None where the objective names no targets
    texts:    the pieces of any other text that the corruption made, as what a decoder writes, by its path in the row
    others:   any other array that it added or changed, likewise
    padding:  share of the positions
    readers:  the objectives that read it so: in a mixture a row is seen once for each pass over the backbone
    """

    number: int
    segments: list[Segment]
    targets: list[Target] | None
    texts: dict[str, list[str]]
    others: dict[str, np.ndarray]
    padding: float
    readers: tuple[str, ...]


def peek(config: Any, name: str, workdir: Path, step: int = 0, rows: int = 2) -> list[Row]:
    """The first `rows` rows of a stage's batch `step`, counted from 0; of a mixture each as every pass sees it.

    Raises ValueError for a step that the stage does not take, or whatever is wrong with the config.
    """
    from train import build, loop

    config = build.plain(config)
    made = build.spec(config, name)
    # nothing runs on the mesh: this one is right for any number of devices and any batch
    stage = build.stage(config | {name: config[name] | {"mesh": "tensor=-1", "microbatches": 1}}, name, workdir)
    if not 0 <= step < stage.steps:
        raise ValueError(f"--step={step}: {name} takes {stage.steps} steps, numbered 0 to {stage.steps - 1}")
    loader = loop.loader_of(stage)
    count = loader.shapes(step)["tokens"].shape[0]
    if not 1 <= rows <= count:
        raise ValueError(f"--rows={rows}: this batch of {name} has {count} rows, so take 1 to {count}")
    tokenizer = build.tokenizer(config, workdir)
    before = loader.read(step, slice(0, rows))
    after = corrupted(stage, before, step)
    numbers = loader.index(step)[:rows].tolist() if loader.layout is None else range(rows)
    classes = made.data.get("classes")
    return [
        _row(stage, tokenizer, classes, n, _at(before, i), seen, readers)
        for i, n in enumerate(numbers)
        for readers, seen in _views(stage.objective, _at(after, i))
    ]


def _views(objective: Any, after: dict) -> list[tuple[tuple[str, ...], dict]]:
    """(names of the objectives that read a row so, the row): of a mixture one for each pass over the backbone."""
    if not objective.parts:
        return [((objective.name,), after)]
    clean = {k: x for k, x in after.items() if k != objective.name}
    views = [(tuple(names.split()), clean | changed) for names, changed in after[objective.name].items()]
    order = [part.name for part in objective.parts]
    return sorted(views, key=lambda view: order.index(view[0][0]))


def corrupted(stage: Any, batch: dict, step: int) -> dict:
    """Rows of a batch as the step corrupts them, on the host."""
    import jax
    import jax.numpy as jnp

    from model import random
    from train import step as training

    def corrupt(batch, step):
        return training.corrupted(batch, random.fold(random.key(stage.seed), step), step, stage.objective)

    return jax.device_get(jax.jit(corrupt)(batch, jnp.int32(step)))


def _at(tree: Any, i: int) -> Any:
    import jax

    return jax.tree.map(lambda x: x[i], tree)


def _row(
    stage: Any, tokenizer: Any, classes: Any, number: int, before: dict, after: dict, readers: tuple[str, ...]
) -> Row:
    from train import tree

    ids, segments = after["tokens"], after["segments"]
    for reader in readers:  # replaced-token detection shows its generator a text of its own
        mine = after.get(reader)
        ids = mine["tokens"] if isinstance(mine, dict) and "tokens" in mine else ids
    pieces = tokenizer.pieces(ids)
    was = before["tokens"] if before["tokens"].shape == ids.shape else ids
    tokens = [Token(p, "" if new == old else "masked" if new == stage.vocab.mask else "replaced")
              for p, new, old in zip(pieces, ids, was, strict=True)]  # fmt: skip
    found = []
    for s in range(int(segments.max())):
        at = np.flatnonzero(segments == s + 1)
        types = dict(zip(*np.unique(after["types"][at], return_counts=True), strict=True)) if "types" in after else {}
        label = _label(after["labels"][s], classes) if "labels" in after else None
        if "answers" in after:
            first, last = after["answers"][s].tolist()
            label = f"answer {' '.join(pieces[i] for i in at[first : last + 1])}" if last else "no answer here"
        if "tags" in after and (names := stage.objective.classes):
            label = " ".join(f"{pieces[i]}/{names[after['tags'][i] - 1]}" for i in at if after["tags"][i])
        source, index = after["example"][s].tolist()
        counts = {int(k): int(n) for k, n in types.items()}
        found.append(Segment((source, index), [tokens[i] for i in at], counts, label))

    known = {"tokens", *(f"{reader}/tokens" for reader in readers)}
    targets = None
    for reader in readers:
        mine = after.get(reader)
        if isinstance(mine, dict) and {"index", "target", "weight"} <= mine.keys():
            known |= {f"{reader}/{key}" for key in ("index", "target", "weight")}
            wanted = tokenizer.pieces(mine["target"])
            targets = sorted(
                Target(int(i), pieces[i], piece, float(w))
                for i, piece, w in zip(mine["index"], wanted, mine["weight"], strict=True)
                if w > 0
            )
    originals, held = tree.leaves(before), tree.leaves(after)
    others = {
        path: x
        for path, x in held.items()
        if path not in known and not (path in originals and np.array_equal(originals[path], x))
    }
    texts = {}
    for path in [path for path in others if path.endswith(("/tokens", "/label")) and others[path].ndim == 1]:
        ids, beside = others.pop(path), f"{path.removesuffix('tokens')}segments"
        ids = ids[held[beside] > 0] if beside in held else np.trim_zeros(ids, "b")
        size = stage.vocab.size  # ids after the tokenizer's are T5's sentinels
        plain = tokenizer.pieces(np.minimum(ids, size - 1))
        texts[path] = [f"<{i - size}>" if i >= size else piece for i, piece in zip(ids.tolist(), plain, strict=True)]
    return Row(number, found, targets, texts, others, float((segments == 0).mean()), readers)


def _label(label: np.ndarray, classes: Any) -> str:
    if label.ndim == 0 and classes is not None and np.issubdtype(label.dtype, np.integer):
        return f"{label} ({classes[int(label)]})"
    return str(label.tolist())


_COLOURS = {"masked": "bold red", "replaced": "bold yellow"}


def show(row: Row, console: Any) -> None:
    """Prints a row for people, on a rich console: in colours where it has them, else with ⟦ ⟧."""
    from rich.text import Text

    def say(text: Any, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    plain = console.color_system is None
    several = "" if len(row.segments) == 1 else "s"
    say(
        f"row {row.number} of {' and '.join(row.readers)}: {len(row.segments)} segment{several}, "
        f"{row.padding:.1%} padding",
        "bold",
    )
    for s, segment in enumerate(row.segments, start=1):
        types = ", types " + ", ".join(f"{t} x {n}" for t, n in segment.types.items()) if segment.types else ""
        label = "" if segment.label is None else f", label {segment.label}"
        say(f"  segment {s}: example {segment.example}, {len(segment.tokens)} tokens{types}{label}")
        text = Text()
        told = any(piece.startswith(_SPACES) for piece, _ in segment.tokens)  # where words begin; else where they go on
        for piece, mark in segment.tokens:
            begins = piece.startswith((*_SPACES, "[")) if told else not piece.startswith("##")
            space = " " if text and begins else ""
            word = (piece[1:] if piece.startswith(_SPACES) else piece).replace("\u2581", " ")
            word = word if told else word.removeprefix("##")
            text.append(space).append(f"⟦{word}⟧" if mark and plain else word, style=_COLOURS.get(mark))
        say(Text("    ").append_text(text))
    if row.targets is not None:
        say(f"  {len(row.targets)} targets, as position seen → target:")
        weights = {t.weight for t in row.targets} - {1.0}
        worth = " (weight {:g})" if weights else ""
        each = (f"{t.position} {t.seen} → {t.piece}{worth.format(t.weight)}" for t in row.targets)
        say("    " + " · ".join(each))
    for path, pieces in row.texts.items():
        say(f"  {path}: {' '.join(pieces).replace(chr(0x2581), '_')}")
    for path, x in row.others.items():
        say(f"  {path} {x.dtype} {'x'.join(map(str, x.shape)) or 'scalar'}: {_first(x)}")


_SPACES = ("\u2581", "\u0120")  # what sentencepiece and byte-level vocabularies write for the space before a word


def _first(x: np.ndarray, n: int = 8) -> str:
    values = (f"{v:g}" if isinstance(v, float) else str(v) for v in np.ravel(x)[:n].tolist())
    return " ".join(values) + (" …" if x.size > n else "")


def main() -> None:
    from absl import flags

    from train import command

    workdir = flags.DEFINE_string("workdir", None, "the run's folder, for its tokenizer and rows")
    stage = flags.DEFINE_string("stage", None, "the stage; the first where absent")
    step = flags.DEFINE_integer("step", 0, "the step, counted from 0")
    rows = flags.DEFINE_integer("rows", 2, "how many rows of the batch to print")
    flags.mark_flag_as_required("workdir")

    def work(config: Any) -> None:
        import jax
        from absl import logging
        from rich.console import Console

        logging.set_verbosity(logging.WARNING)  # Orbax tells of every checkpoint it opens

        # corruption is equal to the bit on every platform, and another program may hold the accelerator
        jax.config.update("jax_platforms", "cpu")
        from train import build

        name = build.stages(build.plain(config))[0] if stage.value is None else stage.value
        console = Console()
        for row in peek(config, name, Path(workdir.value or ""), step.value, rows.value):
            show(row, console)

    command.main(_HELP, work)


if __name__ == "__main__":
    main()
