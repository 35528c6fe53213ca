#include "engine/plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/mem.h"
#include "config/units.h"
#include "config/yaml.h"
#include "engine/sweep.h"

static const char *const weights_names[N_PLAN_WEIGHTS] = {"fp8", "bf16", "int4"};
static const char *const tier_names[N_PLAN_TIERS] = {"gpu", "host", "disk"};

/* Bytes of a parameter: of routed experts, of other matrices. FP8 has a float32 scale for 128 x 128, int4 a bf16 one for 64
 * inputs; with int4 experts the rest stays FP8. Embedding, head, router and norms are bf16 in all of them. */
static const double expert_size[N_PLAN_WEIGHTS] = {1 + 4.0 / (128 * 128), 2, 4.25 / 8};
static const double matrix_size[N_PLAN_WEIGHTS] = {1 + 4.0 / (128 * 128), 2, 1 + 4.0 / (128 * 128)};

enum { WORK_MOST = 1 << 30, WORK_LEAST = 64 << 20 };

const char *plan_weights_name(enum plan_weights w)
{
	return weights_names[w];
}

int plan_weights_from_name(const char *name)
{
	for (int i = 0; i < N_PLAN_WEIGHTS; i++)
		if (!strcmp(name, weights_names[i]))
			return i;
	return -1;
}

const char *plan_tier_name(enum plan_tier t)
{
	return tier_names[t];
}

/* ---- a machine from a file -------------------------------------------------------------------------------------- */

enum machine_key_kind { KEY_TEXT, KEY_COUNT, KEY_BYTES, KEY_RATE, KEY_TFLOPS, KEY_RUNS };

static const struct machine_key {
	const char *name;
	enum machine_key_kind kind;
	size_t field;
	bool may_be_missing, of_gpus;          /* always, or without GPUs */
} machine_keys[] = {
#define FIELD(f) offsetof(struct plan_machine, f)
	{"name", KEY_TEXT, FIELD(name), false, false},
	{"gpus", KEY_COUNT, FIELD(n_gpus), false, true},
	{"gpu_memory", KEY_BYTES, FIELD(gpu_bytes), false, true},
	{"gpu_read", KEY_RATE, FIELD(gpu_read), false, true},
	{"gpu_tflops", KEY_TFLOPS, FIELD(gpu_flops), false, true},
	{"gpus_run", KEY_RUNS, FIELD(gpus_run_experts), true, true},
	{"link_read", KEY_RATE, FIELD(link_read), false, true},
	{"host_memory", KEY_BYTES, FIELD(host_bytes), false, false},
	{"host_read", KEY_RATE, FIELD(host_read), false, false},
	{"host_tflops", KEY_TFLOPS, FIELD(host_flops), false, false},
	{"disk_memory", KEY_BYTES, FIELD(disk_bytes), false, false},
	{"disk_read", KEY_RATE, FIELD(disk_read), false, false},
#undef FIELD
};

enum { N_MACHINE_KEYS = sizeof machine_keys / sizeof machine_keys[0] };

static int read_rate(double *out, const char *text, struct err *err)
{
	size_t n = strlen(text);
	int64_t bytes;
	char *size;
	int rc;

	if (n < 3 || strcmp(text + n - 2, "/s"))
		return err_set(err, ERR_USAGE, "\"%s\" is not a rate such as \"7GB/s\"", text);
	size = xasprintf("%.*s", (int)(n - 2), text);
	rc = bytes_parse(&bytes, size, err);
	free(size);
	*out = rc ? 0 : (double)bytes;
	return rc;
}

static int read_value(struct plan_machine *m, const struct machine_key *k, const char *text, struct err *err)
{
	char *field = (char *)m + k->field;

	switch (k->kind) {
	case KEY_TEXT:
		snprintf(m->name, sizeof m->name, "%s", text);
		return 0;
	case KEY_COUNT:
		return count_parse((int64_t *)field, text, 0, 1024, err);
	case KEY_BYTES:
		return bytes_parse((int64_t *)field, text, err);
	case KEY_RATE:
		return read_rate((double *)field, text, err);
	case KEY_TFLOPS:
		if (fraction_parse((double *)field, text, 1e-6, 1e6, err))
			return -1;
		*(double *)field *= 1e12;
		return 0;
	case KEY_RUNS:
		*(bool *)field = !strcmp(text, "experts");
		return *(bool *)field || !strcmp(text, "all") ? 0 : err_set(err, ERR_USAGE, "\"%s\" is neither experts nor all", text);
	}
	return 0;
}

static int read_pair(struct plan_machine *m, struct yaml *y, bool given[N_MACHINE_KEYS], const struct yaml_piece *key,
		     struct err *err)
{
	const char *names[N_MACHINE_KEYS], *nearest;
	struct yaml_place at = key->at;
	struct yaml_piece value;
	struct err why;
	int i = 0;

	while (i < N_MACHINE_KEYS && strcmp(key->text, machine_keys[i].name))
		i++;
	if (i == N_MACHINE_KEYS) {
		for (int k = 0; k < N_MACHINE_KEYS; k++)
			names[k] = machine_keys[k].name;
		nearest = nearest_name(key->text, names, N_MACHINE_KEYS);
		return yaml_refuse(y, at, err, "\"%s\" is no key of a machine%s%s%s", key->text, nearest ? "; is \"" : "",
				   nearest ? nearest : "", nearest ? "\" meant?" : "");
	}
	if (given[i])
		return yaml_refuse(y, at, err, "%s is given twice", machine_keys[i].name);
	given[i] = true;
	if (yaml_next(y, &value, err))
		return -1;
	if (value.kind != YAML_SCALAR)
		return yaml_refuse(y, value.at, err, "%s is no single value", machine_keys[i].name);
	if (read_value(m, &machine_keys[i], value.text, &why))
		return yaml_refuse(y, value.at, err, "%s: %s", machine_keys[i].name, why.text);
	return 0;
}

static int read_machine(struct plan_machine *m, struct yaml *y, const char *path, struct err *err)
{
	bool given[N_MACHINE_KEYS] = {false};
	struct yaml_piece piece;

	if (yaml_next(y, &piece, err))
		return -1;
	if (piece.kind != YAML_MAPPING)
		return yaml_refuse(y, piece.at, err, "a machine is described by lines such as \"host_memory: 128GiB\"");
	for (;;) {
		if (yaml_next(y, &piece, err))
			return -1;
		if (piece.kind == YAML_END)
			break;
		if (read_pair(m, y, given, &piece, err))
			return -1;
	}
	for (int i = 0; i < N_MACHINE_KEYS; i++)
		if (!given[i] && !machine_keys[i].may_be_missing && (!machine_keys[i].of_gpus || m->n_gpus))
			return err_set(err, ERR_USAGE, "%s: %s is missing", path, machine_keys[i].name);
	return 0;
}

int plan_machine_load(struct plan_machine *m, const char *path, struct err *err)
{
	struct yaml *y;
	size_t bytes;
	char *text;
	int rc;

	*m = (struct plan_machine){{0}};
	if (file_read(&text, &bytes, path, YAML_MAX_BYTES, err))
		return -1;
	rc = yaml_open(&y, path, text, bytes, err);
	if (!rc) {
		rc = read_machine(m, y, path, err);
		yaml_close(y);
	}
	free(text);
	return rc;
}

/* ---- the plan --------------------------------------------------------------------------------------------------- */

struct point {
	double share, hits;
};

static double between(const struct point *points, double share)
{
	size_t i = 1;

	if (!(share > 0))
		return 0;
	if (share >= 1)
		return 1;
	while (share > points[i].share)
		i++;
	return points[i - 1].hits + (share - points[i - 1].share) * (points[i].hits - points[i - 1].hits) /
					   (points[i].share - points[i - 1].share);
}

double plan_hits(double share)
{
	/* Measured by others on GLM-5.2 with caches that know the recent past; between .25 and .76 interpolated by them. */
	static const struct point points[] = {{0, 0}, {.05, .24}, {.10, .46}, {.15, .55}, {.18, .60}, {.25, .70},
					      {.33, .78}, {.50, .88}, {.76, .98}, {1, 1}};

	return between(points, share);
}

double plan_hits_least(double share)
{
	/* offload/policy.h over trace preset A, in virtual time (BENCH=policy): of the made-up routers that bracket what was measured
	 * on GLM-5.2, the one with less locality. To .15 what was measured is less. */
	static const struct point points[] = {{0, 0}, {.05, .24}, {.10, .46}, {.15, .54}, {.25, .63}, {.33, .69},
					      {.50, .79}, {.75, .91}, {.90, .965}, {1, 1}};

	return between(points, share);
}

double plan_expert_bytes(const struct plan_model *m, enum plan_weights weights)
{
	return (double)m->expert_parameters * expert_size[weights];
}

static void count_bytes(struct plan *p, const struct plan_model *m, const struct plan_options *opt)
{
	double common = 0;
	bool rounded = opt->latents == LATENTS_FP8;

	for (int i = 0; i < N_PLAN_COMPONENTS; i++) {
		bool bf16 = i == PLAN_EMBEDDING || i == PLAN_HEAD || i == PLAN_ROUTER || i == PLAN_NORMS;

		if (i != PLAN_ROUTED && i != PLAN_MTP)
			common += (double)m->parameters[i] * (bf16 ? 2 : matrix_size[opt->weights]);
	}
	if (!m->known)
		common = (double)m->total * matrix_size[opt->weights];
	p->common_bytes = (uint64_t)common;
	p->expert_bytes = (uint64_t)plan_expert_bytes(m, opt->weights);
	p->routed_bytes = (uint64_t)((double)m->parameters[PLAN_ROUTED] * expert_size[opt->weights]);
	/* As stored (layout.h): MLA rows, or K and V as bf16 where there is no MLA. */
	if (m->mla_layers && rounded)
		p->latent_bytes_per_token = (uint64_t)(m->mla_layers * (m->kv_lora + 4 * ((m->kv_lora + 127) / 128) + 2 * m->rope_dim));
	else
		p->latent_bytes_per_token = 2 * m->kv_numbers;
	p->index_bytes_per_token = 2 * m->index_numbers;
	p->context_bytes = (uint64_t)p->context * p->index_bytes_per_token;
	p->context_bytes += m->attended && (double)opt->latent_cache_bytes < (double)p->context * (double)p->latent_bytes_per_token
				    ? (uint64_t)opt->latent_cache_bytes
				    : (uint64_t)p->context * p->latent_bytes_per_token;
}

/* Scratch memory, buffers, threads: an eighth of the model, within reason. */
static double work_bytes(const struct plan *p)
{
	double bytes = ((double)p->common_bytes + (double)p->routed_bytes) / 8;

	return bytes < WORK_LEAST ? WORK_LEAST : bytes > WORK_MOST ? WORK_MOST : bytes;
}

/* Who has what every token uses, and the context. */
static enum plan_tier near_tier(const struct plan_machine *k)
{
	return k->n_gpus && !k->gpus_run_experts ? PLAN_GPU : PLAN_HOST;
}

/* What every token uses and the context have their tier; experts fill what is left, fastest first. */
static void place(struct plan *p, const struct plan_machine *k)
{
	double room[N_PLAN_TIERS] = {(double)k->n_gpus * .9 * (double)k->gpu_bytes, (double)k->host_bytes, (double)k->disk_bytes};
	double need = (double)p->common_bytes + (double)p->context_bytes + work_bytes(p), left = (double)p->routed_bytes;
	enum plan_tier near = near_tier(k);
	char a[UNITS_TEXT_BYTES + 8], b[UNITS_TEXT_BYTES + 8];

	p->fits = true;
	p->tier_bytes[near] = (uint64_t)need;
	if (need > room[near]) {
		snprintf(a, sizeof a, "%.1f GB", need / 1e9);
		snprintf(b, sizeof b, "%.1f GB", room[near] / 1e9);
		snprintf(p->why, sizeof p->why, "weights that every token uses, the context and work space take %s, and %s has %s", a,
			 near == PLAN_GPU ? "the memory of the GPUs" : "host memory", b);
		p->fits = false;
	}
	room[near] = room[near] > need ? room[near] - need : 0;
	for (int t = k->n_gpus ? PLAN_GPU : PLAN_HOST; t < N_PLAN_TIERS; t++) {
		double whole = p->expert_bytes ? floor(room[t] / (double)p->expert_bytes) * (double)p->expert_bytes : 0;
		double here = left < whole ? left : whole;

		if (t == PLAN_DISK)
			here = left; /* where the files are */
		p->tier_bytes[t] += (uint64_t)here;
		p->expert_share[t] = p->routed_bytes ? here / (double)p->routed_bytes : 0;
		left -= here;
	}
	if (p->fits && p->routed_bytes && (double)p->tier_bytes[PLAN_DISK] > (double)k->disk_bytes) {
		snprintf(p->why, sizeof p->why, "%.1f GB of experts are left for the disk, which has %.1f GB",
			 (double)p->tier_bytes[PLAN_DISK] / 1e9, (double)k->disk_bytes / 1e9);
		p->fits = false;
	}
}

enum { ON_GPU, ON_LINK, ON_HOST, ON_DISK, ON_COMPUTE, N_WAITS };
static const char *const wait_names[N_WAITS] = {"GPU memory", "link", "host memory", "disk", "compute"};

/* Seconds of a token, by what it waits for. */
struct waits {
	double t[N_WAITS];
	double there;                          /* of those, what experts take that are found in memory: a disk can be read meanwhile */
};

static double ratio(double bytes, double rate)
{
	return bytes > 0 ? bytes / (rate > 0 ? rate : 1e-9) : 0;
}

/* Who computes reads as it computes: the rate of reading is that of products with one row. Of the time that it is busy, `experts` bytes
 * of `bytes` are of experts that are there. */
static void wait_near(struct waits *w, int near, double bytes, double experts, double rate, double flops, double flop_rate)
{
	double busy;

	w->t[near] = ratio(bytes, rate);
	w->t[ON_COMPUTE] = ratio(flops, flop_rate);
	busy = w->t[near] > w->t[ON_COMPUTE] ? w->t[near] : w->t[ON_COMPUTE];
	w->there += bytes > 0 ? busy * experts / bytes : 0;
}

/* Of a token: bytes of what every token uses and of the context, bytes of its experts by where they are; operations, and how many of
 * them its experts take. */
struct needs {
	double common, on[N_PLAN_TIERS], flops, expert_flops;
};

/* GPUs run everything, and what comes from the disk as it comes; an expert in host memory is computed there or moved. */
static void wait_for_gpus(struct waits *w, const struct needs *b, const struct plan_machine *k)
{
	double computed = ratio(b->on[PLAN_HOST], k->host_read), moved = ratio(b->on[PLAN_HOST], k->link_read);
	int where = computed < moved ? ON_HOST : ON_LINK;

	w->there = w->t[where] = where == ON_HOST ? computed : moved;
	wait_near(w, ON_GPU, b->common + b->on[PLAN_GPU], b->on[PLAN_GPU], (double)k->n_gpus * k->gpu_read, b->flops,
		  (double)k->n_gpus * k->gpu_flops);
}

/* GPUs run experts alone: those that they have, and those that are moved to them where that is faster than computing them beside. */
static void wait_beside_gpus(struct waits *w, const struct needs *b, const struct plan_machine *k)
{
	double read = (double)k->n_gpus * k->gpu_read, others = b->on[PLAN_HOST] + b->on[PLAN_DISK];
	bool moves = ratio(others, k->link_read) < ratio(others, k->host_read);
	double there = b->on[PLAN_GPU] + (moves ? b->on[PLAN_HOST] : 0), away = moves ? 0 : others;
	double chosen = b->on[PLAN_GPU] + others;

	w->t[ON_GPU] = ratio(chosen - away, read);
	w->t[ON_LINK] = moves ? ratio(others, k->link_read) : 0;
	w->there = ratio(there, read) + (moves ? ratio(b->on[PLAN_HOST], k->link_read) : 0);
	wait_near(w, ON_HOST, b->common + away, moves ? 0 : b->on[PLAN_HOST], k->host_read,
		  b->flops - (chosen > 0 ? b->expert_flops * (1 - away / chosen) : 0), k->host_flops);
}

/* hit[]: shares of a token's experts found in each tier. */
static void wait_for(struct waits *w, const struct plan *p, const struct plan_model *m, const struct plan_machine *k,
		     const double hit[N_PLAN_TIERS])
{
	double chosen = (double)m->n_moe_layers * (double)m->experts_per_token * (double)p->expert_bytes;
	int64_t seen = m->attended && m->attended < p->context ? m->attended : p->context;
	struct needs b = {
		.common = (double)p->common_bytes - 2.0 * (double)m->parameters[PLAN_EMBEDDING] +
			  (double)p->context * (double)p->index_bytes_per_token + (double)seen * (double)p->latent_bytes_per_token,
		.flops = p->flops_weights + p->flops_index + p->flops_attention,
		.expert_flops = 2 * (double)m->used[PLAN_ROUTED],
	};

	for (int t = 0; t < N_PLAN_TIERS; t++)
		b.on[t] = hit[t] * chosen;
	*w = (struct waits){{0}};
	w->t[ON_DISK] = ratio(b.on[PLAN_DISK], k->disk_read);
	if (!k->n_gpus)
		wait_near(w, ON_HOST, b.common + chosen, b.on[PLAN_HOST], k->host_read, b.flops, k->host_flops);
	else if (k->gpus_run_experts)
		wait_beside_gpus(w, &b, k);
	else
		wait_for_gpus(w, &b, k);
}

/* By a curve of hits. Returns the share of experts that is found in memory. */
static double wait_by(struct waits *w, const struct plan *p, const struct plan_model *m, const struct plan_machine *k,
		      double (*hits)(double share))
{
	double gpu = p->expert_share[PLAN_GPU], both = gpu + p->expert_share[PLAN_HOST];
	const double hit[N_PLAN_TIERS] = {
		[PLAN_GPU] = hits(gpu),
		[PLAN_HOST] = hits(both) - hits(gpu),
		[PLAN_DISK] = p->routed_bytes ? 1 - hits(both) : 0,
	};

	wait_for(w, p, m, k, hit);
	return hits(both);
}

static void decode(struct plan *p, const struct plan_model *m, const struct plan_machine *k)
{
	int near = near_tier(k) == PLAN_GPU ? ON_GPU : ON_HOST, longest = 0;
	double found, hidden, sum = 0;
	struct waits w;

	found = wait_by(&w, p, m, k, plan_hits_least);
	w.t[near] = w.t[near] > w.t[ON_COMPUTE] ? w.t[near] : w.t[ON_COMPUTE];
	w.t[ON_COMPUTE] = 0;
	for (int i = 0; i < N_WAITS; i++)
		sum += w.t[i];
	/* In layers that miss something. */
	hidden = (1 - pow(found, (double)m->experts_per_token)) * w.there;
	sum -= hidden < w.t[ON_DISK] ? hidden : w.t[ON_DISK];
	p->low = sum > 0 ? 1 / sum : 0;
	wait_by(&w, p, m, k, plan_hits);
	for (int i = 1; i < N_WAITS; i++)
		longest = w.t[i] > w.t[longest] ? i : longest;
	p->high = w.t[longest] > 0 ? 1 / w.t[longest] : 0;
	p->binds = wait_names[longest];
}

/* How often an ingest reads every expert: once for each chunk that fits into its scratch memory. */
static int64_t count_sweeps(const struct plan *p, const struct plan_model *m, const struct plan_options *opt)
{
	struct sweep_plan sweep;
	struct err err;

	if (!m->runs || sweep_plan(&sweep, &m->config, COMPUTE_BF16, opt->latents, p->context, (size_t)opt->scratch_bytes, &err))
		return 1;
	return sweep.n_chunks;
}

static void ingest(struct plan *p, const struct plan_model *m, const struct plan_machine *k, const struct plan_options *opt)
{
	double n = (double)p->context, attended = (double)(m->attended ? m->attended : 0);
	double before = n <= attended || !attended ? n * n / 2 : attended * n - attended * attended / 2;
	double head = 2.0 * (double)m->used[PLAN_HEAD];
	double flops = n * (p->flops_weights - head) + n * n / 2 * (double)(m->index_flops_per_key + m->unlimited_flops_per_key) +
		       before * (double)m->attention_flops_per_key;
	double away = 1 - (k->n_gpus ? p->expert_share[PLAN_GPU] : p->expert_share[PLAN_HOST]);
	double on_gpus = !k->n_gpus ? 0 : k->gpus_run_experts ? 2 * n * (double)m->used[PLAN_ROUTED] : flops;
	double t[N_WAITS] = {0};
	int longest = ON_COMPUTE;

	p->sweeps = count_sweeps(p, m, opt);
	/* A layer's attention and its experts after it. */
	t[ON_COMPUTE] = ratio(on_gpus, (double)k->n_gpus * k->gpu_flops) + ratio(flops - on_gpus, k->host_flops);
	t[ON_DISK] = ratio((double)p->sweeps * p->expert_share[PLAN_DISK] * (double)p->routed_bytes, k->disk_read);
	if (k->n_gpus)
		t[ON_LINK] = ratio((double)p->sweeps * away * (double)p->routed_bytes, k->link_read);
	for (int i = 0; i < N_WAITS; i++)
		longest = t[i] > t[longest] ? i : longest;
	p->ingest_seconds = t[longest];
	p->ingest_binds = wait_names[longest];
}

void plan_make(struct plan *p, const struct plan_model *m, const struct plan_machine *machine, const struct plan_options *opt)
{
	double limited;

	*p = (struct plan){.weights = opt->weights, .binds = "", .ingest_binds = ""};
	p->context = opt->context ? opt->context : m->max_positions;
	limited = m->attended && m->attended < p->context ? (double)m->attended : (double)p->context;
	count_bytes(p, m, opt);
	place(p, machine);
	if (!m->known)
		return;
	p->flops_weights = 2.0 * (double)m->active;
	p->flops_index = (double)m->index_flops_per_key * (double)p->context;
	p->flops_attention = (double)m->attention_flops_per_key * limited + (double)m->unlimited_flops_per_key * (double)p->context;
	decode(p, m, machine);
	ingest(p, m, machine, opt);
}

int64_t plan_gpus(const struct plan *p, int64_t gpu_bytes)
{
	return (int64_t)ceil(((double)p->common_bytes + (double)p->routed_bytes) / (.9 * (double)gpu_bytes));
}
