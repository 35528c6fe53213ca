"""transformers as the reference: the published modeling code, run in true float64.

Left alone, a float64 run of that code drops to float32 in norms, softmax, router and index scores, where it
says torch.float32 or .float(). `patched` makes those mean float64 while a forward pass runs, and gives top-k a rule
for ties, which torch has not. One thing stays float32 on purpose, because the trained model saw it so: the RoPE
angle is a float32 product, and cos and sin of it are rounded to float32 (here from double, correctly)."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import (DeepseekV3Config, DeepseekV3ForCausalLM, DeepseekV32ForCausalLM, Glm4MoeLiteForCausalLM,
                          GlmMoeDsaForCausalLM)

CLASSES = {"glm_moe_dsa": GlmMoeDsaForCausalLM, "deepseek_v3": DeepseekV3ForCausalLM, "kimi_k2": DeepseekV3ForCausalLM,
           "deepseek_v32": DeepseekV32ForCausalLM, "glm4_moe_lite": Glm4MoeLiteForCausalLM}

assert transformers.__version__ == "5.17.0", "the goldens are pinned to transformers 5.17.0"
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()  # it reports the MTP layer as unexpected; Oracle checks that itself
transformers.logging.disable_progress_bar()


class WideTorch:
    """The torch module as modeling code sees it, with float32 meaning float64."""

    def __getattr__(self, name):
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


def stable_topk(x, k, dim=-1, largest=True, sorted=True):
    """torch.topk with a rule for ties: lower index first."""
    assert largest
    values, indices = torch.sort(x, dim=dim, descending=True, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


@contextlib.contextmanager
def patched(module, wide):
    """Ties by rule; and, if wide, every float32 in the module means float64."""
    old = module.torch, torch.Tensor.float, torch.Tensor.topk, torch.topk
    torch.Tensor.topk = torch.topk = stable_topk
    if wide:
        module.torch, torch.Tensor.float = WideTorch(), torch.Tensor.double
    try:
        yield
    finally:
        module.torch, torch.Tensor.float, torch.Tensor.topk, torch.topk = old


class Oracle:
    """One checkpoint directory, loaded by from_pretrained. Weights in `dtype`, exactly as stored."""

    def __init__(self, path, cfg, dtype, weights=None):
        """weights: float64 tensors to load instead of the directory's own (FP8, whose loader wants whole blocks)."""
        kw = dict(dtype=dtype, attn_implementation="eager", experts_implementation="eager")
        if cfg["model_type"] == "kimi_k2":
            kw["config"] = DeepseekV3Config(**{k: v for k, v in cfg.items() if k != "model_type"})
        with tempfile.TemporaryDirectory() as tmp:
            if weights is not None:
                plain = {k: v for k, v in cfg.items() if k != "quantization_config"}
                (Path(tmp) / "config.json").write_text(json.dumps(plain))
                save_file(weights, Path(tmp) / "model.safetensors", {"format": "pt"})
                path = tmp
            self.model, info = CLASSES[cfg["model_type"]].from_pretrained(path, output_loading_info=True, **kw)
        assert not info["missing_keys"] and not info["mismatched_keys"], info
        extra = [k for k in info["unexpected_keys"] if not k.startswith(f"model.layers.{cfg['num_hidden_layers']}.")]
        assert not extra, extra
        self.dtype, self.model = dtype, self.model.eval()
        self.code = sys.modules[type(self.model).__module__]
        self.rotary = self.model.model.rotary_emb
        self.inv_freq = self.rotary.inv_freq.float().numpy().copy()
        if dtype == torch.float64:
            self.model = self.model.double()  # the router bias is float32 by itself
            self.rotary.forward = self.exact_rope

    def exact_rope(self, x, position_ids):
        """What the class does, with cos and sin of the float32 angle rounded from double."""
        angle = position_ids[0].to(torch.float32)[:, None] * torch.from_numpy(self.inv_freq)[None]
        assert angle.dtype == torch.float32
        angle = torch.cat([angle, angle], -1)[None].to(torch.float64)
        gain = self.rotary.attention_scaling
        return (angle.cos().to(torch.float32).to(torch.float64) * gain,
                angle.sin().to(torch.float32).to(torch.float64) * gain)

    @torch.no_grad()
    def logits(self, ids, move=0.0, seed=0):
        """[T, vocab_size]; move: relative noise on the embeddings."""
        ids = torch.as_tensor(np.asarray(ids))[None]
        with patched(self.code, wide=self.dtype == torch.float64):
            x = self.model.model.embed_tokens(ids)
            if move:
                noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
                x = (x.double() * (1 + move * noise)).to(x.dtype)
            out = self.model(inputs_embeds=x, use_cache=False).logits[0]
        assert out.dtype == self.dtype
        return out.double().numpy()
