"""The pocket model in PyTorch, with the tensor names of the published checkpoint (experts stacked, as transformers holds
them in memory): a forward pass fast enough to train on two CPU cores. check.py holds it to transformers.

Where layers share one index choice, and the choice of layer 0 is a window of recent tokens, training computes just that
window (`window`); the indexers learn to choose it in train.py's second phase.
"""
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Shape:
    vocab: int = 4096
    hidden: int = 320
    n_layers: int = 8
    n_heads: int = 4
    q_lora: int = 160
    kv_lora: int = 160
    nope: int = 48
    rope: int = 32
    v: int = 80            # nope + rope: what PyTorch's fast CPU attention asks for
    dense: int = 640
    n_dense: int = 1
    n_experts: int = 8
    experts_per_token: int = 2
    expert: int = 72
    index_heads: int = 4
    index_dim: int = 64    # 2 x 4 x 64 = 512 FLOP per key
    index_topk: int = 256
    full: tuple = (0, 4, 5)  # layers with an indexer; the others use the last one's choice
    theta: float = 8e6
    eps: float = 1e-5
    latent_eps: float = 1e-6

    def is_full(self, layer):
        return layer in self.full

    def group(self, layer):
        """The full layer whose index choice a layer uses."""
        return max(i for i in range(layer + 1) if self.is_full(i))

    asdict = asdict


class Norm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x, cos, sin):
    """Pairs (2j, 2j + 1) turned; the results stand in halves, as transformers leaves them."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


class Indexer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.wq_b, self.wk = linear(s.q_lora, s.index_heads * s.index_dim), linear(s.hidden, s.index_dim)
        self.k_norm, self.weights_proj = nn.LayerNorm(s.index_dim, eps=1e-6), linear(s.hidden, s.index_heads)

    def keys(self, x, cos, sin):
        k, r = self.k_norm(self.wk(x).float()), self.s.rope
        return torch.cat([rotate(k[..., :r], cos, sin), k[..., r:]], -1)

    def queries(self, x, q_latent, cos, sin):
        s = self.s
        q = self.wq_b(q_latent).unflatten(-1, (s.index_heads, s.index_dim)).float()
        q = torch.cat([rotate(q[..., :s.rope], cos[..., None, :], sin[..., None, :]), q[..., s.rope:]], -1)
        return q, self.weights_proj(x).float() * s.index_heads ** -0.5

    def scores(self, q, w, k):
        """q [B, R, heads, d], w [B, R, heads], k [B, T, d] -> [B, R, T]."""
        out = 0.0
        for h in range(self.s.index_heads):
            dot = torch.matmul(q[:, :, h], k.transpose(1, 2)).float() * self.s.index_dim ** -0.5
            out = out + F.relu(dot) * w[:, :, h, None]
        return out

    @torch.no_grad()
    def choice(self, x, q_latent, cos, sin, topk, lower_first=False):
        """[B, S, S], true where row i chooses position j <= i: the topk best. lower_first: of equal scores the lower position,
        quire's rule; else whatever topk takes, which is what transformers does."""
        n = x.shape[1]
        q, w = self.queries(x, q_latent, cos, sin)
        score = self.scores(q, w, self.keys(x, cos, sin))
        score.masked_fill_(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        if lower_first:
            chosen = score.sort(dim=-1, descending=True, stable=True)[1][..., :topk]
        else:
            chosen = score.topk(topk, -1)[1]
        return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, chosen, True).tril_()


class Attention(nn.Module):
    def __init__(self, s, layer):
        super().__init__()
        self.s = s
        self.q_a_proj, self.q_a_layernorm = linear(s.hidden, s.q_lora), Norm(s.q_lora, s.latent_eps)
        self.q_b_proj = linear(s.q_lora, s.n_heads * (s.nope + s.rope))
        self.kv_a_proj_with_mqa = linear(s.hidden, s.kv_lora + s.rope)
        self.kv_a_layernorm = Norm(s.kv_lora, s.latent_eps)
        self.kv_b_proj = linear(s.kv_lora, s.n_heads * (s.nope + s.v))
        self.o_proj = linear(s.n_heads * s.v, s.hidden)
        if s.is_full(layer):
            self.indexer = Indexer(s)

    def project(self, x, cos, sin):
        """The query latent [B, S, q_lora]; q, k, v [B, heads, S, d]."""
        s = self.s
        latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(latent).unflatten(-1, (s.n_heads, -1))
        kv = self.kv_a_proj_with_mqa(x)
        kv_b = self.kv_b_proj(self.kv_a_layernorm(kv[..., :s.kv_lora])).unflatten(-1, (s.n_heads, -1))
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q = torch.cat([q[..., :s.nope], rotate(q[..., s.nope:], cos[:, :, None], sin[:, :, None])], -1)
        k_rope = rotate(kv[..., s.kv_lora:], cos, sin)[:, :, None].expand(-1, -1, s.n_heads, -1)
        k = torch.cat([kv_b[..., :s.nope], k_rope], -1)
        return latent, q.transpose(1, 2), k.transpose(1, 2), kv_b[..., s.nope:].transpose(1, 2)


WINDOW, SINK = 128, 3


def window_mask(n_blocks):
    """[n_blocks, WINDOW, SINK + 2 WINDOW]: the last WINDOW tokens, and the first SINK ones where those are not among
    them."""
    i = torch.arange(WINDOW)[:, None]
    j = torch.arange(2 * WINDOW)[None] - WINDOW
    band = (j <= i) & (j > i - WINDOW)
    masks = []
    for b in range(n_blocks):
        sink = (b * WINDOW + i - WINDOW) >= torch.arange(SINK)[None]
        masks.append(torch.cat([sink, band & (j + b * WINDOW >= 0)], 1))
    return torch.stack(masks)


def window_attention(q, k, v):
    """Causal attention to the window and the sink; the sequence is a multiple of WINDOW."""
    batch, heads, n, d = q.shape
    blocks = n // WINDOW

    def spread(x):
        x5 = x.reshape(batch, heads, blocks, WINDOW, d)
        before = F.pad(x5, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        sink = x[:, :, None, :SINK].expand(-1, -1, blocks, -1, -1)
        return torch.cat([sink, before, x5], 3).transpose(1, 2).reshape(batch * blocks, heads, -1, d)

    mask = window_mask(blocks).repeat(batch, 1, 1)[:, None]
    qs = q.reshape(batch, heads, blocks, WINDOW, d).transpose(1, 2).reshape(batch * blocks, heads, WINDOW, d)
    out = F.scaled_dot_product_attention(qs, spread(k), spread(v), attn_mask=mask)
    return out.reshape(batch, blocks, heads, WINDOW, d).transpose(1, 2).reshape(batch, heads, n, d)


class MLP(nn.Module):
    def __init__(self, n, width):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(n, width), linear(n, width), linear(width, n)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GroupedLinear(torch.autograd.Function):
    """Rows of x, sorted by expert, each through its expert's matrix."""

    @staticmethod
    def forward(ctx, x, w, counts):
        ctx.save_for_backward(x, w)
        ctx.counts = counts
        return torch.cat([part @ w[e].t() for e, part in enumerate(x.split(counts))])

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        gs, xs = g.split(ctx.counts), x.split(ctx.counts)
        return (torch.cat([part @ w[e] for e, part in enumerate(gs)]),
                torch.stack([gs[e].t() @ xs[e] for e in range(len(xs))]), None)


class Dispatch(torch.autograd.Function):
    """Each row to its places (k of them)."""

    @staticmethod
    def forward(ctx, x, source, place, k):
        ctx.place, ctx.n, ctx.k = place, x.shape[0], k
        return x[source]

    @staticmethod
    def backward(ctx, g):
        return g[ctx.place].view(ctx.n, ctx.k, -1).sum(1), None, None, None


class Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, place):
        ctx.place, ctx.n = place, y.shape[0]
        return y[place]

    @staticmethod
    def backward(ctx, g):
        out = g.new_zeros(ctx.n, g.shape[1])
        out[ctx.place] = g
        return out, None


class Gate(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(s.n_experts, s.hidden))
        self.register_buffer("e_score_correction_bias", torch.zeros(s.n_experts))


class Experts(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(s.n_experts, 2 * s.expert, s.hidden))
        self.down_proj = nn.Parameter(torch.empty(s.n_experts, s.hidden, s.expert))


class MoE(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s, self.gate, self.experts, self.shared_experts = s, Gate(s), Experts(s), MLP(s.hidden, s.expert)
        self.load = torch.zeros(s.n_experts)  # tokens per expert since it was last looked at

    def forward(self, x3):
        s, x = self.s, x3.reshape(-1, self.s.hidden)
        with torch.autocast("cpu", enabled=False):
            score = F.linear(x.float(), self.gate.weight).sigmoid()
        chosen = (score.detach() + self.gate.e_score_correction_bias).topk(s.experts_per_token, -1, sorted=False)[1]
        weight = score.gather(1, chosen)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        flat = chosen.reshape(-1)
        count = torch.bincount(flat, minlength=s.n_experts)
        self.load += count
        # In bf16 groups are padded to few different sizes: oneDNN compiles a kernel for every new shape.
        pad = 256 if len(x) >= 1024 and torch.is_autocast_enabled("cpu") else 16
        room = (count + pad - 1) // pad * pad
        order = flat.argsort(stable=True)
        rank = torch.arange(len(flat)) - (count.cumsum(0) - count)[flat[order]] + (room.cumsum(0) - room)[flat[order]]
        place = torch.empty_like(order)
        place[order] = rank
        source = torch.zeros(int(room.sum()), dtype=torch.long)
        source[rank] = order // s.experts_per_token
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        rows, counts = Dispatch.apply(x.to(dtype), source, place, s.experts_per_token), room.tolist()
        h = GroupedLinear.apply(rows, self.experts.gate_up_proj.to(dtype), counts)
        h = F.silu(h[:, :s.expert]) * h[:, s.expert:]
        y = Collect.apply(GroupedLinear.apply(h, self.experts.down_proj.to(dtype), counts), place)
        y = (y.view(len(x), s.experts_per_token, s.hidden) * weight.to(dtype)[..., None]).sum(1)
        return (y + self.shared_experts(x)).view(x3.shape)


class Layer(nn.Module):
    def __init__(self, s, layer):
        super().__init__()
        self.self_attn = Attention(s, layer)
        self.mlp = MoE(s) if layer >= s.n_dense else MLP(s.hidden, s.dense)
        self.input_layernorm, self.post_attention_layernorm = Norm(s.hidden, s.eps), Norm(s.hidden, s.eps)


class Body(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Layer(s, i) for i in range(s.n_layers))
        self.norm = Norm(s.hidden, s.eps)


class Model(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s, self.model, self.lm_head = s, Body(s), linear(s.hidden, s.vocab)
        self.frequencies = 1.0 / (s.theta ** (torch.arange(0, s.rope, 2).float() / s.rope))

    def initialize(self, seed):
        """Ordinary random weights."""
        g = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                std = p.shape[-1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    std *= 0.25 / math.sqrt(self.s.n_layers)
                p.data.normal_(0, 0.02 if "gate.weight" in name else std, generator=g)
        return g

    def angles(self, positions):
        a = positions.float()[..., None] * self.frequencies
        return a.cos(), a.sin()

    def forward(self, ids, positions, rows=None, window=False, sparse=False, lower_first=False, watch=None):
        """Logits of the rows chosen (indices into the flattened batch; None: all), and the normed hidden state.

        window: layers of group 0 see their window only. sparse: every group's indexer chooses index_topk. Neither:
        dense. lower_first: see Indexer.choice. watch(layer, attention module, normed input, query latent, q, k) is called in every layer.
        """
        s, n = self.s, ids.shape[1]
        cos, sin = self.angles(positions)
        x, mask = self.model.embed_tokens(ids), None
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        for i, layer in enumerate(self.model.layers):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            latent, q, k, v = attention.project(h, cos, sin)
            if sparse and s.is_full(i) and n > s.index_topk:
                mask = attention.indexer.choice(h, latent, cos, sin, s.index_topk, lower_first)[:, None]
            if watch:
                watch(i, attention, h, latent, q, k)
            if window and s.group(i) == 0 and n % WINDOW == 0 and n > 2 * WINDOW:
                o = window_attention(q, k, v)
            else:
                o = F.scaled_dot_product_attention(q, k, v, is_causal=mask is None, attn_mask=mask)
            x = x + attention.o_proj(o.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        x = self.model.norm(x).flatten(0, 1)
        if rows is not None:
            x = x[rows]
        return self.lm_head(x), x
