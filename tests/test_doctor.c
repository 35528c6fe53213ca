/* `quire doctor` on machines that are trees of files, with stores and configurations of all kinds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/json.h"
#include "config/mem.h"
#include "daemon/doctor.h"
#include "engine/engine.h"
#include "engine/numa.h"
#include "tests/support/as_user.h"
#include "tests/support/temp_dir.h"

/* A machine, its configuration, and what the doctor says of it. */
struct patient {
	char *root, *store, *config, *model;
	char *text;
	int n_failing;
};

static void put(const struct patient *p, const char *name, const char *text)
{
	free(temp_text(p->root, name, text));
}

/* Lines beside version, store and socket. */
static void configure(struct patient *p, const char *lines)
{
	char *text = xasprintf("version: 1\nstore: {path: %s}\nserver: {socket: %s/quire.sock}\n%s", p->store, p->root, lines);

	free(p->config);
	p->config = temp_text(p->root, "quire.yaml", text);
	free(text);
}

static int setup(void **state)
{
	struct patient *p = xcalloc(1, sizeof *p);
	char *lines;

	unsetenv("QUIRE_SOCKET");
	p->root = temp_dir_new();
	setenv("QUIRE_BACKENDS", p->root, 1);
	p->store = temp_path(p->root, "data/store");
	p->model = realpath("tests/golden/glm52", NULL);
	assert_non_null(p->model);
	put(p, "proc/cpuinfo", "model name\t: Slow \x1b[2J Machine\n");
	put(p, "proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 50331648 kB\n");
	put(p, "proc/self/status", "CapEff:\t0000000000004000\n");
	put(p, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
	lines = xasprintf("model: {path: %s, compute: f32, latents: bf16}\ncompute: {threads: 1}\n", p->model);
	configure(p, lines);
	free(lines);
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct patient *p = *state;

	temp_dir_free(p->root);
	free(p->store);
	free(p->config);
	free(p->model);
	free(p->text);
	free(p);
	return 0;
}

static const char *examine(struct patient *p, bool json)
{
	const struct doctor_options opt = {p->config, NULL, p->root, json};
	size_t bytes;
	FILE *out;

	free(p->text);
	out = open_memstream(&p->text, &bytes);
	p->n_failing = doctor_run(out, &opt);
	fclose(out);
	return p->text;
}

/* There is a line that begins so ... */
static const char *line_of(const struct patient *p, const char *beginning)
{
	const char *line = p->text;

	while (line && strncmp(line, beginning, strlen(beginning))) {
		line = strchr(line, '\n');
		line = line && line[1] ? line + 1 : NULL;
	}
	if (!line)
		fail_msg("no line begins with \"%s\":\n%s", beginning, p->text);
	return line;
}

/* ... and has these words. */
static void assert_says(const struct patient *p, const char *beginning, const char *words)
{
	const char *line = line_of(p, beginning), *end = strchr(line, '\n'), *found = strstr(line, words);

	if (!found || found > end)
		fail_msg("\"%.*s\" does not say \"%s\"", (int)(end - line), line, words);
}

static void a_good_machine_gets_a_line_for_each_finding(void **state)
{
	struct patient *p = *state;

	examine(p, false);
	assert_int_equal(p->n_failing, 0);
	assert_says(p, "ok    config     ", p->config);
	assert_says(p, "ok    processor  Slow \\x1b[2J Machine, ", " processors online");
	assert_says(p, "ok    engine     cpu, ", "1 threads, compute f32, latents bf16");
	assert_says(p, "ok    threads    1 of the ", "processors that this process may use");
	assert_says(p, "ok    numa       1 node", "no thread is bound");
	assert_says(p, "ok    memory     68.7 GB, of which 51.5 GB are available", "");
	assert_says(p, "ok    memlock    ", "CAP_IPC_LOCK");
	assert_says(p, "ok    hugepages  madvise", "");
	assert_says(p, "ok    store      ", " will be made in ");
	assert_says(p, "warn  socket     no daemon answers at ", "quire serve");
	assert_says(p, "ok    model      ", ": glm_moe_dsa, 456,930 parameters (314,810 active), needs ");
	assert_says(p, "ok    tokenizer  ", "questions are rendered for glm-5.2");
	assert_says(p, "ok    gpu        none, the CPU computes: there is no libquire_cuda.so in ", p->root);
	assert_non_null(strstr(p->text, " 0 fail\n"));
	line_of(p, "ok    isa");
	assert_int_equal(access(p->store, F_OK), -1);
}

/* Every line for people is an object for programs, under the same name and level. */
static void json_says_the_same_line_by_line(void **state)
{
	struct patient *p = *state;
	int n = 0, n_summaries = 0, counts[3] = {0};
	static const char *const levels[] = {"ok", "warn", "fail"};
	char *human;

	human = xstrdup(examine(p, false));
	examine(p, true);
	for (char *line = strtok(p->text, "\n"), *h = human; line; line = strtok(NULL, "\n"), h = strchr(h, '\n') + 1) {
		json_t *o = json_loads(line, 0, NULL);
		const char *level = json_string_value(json_object_get(o, "level"));
		const char *name = json_string_value(json_object_get(o, "name"));
		char head[40];

		assert_non_null(o);
		assert_int_equal(json_integer_value(json_object_get(o, "v")), 1);
		if (!strcmp(json_string_value(json_object_get(o, "type")), "summary")) {
			n_summaries++;
			for (int i = 0; i < 3; i++)
				assert_int_equal(json_integer_value(json_object_get(o, levels[i])), counts[i]);
		} else {
			assert_string_equal(json_string_value(json_object_get(o, "type")), "finding");
			snprintf(head, sizeof head, "%-4s  %-9s  ", level, name);
			assert_memory_equal(h, head, strlen(head));
			assert_true(json_is_object(json_object_get(o, "values")));
			for (int i = 0; i < 3; i++)
				counts[i] += !strcmp(level, levels[i]);
			if (!strcmp(name, "memory"))
				assert_true(json_integer_value(json_object_get(json_object_get(o, "values"), "total_bytes")) ==
					    67108864LL * 1024);
			n++;
		}
		json_decref(o);
	}
	assert_int_equal(n_summaries, 1);
	assert_int_equal(n, 16);
	free(human);
}

static void a_configuration_that_cannot_be_read_fails_and_hides_nothing_else(void **state)
{
	struct patient *p = *state;

	configure(p, "compute: {threads: 0}\n");
	examine(p, false);
	assert_int_equal(p->n_failing, 1);
	assert_says(p, "fail  config     ", "quire.yaml:4:20: compute.threads: 0 is not between 1 and 1024");
	assert_says(p, "warn  engine     not looked at", "");
	assert_says(p, "warn  threads    not looked at", "");
	assert_says(p, "warn  store      not looked at", "");
	assert_says(p, "warn  socket     not looked at", "");
	assert_says(p, "warn  model      not looked at", "");
	assert_says(p, "ok    memory     68.7 GB", "");
	/* A socket that was named needs none. */
	setenv("QUIRE_SOCKET", "/no/such/socket", 1);
	examine(p, false);
	assert_says(p, "warn  socket     no daemon answers at /no/such/socket", "");
	unsetenv("QUIRE_SOCKET");
}

static void a_model_that_does_not_fit_fails(void **state)
{
	struct patient *p = *state;

	put(p, "proc/meminfo", "MemTotal: 800 kB\nMemAvailable: 400 kB\n");
	examine(p, false);
	assert_int_equal(p->n_failing, 1);
	assert_says(p, "fail  model      ", "there are 819 kB in all: it does not fit");
	put(p, "proc/meminfo", "MemTotal: 8000 kB\nMemAvailable: 400 kB\n");
	examine(p, false);
	assert_int_equal(p->n_failing, 0);
	assert_says(p, "warn  model      ", "and 410 kB are available now");
}

static void a_model_that_is_not_there_or_not_whole_fails(void **state)
{
	struct patient *p = *state;
	char *lines = xasprintf("model: {path: %s/model}\n", p->root);

	configure(p, lines);
	examine(p, false);
	assert_int_equal(p->n_failing, 1);
	assert_says(p, "fail  model      ", "model/config.json: No such file or directory");
	configure(p, "");
	examine(p, false);
	assert_int_equal(p->n_failing, 0);
	assert_says(p, "warn  model      model.path is not set", "");
	free(lines);
}

static void a_store_that_the_daemon_would_refuse_fails(void **state)
{
	struct patient *p = *state;

	free(temp_text(p->root, "data/store/index.sqlite", ""));
	chmod(p->store, 0755);
	examine(p, false);
	assert_int_equal(p->n_failing, 1);
	assert_says(p, "fail  store      ", "is open to everybody (mode 0755): chmod 700");
	chmod(p->store, 0700);
	examine(p, false);
	assert_int_equal(p->n_failing, 0);
	assert_says(p, "ok    store      ", "mode 0700): ");
	line_of(p, "ok    direct_io");
	free(p->store);
	p->store = temp_path(p->root, "data/store/index.sqlite");
	configure(p, "");
	examine(p, false);
	assert_says(p, "fail  store      ", "index.sqlite is not a directory");
}

/* In the child: the failing findings of the patient, as an ordinary user. */
static int examine_as_user(void *arg)
{
	examine(arg, false);
	return ((struct patient *)arg)->n_failing;
}

static void a_store_that_cannot_be_made_fails(void **state)
{
	struct patient *p = *state;
	char *data = temp_path(p->root, "data");

	configure(p, "");
	assert_int_equal(mkdir(data, 0700), 0);
	give_to_user(p->root);
	give_to_user(p->config);
	give_to_user(data);
	assert_int_equal(as_user(examine_as_user, p), 0);
	chmod(data, 0500);
	assert_int_equal(as_user(examine_as_user, p), 1);
	free(data);
}

static void settings_that_cost_speed_are_warnings(void **state)
{
	struct patient *p = *state;

	configure(p, "compute: {threads: 1024}\n");
	put(p, "proc/self/status", "CapEff:\t0000000000000000\n");
	put(p, "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
	put(p, "sys/devices/system/node/online", "nonsense\n");
	examine(p, false);
	assert_int_equal(p->n_failing, 0);
	assert_says(p, "warn  threads    compute.threads is 1024", "set it to auto or at most");
	assert_says(p, "warn  hugepages  never", "write madvise");
	assert_says(p, "warn  numa       counted as one node", "online holds \"nonsense");
}

static void nodes_are_listed_with_their_threads(void **state)
{
	struct patient *p = *state;
	struct numa *real = numa_read("/sys", NULL);
	char *cpulist = xstrdup("");
	int first = -1;

	for (int i = 0; i < NUMA_MAX_CPUS; i++) {
		bool mine = false;
		char *longer;

		for (int node = 0; node < real->n_nodes; node++)
			mine = mine || CPU_ISSET_S((size_t)i, NUMA_SET_BYTES, real->nodes[node].cpus);
		if (!mine)
			continue;
		longer = xasprintf("%s%s%d", cpulist, *cpulist ? "," : "", i);
		free(cpulist);
		cpulist = longer;
		first = first < 0 ? i : first;
	}
	put(p, "sys/devices/system/node/online", "0,7\n");
	put(p, "sys/devices/system/node/node0/cpulist", "\n");
	put(p, "sys/devices/system/node/node7/cpulist", cpulist);
	examine(p, false);
	assert_says(p, "ok    numa       1 node", "no thread is bound");
	if (real->n_cpus > 1) {
		char *one = xasprintf("%d\n", first), *others = strchr(cpulist, ',') + 1;
		char *words = xasprintf("2 nodes, and threads are bound to theirs: node 0 has 1 processors and 1 threads, "
					"node 7 has %d processors and 0 threads", real->n_cpus - 1);

		put(p, "sys/devices/system/node/node0/cpulist", one);
		put(p, "sys/devices/system/node/node7/cpulist", others);
		examine(p, false);
		assert_says(p, "ok    numa       ", words);
		free(words);
		free(one);
	}
	free(cpulist);
	numa_free(real);
}

/* Of tests/backends/fake.c, beside this program. */
static void devices_are_listed_with_their_memory(void **state)
{
	struct patient *p = *state;
	char *libraries = realpath("/proc/self/exe", NULL), *dir;

	assert_non_null(libraries);
	*strrchr(libraries, '/') = '\0';
	dir = temp_path(libraries, "backends");
	setenv("QUIRE_BACKENDS", dir, 1);
	examine(p, false);
	assert_says(p, "ok    gpu        cuda:0 Fake 0, 80.0 GB, of which 79.0 GB are free; cuda:1 Fake 1, ", "80.0 GB");
	examine(p, true);
	assert_non_null(strstr(p->text, "\"n\":2"));
	assert_non_null(strstr(p->text, "{\"name\":\"cuda:1\",\"model\":\"Fake 1\",\"bytes\":80000000000,"));
	free(dir);
	free(libraries);
}

/* Libraries under the name of the one that is looked for: one whose devices do not open, one of another build. */
static void a_device_or_library_that_does_not_open_is_a_warning(void **state)
{
	struct patient *p = *state;
	char *program = realpath("/proc/self/exe", NULL), *library, *link = temp_path(p->root, "libquire_cuda.so");
	static const char *const libraries[] = {"dark", "abi"};
	static const char *const words[] = {"device cuda:0: device 0 is shut", "none, the CPU computes: libquire_cuda.so is of another build"};

	assert_non_null(program);
	*strrchr(program, '/') = '\0';
	for (int i = 0; i < 2; i++) {
		library = xasprintf("%s/backends/libquire_%s.so", program, libraries[i]);
		assert_int_equal(symlink(library, link), 0);
		examine(p, false);
		assert_int_equal(p->n_failing, 0);
		assert_says(p, "warn  gpu        ", words[i]);
		assert_int_equal(unlink(link), 0);
		free(library);
	}
	free(link);
	free(program);
}

/* The word is a good one for a configuration, and this processor may lack it: what the engine says then. */
static void an_instruction_set_that_is_not_here_fails(void **state)
{
	static const char *const words[] = {"avx512bf16", "avx512", "avx2"};
	struct patient *p = *state;
	const char *names[8], *missing = NULL;
	int n = cpu_isas(names, 8);
	char *lines, *sentence;

	for (int w = 0; w < 3 && !missing; w++) {
		missing = words[w];
		for (int i = 0; i < n; i++)
			if (!strcmp(names[i], words[w]))
				missing = NULL;
	}
	if (!missing) {
		printf("skipped: this processor has every instruction set\n");
		skip();
	}
	lines = xasprintf("compute: {isa: %s}\n", missing);
	sentence = xasprintf("'%s'", missing);
	configure(p, lines);
	examine(p, false);
	assert_int_equal(p->n_failing, 1);
	assert_says(p, "fail  engine     ", sentence);
	configure(p, "compute: {isa: scalar, threads: 3}\n");
	examine(p, false);
	assert_says(p, "ok    engine     cpu, scalar (compute.isa is scalar), 3 threads", "");
	free(lines);
	free(sentence);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(a_good_machine_gets_a_line_for_each_finding),
		CASE(json_says_the_same_line_by_line),
		CASE(a_configuration_that_cannot_be_read_fails_and_hides_nothing_else),
		CASE(a_model_that_does_not_fit_fails),
		CASE(a_model_that_is_not_there_or_not_whole_fails),
		CASE(a_store_that_the_daemon_would_refuse_fails),
		CASE(a_store_that_cannot_be_made_fails),
		CASE(settings_that_cost_speed_are_warnings),
		CASE(nodes_are_listed_with_their_threads),
		CASE(devices_are_listed_with_their_memory),
		CASE(a_device_or_library_that_does_not_open_is_a_warning),
		CASE(an_instruction_set_that_is_not_here_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
