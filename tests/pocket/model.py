"""The pocket model in PyTorch, with the tensor names of the published checkpoint (experts stacked, as transformers holds
them in memory): a forward pass fast enough to train on two CPU cores, or on one GPU. check.py holds it to transformers.

Where layers share one index choice, and the choice of layer 0 is a window of recent tokens, training computes just that
window (`window`); the indexers learn to choose it in train.py's second phase.
"""
import functools
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


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


def in_bf16(x):
    return torch.is_autocast_enabled(x.device.type)


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
        score.masked_fill_(torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1), float("-inf"))
        if lower_first:
            chosen = score.sort(dim=-1, descending=True, stable=True)[1][..., :topk]
        else:
            chosen = score.topk(topk, -1)[1]
        return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, chosen, True).tril_()

    @torch.no_grad()
    def places(self, x, q_latent, cos, sin, topk, first=0):
        """[B, S - first, topk], what `choice` chooses for the rows from the first on, as positions: for sequences whose [S, S] has
        no room. Rows that have fewer positions than topk name later ones too."""
        (batch, n), out, keys = x.shape[:2], [], self.keys(x, cos, sin)
        for a in range(first, n, BLOCK):
            end = min(a + BLOCK, n)
            score = self.scores(*self.queries(*(y[:, a:end] for y in (x, q_latent, cos, sin))), keys[:, :max(end, topk)])
            later = torch.arange(score.shape[-1], device=x.device) > torch.arange(a, end, device=x.device)[:, None]
            out.append(score.masked_fill_(later, float("-inf")).topk(topk, -1, sorted=False)[1])
        return torch.cat(out, 1)


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
        """Of rows x [.., hidden]: the query latent [.., q_lora]; q, k, v [.., heads, d]."""
        s = self.s
        latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(latent).unflatten(-1, (s.n_heads, -1))
        kv = self.kv_a_proj_with_mqa(x)
        kv_b = self.kv_b_proj(self.kv_a_layernorm(kv[..., :s.kv_lora])).unflatten(-1, (s.n_heads, -1))
        q_rope = rotate(q[..., s.nope:].float(), cos[..., None, :], sin[..., None, :])
        k_rope = rotate(kv[..., s.kv_lora:].float(), cos, sin)[..., None, :].expand(q_rope.shape)
        q = torch.cat([q[..., :s.nope], q_rope.to(q.dtype)], -1)
        k = torch.cat([kv_b[..., :s.nope], k_rope.to(q.dtype)], -1)
        return latent, q, k, kv_b[..., s.nope:]


WINDOW, SINK = 128, 3
# Longer sequences' choices are kept as positions, not as a mask; so many rows at a time.
LONGEST_MASK, BLOCK = 16384, 1024


@functools.lru_cache(16)
def window_mask(batch, n_blocks, device, dtype):
    """[batch * n_blocks, 1, WINDOW, SINK + 2 WINDOW], 0 or -inf: the last WINDOW tokens, and the first SINK ones where those are
    not among them."""
    i = torch.arange(WINDOW)[:, None]
    j = torch.arange(2 * WINDOW)[None] - WINDOW
    band = (j <= i) & (j > i - WINDOW)
    masks = []
    for b in range(n_blocks):
        sink = (b * WINDOW + i - WINDOW) >= torch.arange(SINK)[None]
        masks.append(torch.cat([sink, band & (j + b * WINDOW >= 0)], 1))
    seen = torch.stack(masks).repeat(batch, 1, 1)[:, None].to(device)
    width = (seen.shape[-1] + 7) // 8 * 8  # rows that begin at 16 bytes, which GPU kernels ask for
    out = torch.full((*seen.shape[:-1], width), float("-inf"), dtype=dtype, device=device)[..., :seen.shape[-1]]
    return out.masked_fill_(seen, 0)


def window_attention(q, k, v):
    """Causal attention to the window and the sink; the sequence is a multiple of WINDOW."""
    batch, heads, n, d = q.shape
    blocks = n // WINDOW

    def spread(x):
        x5 = x.reshape(batch, heads, blocks, WINDOW, d)
        before = F.pad(x5, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        sink = x[:, :, None, :SINK].expand(-1, -1, blocks, -1, -1)
        return torch.cat([sink, before, x5], 3).transpose(1, 2).reshape(batch * blocks, heads, -1, d)

    mask = window_mask(batch, blocks, q.device, q.dtype)
    qs = q.reshape(batch, heads, blocks, WINDOW, d).transpose(1, 2).reshape(batch * blocks, heads, WINDOW, d)
    out = F.scaled_dot_product_attention(qs, spread(k), spread(v), attn_mask=mask)
    return out.reshape(batch, blocks, heads, WINDOW, d).transpose(1, 2).reshape(batch, heads, n, d)


def attend_block(q, k, v, places, first):
    """Rows q [B, R, heads, d] from a row on, each to its places [B, R, topk] of k and v [B, S, heads, d]. In float32: thousands of
    rows add to the gradient of one key."""
    seen = places <= torch.arange(first, first + q.shape[1], device=q.device)[:, None]
    with torch.autocast(q.device.type, enabled=False):
        at = [torch.stack([y.index_select(0, p.flatten()).unflatten(0, p.shape) for y, p in zip(x.float(), places)]) for x in (k, v)]
        score = torch.einsum("brhd,brkhd->brhk", q.float(), at[0]) * q.shape[-1] ** -0.5
        weight = score.masked_fill(~seen[:, :, None], float("-inf")).softmax(-1)
        return torch.einsum("brhk,brkhd->brhd", weight, at[1]).to(v.dtype)


def attend_places(q, k, v, places):
    """Causal attention of the last rows, as many as places [B, R, topk] has, to their places; q, k, v [B, heads, S, d]. What is
    gathered is gathered again for the gradients."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    first = q.shape[1] - places.shape[1]
    return torch.cat([checkpoint(attend_block, q[:, a:a + BLOCK], k, v, places[:, a - first:a - first + BLOCK], a, use_reentrant=False)
                      for a in range(first, q.shape[1], BLOCK)], 1).transpose(1, 2)


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
        # Tokens per expert since it was last looked at.
        self.register_buffer("load", torch.zeros(s.n_experts), persistent=False)

    def forward(self, x):
        flat = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            score = F.linear(flat.float(), self.gate.weight).sigmoid()
        routed = self.all_experts if x.is_cuda else self.grouped
        return (routed(flat, score) + self.shared_experts(flat)).view(x.shape)

    def all_experts(self, x, score):
        """Every expert of every row, those that were not chosen with weight 0: four times the arithmetic, which a GPU has, and no
        size that depends on the choice."""
        s, left = self.s, score.detach() + self.gate.e_score_correction_bias
        chosen = torch.zeros_like(score, dtype=torch.bool)
        for _ in range(s.experts_per_token):
            best = torch.arange(s.n_experts, device=x.device) == left.argmax(-1, keepdim=True)
            chosen, left = chosen | best, left.masked_fill(best, float("-inf"))
        self.load += chosen.sum(0)
        weight = score * chosen
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        h = F.linear(x, self.experts.gate_up_proj.flatten(0, 1)).unflatten(-1, (s.n_experts, 2, s.expert))
        h = F.silu(h[:, :, 0]) * h[:, :, 1] * weight.to(h.dtype)[..., None]
        return F.linear(h.flatten(1), self.experts.down_proj.transpose(0, 1).flatten(1))

    def grouped(self, x, score):
        """Rows sorted by expert, each through those chosen for it."""
        s = self.s
        chosen = (score.detach() + self.gate.e_score_correction_bias).topk(s.experts_per_token, -1, sorted=False)[1]
        weight = score.gather(1, chosen)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        flat = chosen.reshape(-1)
        count = torch.bincount(flat, minlength=s.n_experts)
        self.load += count
        # In bf16 groups are padded to few different sizes: oneDNN compiles a kernel for every new shape.
        pad = 256 if len(x) >= 1024 and in_bf16(x) else 16
        room = (count + pad - 1) // pad * pad
        order = flat.argsort(stable=True)
        rank = torch.arange(len(flat)) - (count.cumsum(0) - count)[flat[order]] + (room.cumsum(0) - room)[flat[order]]
        place = torch.empty_like(order)
        place[order] = rank
        source = torch.zeros(int(room.sum()), dtype=torch.long)
        source[rank] = order // s.experts_per_token
        dtype = torch.bfloat16 if in_bf16(x) else x.dtype
        rows, counts = Dispatch.apply(x.to(dtype), source, place, s.experts_per_token), room.tolist()
        h = GroupedLinear.apply(rows, self.experts.gate_up_proj.to(dtype), counts)
        h = F.silu(h[:, :s.expert]) * h[:, s.expert:]
        y = Collect.apply(GroupedLinear.apply(h, self.experts.down_proj.to(dtype), counts), place)
        return (y.view(len(x), s.experts_per_token, s.hidden) * weight.to(dtype)[..., None]).sum(1)


class Layer(nn.Module):
    def __init__(self, s, layer):
        super().__init__()
        self.self_attn = Attention(s, layer)
        self.mlp = MoE(s) if layer >= s.n_dense else MLP(s.hidden, s.dense)
        self.input_layernorm, self.post_attention_layernorm = Norm(s.hidden, s.eps), Norm(s.hidden, s.eps)

    def before(self, x, cos, sin):
        """Of rows x: what they are normed, then as Attention.project."""
        h = self.input_layernorm(x)
        return h, *self.self_attn.project(h, cos, sin)

    def after(self, x, o):
        """o: what attention gives, [.., heads * v]."""
        x = x + self.self_attn.o_proj(o)
        return x + self.mlp(self.post_attention_layernorm(x))


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
        self.register_buffer("frequencies", 1.0 / (s.theta ** (torch.arange(0, s.rope, 2).float() / s.rope)), persistent=False)

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

    def forward(self, ids, positions, rows=None, window=False, sparse=False, first=0, lower_first=False,
                watch=None):
        """Logits of the rows chosen (indices into the flattened batch; None: all), and the normed hidden state.

        window: layers of group 0 see their window only. sparse: the indexers of the other groups, or of all, choose index_topk.
        Neither: dense. first: of sequences longer than LONGEST_MASK only rows from this one on are sparse; dense ones cost less.
        lower_first: see Indexer.choice. watch(layer, attention module, normed input, query latent, q, k) is called in every layer, with
        [B, S, ..] and q, k [B, heads, S, d].
        """
        s, (batch, n) = self.s, ids.shape
        # Rows of all sequences at once: then only attention has a shape that depends on their length.
        cos, sin = (a.flatten(0, 1) for a in self.angles(positions))
        x, mask, places = self.model.embed_tokens(ids.flatten()), None, None
        if in_bf16(x) and not x.is_cuda:
            x = x.bfloat16()
        for i, layer in enumerate(self.model.layers):
            h, latent, *qkv = layer.before(x, cos, sin)
            q, k, v = (y.unflatten(0, (batch, n)).transpose(1, 2) for y in qkv)
            h, latent = h.unflatten(0, (batch, n)), latent.unflatten(0, (batch, n))
            if sparse and s.is_full(i) and n > s.index_topk and not (window and i == 0):
                angles = (a.unflatten(0, (batch, n)) for a in (cos, sin))
                if n > LONGEST_MASK:
                    places = layer.self_attn.indexer.places(h, latent, *angles, s.index_topk, first)
                else:
                    chosen = layer.self_attn.indexer.choice(h, latent, *angles, s.index_topk, lower_first)[:, None]
                    mask = torch.zeros(chosen.shape, dtype=q.dtype, device=q.device).masked_fill_(~chosen, float("-inf"))
            if watch:
                watch(i, layer.self_attn, h, latent, q, k)
            if window and s.group(i) == 0 and n % WINDOW == 0 and n > 2 * WINDOW:
                o = window_attention(q, k, v)
            elif places is not None:
                before = [F.scaled_dot_product_attention(*(y[:, :, :first] for y in (q, k, v)), is_causal=True)] if first else []
                o = torch.cat([*before, attend_places(q, k, v, places)], 2)
            else:
                o = F.scaled_dot_product_attention(q, k, v, is_causal=mask is None, attn_mask=mask)
            x = layer.after(x, o.transpose(1, 2).flatten(2).flatten(0, 1))
        x = self.model.norm(x)
        if rows is not None:
            x = x.index_select(0, rows)
        return self.lm_head(x), x
