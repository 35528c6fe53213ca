#!/usr/bin/env python3
"""Train the MTP layer, which drafts the token after next. Everything else stands still.

    python mtp.py --work DIR --from index.pt --minutes 9        writes DIR/mtp.pt: what was read, and "draft"; goes on from it

As the published layer: z = eh_proj [enorm(embedding of the next token) | hnorm(the model's normed output)], one decoder layer
with an indexer of its own, shared_head.norm, the model's own lm_head; RoPE at the position of the output, and no embedding at
position 0. It starts from what is there: the layer is a copy of layer 5, which copies what follows the last tokens, and
eh_proj the map that comes nearest, in least squares, to what layer 5 sees one token later.

Prints how often its first choice is the model's (what greedy verification accepts of the first draft), on answers and on
text; at the end the same of held-out sequences, with full attention and with the index_topk positions its indexer chooses.
Only the first draft is trained and measured; the indexer is layer 5's.
"""
import cores  # first: see there

import dataclasses
import os
import time

import torch
import torch.nn.functional as F
from torch import nn

import tasks
from feed import Batches, batch, draw
from model import Layer, Model, Norm, Shape, linear
from train import BIAS_RATE, MAIN, Curves, Optimizer, in_use, options, save

COPIED = 5
# (length, weight), ..; tokens of a step; steps
RECIPES = {"cpu": (((512, 2), (1024, 4), (2048, 4)), 4096, 300), "cuda": (((1024, 2), (2048, 4), (4096, 2), (8192, 1)), 32768, 1200)}
FIT_TOKENS = 40_000  # of the least squares


class Draft(nn.Module):
    """By the names the published layer has below model.layers.N."""

    def __init__(self, s):
        super().__init__()
        self.s = s
        self.enorm, self.hnorm = Norm(s.hidden, s.eps), Norm(s.hidden, s.eps)
        self.eh_proj = linear(2 * s.hidden, s.hidden)
        self.layer = Layer(dataclasses.replace(s, full=s.full + (s.n_layers,)), s.n_layers)
        self.shared_head = nn.ModuleDict({"norm": Norm(s.hidden, s.eps)})

    def joined(self, embedding, output):
        return torch.cat([self.enorm(embedding), self.hnorm(output)], -1)

    def forward(self, embedding, output, cos, sin, sparse=False):
        """[B, S, hidden] each, of the token that follows and of the model's output: what lm_head is to read."""
        x, layer, mask, n = self.eh_proj(self.joined(embedding, output)), self.layer, None, output.shape[1]
        h, latent, *qkv = layer.before(x, cos, sin)
        q, k, v = (y.transpose(1, 2) for y in qkv)
        if sparse and n > self.s.index_topk:
            mask = layer.self_attn.indexer.choice(h, latent, cos, sin, self.s.index_topk)[:, None]
        o = F.scaled_dot_product_attention(q, k, v, is_causal=mask is None, attn_mask=mask)
        return self.shared_head["norm"](layer.after(x, o.transpose(1, 2).flatten(2)))


def published(state, n_layers):
    """A draft's tensors by the names they have in a checkpoint's memory (experts stacked)."""
    return {f"model.layers.{n_layers}.{name.removeprefix('layer.')}": w for name, w in state.items()}


class Rows:
    """Of a batch, what the layer sees and has to say. Row i sees output i and token i + 1, and drafts token i + 2."""

    def __init__(self, model, b, sparse=False, keep=None):
        ids, n = b["ids"], b["ids"].shape[1]
        seen = []
        watched = model.model.layers[COPIED].input_layernorm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        with torch.no_grad():
            logits, output = model(ids, b["positions"], window=n >= 1024, sparse=sparse)
            self.said = logits.argmax(-1).view(ids.shape)[:, 1:-1]  # what the model says at i + 1
            self.output = output.view(*ids.shape, -1)[:, :-2]
            self.embedding = model.model.embed_tokens(ids[:, 1:-1])
            self.embedding = self.embedding * (b["positions"][:, :-2, None] > 0)
            self.copied = seen[0].view(*ids.shape, -1)[:, 1:-1]     # what layer COPIED sees at i + 1
            self.cos, self.sin = (x[:, :-2] for x in model.angles(b["positions"]))
        watched.remove()
        self.goal, self.weight, self.context = ids[:, 2:], b["weight"][:, 2:], b["context"]


def start_from(draft, model, rows):
    """See above; rows: an iterator over Rows."""
    layer = model.model.layers[COPIED]
    draft.layer.load_state_dict(layer.state_dict())
    for norm in (draft.enorm, draft.hnorm):
        nn.init.ones_(norm.weight)
    draft.shared_head["norm"].load_state_dict(model.model.norm.state_dict())
    a, c, n = 0.0, 0.0, 0
    with torch.no_grad():
        while n < FIT_TOKENS:
            r = next(rows)
            x = draft.joined(r.embedding, r.output).flatten(0, 1).double()
            a, c, n = a + x.mT @ x, c + x.mT @ r.copied.flatten(0, 1).double(), n + len(x)
        draft.eh_proj.weight.copy_(torch.linalg.solve(a + 1e-3 * n * torch.eye(len(a), dtype=a.dtype, device=a.device), c).mT.float())


def lesson(lengths, step_tokens):
    """Sequences: for Batches."""

    def make(t, chooser, number):
        length = draw(chooser, lengths)
        return batch(t, length, step_tokens // length)

    return make


@torch.no_grad()
def accepted(draft, model, t, length, n_batches, sparse):
    """Shares of the first drafts that are what the model says: of answers, of text."""
    hits = {"answers": [], "text": []}
    draft.eval()
    device = model.lm_head.weight.device
    for _ in range(n_batches):
        b = batch(t, length, max(1, 2048 // length), gaps=0.0)
        r = Rows(model, {k: v.to(device) for k, v in b.items() if torch.is_tensor(v)}, sparse=sparse)
        same = model.lm_head(draft(r.embedding, r.output, r.cos, r.sin, sparse=sparse)).argmax(-1) == r.said
        answers = r.weight > 0
        text = torch.arange(2, length, device=device)[None] < r.context[:, None]
        hits["answers"] += same[answers].tolist()
        hits["text"] += same[text & ~answers].tolist()
    draft.train()
    return {k: [round(sum(v) / len(v), 3), len(v)] for k, v in hits.items()}


def main(arguments=None):
    parser = options("Train the MTP layer.", seed=977)
    parser.add_argument("--from", dest="source", default="index.pt")
    parser.add_argument("--steps", type=int, help="length of the whole run")
    a = parser.parse_args(arguments)
    began, path, (lengths, step_tokens, n_steps) = time.time(), os.path.join(a.work, "mtp.pt"), RECIPES[a.device.type]
    n_steps = a.steps or n_steps
    torch.set_num_threads(a.threads)
    kept = torch.load(path if os.path.exists(path) else os.path.join(a.work, a.source), map_location="cpu", weights_only=False)
    model = Model(Shape(**kept["shape"]))
    model.load_state_dict(kept["model"])
    model.to(a.device).eval().requires_grad_(False)
    held = tasks.Corpus(os.path.join(a.work, "held.npz"))
    batches = Batches(a.work, a.seed, max(n_steps, FIT_TOKENS // step_tokens + 1), lesson(lengths, step_tokens))
    step, draft = 0, Draft(model.s).to(a.device)
    if "draft" in kept:
        draft.load_state_dict(kept["draft"])
    else:
        start_from(draft, model, (Rows(model, b) for b in batches.since(0, a.device, 0)))
    optimizer = Optimizer(draft, MAIN[a.device.type])
    if "mtp" in kept:
        optimizer.restore(kept["mtp"]["optimizer"])
        step = kept["mtp"]["step"]

    def keep():
        save(path, {**kept, "draft": draft.state_dict(), "mtp": {"optimizer": optimizer.state(), "step": step}})

    curves, figures, gate, moe = Curves(os.path.join(a.work, "mtp.jsonl")), {}, draft.layer.mlp.gate, draft.layer.mlp
    feed = batches.since(step, a.device, a.workers)
    while step < n_steps and time.time() - began < a.minutes * 60:
        with in_use(a.device):
            r = Rows(model, next(feed))
        plain = torch.rand(r.goal.shape, device=a.device) < 0.12
        plain &= torch.arange(2, 2 + r.goal.shape[1], device=a.device)[None] < r.context[:, None]
        weight = (r.weight + 0.3 * plain).flatten()
        rows = (weight > 0).nonzero()[:, 0]
        with in_use(a.device):
            logits = model.lm_head(draft(r.embedding, r.output, r.cos, r.sin).flatten(0, 1)[rows])
        weight, goal = weight[rows], r.goal.flatten()[rows]
        ce = F.cross_entropy(logits.float(), goal, reduction="none")
        ((ce * weight).sum() / weight.sum()).backward()
        rate = min(1, (step + 1) / 20) * min(1, max(0.03, (1 - step / n_steps) / 0.6))
        optimizer.step(rate)
        with torch.no_grad():
            gate.e_score_correction_bias += BIAS_RATE * rate * torch.sign(moe.load.mean() - moe.load)
            moe.load.zero_()
            same, answers = logits.argmax(-1) == r.said.flatten()[rows], weight > 0.5
            for name, of in (("answers", answers), ("text", ~answers)):
                figures.setdefault(name, []).append(same[of].float().mean())
        step += 1
        if step % 20 == 0:
            curves.report(mtp_step=step, **{k: round(torch.stack(v).mean().item(), 3) for k, v in figures.items()})
            figures = {}
    keep()
    t = tasks.Tasks(held, os.path.join(a.work, "tokenizer.json"), 7)
    curves.report(mtp_step=step, held_512=accepted(draft, model, t, 512, 4, False),
                  held_2048=accepted(draft, model, t, 2048, 6, False), held_2048_sparse=accepted(draft, model, t, 2048, 6, True))
    print("done" if step >= n_steps else "go on", flush=True)


if __name__ == "__main__":
    main()
