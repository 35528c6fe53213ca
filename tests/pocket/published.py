"""The published layout: a checkpoint's names in the files, its BF16 and FP8 forms, and the way back."""
import os

import torch
from safetensors.torch import load_file

BLOCK = 128
LARGEST = 448.0


def published(state, shape):
    """Tensors by their published names, float32."""
    out = {}
    for name, w in state.items():
        if name.endswith("experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for e in range(shape.n_experts):
                out[f"{prefix}{e}.gate_proj.weight"] = w[e, :shape.expert]
                out[f"{prefix}{e}.up_proj.weight"] = w[e, shape.expert:]
        elif name.endswith("mlp.experts.down_proj"):
            prefix = name.removesuffix("down_proj")
            for e in range(shape.n_experts):
                out[f"{prefix}{e}.down_proj.weight"] = w[e]
        else:
            out[name] = w
    return {n: w.detach().float() for n, w in out.items()}


def is_quantized(name, w):
    kept = ("embed_tokens", "lm_head", "mlp.gate.", "weights_proj", "eh_proj")
    return w.dim() == 2 and not any(k in name for k in kept)


def quantize(w):
    """E4M3 codes and the scale of each block; blocks at the edges are partial."""
    rows, columns = w.shape
    scale = torch.zeros(-(-rows // BLOCK), -(-columns // BLOCK))
    codes = torch.empty(w.shape, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scale[i, j] = max(w[at].abs().max().item() / LARGEST, 1e-12)
            codes[at] = (w[at] / scale[i, j]).to(torch.float8_e4m3fn)
    return codes, scale


def tensors(named, fp8):
    out = {}
    for name, w in named.items():
        if name.endswith("e_score_correction_bias"):
            out[name] = w.contiguous()
        elif fp8 and is_quantized(name, w):
            out[name], out[name + "_scale_inv"] = quantize(w)
        else:
            out[name] = w.to(torch.bfloat16).contiguous()
    return out


def read(folder, shape):
    """The files' weights by model.py's names, which are transformers' in memory, FP8 widened in float32."""
    files, out = load_file(os.path.join(folder, "model.safetensors")), {}
    for name, w in files.items():
        if name.endswith("_scale_inv") or name.startswith(f"model.layers.{shape.n_layers}."):
            continue  # the MTP layer is in neither forward pass
        w = w.float()
        scale = files.get(name + "_scale_inv")
        if scale is not None:
            full = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            w = w * full[:w.shape[0], :w.shape[1]]
        out[name] = w
    for layer in range(shape.n_dense, shape.n_layers):
        prefix = f"model.layers.{layer}.mlp.experts."
        each = [[out.pop(f"{prefix}{e}.{part}_proj.weight") for part in ("gate", "up", "down")]
                for e in range(shape.n_experts)]
        out[prefix + "gate_up_proj"] = torch.stack([torch.cat([g, u]) for g, u, _ in each])
        out[prefix + "down_proj"] = torch.stack([d for _, _, d in each])
    return out
