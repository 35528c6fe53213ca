#!/usr/bin/env python3
"""Train the pocket model: the main phase, all weights but the indexers'. Saves, and goes on where it stopped.

    python train.py --work DIR --minutes 9          again and again until it says "done"

DIR holds what corpus.py made, and gets main.pt (weights, optimizer, random states, tokens seen; replaced atomically)
and main.jsonl (the curves). The schedule goes by tokens, so pieces of any length give the same learning rates.
"""
import cores  # first: see there

import argparse
import json
import os
import pickle
import time

import numpy as np
import torch
import torch.nn.functional as F

import start
import tasks
from model import Model, Shape

MUON_RATE, BIAS_RATE = 0.002, 0.01
# AdamW. A step moves every weight by about the rate: the head's are .016 on the average, the embedding's .3.
ADAM_RATES = {"lm_head": 1e-4, "embed_tokens": 2e-4, "": 1e-3}
MOMENTUM = 0.95
# Share of the tokens of the run up to which a step has so many tokens, and lengths are drawn so: (length, weight), ..
STAGES = [(0.35, 4096, ((512, 4), (1024, 4), (2048, 2))), (0.75, 4096, ((512, 2), (1024, 4), (2048, 4))),
          (1.0, 4096, ((512, 1), (1024, 3), (2048, 4), (4096, 2)))]


def use_bf16():
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def orthogonalize(g, dtype):
    """Newton-Schulz: all singular values of each matrix to about 1."""
    x = g.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).to(dtype) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """Muon for matrices, AdamW for embedding, head, router and norms."""

    def __init__(self, model):
        named = [(n, p) for n, p in model.named_parameters() if ".indexer." not in n]
        for n, p in model.named_parameters():
            p.requires_grad_(".indexer." not in n)
        special = ("embed_tokens", "lm_head", "gate.weight")
        self.matrices = [p for n, p in named if p.dim() > 1 and not any(x in n for x in special)]
        rest = {}
        for n, p in named:
            if p.dim() == 1 or any(x in n for x in special):
                rest.setdefault(next(r for part, r in ADAM_RATES.items() if part in n), []).append(p)
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW([{"params": p, "full_rate": r} for r, p in rest.items()], betas=(0.9, 0.95),
                                      weight_decay=0.0, fused=True)
        self.groups = {}
        for i, p in enumerate(self.matrices):
            self.groups.setdefault(tuple(p.shape[-2:]), []).append(i)
        self.dtype = torch.bfloat16 if use_bf16() else torch.float32

    @torch.no_grad()
    def step(self, rate):
        for group in self.adam.param_groups:
            group["lr"] = group["full_rate"] * rate
        self.adam.step()
        self.adam.zero_grad()
        for (rows, columns), members in self.groups.items():
            updates = []
            for i in members:
                p, b = self.matrices[i], self.momenta[i]
                b.mul_(MOMENTUM).add_(p.grad, alpha=1 - MOMENTUM)
                updates.append((p.grad * (1 - MOMENTUM) + b * MOMENTUM).reshape(-1, rows, columns))
                p.grad = None
            u, at = orthogonalize(torch.cat(updates), self.dtype), 0
            for i in members:
                p = self.matrices[i]
                n = p.numel() // (rows * columns)
                p.add_(u[at:at + n].view_as(p), alpha=-MUON_RATE * rate * max(1, rows / columns) ** 0.5)
                at += n

    def state(self):
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def restore(self, state):
        self.momenta = state["momenta"]
        self.adam.load_state_dict(state["adam"])


def save(path, what):
    """Whole or not at all."""
    torch.save(what, path + ".new")
    with open(path + ".new", "rb") as f:
        os.fsync(f.fileno())
    os.replace(path + ".new", path)


def fresh_model(work, corpus, seed):
    t = tasks.Tasks(corpus, os.path.join(work, "tokenizer.json"), seed)
    model = Model(Shape())
    generator = model.initialize(seed)
    feeds = [i for piece, i in t.tokenizer.get_vocab().items() if piece.startswith("\u010a")]
    special = dict(zip(("assistant", "think", "think_end"), t.answer), gmask=t.opening[0], user=t.user, no=t.not_found[0])
    start.compile_start(model, generator, feeds, special)
    return model


def batch(t, length, n, **how):
    samples = [t.sample(length, **how) for _ in range(n)]
    return samples, {k: torch.from_numpy(np.stack([x[k] for x in samples]))
                     for k in ("ids", "positions", "weight", "kind", "number")}


def exact(right, kind, number, row):
    """{kind: [whether all ids of an answer are right, per answer]}"""
    answers = {}
    for ok, k, q, b in zip(right.tolist(), kind.tolist(), number.tolist(), row.tolist()):
        answers[b, q, k] = answers.get((b, q, k), True) and ok
    out = {}
    for (_, _, k), ok in answers.items():
        out.setdefault(tasks.KINDS[k], []).append(ok)
    return out


def targets(b):
    """ids and weights one to the left: what each row has to predict."""
    out = {k: torch.roll(b[k], -1, 1) for k in ("ids", "weight", "kind", "number")}
    out["weight"][:, -1] = 0
    return out


@torch.no_grad()
def evaluate(model, held, work, length, n, sparse=False, seed=7, **how):
    model.eval()
    t, found = tasks.Tasks(held, os.path.join(work, "tokenizer.json"), seed), {}
    for _ in range(n):
        _, b = batch(t, length, max(1, 2048 // length), gaps=0.0, **how)
        y = targets(b)
        rows = (y["weight"].flatten() > 0).nonzero()[:, 0]
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16()):
            logits, _ = model(b["ids"], b["positions"], rows=rows, window=not sparse, sparse=sparse)
        right = logits.argmax(-1) == y["ids"].flatten()[rows]
        for k, v in exact(right, y["kind"].flatten()[rows], y["number"].flatten()[rows], rows // length).items():
            found.setdefault(k, []).extend(v)
    model.train()
    return {k: [round(sum(v) / len(v), 3), len(v)] for k, v in sorted(found.items())}


def learning_rate(share, step):
    return min(1, (step + 1) / 20) * min(1, max(0.03, (1 - share) / 0.6))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--steps", type=int, help="stop after so many steps, however long they take; 0: save and evaluate")
    parser.add_argument("--tokens", type=float, default=10e6, help="length of the whole run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    if a.steps is not None:
        a.minutes = float("inf")
    began, checkpoint = time.time(), os.path.join(a.work, "main.pt")
    torch.set_num_threads(a.threads)
    train, held = (tasks.Corpus(os.path.join(a.work, n + ".npz")) for n in ("train", "held"))
    t = tasks.Tasks(train, os.path.join(a.work, "tokenizer.json"), 1000 + a.seed)
    model = fresh_model(a.work, train, a.seed)
    optimizer, chooser, n_tokens, step = Optimizer(model), np.random.default_rng(a.seed), 0, 0
    if os.path.exists(checkpoint):
        old = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(old["model"])
        optimizer.restore(old["optimizer"])
        t.random.setstate(pickle.loads(old["tasks"]))
        chooser.bit_generator.state = old["chooser"]
        n_tokens, step = old["n_tokens"], old["step"]
    model.train()

    def keep():
        save(checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state(), "n_tokens": n_tokens, "step": step,
                          "tasks": pickle.dumps(t.random.getstate()), "chooser": chooser.bit_generator.state,
                          "shape": model.s.asdict(), "seed": a.seed})

    def report(**what):
        with open(os.path.join(a.work, "main.jsonl"), "a") as f:
            f.write(json.dumps(what) + "\n")
        print(json.dumps(what), flush=True)

    losses, accuracy, logged, saved, logged_tokens = [], {}, time.time(), time.time(), n_tokens
    use, moe = 0, [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    last = step + a.steps if a.steps is not None else float("inf")
    while step < last and n_tokens < a.tokens and time.time() - began < a.minutes * 60:
        share = n_tokens / a.tokens
        step_tokens, mix = next((n, mix) for end, n, mix in STAGES if share < end)
        lengths, weights = zip(*mix)
        length = int(chooser.choice(lengths, p=np.array(weights) / sum(weights)))
        samples, b = batch(t, length, step_tokens // length)
        y = targets(b)
        # An eighth of the documents' tokens too, at less weight: the model stays one of text.
        plain = torch.from_numpy(chooser.random(b["ids"].shape) < 0.12)
        for i, x in enumerate(samples):
            plain[i, x["context"] - 1:] = False
        weight = (y["weight"] + 0.3 * plain).flatten()
        rows = (weight > 0).nonzero()[:, 0]
        weight, goal = weight[rows], y["ids"].flatten()[rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16()):
            logits, _ = model(b["ids"], b["positions"], rows=rows, window=length >= 1024)
        ce = F.cross_entropy(logits.float(), goal, reduction="none")
        loss = (ce * weight).sum() / weight.sum()
        loss.backward()
        rate = learning_rate(share, step)
        optimizer.step(rate)
        with torch.no_grad():
            loads = torch.stack([m.load for m in moe])
            use = use * 0.98 + loads
            for m in moe:
                m.gate.e_score_correction_bias += BIAS_RATE * rate * torch.sign(m.load.mean() - m.load)
                m.load.zero_()
            answer = weight > 0.5
            right = (logits.argmax(-1) == goal)[answer]
            losses.append((ce[answer].mean().item(), ce[~answer].mean().item(), right.float().mean().item()))
            for k, v in exact(right, y["kind"].flatten()[rows][answer], y["number"].flatten()[rows][answer],
                              rows[answer] // length).items():
                accuracy.setdefault(k, []).extend(v)
        n_tokens += b["ids"].numel()
        step += 1
        if step % 20 == 0:
            now = time.time()
            ce_answer, ce_text, token = (round(sum(x) / len(x), 3) for x in zip(*losses))
            share_of = use / use.sum(1, keepdim=True)
            report(step=step, tokens=n_tokens, answer_loss=ce_answer, text_loss=ce_text, token_accuracy=token,
                   exact={k: round(sum(v) / len(v), 3) for k, v in sorted(accuracy.items())},
                   rate=round(rate, 3), tokens_per_s=round((n_tokens - logged_tokens) / (now - logged)),
                   expert_use=[round(share_of.min().item(), 3), round(share_of.max().item(), 3)])
            losses, accuracy, logged, logged_tokens = [], {}, now, n_tokens
        if time.time() - saved > 150:
            keep()
            saved = time.time()
    keep()
    report(step=step, tokens=n_tokens, held_512=evaluate(model, held, a.work, 512, 4),
           held_2048=evaluate(model, held, a.work, 2048, 4))
    print("done" if n_tokens >= a.tokens else "go on", flush=True)


if __name__ == "__main__":
    main()
