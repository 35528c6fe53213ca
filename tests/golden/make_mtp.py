#!/usr/bin/env python3
"""Write what the MTP layer must draft: mtp.* beside the goldens, and pocket/mtp.* of tests/pocket's model.

    make_mtp.py             numpy, and tokenizers for pocket's text
    make_mtp.py --check     write nothing; compare what is committed

transformers ignores the layer, so there is no second opinion: this is reference.py's layer in float64, with what stands
around it written from the published description. Row i is made of the model's output at i and of token i + 1:

    h = eh_proj [rmsnorm(embedding of token i + 1, enorm) | rmsnorm(output, hnorm)]     the embedding zero at position 0
    y = rmsnorm(layer(h), shared_head.norm);   logits = lm_head y                       RoPE at position i

and the draft after it of y and the drafted token, at i + 1, from the positions that row i chose if the config says
index_share_for_mtp_iteration. A row is kept only if no choice in it is a near tie.

Every entry of MISTAKES, which engines have made, must move the logits by a hundredth of the largest.
"""

import argparse
import json
import struct

import numpy as np

from pathlib import Path
from reference import Reference, Trace, cos_sin, rmsnorm

HERE = Path(__file__).parent
POCKET = HERE.parent / "pocket"
GREEDY_MARGIN, CHOICE_MARGIN = 5e-4, 3e-6
N_DRAFTS, MOST_ROWS = 3, {"glm52": 32, "deepseek_v3": 16, "pocket": 6}


def read(path):
    """config.json, and every tensor in float64."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        raw = file.read_bytes()
        n = struct.unpack("<Q", raw[:8])[0]
        for name, t in json.loads(raw[8:8 + n]).items():
            if name != "__metadata__":
                data = raw[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]]
                w = np.frombuffer(data, {"BF16": "<u2", "F32": "<f4"}[t["dtype"]])
                if t["dtype"] == "BF16":
                    w = (w.astype(np.uint32) << 16).view(np.float32)
                tensors[name] = w.astype(np.float64).reshape(t["shape"])
    return json.loads((path / "config.json").read_text()), tensors


class Drafts(Reference):
    def __init__(self, cfg, tensors):
        super().__init__(cfg, tensors)
        self.n = cfg["num_hidden_layers"]
        self.kinds, self.sparse = self.kinds + ["full" if self.topk else "none"], self.sparse + [True]
        self.prefix = f"model.layers.{self.n}."
        self.shares = bool(self.topk) and cfg.get("index_share_for_mtp_iteration", False)
        self.final_norm = self.t["model.norm.weight"]
        self.embeddings = self.t.get(self.prefix + "embed_tokens.weight", self.t["model.embed_tokens.weight"])
        self.head = self.t.get(self.prefix + "shared_head.head.weight", self.t["lm_head.weight"])

    def outputs(self, ids):
        self.t["lm_head.weight"] = np.eye(len(self.final_norm))
        return self.run(ids)

    def embedding(self, ids, positions):
        return np.where(np.asarray(positions)[:, None] == 0, 0.0, self.embeddings[ids])

    def joined(self, e, g):
        return np.concatenate([rmsnorm(e, self.t[self.prefix + "enorm.weight"], self.eps),
                               rmsnorm(g, self.t[self.prefix + "hnorm.weight"], self.eps)], -1)

    def enter(self, ids, positions, g):
        return self.joined(self.embedding(np.asarray(ids), positions), g) @ self.t[self.prefix + "eh_proj.weight"].T

    def layer(self, h, given=None):
        """y of all rows and what they chose, [T, T]; given: that, in place of a choice."""
        p, self.trace = self.prefix, Trace()
        self.trace.n_rows = len(h)
        cos, sin = cos_sin(self.inv_freq, np.arange(len(h)))
        self.cos, self.sin = cos * self.rope_gain, sin * self.rope_gain
        self.kinds[self.n] = "shared" if given is not None else "full" if self.topk else "none"
        a, chosen = self.attention(self.n, rmsnorm(h, self.t[p + "input_layernorm.weight"], self.eps), h, given)
        h = h + a
        h = h + self.moe(self.n, rmsnorm(h, self.t[p + "post_attention_layernorm.weight"], self.eps))
        return rmsnorm(h, self.t[p + "shared_head.norm.weight"], self.eps), chosen

    def narrowest(self, row):
        """How near a row's choices were to others, in the layer's last run."""
        router = np.array(self.trace.router_margins).reshape(self.trace.n_rows, -1)
        return min(self.trace.margins.get((self.n, row), 1.0), router[row].min())

    def drafts(self, ids, outputs, rows):
        """[rows, N_DRAFTS, vocab], and of each row its narrowest margin."""
        n = len(ids) - 1
        z = self.enter(ids[1:], np.arange(n), outputs[:n])
        y, chosen = self.layer(z)
        narrow = {i: self.narrowest(i) for i in rows}
        out = []
        for i in rows:
            h, last, logits = z[:i + 1], y[i], [y[i] @ self.head.T]
            for at in range(i + 1, i + N_DRAFTS):
                h = np.concatenate([h, self.enter([int(logits[-1].argmax())], [at], last[None])])
                given = None
                if self.shares:  # of the last row, which is all that is looked at
                    given = np.eye(len(h), dtype=bool)
                    given[-1] = np.append(chosen[i, :i + 1], np.zeros(at - i, bool))
                last = self.layer(h, given)[0][-1]
                narrow[i] = min(narrow[i], self.narrowest(at))
                logits.append(last @ self.head.T)
            out.append(logits)
        return np.array(out), narrow


# ---- mistakes --------------------------------------------------------------------------------------------


def swapped_norms(d):
    e, h = d.prefix + "enorm.weight", d.prefix + "hnorm.weight"
    d.t[e], d.t[h] = d.t[h], d.t[e]


def swapped_halves(d):
    joined = d.joined
    d.joined = lambda e, g: np.roll(joined(e, g), e.shape[-1], -1)


def before_the_norm(d):  # which the next norm scales anyway
    enter = d.enter
    d.enter = lambda ids, at, g: enter(ids, at, g / d.final_norm if len(g) > 1 else g)


def embedding_at_the_start(d):
    d.embedding = lambda ids, positions: d.embeddings[ids]


def other_sharing(d):
    d.shares = bool(d.topk) and not d.shares


MISTAKES = {"enorm and hnorm swapped": swapped_norms, "halves of eh_proj swapped": swapped_halves,
            "output before its norm": before_the_norm, "an embedding at position 0": embedding_at_the_start,
            "later drafts choose, or not, the wrong way round": other_sharing}


# ---- files -----------------------------------------------------------------------------------------------


def pocket_ids():
    from tokenizers import Tokenizer

    sets = json.loads((POCKET / "questions/2K.json").read_text())
    one, asked = next((s, q) for s in sets for q in s["questions"] if q["task"] == "line" and 0 < q["at"] < 800)
    end = one["documents"].index("\n", 1000) + 1
    text = ("[gMASK]<sop><|user|>" + one["documents"][:end] + "=== end of documents ===\n\n" + asked["question"] +
            "<|assistant|><think></think>" + asked["answer"] + "<|user|>")
    return Tokenizer.from_file(str(POCKET / "model/bf16/tokenizer.json")).encode(text, add_special_tokens=False).ids


def spread(n, most, topk):
    """The start, around index_topk, evenly on, the last."""
    return sorted({0, 1, topk - 1, topk, n - 1} | {int(i) for i in np.linspace(2, n - 2, most - 5).round()})


def numbers(path):
    return [int(i) for i in path.read_text().split()]


def put(path, rows):
    path.write_text("\n".join(" ".join(map(str, r)) for r in rows) + "\n")


def make(name, check):
    base = HERE / name
    cfg, tensors = read(POCKET / "model/bf16" if name == "pocket" else base)
    if check:
        ids = numbers(base / "mtp.ids")
    else:
        ids = pocket_ids() if name == "pocket" else numbers(base / "long.ids")
    model = Drafts(cfg, dict(tensors))
    outputs = model.outputs(ids)
    near = min(min(model.trace.margins.values(), default=1.0), min(model.trace.router_margins))
    all_rows = spread(len(ids) - 1, max(16, MOST_ROWS[name]), cfg.get("index_topk", 16))
    logits, narrow = Drafts(cfg, dict(tensors)).drafts(ids, outputs, all_rows)
    best = np.sort(logits, -1)
    lead = ((best[..., -1] - best[..., -2]) / np.abs(logits).max()).min(-1)
    kept = [k for k, i in enumerate(all_rows) if lead[k] > GREEDY_MARGIN and narrow[i] > CHOICE_MARGIN]
    kept_rows, logits = [all_rows[k] for k in kept], logits[kept]
    ids_of = logits.argmax(-1)
    print(f"{name}: {len(ids)} tokens, nearest choice of the model {near:.1e}, {len(kept)} of {len(all_rows)} rows, {len(set(ids_of.flatten()))} different drafts")
    for what, mistake in MISTAKES.items():
        d = Drafts(cfg, dict(tensors))
        mistake(d)
        change = np.abs(d.drafts(ids, outputs, kept_rows)[0] - logits).max() / np.abs(logits).max()
        print(f"    {what}: {change:.1e}")
        concerns = mistake is not other_sharing or "index_topk" in cfg
        assert change > 1e-2 or not concerns or name == "pocket", what
    stored = kept_rows[::-(-len(kept_rows) // MOST_ROWS[name])]
    first = logits[[kept_rows.index(i) for i in stored], 0].astype("<f4")
    drafts = [[i, *map(int, d)] for i, d in zip(kept_rows, ids_of)]
    if check:
        assert numbers(base / "mtp.drafts") == [x for d in drafts for x in d] and numbers(base / "mtp.rows") == stored
        assert np.abs(np.frombuffer((base / "mtp.logits").read_bytes(), "<f4") - first.flatten()).max() < 1e-6 * np.abs(first).max()
        return
    base.mkdir(exist_ok=True)
    put(base / "mtp.ids", [ids[i:i + 20] for i in range(0, len(ids), 20)])
    put(base / "mtp.rows", [stored])
    put(base / "mtp.drafts", drafts)
    (base / "mtp.logits").write_bytes(first.tobytes())


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--check", action="store_true")
    args.add_argument("names", nargs="*")
    a = args.parse_args()
    for name in a.names or MOST_ROWS:
        make(name, a.check)


if __name__ == "__main__":
    main()
