#!/usr/bin/env python3
"""Write the tiny checkpoints and the answers they must give. Run by hand; README.md says how.

    make_golden.py                 everything
    make_golden.py glm52 glm5      these checkpoints only, then controls.md and report.txt for all
    make_golden.py --check         write nothing; compare every committed case with a fresh float64 run

A case is kept only if it can be answered exactly: transformers and reference.py agree to 1e-9 in float64, no
choice in it is a near tie, and float32 runs on slightly moved embeddings stay close. Otherwise its seed is
rejected and the next one tried; report.txt has them all."""

import argparse
import json
import struct
import sys

import numpy as np
import torch
from safetensors.torch import load_file

import tiny_tokenizer
from checkpoints import HERE, SPECS, build_tokenizer, read, write
from controls import CONTROLS
from oracle import Oracle
from reference import Reference, Trace, cos_sin, inverse_frequencies

AGREE = 1e-9  # reference.py against transformers, both float64, of the largest logit
MOVE, MOVED = 3e-7, 4e-5  # embeddings moved by this much in float32 may move the logits by this much
INDEX_MARGIN = 3e-6  # (k-th - next index score) / largest |score| of the row, for every row of a kept case
ROUTER_MARGIN = 3e-6  # k-th - next biased sigmoid score (groups: sums of two), for every token
GREEDY_MARGIN = 5e-4  # best - second logit, of the largest |logit|, at every greedy step
TOPK_MARGIN = 1e-5  # rows below this are left out of <case>.topk
N_GREEDY = 64


class Checkpoint:
    """One directory with everything that can answer for it."""

    def __init__(self, name):
        self.name, self.path, self.spec = name, HERE / name, SPECS[name]
        self.cfg, wide = read(self.path)
        self.weights = {k: v.numpy() for k, v in wide.items()}
        self.tok = build_tokenizer(self.spec)
        own = wide if self.spec.get("fp8") else None
        self.hf = Oracle(self.path, self.cfg, torch.float64, own)
        self.hf32 = Oracle(self.path, self.cfg, torch.float32, own)
        ours = self.reference().inv_freq
        assert (ours.view(np.uint32) == self.hf.inv_freq.view(np.uint32)).all(), (ours, self.hf.inv_freq)

    def reference(self, control=None):
        """A fresh Reference, broken by `control`; None if that control does not concern this checkpoint."""
        r = Reference(dict(self.cfg), dict(self.weights))
        r.raw, r.ties = None, "live_index_heads" in self.spec
        if self.spec.get("fp8"):
            r.raw = {}
            for file in sorted(self.path.glob("*.safetensors")):
                r.raw |= load_file(file)
        if control and CONTROLS[control](r) is False:
            return None
        return r


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


# Mistakes that engines, and earlier versions of transformers, have made.
CONVENTIONS = ["half-split main RoPE", "indexer RoPE of the other kind", "attention: rope before nope in q",
               "attention: v before nope in kv_b", "indexer: rope part last", "index scores without ReLU",
               "k_norm bias missing", "k_norm as RMSNorm", "latent norms with eps 1e-5",
               "layer norms with the other eps (1e-5, 1e-6)", "indexer fed the residual, not the normed input",
               "shared layer chooses for itself", "router: weights from biased scores",
               "YaRN: softmax scale without mscale", "groups ignored"]


def assert_conventions(ck):
    """Before anything is kept: transformers computes what reference.py says, and none of the known mistakes."""
    ids = prompt(ck, dict(name="oracle", tokens=8 * ck.cfg.get("index_topk", 12), quiet=(3, 40)), 0)
    theirs = ck.hf.logits(ids)
    agree = relative(ck.reference().run(ids), theirs)
    assert agree < AGREE, f"{ck.name}: reference.py and transformers differ by {agree:.1e}"
    for control in CONVENTIONS:
        r = ck.reference(control)
        if r is not None:
            change = relative(r.run(ids), theirs)
            assert change > 1e-2, f"{ck.name}: {control}: transformers is only {change:.1e} away from it"


# ---- cases -----------------------------------------------------------------------------------------------


def prompt(ck, case, seed):
    """Ids of one case: random over all ids that have a string, or the beginning of a rendered text."""
    tok, n = ck.tok, case["tokens"]
    if case.get("text"):
        head = [tok.token_to_id(s) for s in ("[gMASK]", "<sop>", "<|user|>")]
        text = tok.encode((HERE / "sample.txt").read_text()[seed:]).ids
        return (head + text)[:n]
    rng = np.random.default_rng([ck.spec["seed"], len(case["name"]), n, seed])
    quiet = tiny_tokenizer.quiet_id(tok)
    ids = [i for i in range(tok.get_vocab_size()) if i != quiet]
    out = [int(i) for i in rng.choice(ids, n)]
    for at in case.get("quiet", ()):
        out[at] = quiet
    return out


class Rejected(Exception):
    pass


def judge(ck, ids):
    """Float64 logits of transformers, the trace, and figures for report.txt; or Rejected."""
    trace = Trace()
    ours = ck.reference().run(ids, trace)
    margins = trace.margins.values()
    if "live_index_heads" in ck.spec:  # exact ties are the point; near ones are still not welcome
        margins = [m for m in margins if m]
    index = min(margins, default=1.0)
    router = min(trace.router_margins, default=1.0)
    if index < INDEX_MARGIN:
        raise Rejected(f"index margin {index:.1e}")
    if router < ROUTER_MARGIN:
        raise Rejected(f"router margin {router:.1e}")
    logits = ck.hf.logits(ids)
    agree = relative(ours, logits)
    assert agree < AGREE, f"{ck.name}: reference.py and transformers differ by {agree:.1e}"
    moved = max(relative(ck.hf32.logits(ids, MOVE, s), logits) for s in range(3))
    if moved > MOVED:
        raise Rejected(f"float32 moved by {moved:.1e}")
    return logits, trace, dict(index=index, router=router, agree=agree, moved=moved)


def continue_greedily(ck, ids):
    """64 ids after the prompt, stop ids ignored, each clear of the second best."""
    out, worst = [], 1.0
    for _ in range(N_GREEDY):
        last = ck.hf.logits(ids + out)[-1]
        best, second = np.argsort(-last)[:2]
        margin = (last[best] - last[second]) / np.abs(last).max()
        worst = min(worst, margin)
        if margin < GREEDY_MARGIN:
            raise Rejected(f"greedy margin {margin:.1e} at step {len(out)}")
        out.append(int(best))
    logits, _, figures = judge(ck, ids + out)
    again = logits.argmax(-1)[len(ids) - 1 : -1]
    assert (again == out).all()
    return out, worst, figures


def spread(n, topk, count=32):
    """Positions whose logits are kept of a long case: the start, around index_topk, evenly on, the last."""
    near = [0, 1, topk - 2, topk - 1, topk, topk + 1]
    rest = np.linspace(topk + 2, n - 1, count - len(near)).round().astype(int)
    return sorted({p for p in near + [int(p) for p in rest] if p < n})


def make_case(ck, case, report):
    """Try seeds until one is clear, then write its files."""
    for seed in range(200):
        ids = prompt(ck, case, seed)
        try:
            logits, trace, figures = judge(ck, ids)
            greedy, worst, tail = continue_greedily(ck, ids) if case.get("greedy") else (None, None, None)
            break
        except Rejected as e:
            report.append(f"{ck.name:14} {case['name']:8} seed {seed} rejected: {e}")
    else:
        sys.exit(f"{ck.name} {case['name']}: no seed passes")

    topk = ck.cfg.get("index_topk", 16)
    rows = spread(len(ids), topk) if case.get("spread") else list(range(len(ids)))
    base = ck.path / case["name"]
    put_ids(base.with_suffix(".ids"), ids)
    if case.get("spread"):
        put_ids(base.with_suffix(".rows"), rows)
    base.with_suffix(".logits").write_bytes(logits[rows].astype("<f4").tobytes())
    if trace.sets:
        clear = lambda m: m >= TOPK_MARGIN or (m == 0 and "live_index_heads" in ck.spec)
        keep = [(i, p) for i, p in sorted(trace.sets)
                if (p in rows or p % 8 == 5) and clear(trace.margins.get((i, p), 1.0))]
        put_topk(base.with_suffix(".topk"), keep, trace)
    if greedy:
        put_ids(base.with_suffix(".greedy"), greedy)
    line = (f"{ck.name:14} {case['name']:8} seed {seed} kept: {len(ids)} tokens, agree {figures['agree']:.0e}, "
            f"float32 moved {figures['moved']:.1e}, index margin {figures['index']:.1e}, "
            f"router margin {figures['router']:.1e}")
    if greedy:
        line += (f"; greedy {len(set(greedy))} different ids, margin {worst:.1e}, moved {tail['moved']:.1e}, "
                 f"index {tail['index']:.1e}, router {tail['router']:.1e}")
    report.append(line)
    print(line, flush=True)


def put_ids(path, ids):
    lines = [" ".join(map(str, ids[i : i + 20])) for i in range(0, len(ids), 20)]
    path.write_text("\n".join(lines) + "\n")


def put_topk(path, keep, trace):
    path.write_text("".join(json.dumps({"layer": i, "pos": p, "set": [int(x) for x in trace.sets[i, p]]},
                                       separators=(",", ":")) + "\n" for i, p in keep))


def get_ids(path):
    return [int(x) for x in path.read_text().split()]


def stored(ck, case):
    """ids, rows and logits of a committed case."""
    base = ck.path / case["name"]
    ids = get_ids(base.with_suffix(".ids"))
    rows = get_ids(base.with_suffix(".rows")) if base.with_suffix(".rows").exists() else list(range(len(ids)))
    logits = np.frombuffer(base.with_suffix(".logits").read_bytes(), "<f4").reshape(len(rows), -1)
    assert logits.shape[1] == ck.cfg["vocab_size"]
    return ids, rows, logits.astype(np.float64)


def make_checkpoint(name, report):
    write(name)
    ck = Checkpoint(name)
    assert_conventions(ck)
    cases = SPECS[name]["cases"]
    for case in cases:
        make_case(ck, case, report)
    (ck.path / "cases.txt").write_text("".join(f"{c['name']:8} {c['what']}\n" for c in cases))
    bits = ck.hf.inv_freq.view(np.uint32)
    (ck.path / "inv_freq.txt").write_text("".join(f"{b:08x}\n" for b in bits))


# ---- the other outputs -----------------------------------------------------------------------------------


def write_rope(path):
    """The float32 bits of GLM-5.2's RoPE at positions where a wrong definition shows."""
    inv_freq = inverse_frequencies({"rope_type": "default", "rope_theta": 8000000}, 64)
    theirs = 1.0 / (8000000 ** (torch.arange(0, 64, 2, dtype=torch.float) / 64))
    assert (inv_freq.view(np.uint32) == theirs.numpy().view(np.uint32)).all()
    bits = lambda row: " ".join(f"{struct.unpack('<I', struct.pack('<f', x))[0]:08x}" for x in row)
    positions = [0, 1, 2047, 2048, 131071, 1000003, 1048575]
    cos, sin = cos_sin(inv_freq, positions)
    lines = ["theta 8000000 dim 64", "inv_freq " + bits(inv_freq)]
    for p, c, s in zip(positions, cos, sin):
        lines += [f"cos {p} " + bits(c), f"sin {p} " + bits(s)]
    path.write_text("\n".join(lines) + "\n")


def write_controls(path, names):
    out = ["# What each golden catches", "",
           "Written by make_golden.py. Relative change (largest |difference| over largest |logit|, on the stored rows)",
           "that one mistake makes, in float64. A dot is no change at all; a test with tolerance 1e-4 sees every other",
           "entry above it. Mistakes of the MTP layer are make_mtp.py's to try.", ""]
    most = dict.fromkeys(CONTROLS, 0.0)
    for name in names:
        ck, cases = Checkpoint(name), SPECS[name]["cases"]
        data = [(c["name"], *stored(ck, c)) for c in cases]
        out += [f"## {name}", "", "| mistake | " + " | ".join(d[0] for d in data) + " |", "|---" * (len(data) + 1) + "|"]
        for control in CONTROLS:
            cells = []
            for _, ids, rows, logits in data:
                r = ck.reference(control)
                if r is None:
                    break
                change = relative(r.run(ids)[rows], logits)
                most[control] = max(most[control], change)
                cells.append("." if change < 1e-6 else f"{change:.1e}" if change < 1e-2 else f"{change:.2f}")
            if cells:
                out.append(f"| {control} | " + " | ".join(cells) + " |")
        out.append("")
    path.write_text("\n".join(out))
    assert len(names) < len(SPECS) or min(most.values()) > 1e-2, f"nothing catches {min(most, key=most.get)}"


def check(names):
    """Recompute what is committed."""
    for name in names:
        ck = Checkpoint(name)
        for case in SPECS[name]["cases"]:
            ids, rows, logits = stored(ck, case)
            trace, base = Trace(), ck.path / case["name"]
            hf, ours = relative(ck.hf.logits(ids)[rows], logits), relative(ck.reference().run(ids, trace)[rows], logits)
            print(f"{name:14} {case['name']:8} transformers {hf:.0e} reference {ours:.0e}", flush=True)
            assert max(hf, ours) < 1e-7
            if base.with_suffix(".topk").exists():
                for row in map(json.loads, base.with_suffix(".topk").open()):
                    assert row["set"] == trace.sets[row["layer"], row["pos"]].tolist()
            if case.get("greedy"):
                tail = get_ids(base.with_suffix(".greedy"))
                assert ck.reference().run(ids + tail)[len(ids) - 1 : -1].argmax(-1).tolist() == tail


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--check", action="store_true")
    args.add_argument("--controls", action="store_true", help="only write controls.md again")
    args.add_argument("names", nargs="*")
    args = args.parse_args()
    names = args.names or list(SPECS)
    made = [n for n in SPECS if (HERE / n / "cases.txt").exists()]
    if args.check:
        return check(names)
    if not args.controls:
        report = HERE / "report.txt"
        old = [line for line in report.read_text().splitlines() if line.split()[0] not in names] if report.exists() else []
        new = []
        for name in names:
            make_checkpoint(name, new)
        order = list(SPECS)
        report.write_text("".join(line + "\n" for line in sorted(old + new, key=lambda x: order.index(x.split()[0]))))
        write_rope(HERE / "rope.txt")
        made = [n for n in SPECS if (HERE / n / "cases.txt").exists()]
    write_controls(HERE / "controls.md", made)


if __name__ == "__main__":
    main()
