#!/usr/bin/env python3
"""Whether model.py, transformers and the exported files say the same.

    python check.py --work DIR --model DIR/bf16 --quire build/quire      what export.py wrote; DIR/fp8 too

Logits of a held-out sequence in float32: model.py's sparse pass with the weights of the files against transformers on
the same files; sequences longer than index_topk, at positions 0 and 700000. Exit status 1 where a row differs by
more than 1e-4 of the largest logit, unless in one of its layers the scores on both sides of the cut are equal but for rounding, so that
either choice is right; there may be one such row in a hundred. A dense pass must differ, or the check would not see the index choices. With --quire the
engine is held to the same bound (its `f32` profile, positions from 0), and its tokenizer to the text's ids. Index scores
that are equal at the cut (ReLU makes zeros, most of all in an indexer that is not trained) are told apart by the engine's
rule, the lower position first, where transformers leaves it to topk: the reference is then model.py by that rule.
"""
import cores  # first: see there

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM

import tasks
from published import read
from model import Model, Shape

BOUND = 1e-4
NEAR, ROWS_NEAR = 1e-6, 0.01  # of a row's largest score; share of rows that may differ for it


def near_cuts(model, ids, positions):
    """Rows in which some layer's last chosen score and the next one are equal but for rounding."""
    s, near = model.s, torch.zeros(ids.shape[1], dtype=torch.bool)
    cos, sin = model.angles(positions)

    def watch(i, attention, h, latent, q, k):
        if s.is_full(i):
            ix = attention.indexer
            score = ix.scores(*ix.queries(h, latent, cos, sin), ix.keys(h, cos, sin))[0]
            hidden = torch.ones_like(score, dtype=torch.bool).triu(1)
            best = score.masked_fill(hidden, float("-inf")).topk(s.index_topk + 1)[0]
            near.logical_or_(best[:, -2] - best[:, -1] <= NEAR * best[:, 0].abs())

    model(ids, positions, sparse=True, watch=watch)
    return near


def ask_quire(quire, folder, ids, text):
    """The engine's logits of the ids, and its tokenizer's ids of the text."""
    with tempfile.TemporaryDirectory() as d:
        names = {n: os.path.join(d, n) for n in ("ids", "logits", "text")}
        with open(names["ids"], "w", encoding="ascii") as f:
            f.write(" ".join(map(str, ids)))
        with open(names["text"], "w", encoding="utf-8", newline="") as f:
            f.write(text)
        subprocess.run([quire, "model", "eval", folder, "--ids", names["ids"], "--logits", names["logits"], "--compute",
                        "f32", "--latents", "f32"], check=True, stdout=subprocess.DEVNULL)
        told = subprocess.run([quire, "model", "tokenize", folder, "--text", names["text"]], check=True,
                              capture_output=True, text=True).stdout
        logits = np.fromfile(names["logits"], np.float32).reshape(len(ids), -1)
        return torch.from_numpy(logits), [int(i) for i in told.split()]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quire")
    parser.add_argument("--tokens", type=int, default=640)
    a = parser.parse_args()
    with open(os.path.join(a.model, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    shape = Shape()
    weights = read(a.model, shape)
    ours = Model(shape)
    ours.load_state_dict(weights)
    ours.eval()
    c.pop("quantization_config", None)
    theirs = GlmMoeDsaForCausalLM._from_config(GlmMoeDsaConfig(**c), attn_implementation="eager",
                                               experts_implementation="eager").float().eval()
    theirs.load_state_dict(weights)
    held = tasks.Corpus(os.path.join(a.work, "held.npz"))
    t = tasks.Tasks(held, os.path.join(a.work, "tokenizer.json"), 5)
    sample = t.sample(a.tokens, gaps=0.0)
    ids, failed = torch.from_numpy(sample["ids"])[None], False
    for first in (0, 700_000):
        positions = torch.arange(a.tokens)[None] + first
        with torch.no_grad():
            want = theirs(ids, position_ids=positions, use_cache=False).logits[0]
            got, dense = ours(ids, positions, sparse=True)[0], ours(ids, positions)[0]
        largest = want.abs().max()
        rows = (got - want).abs().amax(-1) / largest
        over, other = rows > BOUND, ((dense - want).abs().max() / largest).item()
        with torch.no_grad():
            wrong = over & ~near_cuts(ours, ids, positions)
        same = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
        print(f"{a.model} at {first}: {a.tokens} tokens, error {rows.max():.1e} of the largest logit (median row "
              f"{rows.median():.1e}; over {BOUND}: {over.sum()}, {wrong.sum()} of them not for a near cut), dense {other:.1e}, same greedy id {same:.4f}")
        failed |= wrong.any().item() or over.float().mean().item() > ROWS_NEAR or other <= BOUND
        if a.quire and not first:
            document = sample["ids"][len(t.opening):sample["context"]].tolist()
            logits, told = ask_quire(a.quire, a.model, sample["ids"].tolist(), t.decode(document))
            with torch.no_grad():
                want = ours(ids, positions, sparse=True, lower_first=True)[0]
            error = ((logits - want).abs().max() / largest).item()
            print(f"{a.model} in quire: error {error:.1e} of the largest logit, same ids of {len(document)} tokens of "
                  f"text: {told == document}")
            failed |= error > BOUND or told != document
    return failed


if __name__ == "__main__":
    sys.exit(main())
