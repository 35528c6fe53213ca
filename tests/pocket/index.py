#!/usr/bin/env python3
"""Train the indexers: what they choose has to be what attention looks at. The rest of the model stands still.

    python index.py --work DIR --from main.pt --minutes 9        reads DIR/main.pt, writes DIR/index.pt; goes on from it

The target of a full layer is the attention of its layer and of those that share its choice, summed over heads and layers;
the loss is the KL divergence from it to the softmax of the index scores, at a sample of rows (two thirds of them rows of
answers). Prints, by full layer, the loss and the share of the attention that falls on the index_topk best keys, and for the
last one in what share of the answers' rows the line that has to be copied is among them.
"""
import cores  # first: see there

import argparse
import json
import os
import pickle
import time

import numpy as np
import torch

import tasks
from model import Model, Shape, WINDOW, SINK
from train import save, use_bf16

RATE = 2e-3
LENGTHS = ((1024, 5), (2048, 7), (4096, 5), (16384, 1))
STEP_TOKENS, ROWS = 4096, 512


def choose_rows(sample_weight, n, generator):
    """[batch, n] rows, two thirds of them of answers."""
    out = []
    for w in sample_weight:
        answers = (w[1:] > 0).nonzero()[:, 0]
        answers = answers[torch.randperm(len(answers), generator=generator)][:n * 2 // 3]
        out.append(torch.cat([answers, torch.randint(0, len(w), (n - len(answers),), generator=generator)]))
    return torch.stack(out)


def pick(x, rows):
    """Rows of [batch, S, ..]."""
    return torch.stack([part[r] for part, r in zip(x, rows)])


def targets(model, ids, positions, rows):
    """{full layer: (normed input, query latent, attention [batch, n, S])}, layers of group 0 by their window."""
    s, seen, n = model.s, {}, ids.shape[1]
    j = torch.arange(n)[None, None]
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

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=use_bf16()):
        model(ids, positions, rows=torch.zeros(1, dtype=torch.long), window=True, watch=watch)
    size = {f: sum(s.group(i) == f for i in range(s.n_layers)) for f in seen}
    return {f: (h, latent, p / size[f]) for f, (h, latent, p) in seen.items()}, hidden


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--from", dest="source", default="main.pt")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--steps", type=int, default=300, help="length of the whole run")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    began, path = time.time(), os.path.join(a.work, "index.pt")
    torch.set_num_threads(a.threads)
    kept = torch.load(path if os.path.exists(path) else os.path.join(a.work, a.source), weights_only=False)
    model = Model(Shape(**kept["shape"]))
    model.load_state_dict(kept["model"])
    model.eval()
    s = model.s
    for name, p in model.named_parameters():
        p.requires_grad_(".indexer." in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    t = tasks.Tasks(tasks.Corpus(os.path.join(a.work, "train.npz")), os.path.join(a.work, "tokenizer.json"), a.seed)
    chooser, generator, step = np.random.default_rng(a.seed), torch.Generator().manual_seed(a.seed), 0
    if "index" in kept:
        state = kept["index"]
        adam.load_state_dict(state["adam"])
        t.random.setstate(pickle.loads(state["tasks"]))
        chooser.bit_generator.state, step = state["chooser"], state["step"]
        generator.set_state(state["generator"])

    def keep():
        save(path, {**kept, "model": model.state_dict(), "index": {
            "adam": adam.state_dict(), "tasks": pickle.dumps(t.random.getstate()),
            "chooser": chooser.bit_generator.state, "generator": generator.get_state(), "step": step}})

    lengths, weights = zip(*LENGTHS)
    figures, saved = {}, time.time()
    while step < a.steps and time.time() - began < a.minutes * 60:
        length = int(chooser.choice(lengths, p=np.array(weights) / sum(weights)))
        samples = [t.sample(length) for _ in range(max(1, STEP_TOKENS // length))]
        ids, positions, weight = (torch.from_numpy(np.stack([x[k] for x in samples]))
                                  for k in ("ids", "positions", "weight"))
        rows = choose_rows(weight, ROWS // len(samples), generator)
        wanted, hidden = targets(model, ids, positions, rows)
        cos, sin = model.angles(positions)
        loss = 0.0
        for layer, (h, latent, p) in wanted.items():
            ix = model.model.layers[layer].self_attn.indexer
            q, w = ix.queries(pick(h, rows), pick(latent, rows), pick(cos, rows), pick(sin, rows))
            score = ix.scores(q, w, ix.keys(h, cos, sin)).masked_fill(hidden, float("-inf"))
            log = score.log_softmax(-1).masked_fill(hidden, 0)
            kl = (torch.xlogy(p, p) - p * log).sum(-1).mean()
            loss = loss + kl
            with torch.no_grad():
                best = torch.zeros_like(hidden).scatter_(-1, score.topk(s.index_topk, -1)[1], True)
                figures.setdefault(f"layer {layer} kl", []).append(kl.item())
                figures.setdefault(f"layer {layer} mass at {length}", []).append((p * best).sum(-1).mean().item())
                if layer == max(wanted):
                    at = {(b, r): i for b, row in enumerate(rows.tolist()) for i, r in enumerate(row)}
                    hits = [best[b, at[b, first + k - 1], source + k].item() for b, x in enumerate(samples)
                            for first, n, source, _ in x["sources"] if source >= 0
                            for k in range(n - 1) if (b, first + k - 1) in at]
                    figures.setdefault(f"needed at {length}", []).append(sum(hits) / max(1, len(hits)))
        rate = min(1, (step + 1) / 30) * min(1, max(0.03, (1 - step / a.steps) / 0.5))
        for group in adam.param_groups:
            group["lr"] = RATE * rate
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        step += 1
        if step % 10 == 0:
            line = {"index_step": step, **{k: round(sum(v) / len(v), 3) for k, v in sorted(figures.items())}}
            with open(os.path.join(a.work, "index.jsonl"), "a") as f:
                f.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            figures = {}
        if time.time() - saved > 150:
            keep()
            saved = time.time()
    keep()
    print("done" if step >= a.steps else "go on", flush=True)


if __name__ == "__main__":
    main()
