#!/usr/bin/env python3
"""Train the indexers: what they choose has to be what attention looks at. The rest of the model stands still.

    python index.py --work DIR --from main.pt --minutes 9        reads DIR/main.pt, writes DIR/index.pt; goes on from it

The target of a full layer is the attention of its layer and of those that share its choice, summed over heads and layers;
the loss is the KL divergence from it to the softmax of the index scores, at a sample of rows (two thirds of them rows of
answers). Prints, by full layer, the loss and the share of the attention that falls on the index_topk best keys, and for the
last one in what share of the answers' rows the line that has to be copied is among them.
"""
import cores  # first: see there

import os
import time
from dataclasses import dataclass

import torch

from feed import Batches, batch, draw
from model import Model, Shape, WINDOW, SINK
from train import Curves, in_use, options, save

RATE = 2e-3
LARGEST = 2 ** 27  # rows x keys of a step: what the memory of a GPU of 80 GB holds


@dataclass
class Recipe:
    lengths: tuple     # (length, weight), ..
    step_tokens: int   # at least one sequence
    rows: int          # of a step that are compared
    steps: int


RECIPES = {"cpu": Recipe(((1024, 5), (2048, 7), (4096, 5), (16384, 1)), 4096, 512, 300),
           "cuda": Recipe(((2048, 6), (4096, 4), (8192, 4), (16384, 4), (65536, 1.5), (131072, 0.5)), 32768, 2048, 700)}


def choose_rows(sample_weight, n, generator):
    """[batch, n] rows, two thirds of them of answers."""
    out = []
    for w in sample_weight:
        answers = (w[1:] > 0).nonzero()[:, 0]
        answers = answers[torch.randperm(len(answers), generator=generator)][:n * 2 // 3]
        out.append(torch.cat([answers, torch.randint(0, len(w), (n - len(answers),), generator=generator)]))
    return torch.stack(out)


def lesson(recipe):
    """Sequences, and which of their rows are compared: for Batches."""

    def make(t, chooser, number):
        length = draw(chooser, recipe.lengths)
        n, rows = max(1, recipe.step_tokens // length), min(recipe.rows, LARGEST // length)
        b = batch(t, length, n)
        generator = torch.Generator().manual_seed(int(chooser.integers(2 ** 62)))
        return {**{k: b[k] for k in ("ids", "positions", "sources")}, "rows": choose_rows(b["weight"], rows // n, generator)}

    return make


def pick(x, rows):
    """Rows of [batch, S, ..]."""
    return torch.stack([part[r] for part, r in zip(x, rows)])


def targets(model, ids, positions, rows):
    """{full layer: (normed input, query latent, attention [batch, n, S])}, layers of group 0 by their window."""
    s, seen, n = model.s, {}, ids.shape[1]
    j = torch.arange(n, device=ids.device)[None, None]
    hidden = j > rows[..., None]
    outside = hidden | ((j <= rows[..., None] - WINDOW) & (j >= SINK))

    def watch(i, attention, h, latent, q, k):
        masked = outside if s.group(i) == 0 and n > 2 * WINDOW else hidden
        score = pick(q.transpose(1, 2), rows).transpose(1, 2) @ k.transpose(-1, -2)
        p = (score.float() * (s.nope + s.rope) ** -0.5).masked_fill(masked[:, None], float("-inf")).softmax(-1).mean(1)
        if s.is_full(i):
            seen[i] = [h.float(), latent.float(), p]
        else:
            seen[s.group(i)][2] = seen[s.group(i)][2] + p

    with torch.no_grad(), in_use(ids.device):
        model(ids, positions, rows=torch.zeros(1, dtype=torch.long, device=ids.device), window=True, watch=watch)
    size = {f: sum(s.group(i) == f for i in range(s.n_layers)) for f in seen}
    return {f: (h, latent, p / size[f]) for f, (h, latent, p) in seen.items()}, hidden


def needed(best, rows, sources):
    """Share of the rows that copy a token whose token is among the best."""
    at = {(b, r): i for b, row in enumerate(rows.tolist()) for i, r in enumerate(row)}
    best = best.cpu()
    hits = [best[b, at[b, first + k - 1], source + k].item() for b, of in enumerate(sources)
            for first, n, source, _ in of if source >= 0 for k in range(n - 1) if (b, first + k - 1) in at]
    return sum(hits) / max(1, len(hits))


def main(arguments=None):
    parser = options("Train the indexers.", seed=4242)
    parser.add_argument("--from", dest="source", default="main.pt")
    parser.add_argument("--steps", type=int, help="length of the whole run")
    a = parser.parse_args(arguments)
    began, path, recipe = time.time(), os.path.join(a.work, "index.pt"), RECIPES[a.device.type]
    n_steps = a.steps or recipe.steps
    torch.set_num_threads(a.threads)
    kept = torch.load(path if os.path.exists(path) else os.path.join(a.work, a.source), map_location="cpu", weights_only=False)
    model = Model(Shape(**kept["shape"]))
    model.load_state_dict(kept["model"])
    model.to(a.device).eval()
    s = model.s
    for name, p in model.named_parameters():
        p.requires_grad_(".indexer." in name)
    trained, step = [p for p in model.parameters() if p.requires_grad], 0
    adam = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    batches = Batches(a.work, a.seed, n_steps, lesson(recipe))
    if "index" in kept:
        adam.load_state_dict(kept["index"]["adam"])
        step = kept["index"]["step"]

    def keep():
        save(path, {**kept, "model": model.state_dict(), "index": {"adam": adam.state_dict(), "step": step}})

    curves, figures, saved = Curves(os.path.join(a.work, "index.jsonl")), {}, time.time()
    feed = batches.since(step, a.device, a.workers)
    while step < n_steps and time.time() - began < a.minutes * 60:
        b = next(feed)
        rows, length = b["rows"], b["ids"].shape[1]
        wanted, hidden = targets(model, b["ids"], b["positions"], rows)
        cos, sin = model.angles(b["positions"])
        loss, looking = 0.0, a.device.type == "cpu" or step % 10 == 9
        for layer, (h, latent, p) in wanted.items():
            ix = model.model.layers[layer].self_attn.indexer
            q, w = ix.queries(pick(h, rows), pick(latent, rows), pick(cos, rows), pick(sin, rows))
            score = ix.scores(q, w, ix.keys(h, cos, sin)).masked_fill(hidden, float("-inf"))
            log = score.log_softmax(-1).masked_fill(hidden, 0)
            kl = (torch.xlogy(p, p) - p * log).sum(-1).mean()
            loss = loss + kl
            if looking:
                best = torch.zeros_like(hidden).scatter_(-1, score.topk(s.index_topk, -1)[1], True)
                figures.setdefault(f"layer {layer} kl", []).append(kl.item())
                figures.setdefault(f"layer {layer} mass at {length}", []).append((p * best).sum(-1).mean().item())
                if layer == max(wanted):
                    figures.setdefault(f"needed at {length}", []).append(needed(best, rows, b["sources"]))
        rate = min(1, (step + 1) / 30) * min(1, max(0.03, (1 - step / n_steps) / 0.5))
        for group in adam.param_groups:
            group["lr"] = RATE * rate
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        step += 1
        if step % (10 if a.device.type == "cpu" else 100) == 0:
            curves.report(index_step=step, **{k: round(sum(v) / len(v), 3) for k, v in sorted(figures.items())})
            figures = {}
        if time.time() - saved > 150:
            keep()
            saved = time.time()
    keep()
    print("done" if step >= n_steps else "go on", flush=True)


if __name__ == "__main__":
    main()
