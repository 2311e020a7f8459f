"""Evaluation: losses and ratios as sums over a data set, and scores of its predictions."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import random
from model.types import Backbone
from objectives import types
from objectives.groups import CORPUS, RANKINGS
from objectives.types import Objective
from train import ranking
from train.data.layout import PER_TOKEN
from train.step import corrupted, identity


def evaluator(
    backbone: Backbone, objective: Objective, view: Callable[[Any], Any] = identity
) -> Callable[[Any, dict], tuple[Any, dict]]:
    """(params, batch) -> (Sums, predictions or {}): no dropout, corruption by a key of its own, always the same."""

    scored = _scored(objective)

    def one(params, batch):
        viewed = objective.view(view(params))
        encode = partial(backbone.encode, viewed["backbone"])
        key, step = random.key(0), jnp.int32(0)
        found = objective.predict(viewed, encode, batch) if scored else {}
        wanted = {f"{at}{name}" for at, part in scored for name in ("prediction", "scored", *_embedding(part))}
        predictions = {name: x for name, x in found.items() if name in wanted}
        batch = corrupted(batch, key, step, objective)
        sums = objective.loss(viewed, encode, batch, None, step)
        return (sums if objective.join is None else objective.join(viewed, sums, batch)), predictions

    return one


def _scored(objective: Objective) -> list[tuple[str, Objective]]:
    """(how its names begin, the objective) of what has scores: of a mixture its parts."""
    parts = [(f"{part.name}/", part) for part in objective.parts] or [("", objective)]
    return [(at, part) for at, part in parts if part.scores]


def scores(objective: Objective) -> list[str]:
    """What `evaluate` names its scores."""
    return [f"{at}{name}" for at, part in _scored(objective) for name in part.scores]


def evaluate(
    run: Callable[[Any, dict], tuple[Any, dict]], params: Any, batches: Iterable[dict], objective: Objective
) -> dict:
    """Metrics over batches: loss, terms and ratios divided out at the end, the objective's scores over its predictions;
    of a mixture those of its parts, as "classify/matthews".

    `run` is a (jitted) `evaluator`. Rows of padding count for nothing, and an example that comes twice counts once in
    the scores.
    """
    total, gathered, scored = None, [], _scored(objective)
    for batch in batches:
        sums, predictions = run(params, batch)
        stacked = sums if total is None else jax.tree.map(lambda *x: jnp.stack(x), total, sums)
        total = sums if total is None else types.add(stacked)
        if scored:
            kept = ["example", "segments", "group", *(part.truth for _, part in scored)]
            kept += ["tokens"] if any(_embedding(part) for _, part in scored) else []
            gathered.append(_local({k: batch[k] for k in kept if k in batch} | predictions))
    if total is None:
        raise ValueError("there is nothing to evaluate: the data set has no rows")
    out = {name: float(x) for name, x in types.report(jax.device_get(total)).items()}
    for at, part in scored:
        if part.truth in PER_TOKEN:
            by_token = sequences(gathered, part.truth, f"{at}prediction")
            out |= {f"{at}{name}": score(name, *by_token, part.classes) for name in part.scores}
            continue
        mine = [arrays | {"query": _queries(arrays), "scored": arrays.get(f"{at}scored", True)} for arrays in gathered]
        true, found, queries = examples(mine, part.truth, f"{at}prediction", "query")
        corpus = _corpus(mine, part.truth, f"{at}embedding") if _embedding(part) else ()
        for name in part.scores:
            if name.startswith(CORPUS):
                out[f"{at}{name}"] = ranking.retrieve(name.removeprefix(CORPUS), *corpus)
            else:
                out[f"{at}{name}"] = score(name, true, found, part.classes, queries)
    return out


def _embedding(part: Objective) -> list[str]:
    """What scores over a whole data set read."""
    return ["embedding"] if any(name.startswith(CORPUS) for name in part.scores) else []


def _corpus(gathered: list[dict], truth: str, embedding: str) -> tuple:
    """Of many batches of groups what `train.ranking.retrieve` takes: the first of each group is a query, all others are
    the documents. A text that comes twice is one of them, and a query with all that its groups hold.
    """
    text: dict[bytes, int] = {}  # number
    of: dict[int, np.ndarray] = {}  # embeddings of documents
    asked: dict[int, np.ndarray] = {}  # and of queries
    query_of: dict[tuple, int] = {}  # of a group, by the example that begins it
    told: dict[tuple[tuple, int], float] = {}
    for arrays in gathered:
        for b, s in np.argwhere(arrays["segments"].max(1)[:, None] > np.arange(arrays["example"].shape[1])):
            group = tuple(arrays["query"][b, s].tolist())
            number = text.setdefault(arrays["tokens"][b][arrays["segments"][b] == s + 1].tobytes(), len(text))
            if arrays["scored"][b, s]:
                of[number] = arrays[embedding][b, s]
                told[group, number] = max(told.get((group, number), 0.0), float(arrays[truth][b, s]))
            else:
                query_of[group], asked[number] = number, arrays[embedding][b, s]
    rows, columns = ({x: i for i, x in enumerate(keys)} for keys in (asked, of))
    return (
        np.stack(list(asked.values())),
        np.stack(list(of.values())),
        np.array([(rows[query_of[group]], columns[number]) for group, number in told]),
        np.array(list(told.values()), np.float32),
        (np.array(list(asked)), np.array(list(of))),
    )


def _queries(arrays: dict) -> np.ndarray:
    """[B, S, 2]: the example that begins each segment's group; its own, where rows have none."""
    if "group" not in arrays:
        return arrays["example"]
    group = arrays["group"]
    first = (group[:, :, None] == group[:, None, :]).argmax(-1)
    return np.take_along_axis(arrays["example"], first[..., None], 1)


def _local(arrays: dict) -> dict:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(arrays, tiled=True)
    return jax.device_get(arrays)


def examples(gathered: list[dict], *names: str) -> list[np.ndarray]:
    """Arrays [B, S, ...] of many batches as one [examples, ...] each, in the order of the examples, none twice.

    Where there is an array `scored` [B, S], of the examples that it tells.
    """
    chosen = []
    for arrays in gathered:  # batches may have rows of different lengths
        there = arrays["segments"].max(1)[:, None] >= np.arange(1, arrays["example"].shape[1] + 1)
        there &= arrays.get("scored", True)
        chosen.append({k: arrays[k][there] for k in ("example", *names)})
    whole = {k: np.concatenate([c[k] for c in chosen]) for k in ("example", *names)}
    _, first = np.unique(whole["example"], axis=0, return_index=True)
    return [whole[name][first] for name in names]


def sequences(gathered: list[dict], truth: str, prediction: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Arrays [B, L] as one of classes for each example, in the order of the examples, none twice: the true ones, which
    are stored as 1 + class, and those found, both at the tokens that have a true one.
    """
    chosen = {}
    for arrays in gathered:
        for b, s in np.argwhere(arrays["segments"].max(1)[:, None] > np.arange(arrays["example"].shape[1])):
            at = (arrays["segments"][b] == s + 1) & (arrays[truth][b] > 0)
            chosen[tuple(arrays["example"][b, s].tolist())] = arrays[truth][b][at] - 1, arrays[prediction][b][at]
    pairs = [chosen[example] for example in sorted(chosen)]
    return [true for true, _ in pairs], [found for _, found in pairs]


def answer_score(said: str, answers: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1 over words) of an answer against the best of those given, "" being no answer, as SQuAD's script
    has it (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, section 6.1): case, punctuation and articles aside.
    """
    found = _spelled(said)
    best = (0.0, 0.0)
    for answer in [answer for answer in answers if _spelled(answer)] or [""]:
        true = _spelled(answer)
        shared = (Counter(found) & Counter(true)).total()
        overlap = 2 * shared / (len(found) + len(true)) if found and true else float(found == true)
        best = max(best[0], float(found == true)), max(best[1], overlap)
    return best


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _spelled(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


SCORES = (
    "accuracy", "f1", "matthews", "pearson", "spearman", "exact_match", "f1_micro", "f1_macro", "entity_f1",
)  # fmt: skip


def check_score(name: str) -> None:
    """Raises ValueError for a name that `score` does not know."""
    if name.removeprefix(CORPUS).partition("@")[0] in RANKINGS:
        ranking.check(name.removeprefix(CORPUS))
    elif name not in SCORES:
        raise ValueError(
            f"the score {name!r} is unknown; there are {', '.join(SCORES)}, and {', '.join(RANKINGS)}, as in ndcg@10"
        )


def score(name: str, true: Any, found: Any, classes: tuple[str, ...] = (), queries: np.ndarray | None = None) -> float:
    """A score by its name, from scikit-learn, SciPy or seqeval where they have it.

    accuracy, matthews, f1, pearson, spearman are of arrays [N], and named as GLUE names them: f1 is of class 1 where
    there are two classes, else the macro average; the correlations are nan where predictions are all alike.
    exact_match, f1_micro and f1_macro are of arrays [N, classes] of 0 and 1, averaged over examples, over all answers,
    and over classes.
    entity_f1 is of a sequence of classes for each example, with `classes` their names in IOB or IOBES: micro-averaged
    over entities, read as the script of CoNLL-2000 does (seqeval's default mode: an I- with nothing before it begins an
    entity). Of rankings, see `train.ranking`; queries [N, ...] tell whose candidate each is.
    """
    check_score(name)
    if name.partition("@")[0] in RANKINGS:
        assert queries is not None
        there, relevance, scores = ranking.table(queries, true, found)
        return ranking.rank(name, scores, relevance, there)
    # imported here: training need not wait for these
    if name in ("pearson", "spearman"):
        from scipy import stats

        if np.ptp(found) == 0 or np.ptp(true) == 0:
            return float("nan")
        return float({"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name](true, found)[0])
    if name == "entity_f1":
        from seqeval.metrics import f1_score

        named = [[[classes[c] for c in sequence] for sequence in sequences] for sequences in (true, found)]
        return float(f1_score(*named, zero_division=0))
    from sklearn import metrics

    if name in ("accuracy", "exact_match"):
        return float(metrics.accuracy_score(true, found))
    if name == "matthews":
        return float(metrics.matthews_corrcoef(true, found))
    if name == "f1":
        # by the classes that there are, not by those that happen to be found
        count = len(classes) or int(max(true.max(), found.max())) + 1
        average = "binary" if count <= 2 else "macro"
        return float(metrics.f1_score(true, found, average=average, zero_division=0.0))
    if true.ndim == 2 and true.shape[1] == 1:  # which scikit-learn takes for two classes
        true, found = true[:, 0], found[:, 0]
        return float(metrics.f1_score(true, found, zero_division=0.0))
    return float(metrics.f1_score(true, found, average=name.removeprefix("f1_"), zero_division=0.0))
