/* `quire tune`: what an expert of a model takes on this machine, on the processor and on a device beside it (engine/tune.h), for people or
 * programs; kept where the daemon looks for it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "config/mem.h"
#include "config/units.h"
#include "daemon/cli_inside.h"
#include "daemon/machine.h"
#include "daemon/opened.h"
#include "daemon/print.h"
#include "engine/tune_file.h"

enum { THREADS_MOST = 1024 };

static const char *cheaper(const struct cost *c, int64_t n)
{
	return cost_moves(c, n, 1, 0) ? "move" : "compute";
}

static json_t *tune_json(const struct tuned *t, const struct tune_key *key, const char *device, const char *no_device, const char *path)
{
	const struct cost *c = &t->cost;
	bool with_device = cost_has_device(c);
	json_t *points = json_array(), *root, *point;

	for (int64_t n = 1; n <= COST_LAST; n *= 2) {
		point = json_pack("{s:I, s:f}", "tokens", (json_int_t)n, "host_s", cost_host(c, n));
		if (with_device)
			json_object_update_new(point, json_pack("{s:f, s:f, s:s}", "device_s", cost_device(c, n), "moved_s",
								c->upload_s + cost_device(c, n), "cheaper", cheaper(c, n)));
		json_array_append_new(points, point);
	}
	root = json_pack("{s:s, s:s, s:s, s:i, s:i, s:s, s:s}", "made", t->made, "host", key->host, "format", dtype_name(key->shape.dtype),
			 "hidden", (int)key->shape.hidden, "expert_dim", (int)key->shape.dim, "profile",
			 compute_profile_name(key->compute), "path", path);
	json_object_set_new(root, "device", with_device ? json_pack("{s:s, s:s}", "name", device, "model", key->device) : json_null());
	json_object_set_new(root, "no_device", with_device ? json_null() : json_string(no_device));
	json_object_set_new(root, "upload_s", with_device ? json_real(c->upload_s) : json_null());
	json_object_set_new(root, "break_even_tokens", cost_break_even(c) ? json_integer(cost_break_even(c)) : json_null());
	json_object_set_new(root, "points", points);
	return root;
}

static void print_table(const struct tuned *t, const struct tune_key *key, const char *device, const char *no_device, const char *path)
{
	const struct cost *c = &t->cost;
	bool with_device = cost_has_device(c);

	printf("one expert: %s, %d to %d and back, compute %s\nhost: %s\n", dtype_name(key->shape.dtype), key->shape.hidden, key->shape.dim,
	       compute_profile_name(key->compute), key->host);
	if (with_device)
		printf("device: %s, %s\n", device, key->device);
	else
		printf("no device: %s\n", no_device);
	printf("measured %s, kept in ", t->made);
	print_line(stdout, path);
	printf("\n\ntokens      host ms%s\n", with_device ? "    device ms     moved ms  cheaper" : "");
	for (int64_t n = 1; n <= COST_LAST; n *= 2) {
		printf("%6lld %12.4f", (long long)n, 1e3 * cost_host(c, n));
		if (with_device)
			printf(" %12.4f %12.4f  %s", 1e3 * cost_device(c, n), 1e3 * (c->upload_s + cost_device(c, n)), cheaper(c, n));
		putchar('\n');
	}
	if (!with_device)
		return;
	printf("\nupload %.4f ms; ", 1e3 * c->upload_s);
	if (cost_break_even(c))
		printf("break-even: from %lld tokens on one expert alone is moved\n", (long long)cost_break_even(c));
	else
		printf("no break-even: one expert alone is computed, for %d tokens too\n", COST_MOST);
}

int cli_open_device(struct cli *c, struct accelerator **out, struct err *why)
{
	const char *name = cli_value(c, OPTION_DEVICE);

	*out = NULL;
	if (name && !strcmp(name, "none")) {
		err_set(why, ERR_UNAVAILABLE, "none was asked for");
		return 0;
	}
	if (!name && accelerator_count("cuda", why) <= 0)
		return 0;
	return accelerator_open(out, name ? name : "cuda:0", &c->err);
}

static int tune(struct cli *c, const struct config *config, struct engine *e, const struct model *m)
{
	char *path = xasprintf("%s/" TUNE_FILE_NAME, config->store.path), *processor = machine_processor("");
	struct accelerator *a = NULL;
	struct tune_key key;
	struct tuned t;
	struct err why = {0};
	int rc;

	rc = cli_open_device(c, &a, &why) || tune_key_of(&key, e, m, a, processor, &c->err) ||
	     tune_make(&t, e, &key, a, &c->err) || tune_save(&t, &key, path, &c->err) ? -1 : 0;
	if (!rc && c->given[OPTION_JSON])
		print_json(stdout, "tune", tune_json(&t, &key, a ? a->name : "", why.text, path));
	else if (!rc)
		print_table(&t, &key, a ? a->name : "", why.text, path);
	accelerator_close(a);
	free(processor);
	free(path);
	return rc;
}

int cli_tune(struct cli *c)
{
	const char *threads = cli_value(c, OPTION_THREADS);
	struct engine_options opt;
	enum latent_format latents;
	struct config config;
	struct engine *e = NULL;
	struct model *m = NULL;
	int64_t n_threads = 0;
	int rc = -1;

	if (threads && count_parse(&n_threads, threads, 1, THREADS_MOST, &c->err))
		return err_wrap(&c->err, "--threads");
	if (config_load(&config, cli_value(c, OPTION_CONFIG), &c->err))
		return -1;
	if (!opened_engine_options(&opt, &latents, &config, &c->err)) {
		opt.n_threads = threads ? (int)n_threads : opt.n_threads;
		if (!model_open_headers(&m, c->arguments[0], NULL, &c->err) && !engine_open(&e, &opt, &c->err))
			rc = tune(c, &config, e, m);
	}
	engine_close(e);
	model_close(m);
	config_free(&config);
	return rc;
}
