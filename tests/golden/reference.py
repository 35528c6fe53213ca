"""The model once more, in numpy and float64, written from the formulas and not from transformers.

It exists to disagree: make_golden.py keeps nothing unless this file and transformers give the same
logits to 1e-9. It also knows what transformers does not say: the index sets, how clear each choice was,
and, through controls.py, what a model with one mistake in it would answer.

Latents are used absorbed (one vector per position, no per-head keys), where transformers expands them.
One sequence, positions 0..T-1, no cache. Ties go to the lower position and to the lower expert.
"""

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Trace:
    """What was chosen on the way, and by how much."""

    sets: dict = field(default_factory=dict)  # (layer, position) -> ascending positions, full layers only
    margins: dict = field(default_factory=dict)  # (layer, position) -> (k-th - next) / largest |score|
    experts: dict = field(default_factory=dict)  # (layer, position) -> ascending expert ids
    router_margins: list = field(default_factory=list)  # k-th - next, of biased sigmoid scores; groups too


def indexer_kinds(cfg):
    """'full', 'shared' or 'none' per layer: the list, else the pattern, else frequency and offset."""
    n = cfg["num_hidden_layers"]
    if "index_topk" not in cfg:
        return ["none"] * n
    if cfg.get("indexer_types"):
        return list(cfg["indexer_types"])
    pattern = cfg.get("index_topk_pattern")
    if pattern:
        return [{"F": "full", "S": "shared"}.get(c, c) for c in pattern]
    freq, offset = cfg.get("index_topk_freq", 1), cfg.get("index_skip_topk_offset", 2)
    return ["full" if max(i - offset + 1, 0) % freq == 0 else "shared" for i in range(n)]


def rope_config(cfg):
    """Both spellings of the same thing, as one dict: rope_theta beside rope_scaling, or rope_parameters."""
    new = cfg.get("rope_parameters")
    if new:
        return dict(new)
    old = dict(cfg.get("rope_scaling") or {})
    old["rope_theta"] = cfg["rope_theta"]
    old["rope_type"] = old.get("rope_type", old.get("type", "default"))
    return old


def inverse_frequencies(rope, dim):
    """float32: powers rounded once, then one float32 division; YaRN blends two such tables in float32."""
    f32 = np.float32
    exponent = np.arange(0, dim, 2, dtype=f32) / f32(dim)
    power = np.power(float(rope["rope_theta"]), exponent.astype(np.float64)).astype(f32)
    plain = f32(1) / power
    if rope["rope_type"] == "default":
        return plain
    assert rope["rope_type"] == "yarn"

    def turns(r):  # the dimension that turns r times within the original context
        span = rope["original_max_position_embeddings"] / (r * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(rope["rope_theta"]))

    low = max(math.floor(turns(rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(turns(rope.get("beta_slow") or 1)), dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=f32) - f32(low)) / f32(high - low), 0, 1).astype(f32)
    keep = f32(1) - ramp
    return f32(1) / (f32(rope["factor"]) * power) * (f32(1) - keep) + plain * keep


def yarn_gain(factor, mscale):
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def cos_sin(inv_freq, positions):
    """The angle is a float32 product; cos and sin are the double functions of it, rounded to float32."""
    angle = np.asarray(positions, np.float32)[:, None] * inv_freq[None, :]
    assert angle.dtype == np.float32
    wide = angle.astype(np.float64)
    return np.cos(wide).astype(np.float32).astype(np.float64), np.sin(wide).astype(np.float32).astype(np.float64)


def rotate_pairs(x, cos, sin):
    """Interleaved: (x0, x1), (x2, x3), ... turn together. Written back in place."""
    y = np.empty_like(x)
    y[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    y[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    return y


def rotate_halves(x, cos, sin):
    """Half-split: x[j] turns with x[j + n/2]."""
    n = x.shape[-1] // 2
    a, b = x[..., :n], x[..., n:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def rmsnorm(x, w, eps):
    return w * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)


def layernorm(x, w, b, eps):
    x = x - x.mean(-1, keepdims=True)
    return w * x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) + b


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def swiglu(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


class Reference:
    """config.json as a dict and every tensor of the checkpoint as float64, by published name.

    Each step is a method or a plain attribute so that controls.py can break exactly one of them."""

    def __init__(self, cfg, tensors):
        self.cfg, self.t = cfg, tensors
        c = cfg
        self.heads, self.nope, self.rope, self.vdim = (
            c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"])
        self.rank = c["kv_lora_rank"]
        self.eps, self.latent_eps, self.index_eps = c["rms_norm_eps"], 1e-6, 1e-6
        self.kinds = indexer_kinds(c)
        self.topk = c.get("index_topk")
        rope = rope_config(c)
        self.inv_freq = inverse_frequencies(rope, self.rope)
        self.scale = (self.nope + self.rope) ** -0.5
        self.rope_gain = 1.0
        if rope["rope_type"] != "default":
            all_dim, m = rope.get("mscale_all_dim") or 0, rope.get("mscale")
            self.scale *= yarn_gain(rope["factor"], all_dim) ** 2
            self.rope_gain = (yarn_gain(rope["factor"], m) / yarn_gain(rope["factor"], all_dim)
                              if m and all_dim else yarn_gain(rope["factor"], 1))
        interleave = c.get("indexer_rope_interleave", c["model_type"] == "glm_moe_dsa")
        self.rotate, self.rotate_index = rotate_pairs, rotate_pairs if interleave else rotate_halves
        self.expert_scale, self.shared_scale = c["routed_scaling_factor"], 1.0
        dense = c.get("first_k_dense_replace", 1)
        self.sparse = [kind == "sparse" for kind in c["mlp_layer_types"]] if c.get("mlp_layer_types") else \
            [i >= dense for i in range(c["num_hidden_layers"])]

    # ---- the whole model -------------------------------------------------------------------------------

    def run(self, ids, trace=None):
        """Logits [T, vocab_size] in float64."""
        self.trace = trace if trace is not None else Trace()
        ids = np.asarray(ids)
        cos, sin = cos_sin(self.inv_freq, np.arange(len(ids)))
        self.cos, self.sin = cos * self.rope_gain, sin * self.rope_gain
        h = self.t["model.embed_tokens.weight"][ids]
        chosen = None
        for i in range(self.cfg["num_hidden_layers"]):
            p = f"model.layers.{i}."
            u = rmsnorm(h, self.t[p + "input_layernorm.weight"], self.eps)
            a, chosen = self.attention(i, u, h, chosen)
            h = h + a
            x = rmsnorm(h, self.t[p + "post_attention_layernorm.weight"], self.eps)
            h = h + (self.moe(i, x) if self.sparse[i] else self.mlp(p + "mlp.", x))
        return rmsnorm(h, self.t["model.norm.weight"], self.eps) @ self.t["lm_head.weight"].T

    # ---- attention -------------------------------------------------------------------------------------

    def split_q(self, q):
        return q[..., : self.nope], q[..., self.nope :]

    def attention(self, i, u, residual, chosen):
        """Sum of the selected latents; `chosen` [T, T] is the index set, made here or by an earlier layer."""
        t, p, n = self.t, f"model.layers.{i}.self_attn.", len(u)
        qr = rmsnorm(u @ t[p + "q_a_proj.weight"].T, t[p + "q_a_layernorm.weight"], self.latent_eps)
        q = (qr @ t[p + "q_b_proj.weight"].T).reshape(n, self.heads, self.nope + self.rope)
        q_nope, q_rope = self.split_q(q)
        kv = u @ t[p + "kv_a_proj_with_mqa.weight"].T
        c = rmsnorm(kv[:, : self.rank], t[p + "kv_a_layernorm.weight"], self.latent_eps)
        k_rope = self.rotate(kv[:, self.rank :], self.cos, self.sin)
        q_rope = self.rotate(q_rope, self.cos[:, None], self.sin[:, None])

        visible = np.tri(n, dtype=bool)
        chosen = self.choose(i, qr, u, residual, chosen)
        if chosen is not None:
            visible = visible & chosen
        w = t[p + "kv_b_proj.weight"].reshape(self.heads, self.nope + self.vdim, self.rank)
        absorbed = np.einsum("qhd,hdr->qhr", q_nope, w[:, : self.nope])
        score = (np.einsum("qhr,tr->hqt", absorbed, c) + np.einsum("qhr,tr->hqt", q_rope, k_rope)) * self.scale
        score = np.where(visible, score, -np.inf)
        score = np.exp(score - score.max(-1, keepdims=True))
        score /= score.sum(-1, keepdims=True)
        mixed = np.einsum("hqt,tr->qhr", score, c)
        out = np.einsum("qhr,hdr->qhd", mixed, w[:, self.nope :]).reshape(n, -1)
        return out @ t[p + "o_proj.weight"].T, chosen

    # ---- indexer ---------------------------------------------------------------------------------------

    def choose(self, i, qr, u, residual, chosen):
        if self.kinds[i] == "full":
            return self.select(i, self.index_scores(i, qr, u))
        return chosen

    def index_key(self, p, u):
        t = self.t
        return layernorm(u @ t[p + "wk.weight"].T, t[p + "k_norm.weight"], t[p + "k_norm.bias"], self.index_eps)

    def rotate_front(self, x, cos, sin):
        """The indexer keeps its rotary part first, where attention keeps it last."""
        r = self.rope
        return np.concatenate([self.rotate_index(x[..., :r], cos, sin), x[..., r:]], -1)

    def index_relu(self, dots):
        return np.maximum(dots, 0)

    def index_scores(self, i, qr, u, owner=None):
        t, p, n = self.t, f"model.layers.{i if owner is None else owner}.self_attn.indexer.", len(u)
        heads, dim = self.cfg["index_n_heads"], self.cfg["index_head_dim"]
        q = (qr @ t[p + "wq_b.weight"].T).reshape(n, heads, dim)
        q = self.rotate_front(q, self.cos[:, None], self.sin[:, None])
        k = self.rotate_front(self.index_key(p, u), self.cos, self.sin)
        weight = u @ t[p + "weights_proj.weight"].T * heads**-0.5
        dots = self.index_relu(np.einsum("qhd,td->qht", q, k) * dim**-0.5)
        return np.einsum("qh,qht->qt", weight, dots)

    def ranked(self, scores):
        """Positions, best first; equal scores, lower position."""
        return np.argsort(-scores, kind="stable")

    def select(self, i, scores):
        """[T, T] of bool: the best min(topk, visible) keys of each row."""
        n = len(scores)
        chosen = np.zeros((n, n), bool)
        for p in range(n):
            s = scores[p, : p + 1]
            order = self.ranked(s)
            keep = np.sort(order[: self.topk])
            chosen[p, keep] = True
            self.trace.sets[i, p] = keep
            if p + 1 > self.topk:
                gap = s[order[self.topk - 1]] - s[order[self.topk]]
                top = np.abs(s).max()
                self.trace.margins[i, p] = gap / top if top else 0.0
        return chosen

    # ---- feed-forward ----------------------------------------------------------------------------------

    def mlp(self, p, x):
        return swiglu(x, *(self.t[p + f"{name}_proj.weight"] for name in ("gate", "up", "down")))

    def expert(self, p, e):
        """gate, up, down of one expert, from either layout."""
        t = self.t
        if p + "experts.gate_up_proj" in t:
            gate, up = np.split(t[p + "experts.gate_up_proj"][e], 2)
            return gate, up, t[p + "experts.down_proj"][e]
        return tuple(t[p + f"experts.{e}.{name}_proj.weight"] for name in ("gate", "up", "down"))

    def route_bias(self, p):
        return self.t[p + "gate.e_score_correction_bias"]

    def route_weights(self, scores, biased, idx):
        """The bias moves the choice, never the weight."""
        return scores[idx]

    def groups_kept(self, biased):
        """Experts whose group may be chosen from: a group counts as much as its two best."""
        groups, keep = self.cfg.get("n_group") or 1, self.cfg.get("topk_group") or 1
        size = len(biased) // groups
        value = np.sort(biased.reshape(groups, size), -1)[:, -2:].sum(-1)
        order = np.argsort(-value, kind="stable")
        if keep < groups:
            self.trace.router_margins.append(value[order[keep - 1]] - value[order[keep]])
        return np.isin(np.arange(groups), order[:keep]).repeat(size)

    def moe(self, i, x):
        t, p, k = self.t, f"model.layers.{i}.mlp.", self.cfg["num_experts_per_tok"]
        scores = sigmoid(x @ t[p + "gate.weight"].T)
        y = self.mlp(p + "shared_experts.", x) * self.shared_scale
        rows = {}
        for n, s in enumerate(scores):
            biased = s + self.route_bias(p)
            biased = np.where(self.groups_kept(biased), biased, -np.inf)
            order = np.argsort(-biased, kind="stable")
            idx = np.sort(order[:k])
            if k < len(order) and biased[order[k]] > -np.inf:
                self.trace.router_margins.append(biased[order[k - 1]] - biased[order[k]])
            self.trace.experts[i, n] = idx
            w = self.route_weights(s, biased, idx)
            if self.cfg.get("norm_topk_prob", True):
                w = w / (w.sum() + 1e-20)
            for e, weight in zip(idx, w * self.expert_scale):
                rows.setdefault(int(e), []).append((n, weight))
        for e in sorted(rows):
            n, weight = map(np.array, zip(*rows[e]))
            y[n] += weight[:, None] * swiglu(x[n], *self.expert(p, e))
        return y
