"""Predictions of a trained stage for texts, from its checkpoint alone; or its evaluations, without training."""

import argparse
import ast
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_EXAMPLES = """examples:
  python -m launch.predict --workdir=runs/sst2 --stage=finetune --best --text="A fine film."
  python -m launch.predict --workdir=runs/sst2 --stage=finetune --texts=reviews.jsonl --out=predictions.jsonl
  python -m launch.predict --workdir=runs/squad --stage=finetune --text="Who saw it?" --pair="It was seen by Ann."
  python -m launch.predict --workdir=runs/demo --stage=pretrain --text="The film was [MASK] ."
  python -m launch.predict --workdir=runs/multi30k --stage=translate --set=beams=4 --set=penalty=1.0 --evaluate
  python -m launch.predict --workdir=runs/t5 --stage=pretrain --text="The <extra_id_0> was <extra_id_1> ."
  python -m launch.predict --workdir=runs/diffusion --stage=pretrain --seed=1 --text="The [MASK] [MASK] [MASK] good."
  zcat reviews.txt.gz | python -m launch.predict --workdir=runs/sst2 --stage=finetune -
  python -m launch.predict --workdir=runs/sst2 --stage=finetune --best --evaluate

One JSON object a text comes out, in the order of the texts. A .txt file (and standard input) holds a text a line;
.jsonl, .csv and .tsv files have a column `text`, and for tasks on pairs a column `pair`; questions of multiple choice
are the texts of a .jsonl file, beside `choices`, a list. A text too long for the stage's rows is cut, and a warning
counts those.
"""


SET = """override an argument of the objective for this run, as beams=4, steps=64 (masked diffusion) or
likelihood=causal (hybrid); in a mixture PART.KEY=VALUE; may be given again"""


class Trained(NamedTuple):
    """A stage as its checkpoint left it. `made` is its section of the config, checked; `step` the checkpoint's."""

    name: str
    config: dict
    made: Any
    tokenizer: Any
    backbone: Any
    objective: Any
    view: Any
    params: Any
    mesh: Any
    step: int


def load(workdir: Path, name: str, step: int | None = None, best: bool = False, changes: Sequence[str] = ()) -> Trained:
    """A stage from its newest checkpoint, that of a step, or the best, on a one-axis mesh over this process's devices.

    Every device holds all the parameters. `changes` are arguments of the objective for this once, "beams=4", and of a
    mixture's "seq2seq.beams=4". Raises ValueError where there is no such stage, checkpoint, tokenizer or argument.
    """
    import jax

    from train import build, checkpoint, sharding, tree
    from train import step as training

    _check_there(workdir, name, best)
    params, origin, step = checkpoint.read_params(workdir / name / ("best" if best else "checkpoints"), step)
    config = build.plain(origin["config"])  # JSON made lists of the tuples
    made = build.spec(config, name)
    # the architecture as it was, and not as a checkpoint says that it came from: that may be gone
    made = dataclasses.replace(made, backbone={"size": "tiny"} | build.plain(origin["backbone"]))
    if not made.objective:
        raise ValueError(
            f"{name} of {workdir} was imported with no head that predicts here; it holds {', '.join(params)}"
        )
    tokenizer = build.tokenizer(config, workdir)
    if tokenizer.vocab.fingerprint != origin["tokenizer"]:
        raise ValueError(
            f"{workdir / tokenizer.file[0]} (fingerprint {tokenizer.vocab.fingerprint[:12]}) is not the tokenizer that "
            f"{name} was trained with ({origin['tokenizer'][:12]}): put that one back"
        )
    mesh = sharding.make_mesh(sharding.parse("data=-1"), jax.local_devices())
    made = dataclasses.replace(made, objective=_changed(made.objective, changes))
    bb, objective = build.model(made, name, tokenizer.vocab, mesh)
    if changes:
        was, now = ({k: x.shape for k, x in tree.leaves(t).items()} for t in (params, build.shapes(bb, objective)))
        if unlike := sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k)):
            raise ValueError(
                f"--set={' --set='.join(changes)}: {name} was trained with {unlike[0]} {was.get(unlike[0], 'absent')}, "
                f"and so it would be {now.get(unlike[0], 'absent')}: only what needs no other params can be changed"
            )
    view = build.load(made.view) if made.view else training.identity
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    return Trained(name, config, made, tokenizer, bb, objective, view, params, mesh, step)


def _changed(objective: dict, changes: Sequence[str]) -> dict:
    for change in changes:
        path, equals, text = change.partition("=")
        part, _, key = path.rpartition(".")
        parts = objective.get("mixture", {})
        if not equals or (part or None) not in (parts or {None}):
            where = f"PART.KEY=VALUE, PART one of {', '.join(parts)}" if parts else "KEY=VALUE"
            raise ValueError(f"--set={change}: expected {where}")
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):  # a word
            value = text
        if part:
            objective = objective | {"mixture": parts | {part: parts[part] | {key: value}}}
        else:
            objective = objective | {key: value}
    return objective


def part(trained: Trained, name: str) -> Trained:
    """The stage with one objective of its mixture. Raises ValueError where it has none of that name."""
    parts = {part.name: part for part in trained.objective.parts}
    if name not in parts:
        raise ValueError(f"--part={name}: {trained.name} trained {', '.join(parts) or 'no mixture'}")
    return trained._replace(objective=parts[name])


def _check_there(workdir: Path, name: str, best: bool) -> None:
    from train import checkpoint
    from train.data.tokenizer import FILES, find

    if not workdir.is_dir():
        raise ValueError(f"--workdir={workdir}: no such folder")
    folder = "best" if best else "checkpoints"
    stages = sorted(p.parent.name for p in workdir.glob(f"*/{folder}") if checkpoint.steps_in(p))
    if name not in stages:
        what = "best checkpoint (its config sets no `best`)" if best and (workdir / name).is_dir() else "checkpoint"
        raise ValueError(f"{workdir} has no {what} of a stage {name!r}; stages with one: {', '.join(stages) or 'none'}")
    if find(workdir) is None:
        raise ValueError(f"{workdir} has no {' or '.join(FILES)}, which training leaves there: copy it back")


def predict(
    trained: Trained, records: list, section: dict | None = None, seed: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yields one plain dict a record (`train.data.source.Record`), in their order.

    It has `text`, `pair` where there is one, and what the objective predicts, put in words as its `says` tells: for
    classes `prediction`, a class (a list where several may hold), and `probabilities` by class; for a number
    `prediction`; for tags `prediction`, a list of {word, tag}, words being what stands between white space; for tokens
    `prediction`, a list of {piece, probability} with one for each [MASK] of the text; for a text written `prediction`,
    that text (of T5, what the text's <extra_id_0>, ... stand for), and its `score`; for the answer to a question
    `prediction`, as the pair has it, and its `score`; where one of `choices` is to be chosen `prediction`, that text,
    and the `probabilities` of all, in their order; where every [MASK] is filled in turn (masked diffusion)
    `prediction`, the text with none, drawn with `seed` or, by default, the likeliest. For anything else it has the
    arrays, by name: those of tokens as lists beside `pieces`, ids among them as pieces too.

    Rows are as of `section`, data as in a config; by default those that the stage was trained on.

    Warns on stderr of texts that were cut, and of those without a pair where the stage was trained on pairs. Raises
    ValueError for a mixture (`part` takes one of it), where there is no text, one has no [MASK] to fill, a question no
    pair to be answered from or no choices, others have choices, or an objective that draws nothing a seed.
    """

    from launch.texts import Masking
    from train.data.rows import label_examples
    from train.data.source import Record
    from train.data.words import tag_words

    if not records:
        raise ValueError("there is no text to predict for")
    section = _first(trained.made.data) if section is None else section
    most = trained.backbone.config.max_length
    length = min(section.get("length", most), most)
    if trained.objective.parts:
        names = ", ".join(part.name for part in trained.objective.parts)
        raise ValueError(f"{trained.name} trained a mixture of {names}: say by --part which of them predicts")
    says = trained.objective.says
    if says == "choice":
        yield from _chosen(trained, records, section, seed)
        return
    if of_choices := [record for record in records if record.more]:
        raise ValueError(f"{of_choices[0].where}: choices, and {trained.name} chooses among none")
    if says == "answer":
        yield from _answers(trained, records, length, section, seed)
        return
    if says == "tags":
        classes = trained.objective.classes
        words = [record.text.split() for record in records]
        # any tags, which show where each word begins
        tagged = [
            Record(" ".join(w), None, " ".join(classes[:1] * len(w)), r.where)
            for w, r in zip(words, records, strict=True)
        ]
        rows = tag_words(tagged, trained.tokenizer, length, classes, truncate=True)
    else:
        unlabelled = [record._replace(label=None) for record in records]
        if says == "text" and "types" in trained.objective.needs:  # as in training, where a pair follows
            unlabelled = [record._replace(pair="") for record in unlabelled]
        trained = trained._replace(tokenizer=Masking(trained.tokenizer, trained.objective.sentinels))
        rows = label_examples(unlabelled, trained.tokenizer, length, None, truncate=True)
    arrays, report = rows.arrays, rows.report
    if report["truncated"]:
        _warn(f"{report['truncated']} of {len(records)} texts were cut to {length} tokens")
    alone = sum(record.pair is None for record in records)
    if alone and "labels" in trained.objective.needs and section.get("source", {}).get("pair") is not None:
        _warn(f"{alone} of {len(records)} texts have no pair, and {trained.name} was trained on pairs")

    lost = 0
    for i, (found, record) in enumerate(zip(_found(trained, arrays, seed), records, strict=True)):
        lost += "lost" in found and bool(found.pop("lost"))
        said = _said(trained, found, {k: x[i] for k, x in arrays.items()}, record)
        yield {"text": record.text} | ({} if record.pair is None else {"pair": record.pair}) | said
    if lost:
        _warn(f"{lost} of {len(records)} texts were cut: {trained.name} reads no more than its source_length")


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr)


def _found(trained: Trained, arrays: dict[str, np.ndarray], seed: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """What the objective's `predict` finds for each row of `arrays`, in their order."""
    from functools import partial

    import jax

    from model import random
    from train.data.loader import evaluation_batches
    from train.sharding import rows as over_rows

    key = None if seed is None else random.key(seed)

    def one(params, batch):
        viewed = trained.view(params)
        return trained.objective.predict(viewed, partial(trained.backbone.encode, viewed["backbone"]), batch, key)

    run = jax.jit(one)
    if seed is not None and trained.objective.says != "filled":
        raise ValueError(f"{trained.name} draws nothing, and takes no seed: masked diffusion does")
    rows = len(arrays["tokens"])
    batch = _rows_a_batch(trained, rows)
    for done, given in enumerate(evaluation_batches(arrays, batch, over_rows(trained.mesh))):
        found = jax.device_get(run(trained.params, given))
        for i in range(min(batch, rows - done * batch)):
            yield {k: x[i] for k, x in found.items()}


def _first(section: dict) -> dict:
    """Of a mixture of data the first part."""
    while "mixture" in section:
        section = next(iter(section["mixture"].values()))
    return section


def _answers(trained: Trained, records: list, length: int, section: dict, seed: int | None) -> Iterator[dict[str, Any]]:
    """The answers to questions: of a text's windows the one whose span has the highest score. Where the stage's
    questions may have no answer it is "" if [CLS]'s score, the least of them all, is higher; `score` is then by how
    much the answer's is (Devlin et al. 2018, section 4.3).
    """
    from train.data.answers import answer_windows

    for record in records:
        if record.pair is None:
            raise ValueError(f"{record.where}: {trained.name} answers a question from a text: give it as the pair")
    given = {"question": min(64, length // 4)} | {k: section[k] for k in ("stride", "question") if k in section}
    unlabelled = [record._replace(label=None) for record in records]
    rows = answer_windows(unlabelled, trained.tokenizer, length, **given)
    if rows.report["truncated"]:
        _warn(f"{rows.report['truncated']} of {len(records)} questions were cut")
    arrays = rows.arrays
    windows = zip(arrays["origin"][:, 0], _found(trained, arrays, seed), strict=True)
    offsets = trained.tokenizer.offsets([record.pair for record in records])
    for (place, group), record in zip(itertools.groupby(windows, lambda w: int(w[0][0])), records, strict=True):
        seen = [(int(origin[1]), {k: x[0] for k, x in found.items()}) for origin, found in group]
        shift, best = max(seen, key=lambda window: window[1]["score"])
        first, last = (offsets[place][shift + p] for p in best["prediction"])
        score = float(best["score"])
        answer = record.pair[first[0] : last[1]].strip()
        if "null" in best:
            score -= min(float(one["null"]) for _, one in seen)
            answer = answer if score >= 0 else ""
        yield {"text": record.text, "pair": record.pair, "prediction": answer, "score": _tidy(score)}


def _chosen(trained: Trained, records: list, section: dict, seed: int | None) -> Iterator[dict[str, Any]]:
    """Of each question's choices the likeliest; rows are a question's each."""
    from train.data.groups import text_groups

    for record in records:
        if len(record.more) < 2 or record.pair is not None:
            raise ValueError(
                f"{record.where}: {trained.name} chooses among the texts in `choices`, a list of two or more in a "
                f".jsonl file; found {'a pair' if record.pair is not None else len(record.more)}"
            )
    most = trained.backbone.config.max_length
    rows = text_groups(
        [record._replace(label=None) for record in records], trained.tokenizer, section.get("length", most),
        max(len(record.more) for record in records), joined=True, truncate=True,
        longest=min(section.get("longest") or most, most),
    )  # fmt: skip
    if rows.report["truncated"]:
        _warn(f"{rows.report['truncated']} of {len(records)} questions were cut")
    for found, record in zip(_found(trained, rows.arrays, seed), records, strict=True):
        chances = found["prediction"][: len(record.more)]
        yield {
            "text": record.text, "choices": list(record.more), "prediction": record.more[int(chances.argmax())],
            "probabilities": [*map(_tidy, chances.tolist())],
        }  # fmt: skip


def _rows_a_batch(trained: Trained, rows: int) -> int:
    """The stage's batch or all rows, whichever is less, as a multiple of the devices."""
    return math.ceil(min(trained.made.batch, rows) / trained.mesh.size) * trained.mesh.size


def _said(trained: Trained, found: dict[str, np.ndarray], row: dict[str, np.ndarray], record: Any) -> dict[str, Any]:
    """What the objective's `predict` found for one row, in words."""
    says = trained.objective.says
    if says == "text":  # [S, T]
        return {
            "prediction": trained.tokenizer.decode(found["prediction"][0]),
            "score": _tidy(float(found["score"][0])),
        }
    if says == "tags":  # words that were cut have none
        tags = [trained.objective.classes[c] for c in found["prediction"][row["tags"] > 0]]
        return {"prediction": [dict(word=w, tag=t) for w, t in zip(record.text.split(), tags, strict=False)]}
    if says == "class":  # [S, C]
        shares = found["probabilities"][0].tolist()
        classes = _first(trained.made.data).get("classes") or tuple(map(str, range(len(shares))))
        marked = found["prediction"][0]
        chosen = classes[int(marked)] if marked.ndim == 0 else [classes[c] for c in np.flatnonzero(marked)]
        return {"prediction": chosen, "probabilities": dict(zip(classes, map(_tidy, shares), strict=True))}
    if says in ("mask", "filled"):  # [L], at every token
        from launch.texts import MASK

        at = np.flatnonzero(row["tokens"] == trained.tokenizer.vocab.mask)
        if MASK not in record.text + (record.pair or ""):
            raise ValueError(f'{record.where}: no {MASK} to fill; {trained.name} fills masks, as in "It was {MASK} ."')
    if says == "filled":
        ids = found["prediction"]
        parts = [ids[row["types"] == part] for part in (0, 1)] if record.pair else [ids]
        texts = [*map(trained.tokenizer.decode, parts)]
        return {"prediction": texts if record.pair else texts[0]}
    if says == "mask":
        pieces = trained.tokenizer.pieces(found["prediction"][at])
        chances = map(_tidy, found["probability"][at].tolist())
        return {"prediction": [{"piece": p, "probability": c} for p, c in zip(pieces, chances, strict=True)]}
    of = row["segments"] > 0
    tokens = {k: x[of] for k, x in found.items() if x.shape[:1] == of.shape}  # [L], [L, D]
    if not tokens:
        return {k: _plain(x[0]) for k, x in found.items()}
    spelled = trained.tokenizer.pieces
    whole = {k for k, x in tokens.items() if np.issubdtype(x.dtype, np.integer)} if says == "pieces" else set()
    named = {k: spelled(x) if k in whole else _plain(x) for k, x in tokens.items()}
    rest = {k: _plain(x[0]) for k, x in found.items() if k not in tokens}
    return {"pieces": spelled(row["tokens"][of])} | named | rest


def _tidy(x: float) -> float:
    return round(x, 6)


def _plain(x: Any) -> Any:
    return np.round(x.astype(np.float64), 6).tolist() if np.issubdtype(x.dtype, np.floating) else x.tolist()


def evaluations(trained: Trained, workdir: Path) -> dict[str, float | None]:
    """Metrics of the stage's evaluations, named as in its log ("dev/accuracy"); None for one that is undefined.

    Where texts are written for pairs, "dev/bleu" too: the texts of the source's records against their pairs; and where
    questions are answered, "dev/exact_match" and "dev/f1". Of a mixture these are "dev/{objective}/bleu", and so on.
    """
    import jax

    from train import build, evaluate
    from train.data.layout import layout
    from train.data.loader import evaluation_batches
    from train.sharding import rows as over_rows

    if not trained.made.evals:
        raise ValueError(
            f"{trained.name} was trained without evals: add some to its config, raise its steps by one, and train on"
        )
    run = jax.jit(evaluate.evaluator(trained.backbone, trained.objective, trained.view))
    out: dict[str, float | None] = {}
    for name, section in trained.made.evals.items():
        table = build.rows(section, f"{trained.name}.evals.{name}", trained.tokenizer, workdir)
        batch = _rows_a_batch(trained, trained.made.batch)
        how = layout(trained.made.layout, table, batch, trained.mesh.size)
        batches = evaluation_batches(table, batch, over_rows(trained.mesh), how)
        found = evaluate.evaluate(run, trained.params, batches, trained.objective)
        # JSON has no nan
        out |= {f"{name}/{k}": v if math.isfinite(v) else None for k, v in found.items()}
        parts = [(f"{name}/{one.name}", one) for one in trained.objective.parts] or [(name, trained.objective)]
        for at, one in parts:
            if not (writes := one.says == "text" and "types" in one.needs) and one.says != "answer":
                continue
            if "source" not in section:
                _warn(f"{name} has rows and no texts: no {'BLEU' if writes else 'exact match, no F1'}")
                continue
            if writes and section["source"].get("pair") is None:  # its rows are spans of one text
                continue
            records = list(build.call(section["source"], f"{trained.name}.evals.{name}.source"))
            alone = trained._replace(objective=one)
            if writes:
                out[f"{at}/bleu"] = bleu(alone, records, section)
            else:
                out[f"{at}/exact_match"], out[f"{at}/f1"] = answer_scores(alone, records, section)
    return out


def answer_scores(trained: Trained, records: list, section: dict | None = None) -> tuple[float, float]:
    """SQuAD's exact match and F1, 0 to 1, of what is answered to the records' questions (Rajpurkar et al. 2016), each
    against the best of its answers; windows are as of `section`, see `predict`. Raises ValueError for a record without.
    """
    from train.data.answers import answers_of
    from train.evaluate import answer_score

    given = [answers_of(record) for record in records]
    if None in given:
        raise ValueError(f"{records[given.index(None)].where}: no answers to score by")
    scores = [
        answer_score(said["prediction"], [answer.text for answer in answers or ()])
        for said, answers in zip(predict(trained, records, section), given, strict=True)
    ]
    return tuple(np.mean(scores, 0).tolist())


def bleu(trained: Trained, records: list, section: dict | None = None) -> float:
    """Corpus BLEU, 0 to 100, of what is written for the records' texts against their pairs, as they are and not as they
    are tokenized (Post 2018, https://arxiv.org/abs/1804.08771); rows are as of `section`, see `predict`. Raises
    ValueError where sacrebleu is not installed.
    """
    try:
        import sacrebleu
    except ImportError:
        raise ValueError("BLEU needs the package sacrebleu: pip install -e '.[translate]'") from None
    alone = [record._replace(pair=None) for record in records]
    said = [one["prediction"] for one in predict(trained, alone, section)]
    return float(sacrebleu.corpus_bleu(said, [[record.pair for record in records]]).score)


def _given(args: argparse.Namespace) -> list:
    from launch import texts

    if args.texts is not None:
        return texts.read(args.texts)
    if args.text:
        pairs = args.pair or [None] * len(args.text)
        return [texts.record(text, pair, f"--text={text!r}") for text, pair in zip(args.text, pairs, strict=True)]
    return texts.lines(sys.stdin, "standard input")


def _write(lines: Iterable[str], out: str | None) -> None:
    if out is None:
        for line in lines:
            print(line, flush=True)
        return
    whole = Path(out).resolve()
    if whole.exists() and not whole.is_file():  # a pipe or a device
        with whole.open("w") as file:
            file.writelines(line + "\n" for line in lines)
        return
    part = whole.with_name(f"{whole.name}.partial")  # what was there stays until all is written
    with part.open("w") as file:
        file.writelines(line + "\n" for line in lines)
    part.replace(whole)


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.predict", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="the run's folder")
    add("--stage", required=True, help="the stage whose checkpoint predicts")
    add("--step", type=int, help="the checkpoint of this step, instead of the newest")
    add("--best", action="store_true", help="the checkpoint that was best on dev, instead of the newest")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=SET)
    add("--part", metavar="NAME", help="of a mixture, the objective that predicts")
    add("--texts", metavar="FILE", help="a file of texts: .txt, .jsonl, .csv or .tsv")
    add("--text", action="append", help="a text; may be given again")
    add("--pair", action="append", help="the second text of a pair whose first is --text; one for each")
    add("stdin", nargs="?", choices=["-"], metavar="-", help="read texts from standard input, one a line")
    add("--evaluate", action="store_true", help="instead, run the stage's evaluations and print their metrics")
    add("--seed", type=int, metavar="N", help="masked diffusion: draw what masks become, instead of the likeliest")
    add("--out", metavar="FILE", help="write here, instead of to standard output")
    args = parser.parse_args(argv)
    given = [args.texts is not None, bool(args.text), args.stdin is not None, args.evaluate]
    if sum(given) != 1:
        parser.error("give one of --texts=FILE, --text=TEXT, - and --evaluate")
    if args.out is not None and not Path(args.out).absolute().parent.is_dir():
        parser.error(f"--out={args.out}: no such folder as {Path(args.out).parent}")
    if args.out is not None and Path(args.out).is_dir():
        parser.error(f"--out={args.out} is a folder; expected a file")
    if args.out is not None and args.texts is not None and Path(args.out).resolve() == Path(args.texts).resolve():
        parser.error(f"--out={args.out} is the file of texts itself, which would be lost")
    if args.evaluate and args.seed is not None:
        parser.error("--seed is of predictions: an evaluation draws the same each time")
    if args.pair and len(args.pair) != len(args.text or ()):
        parser.error(f"{len(args.pair)} of --pair and {len(args.text or ())} of --text: each pair needs both")
    return args


def main(argv: list[str] | None = None) -> None:
    args = _parsed(argv)
    try:
        # before the model is loaded, so that a wrong path is said at once
        records = [] if args.evaluate else _given(args)
        from absl import logging

        logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a restore
        trained = load(args.workdir, args.stage, args.step, args.best, args.set)
        if args.part is not None:
            trained = part(trained, args.part)
        if args.evaluate:
            metrics = evaluations(trained, args.workdir)
            _write([json.dumps({"stage": args.stage, "step": trained.step} | metrics, indent=1)], args.out)
        else:
            _write(
                (json.dumps(said, ensure_ascii=False) for said in predict(trained, records, seed=args.seed)), args.out
            )
    except ValueError as error:
        # what a user can mend is said, without the program's insides
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
