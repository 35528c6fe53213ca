#!/usr/bin/env python3
"""Write a checkpoint of train.py as Hugging Face directories: DIR/bf16 and DIR/fp8, in the published layout.

    python export.py --work DIR --out DIR [--checkpoint mtp.pt]

Experts have their own tensors, the FP8 build has blocks of 128x128 with float32 scales and leaves in BF16 what the
official build leaves. The router's bias is float32 in both. The MTP layer is written where the checkpoint has one (mtp.py's has).
"""
import cores  # first: see there

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file

import mtp
from model import Shape
from published import BLOCK, published, tensors


def config(s, ids, fp8, drafts):
    c = {
        "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "dtype": "bfloat16",
        "transformers_version": "5.12.0", "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "initializer_range": 0.02, "tie_word_embeddings": False, "use_cache": True, "norm_topk_prob": True,
        "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
        "ep_size": 1, "pretraining_tp": 1, "rms_norm_eps": s.eps, "routed_scaling_factor": 1.0,
        "max_position_embeddings": 1048576, "num_nextn_predict_layers": int(drafts),
        "rope_parameters": {"rope_theta": int(s.theta), "rope_type": "default"}, "rope_interleave": True,
        "indexer_rope_interleave": True, "vocab_size": s.vocab, "hidden_size": s.hidden,
        "num_hidden_layers": s.n_layers, "num_attention_heads": s.n_heads, "num_key_value_heads": s.n_heads,
        "q_lora_rank": s.q_lora, "kv_lora_rank": s.kv_lora, "qk_nope_head_dim": s.nope, "qk_rope_head_dim": s.rope,
        "qk_head_dim": s.nope + s.rope, "v_head_dim": s.v, "head_dim": s.rope, "first_k_dense_replace": s.n_dense,
        "intermediate_size": s.dense, "moe_intermediate_size": s.expert, "n_routed_experts": s.n_experts,
        "num_experts_per_tok": s.experts_per_token, "n_shared_experts": 1, "index_n_heads": s.index_heads,
        "index_head_dim": s.index_dim, "index_topk": s.index_topk,
        "indexer_types": ["full" if s.is_full(i) else "shared" for i in range(s.n_layers)],
        "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]],
        "pad_token_id": ids["<|endoftext|>"],
    }
    if fp8:
        plain = ["lm_head", "model.embed_tokens"] + [f"model.layers.{i}.mlp.gate" for i in
                                                     range(s.n_dense, s.n_layers + drafts)]
        plain += [f"model.layers.{s.n_layers}.eh_proj"] * drafts
        c["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                    "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": plain}
    return c


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--checkpoint", default="mtp.pt")
    a = parser.parse_args()
    kept = torch.load(os.path.join(a.work, a.checkpoint), map_location="cpu", weights_only=False)
    shape = Shape(**kept["shape"])
    drafts = "draft" in kept
    state = dict(kept["model"], **mtp.published(kept["draft"], shape.n_layers)) if drafts else kept["model"]
    named = published(state, shape)
    with open(os.path.join(a.work, "tokenizer.json"), encoding="utf-8") as f:
        ids = {t["content"]: t["id"] for t in json.load(f)["added_tokens"]}
    total = 0
    for form in ("bf16", "fp8"):
        folder = os.path.join(a.out, form)
        os.makedirs(folder, exist_ok=True)
        save_file(tensors(named, form == "fp8"), os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        c = config(shape, ids, form == "fp8", drafts)
        for name, what in (("config.json", c), ("generation_config.json", {
                "do_sample": False, "eos_token_id": c["eos_token_id"], "pad_token_id": c["pad_token_id"]})):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
                f.write(json.dumps(what, indent=1) + "\n")
        shutil.copy(os.path.join(a.work, "tokenizer.json"), folder)
        n = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
        total += n
        print(f"{folder}: {n / 1e6:.2f} MB")
    print(f"together {total / 1e6:.2f} MB after {kept['n_tokens']} tokens")


if __name__ == "__main__":
    main()
