#!/usr/bin/env python3
"""How near transformers in bf16 comes to the float64 goldens: figures for bf16.txt. README.md says how to run it.

    bf16.py             write bf16.txt
    bf16.py --spread    write nothing; print how far luck alone moves the figures that bf16.txt would have

The bar for our own profile bf16, so nothing is done here to make it lower: the published code of transformers, loaded
with dtype=torch.bfloat16, eager attention and eager experts, in whatever precision it then uses where. Two things
are ours, and not to its disadvantage: an FP8 checkpoint, whose partial blocks its loader refuses, is given as code x
scale, rounded once to bf16; and equal scores are ranked by the rule of the reference (oracle.py), where torch has none.

What the figures are, tests/support/golden.h says, which has them for our own runs."""

import argparse
import json
import platform
from types import SimpleNamespace

import numpy as np
import torch
import transformers

from checkpoints import HERE, SPECS, read
from make_golden import get_ids, stored
from oracle import Oracle

LEAST = 2.0**-24  # the stored logits are float32: a row is not known to be nearer than this
SPREAD_MOVE, SPREAD_RUNS = 1e-3, 8  # a relative move of embeddings that takes one value in eighty to the next
NARROW = torch.bfloat16


def assert_matmul_is_fair():
    """A bf16 product is summed in float32 and rounded once on servers. A machine that rounds partial sums is no peer."""
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 4096, generator=g).to(NARROW) for n in (5, 33))
    exact = x.double() @ w.double().T
    once = exact.to(NARROW).double()
    for y in (torch.nn.functional.linear(x, w), torch.matmul(x[None], w.T[None])[0]):
        step = exact.abs().clamp_min(1) * 2.0**-7  # at least one bf16 step
        assert ((y.double() - once).abs() <= step).all(), "bf16 products are summed in less than float32 on this machine"


class Narrow:
    """One checkpoint in bf16, its cases, and what its indexers chose in the last run."""

    def __init__(self, name):
        self.name, self.path, self.spec = name, HERE / name, SPECS[name]
        self.cfg, wide = read(self.path)
        self.hf = Oracle(self.path, self.cfg, NARROW, wide if self.spec.get("fp8") else None)
        for key, p in self.hf.model.named_parameters():
            assert p.dtype == NARROW, key  # the router's bias is a buffer, and float32
        self.sets = {}
        for layer, block in enumerate(self.hf.model.model.layers):
            indexer = getattr(block.self_attn, "indexer", None)
            if indexer is not None:
                indexer.register_forward_hook(lambda _, __, out, layer=layer: self.keep(layer, out))

    def keep(self, layer, out):
        assert out.dtype == torch.int32 and out.shape[0] == 1
        self.sets[layer] = out[0].numpy()

    def cases(self):
        """Everything committed about each case."""
        for case in self.spec["cases"]:
            ids, rows, logits = stored(self, case)
            base = self.path / case["name"]
            topk, tail = base.with_suffix(".topk"), base.with_suffix(".greedy")
            yield SimpleNamespace(
                name=case["name"], ids=ids, rows=rows, logits=logits,
                topk=[json.loads(line) for line in topk.open()] if topk.exists() else [],
                greedy=get_ids(tail) if tail.exists() else [])

    def run(self, case, move=0.0, seed=0):
        """One forward pass over the prompt and the reference's continuation; what is measured of it."""
        out = self.hf.logits(case.ids + case.greedy, move, seed)
        assert np.isfinite(out).all()
        error = out[case.rows] - case.logits
        first = len(case.ids) - 1
        return SimpleNamespace(
            largest=np.abs(error).max() / np.abs(case.logits).max(),
            error=(error**2).sum(-1), size=(case.logits**2).sum(-1),
            overlap=[self.overlap(row) for row in case.topk],
            agree=out[first : first + len(case.greedy)].argmax(-1) == case.greedy)

    def overlap(self, row):
        ours = {int(p) for p in self.sets[row["layer"]][row["pos"]] if p <= row["pos"]}  # padded with unseen ones
        assert len(ours) == len(row["set"])
        return len(ours & set(row["set"])) / len(row["set"])


def figures(runs):
    """max, rms and geometric error, overlap, agreement; None where the cases have nothing to measure it by."""
    error, size = (np.concatenate([getattr(r, k) for r in runs]) for k in ("error", "size"))
    overlap, agree = (np.concatenate([getattr(r, k) for r in runs]) for k in ("overlap", "agree"))
    relative = np.sqrt(error / size)
    return (max(r.largest for r in runs), np.sqrt(error.sum() / size.sum()),
            np.exp(np.log(np.maximum(relative, LEAST)).mean()),
            overlap.mean() if len(overlap) else None, agree.mean() if len(agree) else None)


def write(path):
    lines = [
        "# transformers in bf16 against the float64 goldens; written by bf16.py, what is in it: README.md.",
        f"# transformers {transformers.__version__}, torch {torch.__version__} on {platform.machine()} "
        f"{torch.backends.cpu.get_cpu_capability()}, dtype=torch.bfloat16, eager.",
        "# checkpoint, case, max error, rms error, geometric mean of the rows' errors, top-k overlap, greedy agreement"]
    for name in SPECS:
        narrow, runs = Narrow(name), []
        for case in narrow.cases():
            runs.append(narrow.run(case))
            lines.append(one_line(name, case.name, figures(runs[-1:])))
        lines.append(one_line(name, "all", figures(runs)))
        print(lines[-1], flush=True)
    path.write_text("\n".join(lines) + "\n")


def one_line(name, case, values):
    return f"{name:14} {case:8} " + " ".join("     -" if x is None else f"{x:.4f}" for x in values)


def print_spread():
    """The pooled figures with embeddings moved at random: what moves more than two engines differ cannot judge them."""
    for name in SPECS:
        narrow = Narrow(name)
        cases = list(narrow.cases())
        all_runs = [figures([narrow.run(c, SPREAD_MOVE, seed) for c in cases]) for seed in range(SPREAD_RUNS)]
        rms, geometric = ([f[i] for f in all_runs] for i in (1, 2))
        print(f"{name:14} rms error {min(rms):.4f} to {max(rms):.4f}, "
              f"geometric mean {min(geometric):.4f} to {max(geometric):.4f}", flush=True)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--spread", action="store_true", help="only print how far luck moves the figures")
    spread = args.parse_args().spread
    assert_matmul_is_fair()
    if spread:
        print_spread()
    else:
        write(HERE / "bf16.txt")


if __name__ == "__main__":
    main()
