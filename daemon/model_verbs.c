#include "daemon/model_verbs.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "config/clock.h"
#include "config/config.h"
#include "config/file.h"
#include "config/mem.h"
#include "config/units.h"
#include "engine/engine.h"
#include "engine/experts.h"
#include "engine/model_info.h"
#include "engine/pack.h"
#include "engine/rates.h"
#include "engine/synth.h"
#include "engine/tokenizer.h"
#include "engine/tune_file.h"
#include "offload/cost.h"
#include "offload/trace.h"

static const char usage[] =
	"usage: quire model info DIR [--json]\n"
	"       quire model eval DIR --ids FILE --logits OUT [--chunk N] [--threads N] [--compute bf16|f32]\n"
	"                        [--latents bf16|fp8|f32] [--topk OUT2] [--isa scalar|avx2|avx512|avx512bf16]\n"
	"                        [--host-experts SIZE] [--device cuda:N [--device-experts SIZE]]\n"
	"                        [--record-trace OUT3]: what routers chose, for `make bench BENCH=policy`\n"
	"       quire model tokenize DIR --text FILE [--added-tokens]\n"
	"       quire model bench DIR --prompt N --decode M [--depth N] [--threads N] [--compute bf16|f32]\n"
	"                        [--latents bf16|fp8|f32] [--repeat R] [--chunk N] [--json]\n"
	"                        [--isa scalar|avx2|avx512|avx512bf16] [--host-experts SIZE]: memory for routed experts;\n"
	"                        those that do not fit are read when they are chosen\n"
	"                        [--device cuda:N [--device-experts SIZE]]: what computes routed experts in its own memory\n"
	"       quire model verify DIR [--host-experts SIZE]: read every routed expert; its checksum is noted in the store's\n"
	"                        directory, or compared with the one that is there\n"
	"       quire model pack DIR OUT [--format int4-g64] [--threads N]: routed experts to int4, with their checksums, into\n"
	"                        a new directory that is read like DIR\n"
	"       quire model synth OUT --moe-layers K --dense-layers D [--format fp8|bf16|int4] [--seed S] [--threads N]\n"
	"                        [--schedule glm52|full] [--hidden N] [--heads N] [--q-lora N] [--kv-lora N] [--nope N]\n"
	"                        [--rope N] [--v N] [--dense-dim N] [--expert-dim N] [--experts N]\n"
	"                        [--experts-per-token N] [--index-heads N] [--index-dim N] [--index-topk N] [--vocab N]\n"
	"                        [--max-positions N]: seeded random weights; what is not named is GLM-5.2's\n";

/* Every option of every verb; `known` in parse says whose it is. */
struct options {
	const char *dir, *out, *ids, *logits, *topk, *text, *isa, *trace, *device;
	int64_t chunk, prompt, decode, depth, threads, repeat, host_expert_bytes, device_expert_bytes;
	enum compute_profile compute;
	enum latent_format latents;
	bool added_tokens, json;
	struct synth_options synth;
};

enum { EVAL = 1, TOKENIZE = 2, BENCH = 4, INFO = 8, SYNTH = 16, VERIFY = 32, PACK = 64 };

/* Dimensions of a synthetic checkpoint; what their values may be together, the reader of config.json says. */
static const struct dimension {
	const char *name;
	size_t field;
	int32_t least;
} dimensions[] = {
	{"dense-layers", offsetof(struct synth_options, n_dense_layers), 0},
	{"moe-layers", offsetof(struct synth_options, n_moe_layers), 0},
	{"hidden", offsetof(struct synth_options, hidden), 1},
	{"heads", offsetof(struct synth_options, n_heads), 1},
	{"q-lora", offsetof(struct synth_options, q_lora), 1},
	{"kv-lora", offsetof(struct synth_options, kv_lora), 1},
	{"nope", offsetof(struct synth_options, nope_dim), 1},
	{"rope", offsetof(struct synth_options, rope_dim), 1},
	{"v", offsetof(struct synth_options, v_dim), 1},
	{"dense-dim", offsetof(struct synth_options, dense_dim), 1},
	{"expert-dim", offsetof(struct synth_options, expert_dim), 1},
	{"experts", offsetof(struct synth_options, n_experts), 1},
	{"experts-per-token", offsetof(struct synth_options, experts_per_token), 1},
	{"index-heads", offsetof(struct synth_options, index_n_heads), 1},
	{"index-dim", offsetof(struct synth_options, index_dim), 1},
	{"index-topk", offsetof(struct synth_options, index_topk), 1},
	{"vocab", offsetof(struct synth_options, vocab), 1},
};

enum { N_DIMENSIONS = sizeof dimensions / sizeof dimensions[0] };

static int parse_count(const char *name, const char *text, int64_t least, int64_t most, int64_t *out, struct err *err)
{
	char *end;
	long long value;

	errno = 0;
	value = strtoll(text, &end, 10);
	if (end == text || *end || errno || value < least || value > most)
		return err_set(err, ERR_USAGE, "--%s: '%s' is not a number from %lld to %lld", name, text,
			       (long long)least, (long long)most);
	*out = value;
	return 0;
}

static int parse_synth_option(struct synth_options *s, const char *name, const char *value, struct err *err)
{
	int64_t number = 0;
	int i;

	if (!strcmp(name, "format")) {
		i = synth_format_from_name(value);
		if (i < 0)
			return err_set(err, ERR_USAGE, "--format: '%s' is none of fp8, bf16, int4", value);
		s->format = (enum synth_format)i;
	} else if (!strcmp(name, "schedule")) {
		i = synth_schedule_from_name(value);
		if (i < 0)
			return err_set(err, ERR_USAGE, "--schedule: '%s' is neither glm52 nor full", value);
		s->schedule = (enum synth_schedule)i;
	} else if (!strcmp(name, "seed")) {
		if (parse_count(name, value, 0, INT64_MAX, &number, err))
			return -1;
		s->seed = (uint64_t)number;
	} else if (!strcmp(name, "max-positions")) {
		return parse_count(name, value, 1, INT32_MAX, &s->max_positions, err);
	}
	for (i = 0; i < N_DIMENSIONS; i++) {
		if (strcmp(name, dimensions[i].name))
			continue;
		if (parse_count(name, value, dimensions[i].least, 1 << 24, &number, err))
			return -1;
		*(int32_t *)((char *)s + dimensions[i].field) = (int32_t)number;
	}
	return 0;
}

static int parse_option(struct options *o, int verb, const char *name, const char *value, struct err *err)
{
	int i;

	if (verb == PACK && !strcmp(name, "format"))
		return strcmp(value, "int4-g64") ? err_set(err, ERR_USAGE, "--format: '%s' is not int4-g64, the one there is", value) : 0;
	if (!strcmp(name, "ids"))
		o->ids = value;
	else if (!strcmp(name, "logits"))
		o->logits = value;
	else if (!strcmp(name, "topk"))
		o->topk = value;
	else if (!strcmp(name, "record-trace"))
		o->trace = value;
	else if (!strcmp(name, "text"))
		o->text = value;
	else if (!strcmp(name, "isa"))
		o->isa = value;
	else if (!strcmp(name, "added-tokens"))
		o->added_tokens = true;
	else if (!strcmp(name, "json"))
		o->json = true;
	else if (!strcmp(name, "host-experts"))
		return bytes_parse(&o->host_expert_bytes, value, err) ? err_wrap(err, "--host-experts") : 0;
	else if (!strcmp(name, "device"))
		o->device = value;
	else if (!strcmp(name, "device-experts"))
		return bytes_parse(&o->device_expert_bytes, value, err) ? err_wrap(err, "--device-experts") : 0;
	else if (!strcmp(name, "chunk"))
		return parse_count(name, value, 0, INT32_MAX, &o->chunk, err);
	else if (!strcmp(name, "prompt"))
		return parse_count(name, value, 1, INT32_MAX, &o->prompt, err);
	else if (!strcmp(name, "decode"))
		return parse_count(name, value, 0, INT32_MAX, &o->decode, err);
	else if (!strcmp(name, "depth"))
		return parse_count(name, value, 0, INT32_MAX, &o->depth, err);
	else if (!strcmp(name, "threads"))
		return parse_count(name, value, 1, 1024, &o->threads, err);
	else if (!strcmp(name, "repeat"))
		return parse_count(name, value, 1, 10000, &o->repeat, err);
	else if (!strcmp(name, "compute")) {
		i = compute_profile_from_name(value);
		if (i < 0)
			return err_set(err, ERR_USAGE, "--compute: '%s' is neither f32 nor bf16", value);
		o->compute = (enum compute_profile)i;
	} else if (!strcmp(name, "latents")) {
		i = latent_format_from_name(value);
		if (i < 0)
			return err_set(err, ERR_USAGE, "--latents: '%s' is none of bf16, fp8, f32", value);
		o->latents = (enum latent_format)i;
	}
	return parse_synth_option(&o->synth, name, value, err);
}

static int parse(struct options *o, int verb, int argc, char **argv, struct err *err)
{
	static const struct {
		int verbs;
		struct option option;
	} known[] = {
		{EVAL, {"ids", required_argument, NULL, 0}},
		{EVAL, {"logits", required_argument, NULL, 0}},
		{EVAL, {"topk", required_argument, NULL, 0}},
		{EVAL, {"record-trace", required_argument, NULL, 0}},
		{EVAL | BENCH, {"chunk", required_argument, NULL, 0}},
		{EVAL | BENCH | SYNTH | PACK, {"threads", required_argument, NULL, 0}},
		{EVAL | BENCH, {"compute", required_argument, NULL, 0}},
		{EVAL | BENCH, {"latents", required_argument, NULL, 0}},
		{EVAL | BENCH, {"isa", required_argument, NULL, 0}},
		{EVAL | BENCH | VERIFY, {"host-experts", required_argument, NULL, 0}},
		{EVAL | BENCH, {"device", required_argument, NULL, 0}},
		{EVAL | BENCH, {"device-experts", required_argument, NULL, 0}},
		{TOKENIZE, {"text", required_argument, NULL, 0}},
		{TOKENIZE, {"added-tokens", no_argument, NULL, 0}},
		{BENCH, {"prompt", required_argument, NULL, 0}},
		{BENCH, {"decode", required_argument, NULL, 0}},
		{BENCH, {"depth", required_argument, NULL, 0}},
		{BENCH, {"repeat", required_argument, NULL, 0}},
		{BENCH | INFO, {"json", no_argument, NULL, 0}},
		{SYNTH | PACK, {"format", required_argument, NULL, 0}},
		{SYNTH, {"schedule", required_argument, NULL, 0}},
		{SYNTH, {"seed", required_argument, NULL, 0}},
		{SYNTH, {"max-positions", required_argument, NULL, 0}},
	};
	struct option options[sizeof known / sizeof known[0] + N_DIMENSIONS + 1] = {{0}};
	int n = 0, index = 0, c;

	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
		if (known[i].verbs & verb)
			options[n++] = known[i].option;
	for (int i = 0; i < N_DIMENSIONS && verb == SYNTH; i++)
		options[n++] = (struct option){dimensions[i].name, required_argument, NULL, 0};
	*o = (struct options){.repeat = 3, .compute = COMPUTE_BF16, .latents = LATENTS_BF16, .synth = synth_glm52};
	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":", options, &index)) != -1) {
		if (c == ':')
			return err_set(err, ERR_USAGE, "%s needs a value", argv[optind - 1]);
		if (c)
			return err_set(err, ERR_USAGE, "model %s: unknown option '%s'", argv[0], argv[optind - 1]);
		if (parse_option(o, verb, options[index].name, optarg, err))
			return -1;
	}
	if (verb == PACK && optind != argc - 2)
		return err_set(err, ERR_USAGE, "model pack: two directories, please: the model's, and one that is made");
	if (verb != PACK && optind != argc - 1)
		return err_set(err, ERR_USAGE, "model %s: %s", argv[0],
			       optind == argc ? "the model's directory is missing" : "one directory, please");
	o->dir = argv[optind];
	o->out = argv[optind + 1]; /* NULL at the end */
	return 0;
}

static double now(void)
{
	return (double)clock_now_ns() * 1e-9;
}

/* ---- eval ---- */

static int parse_ids(struct ids *ids, const char *path, const char *text, size_t bytes, struct err *err)
{
	static const char space[] = " \t\r\n\f\v";
	const char *p = text + strspn(text, space);

	while (*p) {
		char *end;
		long value;

		errno = 0;
		value = strtol(p, &end, 10);
		if (end == p || (*end && !strchr(space, *end)) || errno || value < 0 || value > INT32_MAX)
			return err_set(err, ERR_USAGE, "%s: byte %td: '%.20s' is not a token id", path, p - text, p);
		ids_push(ids, (int32_t)value);
		p = end + strspn(end, space);
	}
	if ((size_t)(p - text) != bytes)
		return err_set(err, ERR_USAGE, "%s: byte %td: a NUL byte is not a token id", path, p - text);
	return ids->n ? 0 : err_set(err, ERR_USAGE, "%s: no token ids", path);
}

static int read_ids(struct ids *ids, const char *path, struct err *err)
{
	size_t bytes;
	char *text;
	int status;

	if (file_read(&text, &bytes, path, (size_t)1 << 30, err))
		return -1;
	status = parse_ids(ids, path, text, bytes, err);
	free(text);
	return status;
}

struct eval_output {
	FILE *logits, *topk;
	const struct options *o;
	const struct model_config *config;
	size_t vocab;
	struct trace *trace; /* NULL: not recorded */
};

static int write_logits(void *ctx, int64_t position, const float *row, struct err *err)
{
	struct eval_output *out = ctx;

	(void)position;
	if (fwrite(row, sizeof *row, out->vocab, out->logits) != out->vocab)
		return err_errno(err, errno, "write %s", out->o->logits);
	return 0;
}

static int write_set(void *ctx, int32_t layer, int64_t position, const int32_t *set, int32_t n, struct err *err)
{
	struct eval_output *out = ctx;

	fprintf(out->topk, "{\"layer\":%d,\"pos\":%lld,\"set\":[", layer, (long long)position);
	for (int32_t i = 0; i < n; i++)
		fprintf(out->topk, i ? ",%d" : "%d", set[i]);
	if (fprintf(out->topk, "]}\n") < 0)
		return err_errno(err, errno, "write %s", out->o->topk);
	return 0;
}

static int open_output(FILE **out, const char *path, struct err *err)
{
	*out = fopen(path, "wb");
	return *out ? 0 : err_errno(err, errno, "create %s", path);
}

static int close_output(FILE *f, const char *path, struct err *err)
{
	return f && fclose(f) ? err_errno(err, errno, "write %s", path) : 0;
}

/* Beside a device host memory has all experts where nobody says how many. */
static int open_beside(const struct options *o, struct engine *e, struct experts_options *experts, struct cost *cost, struct err *err)
{
	struct model *headers;
	int rc;

	experts->device = engine_device(e);
	experts->device_bytes = o->device_expert_bytes;
	experts->bytes = experts->bytes ? experts->bytes : INT64_MAX;
	if (model_open_headers(&headers, o->dir, NULL, err))
		return -1;
	rc = headers->config.n_experts ? tune_get(cost, e, headers, experts->device, NULL, NULL, err) : 0;
	experts->cost = headers->config.n_experts ? cost : NULL;
	model_close(headers);
	return rc;
}

static int open_all(const struct options *o, struct engine **e, struct model **m, struct err *err)
{
	struct engine_options engine = {.n_threads = (int)o->threads, .compute = o->compute, .isa = o->isa, .device = o->device};
	struct experts_options experts = {.bytes = o->host_expert_bytes};
	struct model_options model = {.n_threads = (int)o->threads};
	struct cost cost;

	if (engine_open(e, &engine, err) || (o->device && open_beside(o, *e, &experts, &cost, err)))
		return -1;
	model.experts = experts.bytes ? &experts : NULL;
	return model_open(m, o->dir, &model, err);
}

/* Steps are numbered by layers that have experts. */
static int record_choice(void *ctx, int32_t layer, int64_t position, const float *scores, const int32_t *chosen,
			 struct err *err)
{
	struct eval_output *out = ctx;
	int32_t step = 0;

	(void)err;
	for (int32_t i = 0; i < layer; i++)
		step += !out->config->layer_is_dense[i];
	trace_put(out->trace, position, step, scores, chosen);
	return 0;
}

static struct trace *new_trace(const struct model_config *c)
{
	int32_t layers = 0, listed = 2 * c->experts_per_token < c->n_experts ? 2 * c->experts_per_token : c->n_experts;

	for (int32_t i = 0; i < c->n_layers; i++)
		layers += !c->layer_is_dense[i];
	return trace_new(layers, c->n_experts, c->experts_per_token, listed);
}

static int write_trace(const struct trace *t, const char *path, struct err *err)
{
	FILE *f = NULL;

	if (open_output(&f, path, err))
		return -1;
	if (trace_write(f, t)) {
		fclose(f);
		return err_errno(err, errno, "write %s", path);
	}
	return close_output(f, path, err);
}

static int eval(const struct options *o, struct err *err)
{
	struct session_options session = {.latents = o->latents};
	struct eval_output out = {.o = o};
	struct session_tap tap = {&out, write_logits, o->topk ? write_set : NULL, o->trace ? record_choice : NULL};
	struct engine *e = NULL;
	struct model *m = NULL;
	struct session *s = NULL;
	struct ids ids = {0};
	int status = -1;

	if (!o->ids || !o->logits)
		return err_set(err, ERR_USAGE, "model eval: --ids FILE and --logits OUT are needed");
	if (read_ids(&ids, o->ids, err) || open_all(o, &e, &m, err) || session_new(&s, e, m, &session, err) ||
	    open_output(&out.logits, o->logits, err) || (o->topk && open_output(&out.topk, o->topk, err)))
		goto out;
	out.vocab = (size_t)m->config.vocab;
	out.config = &m->config;
	if (o->trace && !m->config.n_experts) {
		err_set(err, ERR_USAGE, "--record-trace: %s has no routed experts", o->dir);
		goto out;
	}
	out.trace = o->trace ? new_trace(&m->config) : NULL;
	for (size_t i = 0, n; i < ids.n; i += n) {
		n = o->chunk && ids.n - i > (size_t)o->chunk ? (size_t)o->chunk : ids.n - i;
		if (session_append(s, ids.id + i, n, NULL, &tap, err))
			goto out;
	}
	status = out.trace ? write_trace(out.trace, o->trace, err) : 0;
out:
	trace_free(out.trace);
	/* A write that fails at the end counts, unless there is an earlier error to tell. */
	if (close_output(out.logits, o->logits, status ? NULL : err))
		status = -1;
	if (close_output(out.topk, o->topk, status ? NULL : err))
		status = -1;
	session_free(s);
	model_close(m);
	engine_close(e);
	ids_free(&ids);
	return status;
}

/* ---- tokenize ---- */

static int tokenize(const struct options *o, struct err *err)
{
	struct tokenizer *t = NULL;
	struct ids ids = {0};
	char *path = xasprintf("%s/tokenizer.json", o->dir), *text = NULL;
	size_t bytes;
	int status = -1;

	if (!o->text) {
		err_set(err, ERR_USAGE, "model tokenize: --text FILE is needed");
		goto out;
	}
	if (file_read(&text, &bytes, o->text, (size_t)1 << 31, err) || tokenizer_open(&t, path, err) ||
	    tokenizer_encode(t, &ids, text, bytes, o->added_tokens ? TOKENIZER_ADDED_TOKENS : 0, err))
		goto out;
	for (size_t i = 0; i < ids.n; i++)
		printf(i ? " %d" : "%d", ids.id[i]);
	putchar('\n');
	status = 0;
out:
	tokenizer_close(t);
	ids_free(&ids);
	free(text);
	free(path);
	return status;
}

/* ---- bench ---- */

struct bench_round {
	double prefill_s, first_token_s, decode_s;
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *x, int64_t n)
{
	qsort(x, (size_t)n, sizeof *x, by_value);
	return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static int32_t greatest(const float *logits, int32_t n)
{
	int32_t best = 0;

	for (int32_t i = 1; i < n; i++)
		if (logits[i] > logits[best])
			best = i;
	return best;
}

/* The prompt in chunks, then decode, from the session's present length and back to it. */
static int run_round(struct bench_round *r, const struct options *o, struct session *s, const struct model *m,
		     const int32_t *prompt, float *logits, struct err *err)
{
	int64_t chunk = o->chunk ? o->chunk : 512, depth = session_n_tokens(s);
	double start = now(), prefilled;

	for (int64_t i = 0, n; i < o->prompt; i += n) {
		n = o->prompt - i < chunk ? o->prompt - i : chunk;
		if (session_append(s, prompt + i, (size_t)n, i + n == o->prompt ? logits : NULL, NULL, err))
			return -1;
	}
	prefilled = now();
	r->prefill_s = prefilled - start;
	for (int64_t i = 0; i < o->decode; i++) {
		int32_t id = greatest(logits, m->config.vocab);

		if (!i)
			r->first_token_s = now() - start;
		if (session_append(s, &id, 1, logits, NULL, err))
			return -1;
	}
	r->decode_s = now() - prefilled;
	session_truncate(s, depth);
	return 0;
}

static void print_bench(const struct options *o, const struct engine *e, const struct model *m,
			const struct bench_round *r, double fill_s, size_t latent_bytes)
{
	double *x = xcalloc((size_t)o->repeat, sizeof *x), prefill, decode, first;
	struct experts_stats tier;
	struct rusage spent;

	for (int64_t i = 0; i < o->repeat; i++)
		x[i] = (double)o->prompt / r[i].prefill_s;
	prefill = median(x, o->repeat);
	for (int64_t i = 0; i < o->repeat; i++)
		x[i] = o->decode ? r[i].first_token_s : r[i].prefill_s;
	first = median(x, o->repeat);
	for (int64_t i = 0; i < o->repeat; i++)
		x[i] = o->decode ? (double)o->decode / r[i].decode_s : 0;
	decode = median(x, o->repeat);
	free(x);
	getrusage(RUSAGE_SELF, &spent);
	if (o->json) {
		printf("{\"type\":\"bench\",\"v\":1,\"prefill_tokens_per_s\":%.4g,\"decode_tokens_per_s\":%.4g,"
		       "\"first_token_s\":%.6g,\"peak_memory_bytes\":%lld,\"read_bytes\":{\"disk\":%llu},"
		       "\"latent_bytes\":%zu,\"prompt\":%lld,\"decode\":%lld,\"depth\":%lld,\"depth_filled\":%s,"
		       "\"repeat\":%lld,\"threads\":%d,\"isa\":\"%s\",\"compute\":\"%s\",\"latents\":\"%s\"}\n",
		       prefill, decode, first, (long long)spent.ru_maxrss * 1024,
		       (unsigned long long)m->loaded_bytes, latent_bytes, (long long)o->prompt, (long long)o->decode,
		       (long long)o->depth, o->depth ? "true" : "false", (long long)o->repeat, engine_n_threads(e),
		       engine_isa(e), compute_profile_name(o->compute), latent_format_name(o->latents));
		return;
	}
	printf("prefill      %12.1f tokens/s   %lld tokens, median of %lld\n", prefill, (long long)o->prompt,
	       (long long)o->repeat);
	if (o->decode)
		printf("decode       %12.1f tokens/s   %lld tokens\n", decode, (long long)o->decode);
	printf("first token  %12.3f ms\n", first * 1e3);
	printf("peak memory  %12.1f MB         latents %.1f MB\n", (double)spent.ru_maxrss * 1.024e-3,
	       (double)latent_bytes / 1e6);
	printf("read         %12.1f MB         from disk, once, at load\n", (double)m->loaded_bytes / 1e6);
	if (o->depth)
		printf("depth        %12lld tokens     filled with random latents in %.1f s, not computed\n",
		       (long long)o->depth, fill_s);
	if (m->experts) {
		experts_stats(m->experts, &tier);
		printf("experts      %12lld slots      of %.1f MB for %lld experts, over %s\n", (long long)tier.n_slots,
		       (double)tier.slot_bytes / 1e6, (long long)tier.n_experts, tier.backend);
		printf("             %12.1f %%          resident when wanted; %lld read (%.1f GB), %lld ahead, %lld of those in time, waited %.1f s\n",
		       100.0 * (double)tier.hits / (double)(tier.taken ? tier.taken : 1), (long long)tier.reads,
		       (double)tier.read_bytes / 1e9, (long long)tier.ahead, (long long)tier.useful, tier.waited_s);
		if (tier.device_slots)
			printf("device       %12lld slots      %s: %lld experts there, %lld alone; %lld computed there, %lld moved, "
			       "%lld raised, %lld lowered\n", (long long)tier.device_slots, tier.device,
			       (long long)tier.device_resident, (long long)tier.device_alone, (long long)tier.device_hits,
			       (long long)tier.moved, (long long)tier.raised, (long long)tier.lowered);
	}
	printf("on           %d threads, %s, compute %s, latents %s\n", engine_n_threads(e), engine_isa(e),
	       compute_profile_name(o->compute), latent_format_name(o->latents));
}

static int bench(const struct options *o, struct err *err)
{
	struct session_options session = {.latents = o->latents};
	struct bench_round *rounds = xcalloc((size_t)o->repeat, sizeof *rounds);
	struct engine *e = NULL;
	struct model *m = NULL;
	struct session *s = NULL;
	int32_t *prompt = NULL;
	float *logits = NULL;
	double fill_s;
	uint32_t seed = 1;
	int status = -1;

	if (!o->prompt) {
		err_set(err, ERR_USAGE, "model bench: --prompt N is needed, at least 1");
		goto out;
	}
	if (open_all(o, &e, &m, err) || session_new(&s, e, m, &session, err))
		goto out;
	logits = xcalloc((size_t)m->config.vocab, sizeof *logits);
	prompt = xcalloc((size_t)o->prompt, sizeof *prompt);
	for (int64_t i = 0; i < o->prompt; i++) {
		seed = seed * 1664525u + 1013904223u;
		prompt[i] = (int32_t)((uint64_t)seed * (uint64_t)m->config.vocab >> 32);
	}
	fill_s = now();
	if (o->depth && session_fill(s, o->depth, 1, err))
		goto out;
	fill_s = now() - fill_s;
	for (int64_t i = 0; i < o->repeat; i++)
		if (run_round(&rounds[i], o, s, m, prompt, logits, err))
			goto out;
	print_bench(o, e, m, rounds, fill_s, session_bytes(s));
	status = 0;
out:
	free(rounds);
	free(prompt);
	free(logits);
	session_free(s);
	model_close(m);
	engine_close(e);
	return status;
}

/* ---- verify and pack ---- */

struct progress {
	const char *verb;
	int64_t told;
};

static void print_progress(void *ctx, int64_t done, int64_t of)
{
	struct progress *p = ctx;

	if (done * 20 / of == p->told && done != of)
		return;
	p->told = done * 20 / of;
	fprintf(stderr, "%-9s %3lld %%  %lld of %lld experts\n", p->verb, (long long)(100 * done / of), (long long)done, (long long)of);
}

static int verify(const struct options *o, struct err *err)
{
	struct experts_options experts = {.bytes = o->host_expert_bytes ? o->host_expert_bytes : (int64_t)1 << 30};
	struct model_options opt = {.experts = &experts};
	struct experts_stats stats;
	struct config config;
	struct model *m = NULL;
	struct progress progress = {"verify", 0};
	char *sums;
	double start = now();
	int failed;

	if (config_load(&config, NULL, err))
		return -1;
	experts.sums_path = sums = xasprintf("%s/expert-sums", config.store.path);
	/* Nothing else is loaded, so that any machine can do it. */
	failed = file_make_directories(config.store.path, err) || model_open_experts(&m, o->dir, &opt, err);
	if (!failed && !m->experts)
		failed = err_set(err, ERR_USAGE, "%s has no routed experts", o->dir);
	failed = failed || experts_verify(m->experts, print_progress, &progress, err);
	if (!failed) {
		experts_stats(m->experts, &stats);
		printf("%lld experts are as they should be, %.1f GB read in %.1f s; their checksums %s %s\n",
		       (long long)stats.n_experts, (double)stats.read_bytes / 1e9, now() - start,
		       stats.sums_shipped ? "came with" : "are in", stats.sums_shipped ? o->dir : sums);
	}
	model_close(m);
	free(sums);
	config_free(&config);
	return failed ? -1 : 0;
}

static int pack(const struct options *o, struct err *err)
{
	struct progress progress = {"pack", 0};
	const struct pack_options opt = {.n_threads = (int)o->threads, .report = print_progress, .ctx = &progress};
	struct pack_report r;
	struct err why;
	double disk = 0;
	int measured;

	signal(SIGXFSZ, SIG_IGN); /* a limit on files is then an error of the write */
	if (model_pack(o->dir, o->out, &opt, &r, err))
		return -1;
	measured = !rates_disk(o->dir, &disk, &why);
	printf("%s: %lld experts, %.3f GB to %.3f GB of int4, %.3f GB of other tensors copied, in %.1f s\n", o->out,
	       (long long)r.n_experts, (double)r.read_bytes / 1e9, (double)r.packed_bytes / 1e9, (double)r.copied_bytes / 1e9, r.seconds);
	printf("experts      %12.2f GB/s       read, packed by %d threads, and %.2f GB/s written and synced\n",
	       (double)r.read_bytes / r.expert_seconds / 1e9, r.n_threads, (double)r.packed_bytes / r.expert_seconds / 1e9);
	if (measured)
		printf("disk         %12.2f GB/s       reads of %s past the page cache and nothing else\n", disk / 1e9, o->dir);
	else
		printf("disk          not measured       %s\n", why.text);
	printf("error        %12.4f            of all weights, root mean square over root mean square; %.4f in layer %d, the largest\n",
	       r.error, r.worst_error, r.worst_layer);
	return 0;
}

/* ---- synth ---- */

static int synth(const struct options *o, struct err *err)
{
	struct synth_options opt = o->synth;
	struct synth_report report;
	double start = now(), seconds;

	if (!opt.n_dense_layers && !opt.n_moe_layers)
		return err_set(err, ERR_USAGE, "model synth: --moe-layers K and --dense-layers D are needed, one layer in "
			       "all at least");
	opt.n_threads = (int)o->threads;
	if (synth_write(o->dir, &opt, &report, err))
		return -1;
	seconds = now() - start;
	printf("%s: %d tensors, %.3f GB in %d shards, written and synced in %.1f s (%.2f GB/s)\n", o->dir, report.n_tensors,
	       (double)report.bytes / 1e9, report.n_shards, seconds, (double)report.bytes / seconds / 1e9);
	return 0;
}

int model_verb(int argc, char **argv)
{
	struct err err = {0};
	struct options o;
	int status;

	if (argc < 1) {
		fputs(usage, stderr);
		return err_exit_status(ERR_USAGE);
	}
	if (!strcmp(argv[0], "eval"))
		status = parse(&o, EVAL, argc, argv, &err) || eval(&o, &err);
	else if (!strcmp(argv[0], "tokenize"))
		status = parse(&o, TOKENIZE, argc, argv, &err) || tokenize(&o, &err);
	else if (!strcmp(argv[0], "bench"))
		status = parse(&o, BENCH, argc, argv, &err) || bench(&o, &err);
	else if (!strcmp(argv[0], "info"))
		status = parse(&o, INFO, argc, argv, &err) || model_info_print(stdout, o.dir, o.json, &err);
	else if (!strcmp(argv[0], "verify"))
		status = parse(&o, VERIFY, argc, argv, &err) || verify(&o, &err);
	else if (!strcmp(argv[0], "pack"))
		status = parse(&o, PACK, argc, argv, &err) || pack(&o, &err);
	else if (!strcmp(argv[0], "synth"))
		status = parse(&o, SYNTH, argc, argv, &err) || synth(&o, &err);
	else
		status = err_set(&err, ERR_USAGE, "model: no verb '%s'; there are info, eval, tokenize, bench, verify, pack and synth",
				 argv[0]);
	if (!status && (fflush(stdout) || ferror(stdout)))
		status = err_errno(&err, errno, "write standard output");
	if (!status)
		return 0;
	fprintf(stderr, "quire: %s\n", err.text);
	if (err.code == ERR_USAGE)
		fputs(usage, stderr);
	return err_exit_status(err.code);
}
