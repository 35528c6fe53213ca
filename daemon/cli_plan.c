/* `quire plan`: a model and a machine, read or measured; then what engine/plan.h makes of them, for people or programs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "config/config.h"
#include "config/mem.h"
#include "config/units.h"
#include "daemon/cli_inside.h"
#include "daemon/machine.h"
#include "daemon/print.h"
#include "engine/engine.h"
#include "engine/experts_device.h"
#include "engine/plan.h"
#include "engine/rates.h"
#include "engine/tune.h"

#define DISK_READ_GUESS 2e9
#define LATENT_CACHE    ((int64_t)2 << 30)

enum { NOTES_MOST = 8, GPU_SIZES = 5 };
static const int gpu_gb[GPU_SIZES] = {80, 96, 141, 192, 288};

/* What was assumed on the way, for the reader to judge. */
struct notes {
	char *text[NOTES_MOST];
	int n;
};

static void note(struct notes *n, char *text)
{
	if (n->n < NOTES_MOST)
		n->text[n->n++] = text;
	else
		free(text);
}

static const enum dtype formats[N_PLAN_WEIGHTS] = {DTYPE_F8_E4M3, DTYPE_BF16, DTYPE_INT4};

/* A device that computes routed experts, as a daemon with `device: auto` would have it: what it does with them, measured. */
static int measure_device(struct plan_machine *k, struct engine *e, struct accelerator *a, const struct plan_model *m,
			  enum plan_weights weights, struct err *err)
{
	const struct tune_shape shape = {formats[weights], m->config.hidden, m->config.expert_dim};
	double parameters = (double)m->expert_parameters, bytes = plan_expert_bytes(m, weights);
	struct cost cost;

	if (tune_measure(&cost, e, &shape, a, err))
		return -1;
	k->n_gpus = 1;
	k->gpus_run_experts = true;
	k->gpu_bytes = experts_device_room(a) / 9 * 10; /* of which a plan takes nine tenths */
	k->gpu_read = bytes / cost_device(&cost, 1);
	k->gpu_flops = 2 * parameters * COST_LAST / cost_device(&cost, COST_LAST);
	k->link_read = bytes / cost.upload_s;
	return 0;
}

/* Which device there is, and what of it is counted. */
static int count_device(struct cli *c, struct plan_machine *k, struct engine *e, const struct plan_model *m, enum plan_weights weights,
			struct notes *notes)
{
	struct accelerator *a = NULL;
	struct err why;
	int rc = cli_open_device(c, &a, &why);

	if (rc)
		return -1;
	if (!a)
		note(notes, xasprintf("no GPU is counted: %s", why.text));
	else if (!m->runs || !m->n_moe_layers)
		note(notes, xasprintf("no GPU is counted: %s would run routed experts alone, and %s", a->name,
				      m->runs ? "the model has none" : "quire does not run this model"));
	else if (!cli_value(c, OPTION_DEVICE) && experts_device_room(a) < EXPERTS_DEVICE_LEAST)
		note(notes, xasprintf("no GPU is counted: %s has %.1f GB to spare", a->name, (double)experts_device_room(a) / 1e9));
	else if (!(rc = measure_device(k, e, a, m, weights, &c->err)))
		note(notes, xasprintf("%s, %s, runs routed experts and nothing else (docs/devices.md), in the %.1f GB that are free there",
				      a->name, a->info.name, (double)experts_device_room(a) / 1e9));
	accelerator_close(a);
	return rc;
}

/* Memory that is free now, rates that the engine reaches now. */
static int measure_this(struct cli *c, struct plan_machine *k, const struct plan_model *m, enum plan_weights weights, struct notes *notes)
{
	const char *model = c->arguments[0];
	const struct engine_options opt = {.compute = COMPUTE_BF16};
	struct machine_memory memory;
	struct machine_disk disk;
	struct engine *e;
	struct stat st;
	char *processor;
	struct err why;
	int rc;

	*k = (struct plan_machine){{0}};
	if (machine_memory(&memory, "", &c->err) || engine_open(&e, &opt, &c->err))
		return -1;
	processor = machine_processor("");
	snprintf(k->name, sizeof k->name, "this machine: %s, %d threads, %s", processor ? processor : "a processor",
		 engine_n_threads(e), engine_isa(e));
	free(processor);
	k->host_bytes = memory.available_bytes;
	if (memory.available_bytes < memory.total_bytes / 4 * 3)
		note(notes, xasprintf("only %.1f of %.1f GB of memory are free now: the plan counts with those",
				      (double)memory.available_bytes / 1e9, (double)memory.total_bytes / 1e9));
	rc = rates_read(e, formats[weights], &k->host_read, &c->err) || rates_compute(e, &k->host_flops, &c->err) ||
	     count_device(c, k, e, m, weights, notes) ? -1 : 0;
	engine_close(e);
	if (!rc && !stat(model, &st) && S_ISDIR(st.st_mode) && !machine_disk(&disk, model, &why))
		k->disk_bytes = disk.total_bytes; /* the model is there already */
	else
		k->disk_bytes = INT64_MAX;
	if (!rc && rates_disk(model, &k->disk_read, &why)) {
		k->disk_read = DISK_READ_GUESS;
		note(notes, xasprintf("the disk is taken to read 2 GB/s: there are no weights here to measure it with"));
	}
	return rc;
}

static json_t *components(const uint64_t of[N_PLAN_COMPONENTS])
{
	json_t *to = json_object();

	for (int i = 0; i < N_PLAN_COMPONENTS; i++)
		if (of[i])
			json_object_set_new(to, plan_component_name((enum plan_component)i), json_integer((json_int_t)of[i]));
	return to;
}

static json_t *number(double x)
{
	return x > 0 || x == 0 ? json_real(x) : json_null();
}

static json_t *plan_json(const struct plan *p, const struct plan_model *m, const struct plan_machine *k, const struct notes *notes)
{
	json_t *tiers = json_object(), *gpus = json_object(), *flops, *text = json_array(), *root;
	bool known = m->known;

	for (int t = 0; t < N_PLAN_TIERS; t++)
		json_object_set_new(tiers, plan_tier_name((enum plan_tier)t),
				    json_pack("{s:I, s:f}", "bytes", (json_int_t)p->tier_bytes[t], "expert_share", p->expert_share[t]));
	for (int i = 0; i < GPU_SIZES; i++) {
		char name[16];

		snprintf(name, sizeof name, "%dGB", gpu_gb[i]);
		json_object_set_new(gpus, name, json_integer(plan_gpus(p, (int64_t)gpu_gb[i] * 1000000000)));
	}
	for (int i = 0; i < notes->n; i++)
		json_array_append_new(text, json_string(notes->text[i]));
	flops = json_pack("{s:f, s:f, s:f}", "weights", p->flops_weights, "indexer", p->flops_index, "attention", p->flops_attention);
	root = json_pack("{s:s, s:b, s:b, s:s, s:I, s:s, s:I}", "architecture", m->architecture, "known", m->known, "runs", m->runs,
			 "machine", k->name, "context", (json_int_t)p->context, "weights", plan_weights_name(p->weights),
			 "total_params", (json_int_t)m->total);
	json_object_set_new(root, "total_params_with_mtp", json_integer((json_int_t)(m->total + m->parameters[PLAN_MTP])));
	json_object_set_new(root, "active_params", known ? json_integer((json_int_t)m->active) : json_null());
	json_object_set_new(root, "active_params_with_embedding", known ? json_integer((json_int_t)m->active_with_embedding) : json_null());
	json_object_set_new(root, "sparsity", known ? number((double)m->active / (double)m->total) : json_null());
	json_object_set_new(root, "components", components(m->parameters));
	json_object_set_new(root, "active_components", components(m->used));
	json_object_set_new(root, "bytes_per_tier", tiers);
	json_object_set_new(root, "fits", json_boolean(p->fits));
	json_object_set_new(root, "why_not", p->fits ? json_null() : json_string(p->why));
	json_object_set_new(root, "kv_bytes_per_token", json_pack("{s:I, s:I}", "latents", (json_int_t)p->latent_bytes_per_token,
								  "index_keys", (json_int_t)p->index_bytes_per_token));
	json_object_set_new(root, "context_bytes", json_integer((json_int_t)p->context_bytes));
	json_object_set_new(root, "flops_per_token", known ? flops : json_null());
	if (!known)
		json_decref(flops);
	json_object_set_new(root, "tokens_per_s", known ? json_pack("{s:f, s:f, s:s}", "low", p->low, "high", p->high, "binds", p->binds)
							: json_null());
	json_object_set_new(root, "ingest_seconds", known ? number(p->ingest_seconds) : json_null());
	json_object_set_new(root, "ingest_binds", known ? json_string(p->ingest_binds) : json_null());
	json_object_set_new(root, "sweeps", json_integer(p->sweeps));
	json_object_set_new(root, "gpus_needed", gpus);
	json_object_set_new(root, "assumptions", text);
	return root;
}

static void print_components(const struct plan_model *m)
{
	printf("\nparameters, in billions          all     a token's\n");
	for (int i = 0; i < N_PLAN_COMPONENTS; i++)
		if (m->parameters[i] || m->used[i])
			printf("  %-22s %12.3f  %12.3f\n", plan_component_name((enum plan_component)i),
			       (double)m->parameters[i] / 1e9, (double)m->used[i] / 1e9);
}

static void print_time_of(double seconds)
{
	if (seconds < 120)
		printf("%.1f s", seconds);
	else if (seconds < 7200)
		printf("%.0f min", seconds / 60);
	else
		printf("%.1f h", seconds / 3600);
}

static void print_plan(const struct plan *p, const struct plan_model *m, const struct plan_machine *k, const struct notes *notes)
{
	printf("%s", m->architecture);
	if (!m->known) {
		printf(": unknown architecture, counted from safetensors headers only\n%.3f billion parameters\n", (double)m->total / 1e9);
	} else {
		printf("%s\n%.1f billion parameters", m->runs ? "" : " (quire plans it and cannot run it)", (double)m->total / 1e9);
		if (m->parameters[PLAN_MTP])
			printf(" (%.1f with MTP)", (double)(m->total + m->parameters[PLAN_MTP]) / 1e9);
		printf(", %.2f active (%.2f with the embedding): %.1f %%\n", (double)m->active / 1e9,
		       (double)m->active_with_embedding / 1e9, 100.0 * (double)m->active / (double)m->total);
		print_components(m);
	}
	printf("\n%s\n  reads per second:", k->name);
	if (k->n_gpus)
		printf(" %.0f GB of GPU memory, %.1f GB over the link,", (double)k->n_gpus * k->gpu_read / 1e9, k->link_read / 1e9);
	printf(" %.1f GB of host memory, %.2f GB of disk; computes", k->host_read / 1e9, k->disk_read / 1e9);
	if (!k->n_gpus || k->gpus_run_experts)
		printf(" %.3g TFLOP", k->host_flops / 1e12);
	if (k->n_gpus)
		printf("%s %.3g TFLOP on GPUs", k->gpus_run_experts ? ", experts" : "", (double)k->n_gpus * k->gpu_flops / 1e12);
	putchar('\n');
	printf("  %s weights: %.1f GB that every token uses, %.1f GB of experts (%lld of %.1f MB)\n", plan_weights_name(p->weights),
	       (double)p->common_bytes / 1e9, (double)p->routed_bytes / 1e9, (long long)(m->n_moe_layers * m->n_experts),
	       (double)p->expert_bytes / 1e6);
	for (int t = 0; t < N_PLAN_TIERS; t++)
		if (p->tier_bytes[t])
			printf("  %-5s %10.1f GB, %5.1f %% of the experts\n", plan_tier_name((enum plan_tier)t),
			       (double)p->tier_bytes[t] / 1e9, 100 * p->expert_share[t]);
	printf("  context of %lld tokens: %llu bytes of latents and %llu of index keys a token, %.1f GB in memory\n",
	       (long long)p->context, (unsigned long long)p->latent_bytes_per_token, (unsigned long long)p->index_bytes_per_token,
	       (double)p->context_bytes / 1e9);
	if (m->known) {
		printf("  a token there: %.1f GFLOP of weights, %.1f of the indexer, %.1f of attention\n", p->flops_weights / 1e9,
		       p->flops_index / 1e9, p->flops_attention / 1e9);
		printf("  answers: %.3g to %.3g tokens/s, bound by %s\n", p->low, p->high, p->binds);
		printf("  ingest of %lld tokens: ", (long long)p->context);
		print_time_of(p->ingest_seconds);
		printf(", bound by %s, %lld sweep%s\n", p->ingest_binds, (long long)p->sweeps, p->sweeps == 1 ? "" : "s");
	}
	printf("  GPUs that hold all weights:");
	for (int i = 0; i < GPU_SIZES; i++)
		printf("%s %lld of %d GB", i ? "," : "", (long long)plan_gpus(p, (int64_t)gpu_gb[i] * 1000000000), gpu_gb[i]);
	printf("\n  %s%s\n", p->fits ? "it fits" : "it does NOT fit: ", p->why);
	for (int i = 0; i < notes->n; i++)
		printf("  assumed: %s\n", notes->text[i]);
}

static int read_options(struct cli *c, const struct plan_model *m, struct plan_options *opt)
{
	const char *context = cli_value(c, OPTION_CONTEXT), *weights = cli_value(c, OPTION_WEIGHTS);
	int i = weights ? plan_weights_from_name(weights) : m->int4_experts ? PLAN_INT4 : PLAN_FP8;

	*opt = (struct plan_options){.latents = LATENTS_FP8, .latent_cache_bytes = LATENT_CACHE};
	if (i < 0)
		return err_set(&c->err, ERR_USAGE, "--weights: \"%s\" is none of fp8, bf16, int4", weights);
	opt->weights = (enum plan_weights)i;
	if (context && count_parse(&opt->context, context, 1, (int64_t)1 << 40, &c->err))
		return err_wrap(&c->err, "--context");
	if (!opt->context && !m->max_positions)
		opt->context = 1 << 17;
	if (m->max_positions && opt->context > m->max_positions)
		return err_set(&c->err, ERR_TOO_LARGE, "--context %lld is more than the %lld positions of the model",
			       (long long)opt->context, (long long)m->max_positions);
	return 0;
}

int cli_plan(struct cli *c)
{
	const char *path = c->arguments[0], *machine = cli_value(c, OPTION_MACHINE);
	struct plan_machine k;
	struct plan_options opt;
	struct plan_model m;
	struct notes notes = {0};
	struct plan p;
	int rc;

	if (plan_model_load(&m, path, &c->err) || read_options(c, &m, &opt))
		return -1;
	if (!machine || !strcmp(machine, "this"))
		rc = measure_this(c, &k, &m, opt.weights, &notes);
	else if (c->given[OPTION_DEVICE])
		rc = err_set(&c->err, ERR_USAGE, "--device is of this machine; what %s has is said there (gpus)", machine);
	else
		rc = plan_machine_load(&k, machine, &c->err);
	if (!rc) {
		plan_make(&p, &m, &k, &opt);
		if (c->given[OPTION_JSON])
			print_json(stdout, "plan", plan_json(&p, &m, &k, &notes));
		else
			print_plan(&p, &m, &k, &notes);
		rc = p.fits ? 0 : err_exit_status(ERR_TOO_LARGE);
	}
	for (int i = 0; i < notes.n; i++)
		free(notes.text[i]);
	return rc;
}
