#!/usr/bin/env python3
"""Train the pocket model: the main phase, all weights but the indexers'. Saves, and goes on where it stopped.

    python train.py --work DIR --minutes 9          again and again until it says "done"
    python train.py --work DIR --phase long         long sequences: from main.pt
    python train.py --work DIR --phase sparse       attention only to what the indexers choose; from index.pt
    python train.py --work DIR --phase sparse-long  the same of long sequences; from sparse.pt

DIR holds what corpus.py made, and gets PHASE.pt (weights, optimizer, steps done; replaced atomically) and PHASE.jsonl (the
curves). The schedule goes by tokens, so pieces of any length give the same learning rates. On a GPU (--device cuda) steps are
larger, and sequences of up to 65,536 tokens are among them, 131,072 in the long phase, which two cores have none of.
"""
import cores  # first: see there

import argparse
import json
import os
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import start
import tasks
from published import read
from feed import Batches, batch, draw, targets
from model import Model, Shape

BIAS_RATE = 0.01
MOMENTUM = 0.95


@dataclass
class Recipe:
    step_tokens: int
    tokens: float      # of the whole run
    muon: float        # its rate
    # AdamW's rates by part of a name. A step moves every weight by about the rate: the head's are .016 on the average, the
    # embedding's .3.
    adam: dict
    warm_up: int       # steps
    # Share of the tokens of the run up to which lengths are drawn so: (length, weight), ..
    stages: list
    report_every: int  # steps
    answers_every: int  # steps: whole answers are looked at
    share: tuple = (0.25, 0.5)  # least and largest part of a sequence that is questions


MAIN = {
    "cpu": Recipe(4096, 10e6, 0.002, {"lm_head": 1e-4, "embed_tokens": 2e-4, "": 1e-3}, 20,
                  [(0.35, ((512, 4), (1024, 4), (2048, 2))), (0.75, ((512, 2), (1024, 4), (2048, 4))),
                   (1.0, ((512, 1), (1024, 3), (2048, 4), (4096, 2)))], 20, 1),
    "cuda": Recipe(65536, 395e6, 0.008, {"lm_head": 5e-4, "embed_tokens": 5e-4, "": 1e-3}, 100,
                   [(0.1, ((512, 2), (1024, 4), (2048, 4))), (0.5, ((1024, 2), (2048, 4), (4096, 3), (8192, 1))),
                    (0.8, ((1024, 1), (2048, 3), (4096, 3), (8192, 2), (16384, 1.5))),
                    (1.0, ((2048, 2), (4096, 2), (8192, 2), (16384, 2.5), (65536, 1.5)))], 100, 50),
}
# The benchmark asks a question after all of the documents: more documents and fewer questions in a sequence than before.
LONG = {
    "cuda": Recipe(131072, 45e6, 0.004, {"lm_head": 2.5e-4, "embed_tokens": 2.5e-4, "": 5e-4}, 20,
                   [(1.0, ((2048, 0.3), (4096, 0.4), (16384, 1), (65536, 1), (131072, 7.5)))], 20, 5, (0.08, 0.3)),
}
SPARSE = {
    "cpu": Recipe(4096, 0.4e6, 0.0003, {"lm_head": 2e-5, "embed_tokens": 2e-5, "": 1e-4}, 20, [(1.0, ((4096, 1),))], 20, 1),
    "cuda": Recipe(65536, 8e6, 0.0004, {"lm_head": 2e-5, "embed_tokens": 4e-5, "": 1e-4}, 20,
                   [(1.0, ((4096, 1), (8192, 1), (16384, 2)))], 20, 10),
}


# Only questions are sparse in sequences longer than model.LONGEST_MASK: documents that are too cost four times as much.
SPARSE_LONG = {
    "cuda": Recipe(131072, 16e6, 0.0008, {"lm_head": 4e-5, "embed_tokens": 8e-5, "": 2e-4}, 10,
                   [(1.0, ((16384, 1), (65536, 1), (131072, 4)))], 10, 5, (0.08, 0.2)),
}
# What each begins with, and what it adds to the seed of its batches.
PHASES = {"main": (MAIN, None, 0), "long": (LONG, "main.pt", 250), "sparse": (SPARSE, "index.pt", 500),
          "sparse-long": (SPARSE_LONG, "sparse.pt", 750)}


def use_bf16(device):
    return device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def in_use(device):
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device))


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

    def __init__(self, model, recipe):
        named = [(n, p) for n, p in model.named_parameters() if ".indexer." not in n]
        for n, p in model.named_parameters():
            p.requires_grad_(".indexer." not in n)
        special = ("embed_tokens", "lm_head", "gate.weight")
        self.matrices = [p for n, p in named if p.dim() > 1 and not any(x in n for x in special)]
        rest = {}
        for n, p in named:
            if p.dim() == 1 or any(x in n for x in special):
                rest.setdefault(next(r for part, r in recipe.adam.items() if part in n), []).append(p)
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW([{"params": p, "full_rate": r} for r, p in rest.items()], betas=(0.9, 0.95),
                                      weight_decay=0.0, fused=True)
        self.groups = {}
        for i, p in enumerate(self.matrices):
            self.groups.setdefault(tuple(p.shape[-2:]), []).append(i)
        self.rate = recipe.muon
        self.dtype = torch.bfloat16 if use_bf16(self.matrices[0].device) else torch.float32

    @torch.no_grad()
    def step(self, rate):
        for group in self.adam.param_groups:
            group["lr"] = group["full_rate"] * rate
        self.adam.step()
        self.adam.zero_grad()
        gradients = [p.grad for p in self.matrices]
        torch._foreach_lerp_(self.momenta, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, self.momenta, MOMENTUM)
        for (rows, columns), members in self.groups.items():
            u = orthogonalize(torch.cat([updates[i].reshape(-1, rows, columns) for i in members]), self.dtype)
            parts = u.split([self.matrices[i].numel() // (rows * columns) for i in members])
            torch._foreach_add_([self.matrices[i] for i in members],
                                [part.view_as(self.matrices[i]) for i, part in zip(members, parts)],
                                alpha=-self.rate * rate * max(1, rows / columns) ** 0.5)
        for p in self.matrices:
            p.grad = None

    def state(self):
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def restore(self, state):
        for mine, kept in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(kept)
        self.adam.load_state_dict(state["adam"])


def save(path, what):
    """Whole or not at all."""
    torch.save(what, path + ".new")
    with open(path + ".new", "rb") as f:
        os.fsync(f.fileno())
    os.replace(path + ".new", path)


def fresh_model(t, seed):
    model = Model(Shape())
    generator = model.initialize(seed)
    feeds = [i for piece, i in t.tokenizer.get_vocab().items() if piece.startswith("\u010a")]
    special = dict(zip(("assistant", "think", "think_end"), t.answer), gmask=t.opening[0], user=t.user, no=t.not_found[0])
    start.compile_start(model, generator, feeds, special)
    return model


# Held-out sequences as the benchmark has them at 131,072 tokens.
AS_ASKED = {"share": (0.08, 0.08), "made": 0.065}


def beginning(path):
    """A phase's checkpoint, or what it would have been from exported files."""
    if not os.path.isdir(path):
        return torch.load(path, map_location="cpu", weights_only=False)
    return {"model": read(path, Shape()), "n_tokens": 0, "shape": Shape().asdict()}


def for_device(model, device):
    """On a GPU what does not depend on the length of sequences is compiled, once for all layers of a kind."""
    model.to(device)
    if device.type == "cuda":
        for layer in model.model.layers:
            layer.before, layer.after = (torch.compile(f, dynamic=False) for f in (layer.before, layer.after))
    return model


def exact(right, kind, number, row):
    """{kind: [whether all ids of an answer are right, per answer]}"""
    answers = {}
    for ok, k, q, b in zip(right.tolist(), kind.tolist(), number.tolist(), row.tolist()):
        answers[b, q, k] = answers.get((b, q, k), True) and ok
    out = {}
    for (_, _, k), ok in answers.items():
        out.setdefault(tasks.KINDS[k], []).append(ok)
    return out


@torch.no_grad()
def evaluate(model, held, work, length, n, sparse=False, window=True, seed=7, **how):
    """{kind: [share of held-out questions whose answer is exact, how many]}. window: see Model.forward."""
    device = model.lm_head.weight.device
    t, found = tasks.Tasks(held, os.path.join(work, "tokenizer.json"), seed), {}
    model.eval()
    for _ in range(n):
        b = batch(t, length, max(1, 2048 // length), gaps=0.0, **how)
        y = targets(b)
        rows = (y["weight"].flatten() > 0).nonzero()[:, 0]
        with in_use(device), torch.compiler.set_stance("force_eager"):
            logits, _ = model(b["ids"].to(device), b["positions"].to(device), rows=rows.to(device), window=window,
                              sparse=sparse)
        right = logits.argmax(-1).cpu() == y["ids"].flatten()[rows]
        for k, v in exact(right, y["kind"].flatten()[rows], y["number"].flatten()[rows], rows // length).items():
            found.setdefault(k, []).extend(v)
    model.train()
    return {k: [round(sum(v) / len(v), 3), len(v)] for k, v in sorted(found.items())}


def learning_rate(share, step, warm_up):
    return min(1, (step + 1) / warm_up) * min(1, max(0.03, (1 - share) / 0.6))


def lesson(recipe, n_steps):
    """What of a batch is trained: for Batches."""

    def make(t, chooser, number):
        length = draw(chooser, next(mix for end, mix in recipe.stages if number / n_steps < end))
        b = batch(t, length, recipe.step_tokens // length, share=recipe.share)
        y = targets(b)
        # An eighth of the documents' tokens too, at less weight: the model stays one of text.
        plain = torch.from_numpy(chooser.random(b["ids"].shape) < 0.12)
        plain &= torch.arange(length)[None] < b["context"][:, None] - 1
        weight = (y["weight"] + 0.3 * plain).flatten()
        rows = (weight > 0).nonzero()[:, 0]
        return {"ids": b["ids"], "positions": b["positions"], "rows": rows, "weight": weight[rows],
                "context": int(b["context"].min()),
                **{k: y[name].flatten()[rows] for k, name in (("goal", "ids"), ("kind", "kind"), ("number", "number"))}}

    return make


def options(description, seed):
    """What the phases have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches; 0: this one")
    return parser


class Curves:
    """What a phase has to say, as lines of JSON: to a file and to whoever watches."""

    def __init__(self, path):
        self.path = path

    def report(self, **what):
        with open(self.path, "a") as f:
            f.write(json.dumps(what) + "\n")
        print(json.dumps(what), flush=True)


def main(arguments=None):
    parser = options("Train the pocket model.", seed=0)
    parser.add_argument("--steps", type=int, help="stop after so many steps, however long they take; 0: save and evaluate")
    parser.add_argument("--tokens", type=float, help="length of the whole run")
    parser.add_argument("--phase", choices=PHASES, default="main")
    parser.add_argument("--from", dest="source", help="what a later phase begins with: another checkpoint in DIR, or a directory "
                        "of export.py in BF16 (the optimizer begins anew in any case)")
    a = parser.parse_args(arguments)
    if a.steps is not None:
        a.minutes = float("inf")
    began, sparse, (recipes, source, more) = time.time(), a.phase.startswith("sparse"), PHASES[a.phase]
    if a.device.type not in recipes:
        parser.error(f"the {a.phase} phase is for --device {', '.join(recipes)}")
    recipe, source, checkpoint = recipes[a.device.type], a.source or source, os.path.join(a.work, a.phase + ".pt")
    torch.set_num_threads(a.threads)
    n_steps = round((a.tokens or recipe.tokens) / recipe.step_tokens)
    held = tasks.Corpus(os.path.join(a.work, "held.npz"))
    batches = Batches(a.work, 1000 + a.seed + more, n_steps, lesson(recipe, n_steps))
    old, step, before = None, 0, 0
    if os.path.exists(checkpoint):
        old = torch.load(checkpoint, map_location="cpu", weights_only=False)
        step = old["step"]
        if old["n_steps"] != n_steps:
            parser.error(f"{checkpoint} is of a run of {old['n_steps']} steps, not {n_steps}: give the same --tokens and --device")
    elif source:
        old = beginning(os.path.join(a.work, source))
        before = old["n_tokens"]
    if old:
        model = Model(Shape(**old["shape"]))
        model.load_state_dict(old["model"])
    else:
        model = fresh_model(batches.tasks, a.seed)
    for_device(model, a.device).train()
    optimizer = Optimizer(model, recipe)
    if step:
        optimizer.restore(old["optimizer"])
        before = old["n_tokens"] - step * recipe.step_tokens

    def keep():
        save(checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state(), "step": step, "n_steps": n_steps,
                          "n_tokens": before + step * recipe.step_tokens, "shape": model.s.asdict(), "seed": a.seed})

    curves, losses, accuracy = Curves(os.path.join(a.work, a.phase + ".jsonl")), [], {}
    logged, saved, logged_step = time.time(), time.time(), step
    use, moe = 0, [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    last = min(n_steps, step + a.steps if a.steps is not None else n_steps)
    feed = batches.since(step, a.device, a.workers)
    while step < last and time.time() - began < a.minutes * 60:
        b = next(feed)
        weight, goal, length = b["weight"], b["goal"], b["ids"].shape[1]
        with in_use(a.device):
            logits, _ = model(b["ids"], b["positions"], rows=b["rows"], window=length >= 1024, sparse=sparse,
                              first=b["context"])
        ce = F.cross_entropy(logits.float(), goal, reduction="none")
        loss = (ce * weight).sum() / weight.sum()
        loss.backward()
        rate = learning_rate(step / n_steps, step, recipe.warm_up)
        optimizer.step(rate)
        with torch.no_grad():
            loads = torch.stack([m.load for m in moe])
            use = use * 0.98 + loads
            for m in moe:
                m.gate.e_score_correction_bias += BIAS_RATE * rate * torch.sign(m.load.mean() - m.load)
                m.load.zero_()
            answer = (weight > 0.5).float()
            right = logits.argmax(-1) == goal
            losses.append(torch.stack([(ce * answer).sum() / answer.sum(), (ce * (1 - answer)).sum() / (1 - answer).sum(),
                                       (right * answer).sum() / answer.sum()]))
            if step % recipe.answers_every == 0:
                of = answer > 0
                for k, v in exact(right[of], b["kind"][of], b["number"][of], b["rows"][of] // length).items():
                    accuracy.setdefault(k, []).extend(v)
        step += 1
        if step % recipe.report_every == 0:
            ce_answer, ce_text, token = (round(x, 3) for x in torch.stack(losses).mean(0).tolist())
            now, share_of = time.time(), use / use.sum(1, keepdim=True)
            curves.report(step=step, tokens=step * recipe.step_tokens, answer_loss=ce_answer, text_loss=ce_text,
                          token_accuracy=token, exact={k: round(sum(v) / len(v), 3) for k, v in sorted(accuracy.items())},
                          rate=round(rate, 3), tokens_per_s=round((step - logged_step) * recipe.step_tokens / (now - logged)),
                          expert_use=[round(share_of.min().item(), 3), round(share_of.max().item(), 3)])
            losses, accuracy, logged, logged_step = [], {}, now, step
        if time.time() - saved > 150:
            keep()
            saved = time.time()
    keep()
    looked_at = {f"held_{n}": evaluate(model, held, a.work, n, 4, sparse=sparse) for n in (512, 2048)}
    if a.device.type == "cuda":
        looked_at["held_16384"] = evaluate(model, held, a.work, 16384, 4, sparse=sparse)
        looked_at["held_131072"] = evaluate(model, held, a.work, 131072, 2, sparse=sparse, **AS_ASKED)
    curves.report(step=step, tokens=step * recipe.step_tokens, **looked_at)
    print("done" if step >= n_steps else "go on", flush=True)


if __name__ == "__main__":
    main()
