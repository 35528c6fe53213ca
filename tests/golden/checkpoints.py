"""The tiny checkpoints: their configs, their random weights, and the published layout they are written in.

Every tensor is drawn from its own generator, seeded by the checkpoint's seed and the tensor's name, so that
adding a tensor moves no other. Dimensions are pairwise different wherever the real model's happen to be equal."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import tiny_tokenizer
from reference import indexer_kinds

HERE = Path(__file__).parent
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GAIN = 1.3  # std of a matrix is GAIN / sqrt(fan in): near ties stay rare (at 1.6 one seed in three had one)
QUIET = 2.0**-17  # magnitude of the quiet token's embedding: its latents' variance is about 1e-5

BASE = {
    "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
    "initializer_range": 0.02, "tie_word_embeddings": False, "use_cache": True, "norm_topk_prob": True,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "moe_layer_freq": 1, "ep_size": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "routed_scaling_factor": 2.5,
}
GLM = BASE | {
    "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "dtype": "bfloat16",
    "max_position_embeddings": 1048576, "num_nextn_predict_layers": 1,
    "rope_parameters": {"rope_theta": 8000000, "rope_type": "default"},
    "rope_interleave": True, "indexer_rope_interleave": True, "transformers_version": "5.12.0",
}


def without(cfg, *keys):
    return {k: v for k, v in cfg.items() if k not in keys}


def kinds(text):
    return [{"F": "full", "S": "shared"}[c] for c in text]


def standard_cases(topk, long, text=None):
    """Lengths below, at, just above and far above index_topk. quiet: positions of the small-variance token."""
    out = [
        dict(name="below", tokens=topk - 7, greedy=True,
             what="fewer tokens than index_topk; the greedy tail crosses it"),
        dict(name="equal", tokens=topk, what="as many tokens as index_topk"),
        dict(name="above", tokens=topk + 3, what="a few tokens more: the first rows that must drop keys"),
        dict(name="quiet", tokens=2 * topk + 5, quiet=(3, topk + 1, 2 * topk + 4),
             what="three tokens of tiny embedding: rows where an epsilon is as large as the variance"),
        dict(name="long", tokens=long * topk, spread=True, greedy=True,
             what=f"{long} times index_topk: index sets decide everything"),
    ]
    if text:
        out.insert(4, dict(name="text", tokens=text, text=True, spread=True, greedy=True,
                           what="the beginning of sample.txt after [gMASK]<sop><|user|>, as the tokenizer splits it"))
    return out


def plain_cases():
    """Without an indexer there is no length at which anything changes."""
    return [
        dict(name="short", tokens=7, greedy=True, what="a few tokens"),
        dict(name="quiet", tokens=21, quiet=(2, 9, 20),
             what="three tokens of tiny embedding: rows where an epsilon is as large as the variance"),
        dict(name="long", tokens=128, spread=True, greedy=True, what="positions where every RoPE frequency tells"),
    ]


# What a checkpoint is beyond its config: seed, tokenizer, number of ids with a string, layout of the files.
SPECS = {
    "glm52": dict(
        seed=52, family="glm", n_base=300, shards=3, mtp=True, bias_dtype=torch.bfloat16,
        config=GLM | {
            "hidden_size": 44, "num_hidden_layers": 11, "num_attention_heads": 5, "num_key_value_heads": 5,
            "q_lora_rank": 28, "kv_lora_rank": 26, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "qk_head_dim": 18,
            "v_head_dim": 14, "head_dim": 22, "first_k_dense_replace": 3, "intermediate_size": 60,
            "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_router_dtype": "float32",
            "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 8,
            "index_n_heads": 13, "index_head_dim": 20, "index_topk": 16, "index_topk_freq": 4,
            "index_skip_topk_offset": 3, "index_topk_pattern": None, "indexer_types": kinds("FFFSSSFSSSF"),
            "index_share_for_mtp_iteration": True, "vocab_size": 350},
        cases=standard_cases(16, long=16, text=128)),
    "glm52-fp8": dict(
        seed=8, family="glm", n_base=262, fp8=True, shards=2, bias_dtype=torch.float32,
        config=without(GLM, "mlp_bias") | {
            "hidden_size": 160, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3,
            "q_lora_rank": 136, "kv_lora_rank": 132, "qk_nope_head_dim": 56, "qk_rope_head_dim": 16, "qk_head_dim": 72,
            "v_head_dim": 44, "head_dim": 40, "first_k_dense_replace": 1, "intermediate_size": 200,
            "moe_intermediate_size": 36, "n_routed_experts": 8, "num_experts_per_tok": 3,
            "index_n_heads": 13, "index_head_dim": 28, "index_topk": 12, "index_topk_freq": 2,
            "index_skip_topk_offset": 1, "num_nextn_predict_layers": 0, "vocab_size": 301,
            "quantization_config": {
                "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
                "modules_to_not_convert": [
                    "lm_head", "model.embed_tokens", "model.layers.0.self_attn.indexers_proj", "model.layers.1.mlp.gate",
                    "model.layers.2.mlp.gate", "model.layers.2.self_attn.indexers_proj"]}},
        cases=standard_cases(12, long=8)),
    "glm52-fused": dict(
        seed=53, family="glm", n_base=264, fused=True, bias_dtype=torch.float32,
        config=GLM | {
            "hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 7, "num_key_value_heads": 7,
            "q_lora_rank": 24, "kv_lora_rank": 22, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4, "qk_head_dim": 16,
            "v_head_dim": 18, "head_dim": 14, "first_k_dense_replace": 1, "intermediate_size": 52,
            "moe_intermediate_size": 20, "n_routed_experts": 8, "num_experts_per_tok": 2,
            "index_n_heads": 14, "index_head_dim": 26, "index_topk": 13, "index_topk_pattern": "FFSFS",
            "num_nextn_predict_layers": 0, "vocab_size": 302},
        cases=standard_cases(13, long=8)),
    "glm52-group": dict(
        seed=54, family="glm", n_base=261, bias_dtype=torch.float32,
        config=GLM | {
            "hidden_size": 42, "num_hidden_layers": 5, "num_attention_heads": 3, "num_key_value_heads": 3,
            "q_lora_rank": 30, "kv_lora_rank": 20, "qk_nope_head_dim": 14, "qk_rope_head_dim": 8, "qk_head_dim": 22,
            "v_head_dim": 10, "head_dim": 64, "first_k_dense_replace": 1, "intermediate_size": 50,
            "moe_intermediate_size": 18, "n_routed_experts": 12, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
            "mlp_layer_types": ["dense"] + ["sparse"] * 4, "routed_scaling_factor": 1.8,
            "index_n_heads": 13, "index_head_dim": 24, "index_topk": 11, "indexer_types": kinds("FFFSS"),
            "num_nextn_predict_layers": 0, "vocab_size": 299},
        cases=standard_cases(11, long=8)),
    "glm52-ties": dict(
        seed=55, family="glm", n_base=260, bias_dtype=torch.float32, live_index_heads={0: 0, 1: 1, 2: 2},
        config=GLM | {
            "hidden_size": 40, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3,
            "q_lora_rank": 22, "kv_lora_rank": 20, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "qk_head_dim": 18,
            "v_head_dim": 14, "head_dim": 64, "first_k_dense_replace": 1, "intermediate_size": 50,
            "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3,
            "mlp_layer_types": ["dense"] + ["sparse"] * 3, "index_n_heads": 8, "index_head_dim": 24, "index_topk": 9,
            "indexer_types": kinds("FFFS"), "num_nextn_predict_layers": 0, "vocab_size": 298},
        cases=[
            dict(name="above", tokens=11, what="the first rows that must drop one of several equal keys"),
            dict(name="ties", tokens=60, greedy=True,
                 what="layer 0: all scores zero; layer 1: half of them, the weight of either sign; layer 2: a quarter"),
        ]),
    "glm5": dict(
        seed=5, family="glm", n_base=263, bias_dtype=torch.float32,
        config=GLM | {
            "dtype": "float32", "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
            "max_position_embeddings": 202752, "hidden_size": 40, "num_hidden_layers": 5, "num_attention_heads": 3,
            "num_key_value_heads": 3, "q_lora_rank": 26, "kv_lora_rank": 24, "qk_nope_head_dim": 10,
            "qk_rope_head_dim": 8, "qk_head_dim": 18, "v_head_dim": 12, "head_dim": 64, "first_k_dense_replace": 3,
            "intermediate_size": 44, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3,
            "index_n_heads": 13, "index_head_dim": 22, "index_topk": 10, "num_nextn_predict_layers": 0,
            "vocab_size": 301},
        cases=standard_cases(10, long=8)),
    "deepseek_v3": dict(
        seed=3, family="deepseek", n_base=290, mtp="own embedding and head", shards=2, bias_dtype=torch.float32,
        config=BASE | {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "dtype": "bfloat16",
            "rms_norm_eps": 1e-6, "max_position_embeddings": 163840, "rope_theta": 10000,
            "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                             "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
            "hidden_size": 44, "num_hidden_layers": 4, "num_attention_heads": 5, "num_key_value_heads": 5,
            "q_lora_rank": 30, "kv_lora_rank": 26, "qk_nope_head_dim": 12, "qk_rope_head_dim": 16, "v_head_dim": 18,
            "first_k_dense_replace": 2, "intermediate_size": 52, "moe_intermediate_size": 14, "n_routed_experts": 16,
            "num_experts_per_tok": 5, "n_group": 4, "topk_group": 3, "num_nextn_predict_layers": 1, "vocab_size": 293},
        cases=plain_cases()),
    "kimi_k2": dict(
        seed=2, family="kimi", n_base=280, bias_dtype=torch.float32,
        config=BASE | {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2", "dtype": "bfloat16",
            "rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "routed_scaling_factor": 2.827,
            "rope_parameters": {"rope_theta": 50000, "rope_type": "yarn", "factor": 32,
                                "original_max_position_embeddings": 4096, "beta_fast": 1, "beta_slow": 1,
                                "mscale": 1.0, "mscale_all_dim": 1.0},
            "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3,
            "q_lora_rank": 34, "kv_lora_rank": 28, "qk_nope_head_dim": 10, "qk_rope_head_dim": 16, "v_head_dim": 14,
            "first_k_dense_replace": 1, "intermediate_size": 56, "moe_intermediate_size": 12, "n_routed_experts": 12,
            "num_experts_per_tok": 4, "num_nextn_predict_layers": 0, "vocab_size": 288},
        cases=plain_cases()),
    "deepseek_v32": dict(
        seed=32, family="deepseek", n_base=288, bias_dtype=torch.float32,
        config=BASE | {
            "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "dtype": "bfloat16",
            "rms_norm_eps": 1e-6, "max_position_embeddings": 163840, "rope_theta": 10000,
            "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                             "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
            "hidden_size": 46, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3,
            "q_lora_rank": 32, "kv_lora_rank": 24, "qk_nope_head_dim": 14, "qk_rope_head_dim": 8, "v_head_dim": 16,
            "first_k_dense_replace": 1, "intermediate_size": 54, "moe_intermediate_size": 16, "n_routed_experts": 12,
            "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "index_n_heads": 14, "index_head_dim": 28,
            "index_topk": 12, "num_nextn_predict_layers": 0, "vocab_size": 291},
        cases=standard_cases(12, long=8)),
    "glm4_moe_lite": dict(
        seed=4, family="glm", n_base=261, bias_dtype=torch.float32,
        config=without(GLM, "indexer_rope_interleave") | {
            "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "dtype": "float16",
            "max_position_embeddings": 202752, "routed_scaling_factor": 1.8,
            "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
            "hidden_size": 44, "num_hidden_layers": 4, "num_attention_heads": 5, "num_key_value_heads": 5,
            "q_lora_rank": 28, "kv_lora_rank": 22, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 16,
            "first_k_dense_replace": 1, "intermediate_size": 58, "moe_intermediate_size": 20, "n_routed_experts": 8,
            "num_experts_per_tok": 2, "num_nextn_predict_layers": 0, "vocab_size": 299},
        cases=plain_cases()),
}


def build_tokenizer(spec):
    return tiny_tokenizer.build(spec["family"], spec["n_base"])


def finish_config(spec, tok):
    """Add what only the tokenizer knows."""
    cfg = dict(spec["config"])
    if spec["family"] == "glm":
        eos = [tok.token_to_id(s) for s in ("<|endoftext|>", "<|user|>", "<|observation|>")]
        cfg |= {"eos_token_id": eos, "pad_token_id": eos[0]}
    elif spec["family"] == "deepseek":
        cfg |= {"bos_token_id": 0, "eos_token_id": 1}
    else:
        cfg |= {"bos_token_id": tok.token_to_id("[BOS]"), "eos_token_id": tok.token_to_id("[EOS]")}
    assert tok.get_vocab_size() + 2 <= cfg["vocab_size"]
    return cfg


# ---- weights ---------------------------------------------------------------------------------------------


def shapes(cfg, mtp):
    """Published name -> shape, in the order of the file."""
    h, heads = cfg["hidden_size"], cfg["num_attention_heads"]
    rq, rkv, nope, rope, v = (cfg[k] for k in (
        "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    n, dense = cfg["num_hidden_layers"], cfg["first_k_dense_replace"]
    kind = indexer_kinds(cfg)
    out = {"model.embed_tokens.weight": (cfg["vocab_size"], h)}

    def ffn(p, width):
        out[p + "gate_proj.weight"] = out[p + "up_proj.weight"] = (width, h)
        out[p + "down_proj.weight"] = (h, width)

    for i in range(n + (1 if mtp else 0)):
        p = f"model.layers.{i}."
        a, x = p + "self_attn.", p + "self_attn.indexer."
        if i == n:
            out |= {p + "enorm.weight": (h,), p + "hnorm.weight": (h,), p + "eh_proj.weight": (h, 2 * h)}
        out |= {p + "input_layernorm.weight": (h,),
                a + "q_a_proj.weight": (rq, h), a + "q_a_layernorm.weight": (rq,),
                a + "q_b_proj.weight": (heads * (nope + rope), rq),
                a + "kv_a_proj_with_mqa.weight": (rkv + rope, h), a + "kv_a_layernorm.weight": (rkv,),
                a + "kv_b_proj.weight": (heads * (nope + v), rkv), a + "o_proj.weight": (h, heads * v)}
        if "index_topk" in cfg and (i == n or kind[i] == "full"):
            ih, d = cfg["index_n_heads"], cfg["index_head_dim"]
            out |= {x + "wq_b.weight": (ih * d, rq), x + "wk.weight": (d, h), x + "k_norm.weight": (d,),
                    x + "k_norm.bias": (d,), x + "weights_proj.weight": (ih, h)}
        out[p + "post_attention_layernorm.weight"] = (h,)
        if i < dense:
            ffn(p + "mlp.", cfg["intermediate_size"])
        else:
            e = cfg["n_routed_experts"]
            out |= {p + "mlp.gate.weight": (e, h), p + "mlp.gate.e_score_correction_bias": (e,)}
            for j in range(e):
                ffn(p + f"mlp.experts.{j}.", cfg["moe_intermediate_size"])
            ffn(p + "mlp.shared_experts.", cfg["moe_intermediate_size"] * cfg["n_shared_experts"])
        if i == n:
            out[p + "shared_head.norm.weight"] = (h,)
            if mtp == "own embedding and head":
                out[p + "embed_tokens.weight"] = out[p + "shared_head.head.weight"] = (cfg["vocab_size"], h)
    return out | {"model.norm.weight": (h,), "lm_head.weight": (cfg["vocab_size"], h)}


def draw(seed, name, shape):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("k_norm.bias"):
        return 0.5 * rng.standard_normal(shape)
    if name.endswith("e_score_correction_bias"):
        return 0.25 * rng.standard_normal(shape)
    if len(shape) == 1:  # a norm: clearly not 1, never near 0
        return rng.uniform(0.5, 1.5, shape)
    if name.endswith("embed_tokens.weight"):
        return rng.standard_normal(shape)
    return GAIN / np.sqrt(shape[1]) * rng.standard_normal(shape)


def block_sizes(seed, name, shape):
    """A factor per 128 x 128 block, so that a scale taken from the wrong block is far off."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 128])
    factor = rng.uniform(0.5, 1.5, (-(-shape[0] // 128), -(-shape[1] // 128)))
    return torch.from_numpy(factor.repeat(128, 0).repeat(128, 1)[: shape[0], : shape[1]])


def quantise(w):
    """E4M3 codes and one float32 scale per 128 x 128 block; the edge blocks are smaller."""
    rows, cols = w.shape
    scale = torch.empty(-(-rows // 128), -(-cols // 128), dtype=torch.float32)
    code = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    for r in range(scale.shape[0]):
        for c in range(scale.shape[1]):
            block = w[r * 128 : r * 128 + 128, c * 128 : c * 128 + 128]
            scale[r, c] = block.abs().max() / 448
            code[r * 128 : r * 128 + 128, c * 128 : c * 128 + 128] = (block / scale[r, c]).to(torch.float8_e4m3fn)
    return code, scale


KEPT_WIDE = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "weights_proj", "eh_proj")  # never FP8


def tie(live, cfg, name, w):
    """live[layer]: index heads that still speak. ReLU makes a key score exactly zero when none does; with no head
    at all the keys themselves are zero."""
    for layer, heads in live.items():
        p = f"model.layers.{layer}.self_attn.indexer."
        if name == p + "wq_b.weight" and heads:
            w[heads * cfg["index_head_dim"] :] = 0
        if name in (p + "k_norm.weight", p + "k_norm.bias") and not heads:
            w[:] = 0


def make_tensors(spec, cfg, tok):
    """Published name -> stored tensor."""
    dtype = DTYPES[cfg["dtype"]]
    out = {}
    for name, shape in shapes(cfg, spec.get("mtp")).items():
        w = draw(spec["seed"], name, shape)
        if name == "model.embed_tokens.weight":
            w[tiny_tokenizer.quiet_id(tok)] *= QUIET
        if name == "lm_head.weight":
            w[tok.get_vocab_size() :] /= 16  # ids without a string never win
        tie(spec.get("live_index_heads", {}), cfg, name, w)
        w = torch.from_numpy(w)
        if name.endswith("e_score_correction_bias"):
            out[name] = w.to(spec["bias_dtype"])
        elif spec.get("fp8") and not any(k in name for k in KEPT_WIDE):
            out[name], out[name + "_scale_inv"] = quantise(w * block_sizes(spec["seed"], name, shape))
        else:
            out[name] = w.to(dtype)
    return fuse(out, cfg) if spec.get("fused") else out


def fuse(tensors, cfg):
    """Experts stacked as transformers saves them: gate rows first, then up; no .weight in the name."""
    out = dict(tensors)
    for i in range(cfg["first_k_dense_replace"], cfg["num_hidden_layers"]):
        p = f"model.layers.{i}.mlp.experts."
        take = lambda e, n: out.pop(f"{p}{e}.{n}_proj.weight")
        both, down = [], []
        for e in range(cfg["n_routed_experts"]):
            both.append(torch.cat([take(e, "gate"), take(e, "up")]))
            down.append(take(e, "down"))
        out[p + "gate_up_proj"], out[p + "down_proj"] = torch.stack(both), torch.stack(down)
    return out


# ---- files -----------------------------------------------------------------------------------------------


def write(name):
    """Write tests/golden/<name>; what was there of an earlier run is replaced."""
    spec, path = SPECS[name], HERE / name
    tok = build_tokenizer(spec)
    cfg = finish_config(spec, tok)
    path.mkdir(exist_ok=True)
    for old in path.iterdir():
        old.unlink()
    tensors = make_tensors(spec, cfg, tok)
    n = spec.get("shards", 1)
    if n == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    else:
        shards, sizes = [{} for _ in range(n)], [t.nbytes for t in tensors.values()]
        total, seen = sum(sizes), 0
        for (key, t), size in zip(tensors.items(), sizes):  # by bytes: a layer may lie in two shards
            shards[min(seen * n // total, n - 1)][key] = t
            seen += size
        where = {}
        for i, shard in enumerate(shards):
            file = f"model-{i + 1:05d}-of-{n:05d}.safetensors"
            save_file(shard, path / file, {"format": "pt"})
            where |= {key: file for key in shard}
        put_json(path / "model.safetensors.index.json",
                 {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
    put_json(path / "config.json", cfg)
    put_json(path / "generation_config.json", {
        "_from_model_config": True, "eos_token_id": cfg["eos_token_id"],
        **({"pad_token_id": cfg["pad_token_id"]} if "pad_token_id" in cfg else {}),
        "do_sample": True, "temperature": 1.0, "top_p": 0.95, "transformers_version": "5.12.0"})
    tok.save(str(path / "tokenizer.json"))
    for file in path.iterdir():
        file.chmod(0o644)


def put_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read(path):
    """Config, and every tensor exactly in float64: an FP8 weight is code times scale, not rounded again."""
    cfg = json.loads((path / "config.json").read_text())
    raw = {}
    for file in sorted(path.glob("*.safetensors")):
        raw |= load_file(file)
    wide = {k: t.to(torch.float64) for k, t in raw.items() if not k.endswith("_scale_inv")}
    for key in [k for k in raw if k.endswith("_scale_inv")]:
        w = wide[key.removesuffix("_scale_inv")]
        scale = raw[key].double().repeat_interleave(128, 0).repeat_interleave(128, 1)
        w *= scale[: w.shape[0], : w.shape[1]]
    return cfg, wide
