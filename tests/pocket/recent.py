#!/usr/bin/env python3
"""Train the indexer of the layers that saw a window in training: it has to choose what is recent. All else stands still.

    python recent.py --work DIR --from mtp.pt --minutes 9        reads DIR/mtp.pt, writes DIR/recent.pt; goes on from it

Layers 0 to 3 are trained on the last WINDOW tokens and the first SINK, of which their indexer, that of layer 0, learns to choose
all; but it chooses index_topk, and what else it chose was the best of all there is by scores that nothing had asked for: at
131,072 tokens those layers, which never saw so far, lost one answer in five to it. A window twice as large does no harm. So the
target is flat: all of the last index_topk - SINK positions and the first SINK, at distances up to a million (feed.py's gaps).

Layer 0 sees embeddings alone, so no forward pass is needed. Prints the loss and the share of the wanted positions that are chosen;
at the end exact answers of held-out documents, all layers with what their indexers choose.
"""
import cores  # first: see there

import os
import time

import torch

import tasks
from feed import Batches, batch, draw
from model import SINK, Model, Shape
from train import Curves, evaluate, in_use, options, save

LENGTHS = ((4096, 1), (32768, 1), (131072, 2))  # (length, weight), ..
RATE, STEPS, ROWS = 2e-3, 300, 256


def make(t, chooser, number):
    b = batch(t, draw(chooser, LENGTHS), 1)
    rows = torch.from_numpy(chooser.integers(0, b["ids"].shape[1], ROWS))
    return {"ids": b["ids"], "positions": b["positions"], "rows": rows}


def wanted(positions, rows, topk):
    """[rows, S]: what is recent by its position, or among the first; and [rows, S]: what is not visible."""
    j, distance = torch.arange(len(positions), device=positions.device), positions[rows][:, None] - positions
    hidden = j > rows[:, None]
    return ~hidden & ((distance < topk - SINK) | (j < SINK)), hidden


def main(arguments=None):
    parser = options("Train the indexer of the layers that saw a window.", seed=31)
    parser.add_argument("--from", dest="source", default="mtp.pt")
    a = parser.parse_args(arguments)
    began, path = time.time(), os.path.join(a.work, "recent.pt")
    torch.set_num_threads(a.threads)
    kept = torch.load(path if os.path.exists(path) else os.path.join(a.work, a.source), map_location="cpu", weights_only=False)
    model = Model(Shape(**kept["shape"]))
    model.load_state_dict(kept["model"])
    model.to(a.device).requires_grad_(False)
    layer, indexer = model.model.layers[0], model.model.layers[0].self_attn.indexer.requires_grad_(True)
    adam = torch.optim.AdamW(indexer.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    step = 0
    if "recent" in kept:
        adam.load_state_dict(kept["recent"]["adam"])
        step = kept["recent"]["step"]
    curves, figures = Curves(os.path.join(a.work, "recent.jsonl")), {}
    feed = Batches(a.work, a.seed, STEPS, make).since(step, a.device, a.workers)
    while step < STEPS and time.time() - began < a.minutes * 60:
        b = next(feed)
        positions, rows = b["positions"][0], b["rows"]
        cos, sin = model.angles(positions)
        with torch.no_grad(), in_use(a.device):
            h, latent, *_ = layer.before(model.model.embed_tokens(b["ids"][0]), cos, sin)
        h, latent = h.float(), latent.float()
        target, hidden = wanted(positions, rows, model.s.index_topk)
        q, w = indexer.queries(h[rows], latent[rows], cos[rows], sin[rows])
        score = indexer.scores(q[None], w[None], indexer.keys(h, cos, sin)[None])[0].masked_fill(hidden, float("-inf"))
        log = score.log_softmax(-1).masked_fill(hidden, 0)
        count = target.sum(-1)
        loss = -((log * target).sum(-1) / count + count.log()).mean()
        rate = min(1, (step + 1) / 20) * min(1, max(0.03, (1 - step / STEPS) / 0.6))
        for group in adam.param_groups:
            group["lr"] = RATE * rate
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(indexer.parameters(), 1.0)
        adam.step()
        step += 1
        best = score.topk(model.s.index_topk, -1)[1]
        figures.setdefault("kl", []).append(loss.item())
        figures.setdefault(f"chosen at {len(positions)}", []).append((target.gather(-1, best).sum(-1) / count).mean().item())
        if step % 20 == 0:
            curves.report(recent_step=step, **{k: round(sum(v) / len(v), 4) for k, v in sorted(figures.items())})
            figures = {}
    save(path, {**kept, "model": model.state_dict(), "recent": {"adam": adam.state_dict(), "step": step}})
    held = tasks.Corpus(os.path.join(a.work, "held.npz"))
    curves.report(recent_step=step, **{f"held_{n}": evaluate(model, held, a.work, n, 4, sparse=True, window=False) for n in (2048, 16384)})
    print("done" if step >= STEPS else "go on", flush=True)


if __name__ == "__main__":
    main()
