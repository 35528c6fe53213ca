#!/usr/bin/env python3
"""Train the indexers, but for that of layer 0 (recent.py): what they choose has to be what attention looks at. The rest of the
model stands still.

    python index.py --work DIR --from main.pt --minutes 9        reads DIR/main.pt, writes DIR/index.pt; goes on from it

The target of a full layer is the attention of its layer and of those that share its choice, summed over heads and layers; in
the last one, where a row of an answer copies a token, half of it is that token: it has to be among the chosen, and can be a
small part of what several heads look at. The loss is the KL divergence from the target to the softmax of the index scores, at
a sample of rows (two thirds of them rows of answers). Prints, by full layer, the loss and the share of the attention that falls
on the index_topk best keys, and for the last one in what share of the answers' rows the token that has to be copied is among
them; on a GPU, at the end, exact answers of held-out documents with what is chosen.
"""
import cores  # first: see there

import os
import time
from dataclasses import dataclass

import torch

import tasks
from feed import Batches, batch, draw
from model import Model, Shape
from train import AS_ASKED, Curves, evaluate, in_use, options, save

RATE = 2e-3
COPIED = 0.5  # of the last full layer's target
LARGEST = 2 ** 27  # rows x keys of a step: what the memory of a GPU of 80 GB holds


@dataclass
class Recipe:
    lengths: tuple     # (length, weight), ..
    step_tokens: int   # at least one sequence
    rows: int          # of a step that are compared
    steps: int


RECIPES = {"cpu": Recipe(((1024, 5), (2048, 7), (4096, 5), (16384, 1)), 4096, 512, 300),
           "cuda": Recipe(((2048, 1), (4096, 1), (8192, 1), (16384, 2), (65536, 2), (131072, 4)), 32768, 2048, 900)}


def choose_rows(sample_weight, n, generator):
    """[batch, n] rows, two thirds of them of answers."""
    out = []
    for w in sample_weight:
        answers = (w[1:] > 0).nonzero()[:, 0]
        answers = answers[torch.randperm(len(answers), generator=generator)][:n * 2 // 3]
        out.append(torch.cat([answers, torch.randint(0, len(w), (n - len(answers),), generator=generator)]))
    return torch.stack(out)


def copied(sources, rows, length):
    """[batch, n], of each row the position of the token that it has to copy, or -1."""
    at = torch.full((len(sources), length), -1)
    for b, of in enumerate(sources):
        for first, n, source, _ in of:
            if source >= 0:
                at[b, first - 1:first + n - 2] = torch.arange(source, source + n - 1)
    return at.gather(1, rows)


def lesson(recipe):
    """Sequences, and which of their rows are compared: for Batches."""

    def make(t, chooser, number):
        length = draw(chooser, recipe.lengths)
        n, rows = max(1, recipe.step_tokens // length), min(recipe.rows, LARGEST // length)
        b = batch(t, length, n)
        generator = torch.Generator().manual_seed(int(chooser.integers(2 ** 62)))
        rows = choose_rows(b["weight"], rows // n, generator)
        return {"ids": b["ids"], "positions": b["positions"], "rows": rows, "needed": copied(b["sources"], rows, length)}

    return make


def pick(x, rows):
    """Rows of [batch, S, ..]."""
    return torch.stack([part[r] for part, r in zip(x, rows)])


def targets(model, ids, positions, rows):
    """{full layer: (normed input, query latent, attention [batch, n, S])}, but for layer 0, which is recent.py's."""
    s, seen, n = model.s, {}, ids.shape[1]
    hidden = torch.arange(n, device=ids.device)[None, None] > rows[..., None]

    def watch(i, attention, h, latent, q, k):
        if s.group(i) == 0:
            return
        score = pick(q.transpose(1, 2), rows).transpose(1, 2) @ k.transpose(-1, -2)
        p = (score.float() * (s.nope + s.rope) ** -0.5).masked_fill(hidden[:, None], float("-inf")).softmax(-1).mean(1)
        if s.is_full(i):
            seen[i] = [h.float(), latent.float(), p]
        else:
            seen[s.group(i)][2] = seen[s.group(i)][2] + p

    with torch.no_grad(), in_use(ids.device):
        model(ids, positions, rows=torch.zeros(1, dtype=torch.long, device=ids.device), window=True, watch=watch)
    size = {f: sum(s.group(i) == f for i in range(s.n_layers)) for f in seen}
    return {f: (h, latent, p / size[f]) for f, (h, latent, p) in seen.items()}, hidden


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
        p.requires_grad_(".indexer." in name and not name.startswith("model.layers.0."))
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
        rows, needed, length = b["rows"], b["needed"], b["ids"].shape[1]
        wanted, hidden = targets(model, b["ids"], b["positions"], rows)
        cos, sin = model.angles(b["positions"])
        loss, looking = 0.0, a.device.type == "cpu" or step % 10 == 9
        for layer, (h, latent, p) in wanted.items():
            ix = model.model.layers[layer].self_attn.indexer
            q, w = ix.queries(pick(h, rows), pick(latent, rows), pick(cos, rows), pick(sin, rows))
            score = ix.scores(q, w, ix.keys(h, cos, sin)).masked_fill(hidden, float("-inf"))
            log = score.log_softmax(-1).masked_fill(hidden, 0)
            target = p
            if layer == max(wanted):
                part = COPIED * (needed >= 0)[..., None].to(p.dtype)
                target = ((1 - part) * p).scatter_add(-1, needed.clamp(min=0)[..., None], part)
            kl = (torch.xlogy(target, target) - target * log).sum(-1).mean()
            loss = loss + kl
            if looking:
                best = torch.zeros_like(hidden).scatter_(-1, score.topk(s.index_topk, -1)[1], True)
                figures.setdefault(f"layer {layer} kl", []).append(kl.item())
                figures.setdefault(f"layer {layer} mass at {length}", []).append((p * best).sum(-1).mean().item())
                if layer == max(wanted) and (needed >= 0).any():
                    hit = best.gather(-1, needed.clamp(min=0)[..., None])[..., 0][needed >= 0]
                    figures.setdefault(f"needed at {length}", []).append(hit.float().mean().item())
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
    if a.device.type == "cuda":
        held = tasks.Corpus(os.path.join(a.work, "held.npz"))
        curves.report(index_step=step, **{f"held_{n}": evaluate(model, held, a.work, n, 2, sparse=True, **how) for n, how in
                                          ((16384, {}), (131072, AS_ASKED))})
    print("done" if step >= n_steps else "go on", flush=True)


if __name__ == "__main__":
    main()
