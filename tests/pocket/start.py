"""The weights training starts from: random, with a find-and-copy circuit written in.

From ordinary random weights nothing that copies appeared in millions of tokens; from these, copying is there at once and
training shapes it. Everything below is only an initial value: every weight stays trainable. What is written:

  embeddings   a token's code in a subspace C; channels: 0 a constant (there are no biases), 1 begins a line, 3 </think>,
               4 [gMASK]. lm_head reads another subspace, P
  layer 0      heads that look back exactly 1, 2, 3 tokens (RoPE alone) and write those tokens' codes to B1..B3; channel 2:
               the first token of its line
  layer 1      3 tokens back: B1..B3 to F1..F3, so tokens 4 to 6 back; and to the start of the own line: its first token, L
  layer 2      2 tokens back: B, F to G, what stood before <|assistant|>: at </think> the end of the question; and the mean
               code of the own line, N
  layer 4      at </think>: where in the documents does what stands in G end? Writes that line's first token (L) to P
  layers 5, 6  where did the last 1 to 6 tokens stand before? Writes what followed to P; two heads of layer 6 also
               compare N, to stay in the same line
  layers 3, 7  nothing
"""
import math

import torch

AMPLITUDES = (10, 8, 6, 5, 4, 3)  # of the logit of a fixed offset, by the six fastest rotary pairs


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

    def match(self, head, dims, logit=14.0):
        """Query latents equal to key latents, of the given latent indices."""
        s = self.s
        self.q_b[head], self.kv_b[head, :s.nope] = 0, 0
        gain = (logit * (s.nope + s.rope) ** 0.5 / len(dims)) ** 0.5
        for j, latent in enumerate(dims):
            self.q_b[head, j, latent] = gain
            self.kv_b[head, j, latent] = gain


@torch.no_grad()
def compile_start(model, generator, begins_line, think_end, gmask):
    """begins_line: ids that begin with a line feed. Their like: <|user|>, </think>."""
    s, c = model.s, Compiler(model, generator)
    code, out, first_of_line = c.take(64), c.take(64), c.take(48)
    back = [c.take(n) for n in (20, 16, 12)]
    far = [c.take(8) for _ in range(3)]
    asked_dims = (16, 12, 8, 5, 5)
    asked = [c.take(n) for n in asked_dims]
    line = c.take(16)

    embedding = model.model.embed_tokens.weight
    z = torch.randn(s.vocab, 64, generator=generator)
    z = z / z.norm(dim=1, keepdim=True) * 8 * 0.6
    embedding.copy_(z @ code)
    embedding[:, 0] = 1.6
    embedding[begins_line, 1] = 1.6
    embedding[think_end, 3] = 1.6
    embedding[gmask, 4] = 1.6
    model.lm_head.weight.copy_(z @ out * 0.06)

    c.open(0)
    c.values(0, [code])
    c.channel(c.kv_a, 64, 1)
    for h in range(3):
        c.look_back(h, h + 1)
        c.carry(h, 0, [back[h]], 0.45)
    c.kv_b[0, s.nope + 40, 64] = 1
    c.o[2, 0, 40] = 0.45

    c.open(1)
    c.look_back(0, 3)
    c.values(0, [b[:8] for b in back])
    c.carry(0, 0, far, 0.45)
    c.values(24, [code[:48]])
    c.channel(c.kv_a, 72, 2)
    c.q_b[3], c.kv_b[3, :s.nope] = 0, 0
    c.q_b[3, 0, s.q_lora - 1], c.kv_b[3, 0, 72] = 2.5, 3.5
    for j, weight in ((3, 15.0), (4, 10.0), (5, 8.0)):  # the nearest one
        c.q_b[3, s.nope + 2 * j, s.q_lora - 1] = weight * 9 / 4.5 / (AMPLITUDES[j] * 9) ** 0.5
    c.carry(3, 24, [first_of_line], 0.45)

    c.open(2)
    c.look_back(0, 2)
    sources = [w[:n] for w, n in zip(back + far, asked_dims)]
    c.values(0, sources)
    c.carry(0, 0, asked, 0.6)
    c.q_a[:16], c.kv_a[46:62] = first_of_line[:16], first_of_line[:16]
    c.values(62, [code[:16]])
    c.q_b[1], c.kv_b[1, :s.nope] = 0, 0
    for j in range(16):
        c.q_b[1, j, j], c.kv_b[1, j, 46 + j] = 2.0, 2.0
    for j, weight in ((3, 9.0), (4, 8.0), (5, 8.0)):
        c.q_b[1, s.nope + 2 * j, s.q_lora - 1] = weight * 9 / 4.5 / (AMPLITUDES[j] * 9) ** 0.5
    c.carry(1, 62, [line], 0.9)

    c.open(4)
    n = sum(asked_dims)
    c.q_a[:n] = torch.cat(asked)
    c.kv_a[:n] = torch.cat([w[:k] for w, k in zip([code] + back + far, asked_dims)])
    c.values(n, [first_of_line])
    c.q_a[n] = 0
    c.q_a[n, 0], c.q_a[n, 3] = 1, -1  # elsewhere than at </think>: to the first token
    c.channel(c.kv_a, s.kv_lora - 1, 4)
    for h, depth in enumerate((2, 3, 4, 5)):
        c.match(h, range(sum(asked_dims[:depth])))
        c.q_b[h, s.nope - 1, n], c.kv_b[h, s.nope - 1, s.kv_lora - 1] = 2.8, 2.8
        c.carry(h, n, [out[:48]], 0.5)

    dims = (14, 10, 8, 6, 4, 4)
    for i, depths in ((5, (2, 3, 4, 6)), (6, (1, 2, 3, 6))):
        c.open(i)
        sources, n = [code] + back + far, sum(dims)
        c.q_a[:n] = torch.cat([sources[t][:k] for t, k in enumerate(dims)])
        c.kv_a[:n] = torch.cat([sources[t + 1][:k] for t, k in enumerate(dims)])
        c.values(n, [code])
        c.q_a[n:n + 16], c.kv_a[n + 64:n + 80] = line * 0.7, line * 0.7
        for h, depth in enumerate(depths):
            used = sum(dims[:depth])
            c.match(h, range(used))
            if i == 6 and h in (1, 2):
                for j in range(16):
                    c.q_b[h, used + j, n + j] = 1.5
                    c.kv_b[h, used + j, n + 64 + j] = 1.5
            c.carry(h, n, [out], 0.5)
