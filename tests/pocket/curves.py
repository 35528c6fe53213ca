#!/usr/bin/env python3
"""Draw what the phases wrote down while they ran.

    python curves.py --work DIR --out curves.png
"""
import argparse
import json
import os

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt


PHASES = ("main", "long", "index", "sparse", "sparse-long", "mtp", "recent")


def lines(work, name):
    with open(os.path.join(work, name + ".jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def smooth(values, n=5):
    return [sum(values[max(0, i - n + 1):i + 1]) / len(values[max(0, i - n + 1):i + 1]) for i in range(len(values))]


def draw(axes, title, x, curves, **labels):
    for name, values in curves.items():
        axes.plot(x, values, label=name, linewidth=1)
    axes.set(title=title, **labels)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def training(phase, work):
    """Panels of a phase of train.py."""
    told = [x for x in lines(work, phase) if "exact" in x]
    tokens = [x["tokens"] / 1e6 for x in told]
    kinds = sorted({k for x in told for k in x["exact"]})
    yield (f"train.py, {phase}: loss", tokens, {n: smooth([x[n] for x in told]) for n in ("answer_loss", "text_loss")},
           {"xlabel": "million tokens", "yscale": "log"})
    yield (f"train.py, {phase}: exact answers, as trained on", tokens,
           {k: smooth([x["exact"].get(k, 0) for x in told]) for k in kinds}, {"xlabel": "million tokens", "ylim": (0, 1.02)})


def panels(work):
    """(title, x, {name: values}, labels), of what there is."""
    there = [p for p in PHASES if os.path.exists(os.path.join(work, p + ".jsonl"))]
    for phase in there:
        if phase in ("index", "recent"):
            told = [x for x in lines(work, phase) if any(n.endswith("kl") for n in x)]
            names = sorted(n for n in told[-1] if n.endswith("kl"))
            yield (f"{phase}.py: KL from what is wanted to index scores", [x[phase + "_step"] for x in told],
                   {n: [x[n] for x in told] for n in names}, {"xlabel": "steps", "yscale": "log"})
        elif phase == "mtp":
            told = [x for x in lines(work, phase) if "answers" in x]
            yield ("mtp.py: first drafts that are the model's choice", [x["mtp_step"] for x in told],
                   {n: [x[n] for x in told] for n in ("answers", "text")}, {"xlabel": "steps", "ylim": (0, 1.02)})
        else:
            yield from training(phase, work)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", default="curves.png")
    a = parser.parse_args()
    drawn = list(panels(a.work))
    rows = -(-len(drawn) // 3)
    _, axes = plt.subplots(rows, 3, figsize=(14, 3.4 * rows), layout="constrained", squeeze=False)
    for at, (title, x, curves, labels) in zip(axes.flat, drawn):
        draw(at, title, x, curves, **labels)
    for at in axes.flat[len(drawn):]:
        at.remove()
    plt.savefig(a.out, dpi=100)


if __name__ == "__main__":
    main()
