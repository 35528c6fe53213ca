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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", default="curves.png")
    a = parser.parse_args()
    main_phase = [x for x in lines(a.work, "main") if "exact" in x]
    index, drafts = lines(a.work, "index"), [x for x in lines(a.work, "mtp") if "answers" in x]
    tokens = [x["tokens"] / 1e6 for x in main_phase]
    _, ((loss, exact), (chosen, accepted)) = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    draw(loss, "train.py: loss", tokens, {n: smooth([x[n] for x in main_phase]) for n in ("answer_loss", "text_loss")},
         xlabel="million tokens", yscale="log")
    kinds = sorted(main_phase[-1]["exact"])
    draw(exact, "train.py: exact answers, as trained on (means of 5)", tokens,
         {k: smooth([x["exact"].get(k, 0) for x in main_phase]) for k in kinds}, xlabel="million tokens", ylim=(0, 1))
    steps, names = [x["index_step"] for x in index], sorted(n for n in index[-1] if n.endswith(" kl"))
    draw(chosen, "index.py: KL from attention to index scores", steps, {n: [x[n] for x in index] for n in names},
         xlabel="steps", yscale="log")
    draw(accepted, "mtp.py: first drafts that are the model's choice", [x["mtp_step"] for x in drafts],
         {n: [x[n] for x in drafts] for n in ("answers", "text")}, xlabel="steps", ylim=(0, 1))
    plt.savefig(a.out, dpi=110)


if __name__ == "__main__":
    main()
