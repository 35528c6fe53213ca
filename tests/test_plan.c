/*
 * A plan counts published models as their makers do, and places and times them as arithmetic says. The config.json
 * files are in tests/fixtures; published totals and active parameters are those of the makers' pages.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/model.h"
#include "engine/plan.h"
#include "engine/synth.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temp_dir.h"

static struct plan_model load(const char *name)
{
	char *path = xasprintf("tests/fixtures/%s", name);
	struct plan_model m;
	struct err err = {0};

	if (plan_model_load(&m, path, &err))
		fail_msg("%s", err.text);
	free(path);
	return m;
}

static void assert_near(double got, double want, double share, const char *what)
{
	if (fabs(got - want) > share * want)
		fail_msg("%s: %.4g, and %.4g is wanted", what, got, want);
}

static void eleven_models_have_their_published_parameters(void **state)
{
	/* Billions: total, active without and with the embedding. */
	static const struct {
		const char *name;
		double total, within, active, with_embedding;
	} published[] = {
		{"glm-5.2", 744, .005, 40.30, 41.25},         {"glm-5", 744, .005, 40.83, 41.78},
		{"deepseek-v3", 671, .005, 36.63, 37.55},     {"deepseek-v4-pro", 1600, .03, 47.6, 48.5},
		{"kimi-k2", 1026.4, .005, 31.69, 32.86},      {"qwen3-235b", 235, .005, 21.57, 22.19},
		{"qwen3.5-397b", 397, .005, 16.33, 17.35},    {"llama-4-maverick", 400, .005, 16.15, 17.18},
		{"mistral-small-4", 119, .005, 6.10, 6.63},   {"mixtral-8x7b", 46.7, .005, 12.75, 12.88},
		{"granite-4.1-8b", 8.38, .005, 8.38, 8.38},
	};

	(void)state;
	for (size_t i = 0; i < sizeof published / sizeof published[0]; i++) {
		struct plan_model m = load(published[i].name);

		assert_true(m.known);
		assert_near((double)m.total / 1e9, published[i].total, published[i].within, published[i].name);
		assert_near((double)m.active / 1e9, published[i].active, .005, published[i].name);
		assert_near((double)m.active_with_embedding / 1e9, published[i].with_embedding, .005, published[i].name);
	}
	assert_near((double)(load("glm-5.2").total + load("glm-5.2").parameters[PLAN_MTP]) / 1e9, 753.3, .001, "with MTP");
}

static void what_the_engine_runs_is_counted_as_the_engine_counts(void **state)
{
	static const char *const dirs[] = {"glm52", "glm5", "glm52-group", "deepseek_v3", "deepseek_v32", "kimi_k2",
					   "glm4_moe_lite"};

	(void)state;
	for (size_t i = 0; i < sizeof dirs / sizeof dirs[0]; i++) {
		char *path = xasprintf("tests/golden/%s", dirs[i]);
		struct model_config *c = xmalloc(1, sizeof *c);
		struct model_parameters p;
		struct plan_model m;
		struct err err;

		assert_int_equal(plan_model_load(&m, path, &err), 0);
		assert_int_equal(model_config_load(c, path, NULL, &err), 0);
		p = model_count_parameters(c);
		assert_true(m.runs);
		assert_int_equal(m.total, p.total);
		assert_int_equal(m.active, p.active);
		assert_int_equal(m.parameters[PLAN_MTP], p.mtp);
		free(c);
		free(path);
	}
}

static void an_unknown_architecture_is_counted_from_headers_or_refused(void **state)
{
	char *dir = temp_dir_new(), *file = temp_path(dir, "model.safetensors");
	struct safetensors_writer w = {0};
	struct plan_machine k = {.host_bytes = (int64_t)2 << 30, .host_read = 1e9, .host_flops = 1e9};
	struct plan_options opt = {.context = 1000, .latents = LATENTS_FP8};
	struct plan_model m;
	struct err err;
	struct plan p;

	(void)state;
	free(temp_text(dir, "config.json", "{\"model_type\": \"brand_new\", \"hidden_size\": 12}"));
	assert_int_equal(plan_model_load(&m, dir, &err), -1);
	assert_non_null(strstr(err.text, "architecture \"brand_new\" is not known"));
	writer_add(&w, "a.weight", "BF16", 2, (int64_t[]){30, 40}, NULL, 2400);
	writer_add(&w, "b.weight", "F8_E4M3", 1, (int64_t[]){128}, NULL, 128);
	writer_add(&w, "b.weight_scale_inv", "F32", 1, (int64_t[]){1}, NULL, 4);
	writer_save(&w, file);
	assert_int_equal(plan_model_load(&m, dir, &err), 0);
	assert_false(m.known);
	assert_int_equal(m.total, 1328);
	plan_make(&p, &m, &k, &opt);
	assert_true(p.low == 0 && p.high == 0 && p.ingest_seconds == 0);
	assert_true(p.fits);
	writer_free(&w);
	free(file);
	temp_dir_free(dir);
}

static void what_is_wrong_in_a_config_is_named(void **state)
{
	static const struct {
		const char *text, *says;
	} cases[] = {
		{"[1]", "an array"},
		{"{}", "model_type"},
		{"{\"model_type\": \"mixtral\"}", "hidden_size"},
		{"{\"model_type\": \"mixtral\", \"hidden_size\": \"4096\"}", "hidden_size"},
		{"{\"model_type\": \"granite\", \"hidden_size\": 99999999}", "more than any dimension"},
		{"{\"model_type\": \"glm_moe_dsa\"}", "vocab_size"},
		{"{\"model_type\": \"llava\", \"text_config\": {\"model_type\": \"qwen3_moe\"}}", "hidden_size"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct plan_model m;
		struct err err = {0};

		assert_int_equal(plan_model_parse(&m, "here/config.json", cases[i].text, strlen(cases[i].text), &err), -1);
		if (!strstr(err.text, cases[i].says) || !strstr(err.text, "here/config.json"))
			fail_msg("%s gives: %s", cases[i].text, err.text);
	}
}

/* One H200, 128 GB of host memory for quire, one disk of 7 GB/s. */
static const struct plan_machine one_h200 = {
	.name = "one H200", .n_gpus = 1, .gpu_bytes = 141000000000, .gpu_read = 4.8e12, .gpu_flops = 4e14, .link_read = 5e10,
	.host_bytes = 120000000000, .host_read = 3e11, .host_flops = 2e12, .disk_bytes = 2000000000000, .disk_read = 7e9,
};

static struct plan plan_for(const struct plan_machine *k, int64_t context)
{
	struct plan_options opt = {.context = context, .latents = LATENTS_FP8, .latent_cache_bytes = 2000000000};
	struct plan_model m = load("glm-5.2");
	struct plan p;

	plan_make(&p, &m, k, &opt);
	return p;
}

static void glm_5_2_on_one_h200_waits_for_its_disk(void **state)
{
	struct plan p = plan_for(&one_h200, 131072);

	(void)state;
	assert_true(p.fits);
	assert_int_equal(p.expert_bytes, 37757952); /* 37.75M parameters and a scale for each 128 x 128 of them */
	assert_int_equal(p.latent_bytes_per_token, 78 * 656);
	assert_int_equal(p.index_bytes_per_token, 21 * 256);
	assert_near(p.expert_share[PLAN_GPU], .14, .05, "experts on the GPU");
	assert_near(p.expert_share[PLAN_HOST], .165, .05, "experts in host memory");
	assert_near(p.expert_share[PLAN_GPU] + p.expert_share[PLAN_HOST] + p.expert_share[PLAN_DISK], 1, 1e-9, "all experts");
	assert_string_equal(p.binds, "disk");
	/* 22.65 GB of experts a token; with 31 percent of them in memory a quarter comes from a disk of 7 GB/s, or with less
	 * locality .34: 1.10 s, .03 s of the host's memory and .01 s of the GPU's. */
	assert_near(p.low, .88, .1, "tokens/s, little locality");
	assert_near(p.high, 1.3, .2, "tokens/s, with locality");
	/* 69 percent of 725 GB, once. */
	assert_near(p.ingest_seconds, 72, .05, "ingest");
	assert_int_equal(p.sweeps, 1);
	assert_near(p.flops_weights, 80.6e9, .01, "weights");
	assert_near(p.flops_index, 22.5e9, .01, "indexer");
	assert_near(p.flops_attention, 22e9, .02, "attention");
}

static void more_of_anything_is_never_slower(void **state)
{
	struct plan_machine k = one_h200;
	struct plan before = plan_for(&k, 65536), after;

	(void)state;
	for (int i = 0; i < 6; i++) {
		*(i == 0 ? &k.gpu_bytes : i == 1 ? &k.host_bytes : &k.disk_bytes) *= 2;
		*(i == 3 ? &k.disk_read : i == 4 ? &k.host_read : &k.gpu_read) *= 2;
		after = plan_for(&k, 65536);
		assert_true(after.low >= before.low && after.high >= before.high && after.ingest_seconds <= before.ingest_seconds);
		assert_true(after.low <= after.high);
		before = after;
	}
	k.n_gpus = 8;
	after = plan_for(&k, 65536);
	assert_true(after.expert_share[PLAN_GPU] == 1);
	assert_string_equal(after.binds, "GPU memory");
}

static void what_does_not_fit_says_how_much_there_is_and_how_much_it_takes(void **state)
{
	struct plan_machine k = one_h200;
	struct plan p;

	(void)state;
	k.gpu_bytes = 24000000000;
	p = plan_for(&k, 1048576);
	assert_false(p.fits);
	assert_non_null(strstr(p.why, "GB"));
	k = one_h200;
	k.disk_bytes = 100000000000;
	p = plan_for(&k, 4096);
	assert_false(p.fits);
	assert_non_null(strstr(p.why, "the disk, which has 100.0 GB"));
}

static void gpus_are_counted_by_nine_tenths_of_their_memory(void **state)
{
	struct plan p = plan_for(&one_h200, 4096);

	(void)state;
	assert_int_equal(plan_gpus(&p, 80000000000), 11);
	assert_int_equal(plan_gpus(&p, 141000000000), 6);
}

/* A plan for int4 is of the bytes that are written: to the byte for experts, for the rest but for halves of FP8 blocks and the
 * indexer's weights_proj, which is bf16. */
static void int4_is_planned_by_what_is_written(void **state)
{
	struct plan_options opt = {.weights = PLAN_INT4};
	struct synth_options o = synth_glm52;
	struct synth_report report;
	char *config, *dir = temp_dir_new(), *a = temp_path(dir, "a");
	struct plan_model m;
	struct plan p;
	struct model *written = NULL;
	struct err err = {0};

	(void)state;
	o.format = SYNTH_INT4;
	o.n_dense_layers = 3;
	o.n_moe_layers = 75;
	config = synth_config_json(&o);
	if (plan_model_parse(&m, "config.json", config, strlen(config), &err) || synth_measure(&report, &o, &err))
		fail_msg("%s", err.text);
	assert_true(m.int4_experts);
	plan_make(&p, &m, &one_h200, &opt);
	assert_int_equal(p.expert_bytes, 20054016);
	assert_int_equal(p.routed_bytes, 75 * 256 * 20054016ull);
	assert_near((double)(p.common_bytes + p.routed_bytes), (double)report.bytes, 1e-4, "all bytes");
	free(config);

	o.n_dense_layers = o.n_moe_layers = 1;
	o.hidden = o.dense_dim = 256;
	o.q_lora = o.kv_lora = o.expert_dim = o.index_dim = 128;
	o.n_experts = 12;
	o.vocab = 500;
	o.n_threads = 1;
	if (synth_write(a, &o, NULL, &err) || plan_model_load(&m, a, &err) || model_open_headers(&written, a, NULL, &err))
		fail_msg("%s", err.text);
	plan_make(&p, &m, &one_h200, &opt);
	assert_int_equal(p.routed_bytes, written->bytes.routed);
	assert_int_equal(p.routed_bytes, 12 * p.expert_bytes);
	model_close(written);
	free(a);
	temp_dir_free(dir);
	assert_false(load("glm-5.2").int4_experts);
}

/* Half of the experts in 10 GB/s of memory: what is read from it is multiplied as it comes; for the disk's share low waits, but that in
 * layers that miss something the experts that are there are computed meanwhile. */
static void low_adds_to_the_disk_what_cannot_be_done_meanwhile_and_high_takes_the_longer(void **state)
{
	struct plan_machine k = {.name = "a box", .host_read = 1e10, .host_flops = 1e11, .disk_bytes = INT64_MAX, .disk_read = 1e9};
	struct plan all, p;
	double chosen, common, memory, compute, hidden, missing = 1 - pow(.79, 8);

	(void)state;
	k.host_bytes = INT64_MAX / 2;
	all = plan_for(&k, 4096);
	k.host_bytes = (int64_t)(all.tier_bytes[PLAN_HOST] - all.routed_bytes / 2);
	p = plan_for(&k, 4096);
	assert_near(p.expert_share[PLAN_HOST], .5, 1e-3, "experts in memory");
	chosen = 75.0 * 8 * (double)p.expert_bytes;
	memory = 1 / all.high; /* of memory alone, or of computing alone */
	common = (double)p.common_bytes - 2.0 * 154880 * 6144;
	compute = (p.flops_weights + p.flops_index + p.flops_attention) / 1e11;
	assert_string_equal(all.binds, "host memory");
	assert_true(memory > compute);
	assert_near(memory, (chosen + common) / 1e10, .05, "seconds of memory");
	hidden = missing * .79 * chosen / 1e10;
	assert_near(1 / p.low, .21 * chosen / 1e9 + memory - hidden, .001, "seconds, little of it at once");
	assert_near(1 / all.low, memory, .01, "seconds without a disk");
	k.host_flops = 1e10;
	hidden = 10 * compute * hidden * 1e10 / (chosen + common);
	assert_near(1 / plan_for(&k, 4096).low, .21 * chosen / 1e9 + 10 * compute - hidden, .01, "seconds where computing is longer");
	k.host_flops = 1e11;
	k.disk_read = 1e11;
	assert_near(1 / plan_for(&k, 4096).low, memory, .001, "seconds where all of the disk's are hidden");
}

/* What quire does with a GPU today: experts, and nothing else, are there. */
static void gpus_that_run_experts_leave_all_else_to_the_host(void **state)
{
	struct plan_machine k = one_h200;
	struct plan everything = plan_for(&k, 131072), p, none;
	double chosen, common, host, gpu, n;

	(void)state;
	k.gpus_run_experts = true;
	k.host_bytes *= 10;
	p = plan_for(&k, 131072);
	k.n_gpus = 0;
	none = plan_for(&k, 131072);
	n = floor(.9 * 141e9 / (double)p.expert_bytes);
	assert_true(p.tier_bytes[PLAN_GPU] == (uint64_t)n * p.expert_bytes);
	assert_true(p.expert_share[PLAN_GPU] > everything.expert_share[PLAN_GPU]);
	assert_near(p.expert_share[PLAN_GPU] + p.expert_share[PLAN_HOST], 1, 1e-9, "experts in memory");
	assert_true(p.tier_bytes[PLAN_GPU] + p.tier_bytes[PLAN_HOST] == none.tier_bytes[PLAN_HOST]);

	/* All are there: the host reads what every token uses and its experts, the GPU its own, one after the other. */
	chosen = 75.0 * 8 * (double)p.expert_bytes;
	common = (double)p.common_bytes - 2.0 * 154880 * 6144 + 131072.0 * 21 * 256 + 2048.0 * 78 * 656;
	gpu = plan_hits_least(p.expert_share[PLAN_GPU]) * chosen;
	host = common + chosen - gpu;
	assert_near(1 / p.low, host / 3e11 + gpu / 4.8e12, 1e-3, "seconds, little locality");
	gpu = plan_hits(p.expert_share[PLAN_GPU]) * chosen;
	assert_near(1 / p.high, (common + chosen - gpu) / 3e11, 1e-3, "seconds, with locality");
	assert_string_equal(p.binds, "host memory");
	assert_true(p.low > none.low && p.high > none.high);

	/* Over a link faster than the host's memory they are moved. */
	k.n_gpus = 1;
	k.link_read = 6e11;
	p = plan_for(&k, 131072);
	gpu = plan_hits_least(p.expert_share[PLAN_GPU]) * chosen;
	assert_near(1 / p.low, common / 3e11 + (chosen - gpu) / 6e11 + chosen / 4.8e12, 1e-3, "seconds, moved");

	/* What is missing on the way to both is read while they compute. */
	k.host_bytes = one_h200.host_bytes;
	k.disk_read = 1e13;
	assert_near(1 / plan_for(&k, 131072).low, 1 / p.low, 1e-3, "seconds where the disk is as nothing");
}

/* Attention on the host, then the experts' products on the GPU. */
static void an_ingest_with_gpus_that_run_experts_takes_both_in_turn(void **state)
{
	struct plan_machine k = one_h200;
	double all, experts = 131072 * 2.0 * 75 * 8 * 37748736;

	(void)state;
	k.disk_read = k.link_read = 1e15;
	k.host_flops = k.gpu_flops;
	all = plan_for(&k, 131072).ingest_seconds;
	k.gpus_run_experts = true;
	assert_near(plan_for(&k, 131072).ingest_seconds, all, 1e-9, "as fast as each other");
	k.host_flops /= 10;
	assert_near(plan_for(&k, 131072).ingest_seconds, 10 * all - 9 * experts / k.gpu_flops, 1e-3, "a host of a tenth");
}

static void scratch_that_is_short_makes_more_sweeps(void **state)
{
	struct plan_options opt = {.context = 1048576, .latents = LATENTS_FP8, .scratch_bytes = 16000000000};
	struct plan_model m = load("glm-5.2");
	struct plan p;

	(void)state;
	plan_make(&p, &m, &one_h200, &opt);
	assert_true(p.sweeps >= 3 && p.sweeps <= 5); /* about 50 KB a token */
}

static void hits_rise_from_none_to_all(void **state)
{
	double last = -1;

	(void)state;
	assert_true(plan_hits(0) == 0 && plan_hits(1) == 1 && plan_hits(-1) == 0 && plan_hits(2) == 1);
	assert_true(plan_hits_least(0) == 0 && plan_hits_least(1) == 1);
	for (double f = 0; f <= 1; f += .01) {
		assert_true(plan_hits(f) > last && plan_hits(f) >= plan_hits_least(f) && plan_hits_least(f) >= f);
		last = plan_hits(f);
	}
}

static int load_machine(struct plan_machine *m, const char *text, struct err *err)
{
	char *dir = temp_dir_new(), *path = temp_text(dir, "machine.yaml", text);
	int rc = plan_machine_load(m, path, err);

	free(path);
	temp_dir_free(dir);
	return rc;
}

#define HOST "name: a box\nhost_memory: 128GiB\nhost_read: 75GB/s\nhost_tflops: 1.5\ndisk_memory: 2TB\ndisk_read: 7GB/s\n"

static void a_machine_is_read_from_a_file(void **state)
{
	struct plan_machine m;
	struct err err;

	(void)state;
	assert_int_equal(load_machine(&m, HOST, &err), 0);
	assert_string_equal(m.name, "a box");
	assert_int_equal(m.host_bytes, (int64_t)128 << 30);
	assert_true(m.host_read == 75e9 && m.host_flops == 1.5e12 && m.disk_read == 7e9 && m.n_gpus == 0);
	assert_int_equal(load_machine(&m, HOST "gpus: 2\ngpu_memory: 141GB\ngpu_read: 4800GB/s\ngpu_tflops: 400\nlink_read: 50GB/s\n",
				      &err), 0);
	assert_true(m.n_gpus == 2 && m.gpu_read == 4.8e12 && m.gpu_flops == 4e14 && m.link_read == 5e10 && !m.gpus_run_experts);
	assert_int_equal(load_machine(&m, HOST "gpus: 1\ngpu_memory: 141GB\ngpu_read: 4800GB/s\ngpu_tflops: 400\nlink_read: 50GB/s\n"
				      "gpus_run: experts\n", &err), 0);
	assert_true(m.gpus_run_experts);
}

static void what_is_wrong_in_a_machine_is_named_with_its_place(void **state)
{
	static const struct {
		const char *text, *says;
	} cases[] = {
		{HOST "gpu_memmory: 1GB\n", "is \"gpu_memory\" meant?"},
		{HOST "disk_read: 8GB/s\n", "given twice"},
		{HOST "gpus: 1\n", "gpu_memory is missing"},
		{"name: x\n", "host_memory is missing"},
		{"host_read: 7GB\n", "is not a rate"},
		{"host_read: [1, 2]\n", "no single value"},
		{"- 1\n", "is described by lines"},
		{"host_tflops: -1\n", "host_tflops"},
		{"gpus_run: some\n", "gpus_run: \"some\" is neither experts nor all"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct plan_machine m;
		struct err err = {0};

		assert_int_equal(load_machine(&m, cases[i].text, &err), -1);
		if (!strstr(err.text, cases[i].says) || !strstr(err.text, "machine.yaml"))
			fail_msg("%s gives: %s", cases[i].text, err.text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(eleven_models_have_their_published_parameters),
		cmocka_unit_test(what_the_engine_runs_is_counted_as_the_engine_counts),
		cmocka_unit_test(an_unknown_architecture_is_counted_from_headers_or_refused),
		cmocka_unit_test(what_is_wrong_in_a_config_is_named),
		cmocka_unit_test(glm_5_2_on_one_h200_waits_for_its_disk),
		cmocka_unit_test(more_of_anything_is_never_slower),
		cmocka_unit_test(what_does_not_fit_says_how_much_there_is_and_how_much_it_takes),
		cmocka_unit_test(gpus_are_counted_by_nine_tenths_of_their_memory),
		cmocka_unit_test(int4_is_planned_by_what_is_written),
		cmocka_unit_test(low_adds_to_the_disk_what_cannot_be_done_meanwhile_and_high_takes_the_longer),
		cmocka_unit_test(gpus_that_run_experts_leave_all_else_to_the_host),
		cmocka_unit_test(an_ingest_with_gpus_that_run_experts_takes_both_in_turn),
		cmocka_unit_test(scratch_that_is_short_makes_more_sweeps),
		cmocka_unit_test(hits_rise_from_none_to_all),
		cmocka_unit_test(a_machine_is_read_from_a_file),
		cmocka_unit_test(what_is_wrong_in_a_machine_is_named_with_its_place),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
