"""Models with one mistake in them. A golden is worth what it catches: controls.md says which case sees which.

Each control takes a Reference and breaks it; a control that does not concern a checkpoint returns False."""

import numpy as np

from reference import (inverse_frequencies, rmsnorm, rope_config, rotate_halves, rotate_pairs)

CONTROLS = {}


def control(name):
    def add(f):
        CONTROLS[name] = f
        return f
    return add


def indexed(r):
    return "full" in r.kinds


def grouped(r):
    return (r.cfg.get("topk_group") or 1) < (r.cfg.get("n_group") or 1)


# ---- RoPE ------------------------------------------------------------------------------------------------


@control("half-split main RoPE")
def _(r):
    r.rotate = rotate_halves


@control("indexer RoPE of the other kind")
def _(r):
    if not indexed(r):
        return False
    r.rotate_index = rotate_halves if r.rotate_index is rotate_pairs else rotate_pairs


@control("attention: rope before nope in q")
def _(r):
    r.split_q = lambda q: (q[..., r.rope :], q[..., : r.rope])


@control("attention: v before nope in kv_b")
def _(r):
    for i in range(r.cfg["num_hidden_layers"]):
        name = f"model.layers.{i}.self_attn.kv_b_proj.weight"
        w = r.t[name].reshape(r.heads, r.nope + r.vdim, r.rank)
        r.t[name] = np.concatenate([w[:, r.vdim :], w[:, : r.vdim]], 1).reshape(-1, r.rank)


@control("indexer: rope part last")
def _(r):
    if not indexed(r):
        return False
    r.rotate_front = lambda x, cos, sin: np.concatenate(
        [x[..., : -r.rope], r.rotate_index(x[..., -r.rope :], cos, sin)], -1)


@control("rope_theta 10000 (nested value missed)")
def _(r):
    if rope_config(r.cfg)["rope_theta"] == 10000:
        return False
    r.inv_freq = inverse_frequencies(rope_config(r.cfg) | {"rope_theta": 10000}, r.rope)


@control("softmax scale from config's head_dim")
def _(r):
    if "head_dim" not in r.cfg:
        return False
    r.scale *= (r.cfg["head_dim"] / (r.nope + r.rope)) ** -0.5


@control("YaRN ignored: plain frequencies")
def _(r):
    if rope_config(r.cfg)["rope_type"] == "default":
        return False
    r.inv_freq = inverse_frequencies(rope_config(r.cfg) | {"rope_type": "default"}, r.rope)


@control("YaRN: softmax scale without mscale")
def _(r):
    if rope_config(r.cfg)["rope_type"] == "default":
        return False
    r.scale = (r.nope + r.rope) ** -0.5


# ---- indexer ---------------------------------------------------------------------------------------------


@control("index scores without ReLU")
def _(r):
    if not indexed(r):
        return False
    r.index_relu = lambda dots: dots


@control("k_norm bias missing")
def _(r):
    if not indexed(r):
        return False
    for name in r.t:
        if name.endswith("k_norm.bias"):
            r.t[name] = 0 * r.t[name]


@control("k_norm as RMSNorm")
def _(r):
    if not indexed(r):
        return False
    r.index_key = lambda p, u: rmsnorm(u @ r.t[p + "wk.weight"].T, r.t[p + "k_norm.weight"], r.index_eps) \
        + r.t[p + "k_norm.bias"]


@control("indexer fed the residual, not the normed input")
def _(r):
    if not indexed(r):
        return False
    choose = r.choose
    r.choose = lambda i, qr, u, residual, chosen: choose(i, qr, residual, residual, chosen)


@control("weights_proj taken positive")
def _(r):
    if not indexed(r):
        return False
    def scores(i, qr, u, owner=None, real=r.index_scores):
        name = f"model.layers.{i if owner is None else owner}.self_attn.indexer.weights_proj.weight"
        keep, r.t[name] = r.t[name], np.abs(r.t[name])
        try:
            return real(i, qr, u, owner)
        finally:
            r.t[name] = keep
    r.index_scores = scores


@control("shared layer chooses for itself")
def _(r):
    if "shared" not in r.kinds:
        return False
    def choose(i, qr, u, residual, chosen):
        owner = max(j for j in range(i + 1) if r.kinds[j] == "full")
        return r.select(i, r.index_scores(i, qr, u, owner))
    r.choose = choose


@control("shared layer keeps the first layer's choice")
def _(r):
    if "shared" not in r.kinds or "shared" not in r.kinds[r.kinds.index("full", 1) :]:
        return False
    first = {}
    def choose(i, qr, u, residual, chosen):
        if r.kinds[i] == "shared":
            return first[0]
        chosen = r.select(i, r.index_scores(i, qr, u))
        return first.setdefault(0, chosen) if i == 0 else chosen
    r.choose = choose


@control("dense attention: index sets ignored")
def _(r):
    if not indexed(r):
        return False
    r.choose = lambda *args: None


@control("one position too many chosen")
def _(r):
    if not indexed(r):
        return False
    r.topk += 1


@control("a token always sees itself")
def _(r):
    if not indexed(r):
        return False
    def choose(i, qr, u, residual, chosen, real=r.choose):
        return real(i, qr, u, residual, chosen) | np.eye(len(u), dtype=bool)
    r.choose = choose


@control("equal scores to the higher position")
def _(r):
    if not r.ties:
        return False
    r.ranked = lambda s: np.lexsort((-np.arange(len(s)), -s))


# ---- norms -----------------------------------------------------------------------------------------------


@control("latent norms with eps 1e-5")
def _(r):
    r.latent_eps = 1e-5


@control("layer norms with the other eps (1e-5, 1e-6)")
def _(r):
    r.eps = 1e-6 if r.eps == 1e-5 else 1e-5


# ---- experts ---------------------------------------------------------------------------------------------


@control("router: weights from biased scores")
def _(r):
    r.route_weights = lambda scores, biased, idx: biased[idx]


@control("router: bias ignored")
def _(r):
    for name in r.t:
        if name.endswith("e_score_correction_bias"):
            r.t[name] = 0 * r.t[name]


@control("router: weights not normalised")
def _(r):
    r.cfg["norm_topk_prob"] = False


@control("routed_scaling_factor on the shared expert too")
def _(r):
    r.shared_scale = r.expert_scale


@control("routed_scaling_factor missing")
def _(r):
    r.expert_scale = 1.0


@control("gate and up swapped in experts")
def _(r):
    def expert(p, e, real=r.expert):
        gate, up, down = real(p, e)
        return up, gate, down
    r.expert = expert


@control("fused gate_up read row by row, not half by half")
def _(r):
    if not any(name.endswith("gate_up_proj") for name in r.t):
        return False
    def expert(p, e):
        both = r.t[p + "experts.gate_up_proj"][e]
        return both[0::2], both[1::2], r.t[p + "experts.down_proj"][e]
    r.expert = expert


@control("groups ignored")
def _(r):
    if not grouped(r):
        return False
    r.groups_kept = lambda biased: np.ones(len(biased), bool)


@control("group counts as its best, not its two best")
def _(r):
    if not grouped(r):
        return False
    def kept(biased):
        value = biased.reshape(r.cfg["n_group"], -1).max(-1)
        best = np.argsort(-value, kind="stable")[: r.cfg["topk_group"]]
        return np.isin(np.arange(len(value)), best).repeat(len(biased) // len(value))
    r.groups_kept = kept


@control("group counts by unbiased scores")
def _(r):
    if not grouped(r):
        return False
    def moe(i, x, real=r.moe):
        bias = r.t[f"model.layers.{i}.mlp.gate.e_score_correction_bias"]
        kept = type(r).groups_kept
        r.groups_kept = lambda biased: kept(r, biased - bias)
        return real(i, x)
    r.moe = moe


# ---- FP8 blocks: these change the weights, so they take the stored tensors ---------------------------------


def rescaled(raw, name, rows, cols):
    """code * scale, where row i and column j take scale[rows(i, n row blocks), cols(j, n column blocks)]."""
    code, scale = raw[name].double().numpy(), raw[name + "_scale_inv"].double().numpy()
    n, m = scale.shape
    i = np.array([min(rows(i, n), n - 1) for i in range(code.shape[0])])
    j = np.array([min(cols(j, m), m - 1) for j in range(code.shape[1])])
    return code * scale[i][:, j]


def block(i, n):
    return i // 128


def whole_blocks(i, n):
    return min(i // 128, max(n - 2, 0))


def fp8_control(name, rows=block, cols=block, only=""):
    @control(name)
    def _(r):
        if r.raw is None:
            return False
        by_head = lambda i, n: i // (r.nope + r.vdim)
        for key in [k for k in r.raw if k + "_scale_inv" in r.raw and only in k]:
            r.t[key] = rescaled(r.raw, key, by_head if rows is None else rows, cols)


fp8_control("FP8: kv_b scales counted by head, not by 128 rows", rows=None, only="kv_b")
fp8_control("FP8: last row block takes the scale before it", rows=whole_blocks)
fp8_control("FP8: last column block takes the scale before it", cols=whole_blocks)
fp8_control("FP8: the same in kv_a alone, 20 rows of one matrix", rows=whole_blocks, only="kv_a")
fp8_control("FP8: one scale per matrix", rows=lambda i, n: 0, cols=lambda j, n: 0)
