"""The weights training starts from: random, with circuits written in that find a line and copy it.

From ordinary random weights nothing that copies appeared in millions of tokens; from these, copying is there at once and
training shapes it. Everything below is only an initial value: every weight stays trainable. What is written:

  embeddings   a token's code in a subspace `code`; channels: 0 a constant (there are no biases), 1 begins a line, 2
               <|assistant|>, 3 <|user|> and </think>, 4 [gMASK]. lm_head reads another subspace, `out`. All line breaks are
               mostly one code, that of <|user|>: where a copied line ends, the answer does. </think> has it too, so that
               what follows it is looked for among what follows line breaks
  layer 0      heads that look back exactly 1, 2, 3 tokens (RoPE alone) and write those tokens' codes to `back`
  layer 1      3 tokens back: what stands in `back`, so tokens 4 to 6 back, to `far`; and at the beginning of the own line: what
               stood before it, to `started`
  layer 2      at the last <|assistant|>: what stood before it, the end of the question, to `asked`; one token back: `started`
               to `place`. Tokens of one line, its line break included, agree in `place`: it says which line they are of
  layer 4      where in the documents does what stands in `asked` end? That line's `place` to `wanted`; far rather than near, or
               every question would find itself. Where nothing matches: [gMASK], which says "not found"
  layers 5, 6  where did the last 1 to 6 tokens stand before, `place` there being what is `wanted` here? Writes what followed
               to `out`. An answer's first token is no line break and follows neither <|user|> nor </think>
  layers 3, 7  nothing
  indexers     layer 0 chooses the last tokens, layer 4 what layer 4 matches, layer 5 what layers 5 and 6 match. The line that
               is wanted is not known before layer 4 has found it: hence layer 5 chooses anew
"""
import math

import torch

AMPLITUDES = (10, 8, 6, 5, 4, 3)  # of the logit of a fixed offset, by the six fastest rotary pairs
# Gains were found by trying: of some dozens, those whose start answered most of ten sequences of 512 training tokens.
NEAR = {1: ((2, 5.0), (3, 9.0), (4, 9.3), (5, 17.0)), 2: ((3, 15.0), (4, 10.0), (5, 8.0))}
FAR, FAR_GAIN = (3, 4, 5), 2.0
MATCH = {4: 14.0, 5: 11.7, 6: 14.0}
END_GAIN, WANTED_GAIN = 1.65, 0.22
LATEST_GAIN, NOT_GAIN = {1: 7.0, 2: 5.7}, 1.5
RECENT = range(5, 14)  # rotary pairs that turn once in 900 to 8,000,000 positions
SINK_Q, SINK_K, NO_GAIN, PLACE_GAIN = 1.8, 5.1, 0.55, 1.93


class Compiler:
    def __init__(self, model, generator):
        self.model, self.s, self.generator = model, model.s, generator
        h = self.s.hidden
        basis = torch.linalg.qr(torch.randn(h - 5, h - 5, generator=generator))[0]
        self.basis, self.used = torch.cat([torch.zeros(5, h - 5), basis]).t(), 0

    def take(self, n):
        """n more orthonormal directions of the hidden space, [n, hidden]."""
        self.used += n
        assert self.used <= len(self.basis)
        return self.basis[self.used - n:self.used]

    def open(self, layer):
        s, a = self.s, self.model.model.layers[layer].self_attn
        self.q_a, self.kv_a = a.q_a_proj.weight, a.kv_a_proj_with_mqa.weight
        self.q_b = a.q_b_proj.weight.view(s.n_heads, s.nope + s.rope, s.q_lora)
        self.kv_b = a.kv_b_proj.weight.view(s.n_heads, s.nope + s.v, s.kv_lora)
        self.o = a.o_proj.weight.view(s.hidden, s.n_heads, s.v)
        self.q_b[:, s.nope:] *= 0.1

    def channel(self, w, row, channel, value=1.0):
        w[row] = 0
        w[row, channel] = value

    def look_back(self, head, offset):
        """Attend to exactly the token `offset` before."""
        s, d = self.s, (self.s.nope + self.s.rope) ** 0.5
        self.channel(self.q_a, s.q_lora - 1, 0)
        self.q_b[head] = 0
        for j, amplitude in enumerate(AMPLITUDES):
            # The constant is about 5 after the norm before these.
            self.kv_a[s.kv_lora + 2 * j:s.kv_lora + 2 * j + 2] = 0
            self.kv_a[s.kv_lora + 2 * j, 0] = (amplitude * d) ** 0.5 / 5
            angle = float(self.model.frequencies[j]) * offset
            self.q_b[head, s.nope + 2 * j, s.q_lora - 1] = (amplitude * d) ** 0.5 / 4.5 * math.cos(angle)
            self.q_b[head, s.nope + 2 * j + 1, s.q_lora - 1] = -(amplitude * d) ** 0.5 / 4.5 * math.sin(angle)

    def values(self, first, sources):
        """kv latents first .. read the given subspaces."""
        for w in sources:
            self.kv_a[first:first + len(w)] = w
            first += len(w)

    def carry(self, head, first, targets, gain):
        """Latents first .. as the head's value, written to the target subspaces."""
        s, n = self.s, sum(len(t) for t in targets)
        assert n <= s.v and first + n <= s.kv_lora
        self.kv_b[head, s.nope:] = 0
        self.kv_b[head, s.nope:s.nope + n, first:first + n] = torch.eye(n)
        self.o[:, head] = 0
        self.o[:, head, :n] = torch.cat(targets).t() * gain

    def look_for_latest(self, head, row, channel, gain, near):
        """Attend to the last token that has a channel; key latent `row` reads it."""
        s = self.s
        self.channel(self.kv_a, row, channel)
        self.channel(self.q_a, s.q_lora - 1, 0)
        self.q_b[head], self.kv_b[head, :s.nope] = 0, 0
        self.q_b[head, 0, s.q_lora - 1], self.kv_b[head, 0, row] = 2.5, gain
        for j, weight in near:
            self.q_b[head, s.nope + 2 * j, s.q_lora - 1] = weight * 9 / 4.5 / (AMPLITUDES[j] * 9) ** 0.5

    def match(self, head, dims, logit=14.0):
        """Query latents equal to key latents, of the given latent indices."""
        s = self.s
        self.q_b[head], self.kv_b[head, :s.nope] = 0, 0
        gain = (logit * (s.nope + s.rope) ** 0.5 / len(dims)) ** 0.5
        for j, latent in enumerate(dims):
            self.q_b[head, j, latent] = gain
            self.kv_b[head, j, latent] = gain


@torch.no_grad()
def compile_start(model, generator, feeds, special):
    """feeds: ids that begin with a line feed. special: ids of [gMASK], <|user|>, <|assistant|>, <think>, </think> and of
    the token that "not found" begins with, by the names gmask, user, assistant, think, think_end, no."""
    s, c = model.s, Compiler(model, generator)
    code, out = c.take(64), c.take(64)
    back = [c.take(n) for n in (20, 16, 12)]
    far = [c.take(8) for _ in range(3)]
    asked_dims, place_dims = (16, 12, 8, 5, 5), (12, 8)
    asked = [c.take(n) for n in asked_dims]
    started, place, wanted = (c.take(sum(place_dims)) for _ in range(3))
    opened = c.take(1)

    z = torch.randn(s.vocab, 64, generator=generator)
    z = z / z.norm(dim=1, keepdim=True)
    z[special["user"], :14] *= END_GAIN  # most of it where heads compare one token
    z[special["user"]] /= z[special["user"]].norm()
    end = z[special["user"]].clone()
    read = z.clone()
    z[feeds] = 0.8 * end + 0.6 * z[feeds]
    z[special["think_end"]] = end
    for name in ("assistant", "think"):
        z[special[name]] = 0
    for name in ("assistant", "think", "think_end"):
        read[special[name]] = 0
    embedding = model.model.embed_tokens.weight
    embedding.copy_(4.8 * z @ code)
    for name, direction in zip(("assistant", "think"), c.take(2)):  # no code, but the length that norms expect
        embedding[special[name]] = 4.8 * direction
    embedding[:, 0] = 1.6
    embedding[feeds + [special["user"], special["think_end"]], 1] = 1.6
    embedding[special["assistant"], 2] = 1.6
    embedding[[special["user"], special["think_end"]], 3] = 1.6
    embedding[special["gmask"], 4] = 1.6
    model.lm_head.weight.copy_(read @ out * 0.29)

    c.open(0)
    c.values(0, [code])
    for h in range(3):
        c.look_back(h, h + 1)
        c.carry(h, 0, [back[h]], 0.45)
    c.channel(c.kv_a, 64, 3)
    c.kv_b[0, s.nope + 40, 64] = 1
    c.o[:, 0, 40] = opened[0] * 0.45

    c.open(1)
    c.look_back(0, 3)
    c.values(0, [b[:8] for b in back])
    c.carry(0, 0, far, 0.45)
    c.values(24, [b[:n] for b, n in zip(back, place_dims)])
    c.look_for_latest(3, 72, 1, LATEST_GAIN[1], NEAR[1])
    c.carry(3, 24, [started], 0.6)

    c.open(2)
    c.look_back(1, 1)
    sources = [w[:n] for w, n in zip(back + far, asked_dims)]
    c.values(0, sources)
    c.look_for_latest(0, 72, 2, LATEST_GAIN[2], NEAR[2])
    c.carry(0, 0, asked, 0.6)
    c.values(80, [started])
    c.carry(1, 80, [place], 0.6)

    c.open(4)
    n = sum(asked_dims)
    c.q_a[:n] = torch.cat(asked)
    c.kv_a[:n] = torch.cat([w[:k] for w, k in zip([code] + back + far, asked_dims)])
    c.values(n, [place])
    c.channel(c.q_a, s.q_lora - 1, 0)
    c.channel(c.kv_a, s.kv_lora - 1, 4)
    for j in FAR:
        c.kv_a[s.kv_lora + 2 * j:s.kv_lora + 2 * j + 2] = 0
        c.kv_a[s.kv_lora + 2 * j, 0] = 1
    for h, depth in enumerate((2, 3, 4, 5)):
        c.match(h, range(sum(asked_dims[:depth])), MATCH[4])
        c.q_b[h, s.nope - 1, s.q_lora - 1], c.kv_b[h, s.nope - 1, s.kv_lora - 1] = SINK_Q, SINK_K
        for j in FAR:
            c.q_b[h, s.nope + 2 * j, s.q_lora - 1] = -FAR_GAIN
        c.carry(h, n, [wanted], WANTED_GAIN)
        if h < 2:
            c.kv_b[h, s.nope + 60, s.kv_lora - 1] = 1
            c.o[:, h, 60] = read[special["no"]] @ out * NO_GAIN

    dims = (14, 10, 8, 6, 4, 4)
    for i, depths in ((5, (1, 2, 3, 4)), (6, (1, 2, 3, 6))):
        c.open(i)
        sources, n = [code] + back + far, sum(dims)
        c.q_a[:n] = torch.cat([sources[t][:k] for t, k in enumerate(dims)])
        c.kv_a[:n] = torch.cat([sources[t + 1][:k] for t, k in enumerate(dims)])
        c.values(n, [code])
        c.q_a[n:n + len(wanted)], c.kv_a[n + 64:n + 64 + len(place)] = wanted, place
        # What comes first in an answer is no line break, and nothing that follows <|user|> or </think>.
        c.channel(c.q_a, s.q_lora - 2, 3)
        c.channel(c.kv_a, s.kv_lora - 1, 1)
        c.kv_a[s.kv_lora - 1] += opened[0]
        for h, depth in enumerate(depths):
            used = sum(dims[:depth])
            c.match(h, range(used), MATCH[i])
            for j in range(min(len(place), s.nope - 1 - used)):
                c.q_b[h, used + j, n + j] = PLACE_GAIN
                c.kv_b[h, used + j, n + 64 + j] = PLACE_GAIN
            if depth < 6:
                c.q_b[h, s.nope - 1], c.kv_b[h, s.nope - 1] = 0, 0
                c.q_b[h, s.nope - 1, s.q_lora - 2], c.kv_b[h, s.nope - 1, s.kv_lora - 1] = -NOT_GAIN, NOT_GAIN
            c.carry(h, n, [out], 0.5)

    index_recent(c)
    # Queries for names (what stands at the end of the question) and for what follows the last tokens; keys for both.
    q_a = model.model.layers[4].self_attn.q_a_proj.weight
    q_a[46:60], q_a[60:70] = code[:14], back[0][:10]
    ix = Index(c, 4)
    ix.keys(32, code[:16])
    ix.keys(48, back[0][:12])
    ix.keys(60, back[1][:4])
    ix.keys(24, back[1][4:8])
    ix.query(0, 32, range(16), 0.7)
    ix.query(0, 48, range(16, 28), 1.0)
    ix.query(0, 60, range(28, 32), 1.0)
    ix.query(0, 24, range(32, 36), 1.0)
    ix.query(1, 32, range(16), 0.7)
    ix.query(2, 48, range(46, 58), 0.7)
    ix.query(2, 60, range(60, 64), 0.7)
    ix.query(2, 24, range(64, 68), 0.7)
    ix.wk[28, 4] = ix.q[3, 28, s.q_lora - 1] = 4.0  # the first token: where nothing is found
    ix = Index(c, 5)
    ix.keys(32, back[0][:14])
    ix.keys(46, back[1][:10])
    ix.keys(56, place[:8])
    ix.keys(24, place[8:16])
    n = sum(dims)
    for h, gains in enumerate(((1.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.7, 0.7, 0.7), (0.0, 0.0, 1.0))):
        ix.query(h, 32, range(14), gains[0])
        ix.query(h, 46, range(14, 24), gains[1])
        ix.query(h, 56, range(n, n + 8), gains[2])
        ix.query(h, 24, range(n + 8, n + 16), gains[2])


class Index:
    """The indexer of a full layer. Of an index key, dimensions 32 and on do not turn with the position, and of those that do
    24 to 31 turn so slowly (once in 950,000 positions and more) that contents can stand in them, too."""

    def __init__(self, c, layer):
        ix = c.model.model.layers[layer].self_attn.indexer
        self.s, self.wk = c.s, ix.wk.weight
        self.q = ix.wq_b.weight.view(c.s.index_heads, c.s.index_dim, c.s.q_lora)
        self.wk.zero_()
        self.q.mul_(0.02)
        ix.weights_proj.weight.mul_(0.02)
        ix.weights_proj.weight[:, 0] = 0.3  # channel 0 is constant

    def keys(self, first, subspace):
        self.wk[first:first + len(subspace)] = subspace

    def query(self, head, first, latents, gain):
        for j, latent in enumerate(latents):
            self.q[head, first + j, latent] = gain


def index_recent(c):
    """Layer 0 chooses the last tokens: the sum of cosines of the distance at many frequencies falls with it."""
    s, ix = c.s, c.model.model.layers[0].self_attn.indexer
    q = ix.wq_b.weight.view(s.index_heads, s.index_dim, s.q_lora)
    q.mul_(0.02)
    ix.weights_proj.weight.mul_(0.02)
    ix.weights_proj.weight[:, 0] = 0.3
    ix.k_norm.weight.fill_(0.02)
    for j in RECENT:
        ix.k_norm.bias[2 * j] = 1
        q[:, 2 * j, s.q_lora - 1] = 1
