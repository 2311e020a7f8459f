"""The demo: runs configs/demo.py, then shows what pretraining was worth, as a table, a picture and a short report."""

import argparse
import re
import statistics
import sys
import time
from pathlib import Path

BASELINE = "TF-IDF + logistic regression"


def accuracies(workdir: Path, stages: list[str]) -> dict[str, list[float]]:
    """Test accuracy in percent of every arm, one a seed: the stages are named arm_seed."""
    from train.log import curve

    arms: dict[str, list[float]] = {}
    for stage in stages:
        if found := re.fullmatch(r"(.*)_\d+", stage):
            _, values = curve(workdir / stage, "test/accuracy")
            arms.setdefault(found[1], []).append(100 * values[-1])
    return arms


def baseline(config: dict, stage: str) -> float:
    """Test accuracy in percent of a logistic regression on TF-IDF, from the same labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from train import build

    def texts(section: dict) -> tuple[list[str], list[str]]:
        records = list(build.call(section["source"], f"{stage}.source"))
        return [r.text for r in records], [r.label for r in records]

    train, test = texts(config[stage]["data"]), texts(config[stage]["evals"]["test"])
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(words.fit_transform(train[0]), train[1])
    return 100 * model.score(words.transform(test[0]), test[1])


def picture(workdir: Path, stages: list[str], arms: dict[str, list[float]], other: float, out: Path) -> None:
    """Loss curves and paired accuracies as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from train import log

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    colours = dict(zip(arms, ("tab:green", "tab:orange"), strict=True))

    def curve(axis, stage, term="loss", **style):
        axis.plot(*log.curve(workdir / stage, term), lw=0.8, **style)

    curve(axes[0], "pretrain", "mlm", color="tab:blue", label="from its place")
    curve(axes[0], "pretrain", "mlm_bag", color="tab:purple", label="from the segment's mean state")
    axes[0].set(title="Masked language modelling", xlabel="step", ylabel="loss (nats a masked token)")
    axes[0].legend()
    for stage in stages:
        arm, _, seed = stage.rpartition("_")
        if arm in arms:
            curve(axes[1], stage, color=colours[arm], label=arm if seed == "0" else None)
    axes[1].set(title="Finetuning", xlabel="step", ylabel="loss")
    axes[1].legend()
    for paired in zip(*arms.values(), strict=True):
        axes[2].plot(range(len(arms)), paired, color="grey", marker="o", lw=1)
    for i, (arm, scores) in enumerate(arms.items()):
        axes[2].hlines(statistics.mean(scores), i - 0.2, i + 0.2, color=colours[arm], lw=4)
    axes[2].axhline(other, color="black", ls="--", lw=1, label=BASELINE)
    axes[2].set(
        title="Test accuracy, a line a seed",
        ylabel="%",
        xticks=range(len(arms)),
        xticklabels=list(arms),
        xlim=(-0.5, 1.5),
    )
    axes[2].legend(fontsize="small")
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def report(config: dict, arms: dict[str, list[float]], other: float) -> str:
    """A table in Markdown."""
    labels = config["pretrained_0"]["data"]["source"]["limit"]
    lines = [
        f"Sentiment of film reviews from {labels} labels: accuracy on 2,000 unseen, {len(arms['scratch'])} seeds.",
        "",
        "| | mean | seeds |",
        "|---|---|---|",
    ]
    for arm, scores in arms.items():
        lines.append(f"| {arm} | {statistics.mean(scores):.1f} % | {', '.join(f'{s:.1f}' for s in scores)} |")
    lines.append(f"| {BASELINE} | {other:.1f} % | |")
    gains = [a - b for a, b in zip(arms["pretrained"], arms["scratch"], strict=True)]
    lines += [
        "",
        f"Pretraining is worth {statistics.mean(gains):+.1f} points "
        f"(by seed: {', '.join(f'{g:+.1f}' for g in gains)}).",
    ]
    return "\n".join(lines)


def demo(config, workdir: Path) -> str:
    """Trains what is not trained yet and reports; leaves `report.md` and `demo.png` in the workdir."""
    from train import build
    from train.__main__ import run

    run(config, workdir)
    plain = build.plain(config)
    stages = build.stages(plain)
    arms = accuracies(workdir, list(stages))
    other = baseline(plain, "pretrained_0")
    text = report(plain, arms, other)
    picture(workdir, list(stages), arms, other, workdir / "demo.png")
    (workdir / "report.md").write_text(text + "\n")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m launch.demo", description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    args = parser.parse_args()
    from absl import logging

    from configs.demo import get_config
    from train.__main__ import check_package, compilation_cache
    from train.loop import Stopped

    logging.set_verbosity(logging.WARNING)
    try:
        check_package()
        compilation_cache()
        begun = time.perf_counter()
        print("\n" + demo(get_config(), args.workdir))
        print(f"\nTook {(time.perf_counter() - begun) / 60:.1f} minutes.")
    except (ValueError, Stopped) as error:
        sys.exit(f"error: {error}")
    print(f"The picture is {args.workdir / 'demo.png'}, the report {args.workdir / 'report.md'}.")


if __name__ == "__main__":
    main()
