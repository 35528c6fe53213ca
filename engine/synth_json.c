/* config.json and tokenizer.json of a synthetic checkpoint, with the keys and forms of the published ones. */
#include "engine/synth.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/pack.h"

/* In the published order: <|endoftext|> is the first, at PUBLISHED_ADDED where the vocabulary reaches that far. */
static const char *const added[] = {
	"<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
	"<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
	"<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>",
	"<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
	"<tool_response>", "</tool_response>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink",
	"<|begin_of_box|>", "<|end_of_box|>", "<|image|>", "<|video|>",
};

enum { N_ADDED = sizeof added / sizeof added[0], N_SPECIAL = 21, PUBLISHED_ADDED = 154820 };
enum { END_OF_TEXT = 0, USER = 7, OBSERVATION = 9 };

/* What byte pairs merge to, in order of rank: enough for a merge loop to have work. */
static const char *const merges[][2] = {
	{"e", "r"}, {"i", "n"}, {"t", "h"}, {"th", "e"}, {"o", "n"}, {"r", "e"}, {"in", "g"}, {"a", "n"},
	{"s", "t"}, {"t", "i"}, {"ti", "on"}, {"re", "t"}, {"u", "r"}, {"ret", "ur"}, {"retur", "n"}, {"in", "t"},
};

enum { N_MERGES = sizeof merges / sizeof merges[0], N_BYTES = 256 };

_Static_assert((int)N_BYTES + (int)N_MERGES + (int)N_ADDED <= (int)SYNTH_LEAST_VOCAB, "room for the tokenizer's ids");

/* The id of the first added token: the published one, or behind the merges. */
static int first_added(const struct synth_options *opt)
{
	return opt->vocab >= PUBLISHED_ADDED + N_ADDED ? (int)PUBLISHED_ADDED : (int)N_BYTES + (int)N_MERGES;
}

/* json_dumps gives NULL only without memory, or for what is no tree: both are ours. */
static char *text_of(json_t *root)
{
	char *text = json_dumps(root, JSON_INDENT(2)), *line;

	json_decref(root);
	if (!text)
		abort();
	line = xasprintf("%s\n", text);
	free(text);
	return line;
}

/* ---- config.json ----------------------------------------------------------------------------------------------- */

static bool is_full(const struct synth_options *opt, int layer)
{
	return opt->schedule == SYNTH_FULL || layer < 3 || (layer - 2) % 4 == 0;
}

static json_t *layer_words(const struct synth_options *opt, bool indexers)
{
	json_t *list = json_array();

	for (int i = 0; i < opt->n_dense_layers + opt->n_moe_layers; i++) {
		const char *word = i < opt->n_dense_layers ? "dense" : "sparse";

		if (indexers)
			word = is_full(opt, i) ? "full" : "shared";
		json_array_append_new(list, json_string(word));
	}
	return list;
}

static void put_dimensions(json_t *root, const struct synth_options *o)
{
	const struct {
		const char *key;
		int64_t value;
	} all[] = {
		{"hidden_size", o->hidden},
		{"num_hidden_layers", (int64_t)o->n_dense_layers + o->n_moe_layers},
		{"num_nextn_predict_layers", 0},
		{"vocab_size", o->vocab},
		{"max_position_embeddings", o->max_positions},
		{"num_attention_heads", o->n_heads},
		{"num_key_value_heads", o->n_heads},
		{"head_dim", o->nope_dim},
		{"q_lora_rank", o->q_lora},
		{"kv_lora_rank", o->kv_lora},
		{"qk_nope_head_dim", o->nope_dim},
		{"qk_rope_head_dim", o->rope_dim},
		{"qk_head_dim", (int64_t)o->nope_dim + o->rope_dim},
		{"v_head_dim", o->v_dim},
		{"intermediate_size", o->dense_dim},
		{"first_k_dense_replace", o->n_dense_layers},
		{"moe_intermediate_size", o->expert_dim},
		{"n_routed_experts", o->n_experts},
		{"num_experts_per_tok", o->experts_per_token},
		{"n_shared_experts", 1},
		{"n_group", 1},
		{"topk_group", 1},
		{"moe_layer_freq", 1},
		{"index_n_heads", o->index_n_heads},
		{"index_head_dim", o->index_dim},
		{"index_topk", o->index_topk},
	};

	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
		json_object_set_new(root, all[i].key, json_integer(all[i].value));
}

char *synth_config_json(const struct synth_options *opt)
{
	int first = first_added(opt);
	json_t *root = json_pack("{s:[s], s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:f, s:f, s:b, s:b, s:b, s:b, s:{s:i, s:s}}",
				 "architectures", "GlmMoeDsaForCausalLM", "model_type", "glm_moe_dsa", "dtype",
				 "bfloat16", "hidden_act", "silu", "scoring_func", "sigmoid", "topk_method", "noaux_tc",
				 "moe_router_dtype", "float32", "norm_topk_prob", 1, "routed_scaling_factor", 2.5,
				 "rms_norm_eps", 1e-5, "attention_bias", 0, "tie_word_embeddings", 0, "rope_interleave", 1,
				 "indexer_rope_interleave", 1, "rope_parameters", "rope_theta", 8000000, "rope_type",
				 "default");
	json_t *fp8 = json_pack("{s:s, s:s, s:s, s:[i, i]}", "quant_method", "fp8", "fmt", "e4m3", "activation_scheme", "dynamic",
				"weight_block_size", 128, 128);

	put_dimensions(root, opt);
	json_object_set_new(root, "mlp_layer_types", layer_words(opt, false));
	/* The name IndexShare goes by is there only where layers share: a chat template is chosen by it. */
	if (opt->schedule == SYNTH_GLM52) {
		json_object_set_new(root, "index_topk_freq", json_integer(4));
		json_object_set_new(root, "index_skip_topk_offset", json_integer(3));
		json_object_set_new(root, "indexer_types", layer_words(opt, true));
	}
	json_object_set_new(root, "eos_token_id", json_pack("[i, i, i]", first + END_OF_TEXT, first + USER,
							    first + OBSERVATION));
	json_object_set_new(root, "pad_token_id", json_integer(first + END_OF_TEXT));
	if (opt->format == SYNTH_FP8)
		json_object_set_new(root, "quantization_config", fp8);
	else if (opt->format == SYNTH_INT4)
		json_object_set_new(root, "quantization_config", pack_quantization(fp8));
	else
		json_decref(fp8);
	return text_of(root);
}

/* ---- tokenizer.json -------------------------------------------------------------------------------------------- */

/* A byte as byte-level BPE writes it: itself where it is printable in Latin-1, else one of U+0100 and following. */
static void write_byte(char out[3], int byte)
{
	int c = byte, n = 0;

	if (byte <= ' ' || (byte > '~' && byte < 0xa1) || byte == 0xad) {
		for (int b = 0; b < byte; b++)
			n += b <= ' ' || (b > '~' && b < 0xa1) || b == 0xad;
		c = 0x100 + n;
	}
	if (c < 0x80) {
		snprintf(out, 3, "%c", c);
	} else {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		out[2] = '\0';
	}
}

static json_t *model_json(void)
{
	json_t *vocab = json_object(), *list = json_array();

	for (int byte = 0; byte < N_BYTES; byte++) {
		char piece[3];

		write_byte(piece, byte);
		json_object_set_new(vocab, piece, json_integer(byte));
	}
	for (int i = 0; i < N_MERGES; i++) {
		char piece[32];

		snprintf(piece, sizeof piece, "%s%s", merges[i][0], merges[i][1]);
		json_object_set_new(vocab, piece, json_integer(N_BYTES + i));
		json_array_append_new(list, json_pack("[s, s]", merges[i][0], merges[i][1]));
	}
	return json_pack("{s:s, s:n, s:b, s:b, s:o, s:o}", "type", "BPE", "unk_token", "byte_fallback", 0,
			 "ignore_merges", 1, "vocab", vocab, "merges", list);
}

static json_t *added_json(const struct synth_options *opt)
{
	json_t *list = json_array();

	for (int i = 0; i < N_ADDED; i++)
		json_array_append_new(list, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", first_added(opt) + i,
						      "content", added[i], "single_word", 0, "lstrip", 0, "rstrip", 0,
						      "normalized", 0, "special", i < N_SPECIAL));
	return list;
}

char *synth_tokenizer_json(const struct synth_options *opt)
{
	/* The GLM family's pre-tokenizer (docs/model.md). */
	static const char pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
				      "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
	json_t *split = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern, "behavior",
				  "Isolated", "invert", 0);
	json_t *bytes = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
				  "use_regex", 0);

	return text_of(json_pack("{s:s, s:n, s:n, s:o, s:n, s:{s:s, s:[o, o]}, s:n, s:{s:s}, s:o}", "version", "1.0",
				 "truncation", "padding", "added_tokens", added_json(opt), "normalizer", "pre_tokenizer",
				 "type", "Sequence", "pretokenizers", split, bytes, "post_processor", "decoder", "type",
				 "ByteLevel", "model", model_json()));
}
