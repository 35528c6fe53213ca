#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/config.h"
#include "config/mem.h"
#include "config/yaml.h"
#include "tests/support/as_user.h"
#include "tests/support/temp_dir.h"

static struct config parsed(const char *text)
{
	struct config c;
	struct err err;

	if (config_parse(&c, "q.yaml", text, strlen(text), &err))
		fail_msg("%s", err.text);
	return c;
}

static void assert_refused_bytes(const char *text, size_t bytes, const char *sentence)
{
	struct config c;
	struct err err;

	if (!config_parse(&c, "q.yaml", text, bytes, &err))
		fail_msg("%s: accepted", text);
	if (strncmp(err.text, sentence, strlen(sentence)))
		fail_msg("%s: refused with \"%s\", not with \"%s\"", text, err.text, sentence);
	assert_true(err.code == ERR_USAGE);
}

/* The sentence may go on. */
static void assert_refused(const char *text, const char *sentence)
{
	assert_refused_bytes(text, strlen(text), sentence);
}

static char *printed(const struct config *c)
{
	char *text;
	size_t bytes;
	FILE *f = open_memstream(&text, &bytes);

	assert_int_equal(config_print(c, f), 0);
	fclose(f);
	return text;
}

static void every_key_reaches_its_place(void **state)
{
	struct config c = parsed("version: 1\n"
				 "model:\n"
				 "  path: /srv/models/glm\n"
				 "  template: glm-5.2\n"
				 "  compute: f32\n"
				 "  latents: fp8\n"
				 "  mla_norm_eps: 1e-5\n"
				 "compute: {threads: 3, isa: avx512bf16}\n"
				 "tiers: {host_experts: 20GB, device: cuda:1, device_experts: 70GB}\n"
				 "context: {max_tokens: 4096, latent_cache: 2GiB}\n"
				 "store: {path: /var/lib/quire}\n"
				 "server: {socket: /run/q.sock, max_queue: 9}\n"
				 "ingest:\n"
				 "  max_file: 5MB\n"
				 "  scratch: 3GB\n"
				 "  exclude: [\"*.min.js\", '**/lock', build/]\n"
				 "  include:\n"
				 "  - docs/*\n"
				 "query: {max_tokens: 77, temperature: 0.5, top_p: 0.25, top_k: 40, min_p: 0.125, seed: 12}\n"
				 "log: {level: debug}\n");

	(void)state;
	assert_string_equal(c.model.path, "/srv/models/glm");
	assert_string_equal(c.model.template, "glm-5.2");
	assert_string_equal(c.model.compute, "f32");
	assert_string_equal(c.model.latents, "fp8");
	assert_true(c.model.mla_norm_eps == 1e-5);
	assert_int_equal(c.compute.threads, 3);
	assert_string_equal(c.compute.isa, "avx512bf16");
	assert_int_equal(c.tiers.host_expert_bytes, 20000000000);
	assert_string_equal(c.tiers.device, "cuda:1");
	assert_int_equal(c.tiers.device_expert_bytes, 70000000000);
	assert_int_equal(c.context.max_tokens, 4096);
	assert_int_equal(c.context.latent_cache_bytes, 2LL << 30);
	assert_string_equal(c.store.path, "/var/lib/quire");
	assert_string_equal(c.server.socket, "/run/q.sock");
	assert_int_equal(c.server.max_queue, 9);
	assert_int_equal(c.ingest.max_file_bytes, 5000000);
	assert_int_equal(c.ingest.scratch_bytes, 3000000000);
	assert_string_equal(c.ingest.exclude[0], "*.min.js");
	assert_string_equal(c.ingest.exclude[1], "**/lock");
	assert_string_equal(c.ingest.exclude[2], "build/");
	assert_null(c.ingest.exclude[3]);
	assert_string_equal(c.ingest.include[0], "docs/*");
	assert_null(c.ingest.include[1]);
	assert_int_equal(c.query.max_tokens, 77);
	assert_true(c.query.temperature == 0.5);
	assert_true(c.query.top_p == 0.25);
	assert_int_equal(c.query.top_k, 40);
	assert_true(c.query.min_p == 0.125);
	assert_int_equal(c.query.seed, 12);
	assert_int_equal(c.log.level, LOG_LEVEL_DEBUG);
	config_free(&c);
}

static void what_is_not_said_has_the_default_of_the_header(void **state)
{
	struct config c = parsed("version: 1");

	(void)state;
	assert_null(c.model.path);
	assert_null(c.model.template);
	assert_string_equal(c.model.compute, "bf16");
	assert_string_equal(c.model.latents, "bf16");
	assert_true(c.model.mla_norm_eps == 0);
	assert_int_equal(c.compute.threads, 0);
	assert_string_equal(c.compute.isa, "auto");
	assert_int_equal(c.tiers.host_expert_bytes, 0);
	assert_string_equal(c.tiers.device, "auto");
	assert_int_equal(c.tiers.device_expert_bytes, 0);
	assert_int_equal(c.context.max_tokens, 0);
	assert_int_equal(c.context.latent_cache_bytes, 0);
	assert_string_equal(c.store.path, "/xdg/data/quire");
	assert_null(c.server.socket);
	assert_int_equal(c.server.max_queue, 64);
	assert_int_equal(c.store.keep_snapshots, 3);
	assert_int_equal(c.ingest.max_file_bytes, 1048576);
	assert_int_equal(c.ingest.scratch_bytes, 1073741824);
	assert_null(c.ingest.exclude[0]);
	assert_null(c.ingest.include[0]);
	assert_int_equal(c.query.max_tokens, 4096);
	assert_true(c.query.temperature == 0);
	assert_true(c.query.top_p == 1);
	assert_int_equal(c.query.top_k, 0);
	assert_true(c.query.min_p == 0);
	assert_int_equal(c.query.seed, 0);
	assert_int_equal(c.log.level, LOG_LEVEL_INFO);
	config_free(&c);
}

static void an_unknown_key_is_refused_with_the_one_that_was_meant(void **state)
{
	(void)state;
	assert_refused("version: 1\nmodel:\n  pth: /x\n", "q.yaml:3:3: unknown key \"model.pth\"; did you mean \"model.path\"?");
	assert_refused("version: 1\nmodle: {}\n", "q.yaml:2:1: unknown key \"modle\"; did you mean \"model\"?");
	assert_refused("version: 1\nmodel: {threads: 2}\n",
		       "q.yaml:2:9: unknown key \"model.threads\"; did you mean \"compute.threads\"?");
	assert_refused("version: 1\nsocket: /x\n", "q.yaml:2:1: unknown key \"socket\"; did you mean \"server.socket\"?");
	assert_refused("version: 1\ncolour: red\n", "q.yaml:2:1: unknown key \"colour\"");
	assert_refused("version: 1\nserver: {tcp: off}\n", "q.yaml:2:10: unknown key \"server.tcp\"");
	assert_refused("version: 1\nmodel: {\"\\e[2J\": 1}\n", "q.yaml:2:9: unknown key \"model.\\x1b[2J\"");
}

static void a_key_given_twice_is_refused(void **state)
{
	(void)state;
	assert_refused("version: 1\nlog: {level: info}\nlog: {level: warn}\n",
		       "q.yaml:3:1: \"log\" is given twice, first in line 2");
	assert_refused("version: 1\nlog:\n  level: info\n  \"level\": warn\n",
		       "q.yaml:4:3: \"level\" is given twice, first in line 3");
	assert_refused("version: 1\nversion: 1\n", "q.yaml:2:1: \"version\" is given twice, first in line 1");
}

static void a_value_of_the_wrong_type_is_refused(void **state)
{
	(void)state;
	assert_refused("version: 1\nmodel: /srv/glm\n", "q.yaml:2:8: model: keys are expected below it, such as \"path: ...\"");
	assert_refused("version: 1\nmodel:\n", "q.yaml:2:7: model: keys are expected below it");
	assert_refused("version: 1\nmodel: {path: [/a]}\n", "q.yaml:2:15: model.path: one value is expected, not a list");
	assert_refused("version: 1\nmodel: {path: {a: b}}\n", "q.yaml:2:15: model.path: one value is expected, not a mapping");
	assert_refused("version: 1\nmodel:\n  path:\n", "q.yaml:3:8: model.path: has no value");
	assert_refused("version: 1\nmodel: {path: ~}\n", "q.yaml:2:15: model.path: has no value");
	assert_refused("version: 1\nmodel: {path: ''}\n", "q.yaml:2:15: model.path: is empty");
	assert_refused("version: 1\nmodel: {path: 12}\n", "q.yaml:2:15: model.path: 12 is a number in YAML");
	assert_refused("version: 1\nmodel: {path: models/glm}\n",
		       "q.yaml:2:15: model.path: \"models/glm\" is not an absolute path; write one that begins with / or ~/");
	assert_refused("version: 1\ningest: {exclude: '*.o'}\n", "q.yaml:2:19: ingest.exclude: a list is expected");
	assert_refused("version: 1\ningest: {exclude: [[a]]}\n", "q.yaml:2:20: ingest.exclude: holds a list or mapping");
	assert_refused("version: 1\ningest: {exclude: [no]}\n", "q.yaml:2:20: ingest.exclude: no is a boolean in YAML");
	assert_refused("version: 1\ningest: {exclude: [1.10]}\n", "q.yaml:2:20: ingest.exclude: 1.10 is a number in YAML");
	assert_refused("version: 1\ningest: {exclude: [a, ]\n", "q.yaml:");
	assert_refused("version: 1\nquery: {top_k: \"4\"}\n", "q.yaml:2:16: query.top_k: \"4\" is text, because of its quotes");
	assert_refused("version: 1\nquery: {top_k: yes}\n", "q.yaml:2:16: query.top_k: \"yes\" is not a whole number");
	assert_refused("version: 1\nquery: {top_p: auto}\n", "q.yaml:2:16: query.top_p: \"auto\" is not a number");
	assert_refused("version: 1\nlog: {level: on}\n", "q.yaml:2:14: log.level: on is a boolean in YAML");
	assert_refused("version: 1\n- a\n", "q.yaml:2:1: not YAML: ");
	assert_refused("- version\n", "q.yaml:1:1: keys are expected, such as \"version: 1\"");
	assert_refused("just words\n", "q.yaml:1:1: keys are expected");
}

static void a_value_out_of_range_is_refused(void **state)
{
	(void)state;
	assert_refused("version: 2\n", "q.yaml:1:10: version: this quire reads configurations of version 1, not \"2\"");
	assert_refused("version: 1\ncompute: {threads: 0}\n", "q.yaml:2:20: compute.threads: 0 is not between 1 and 1024");
	assert_refused("version: 1\ncompute: {threads: 1025}\n", "q.yaml:2:20: compute.threads: 1025 is not between 1 and 1024");
	assert_refused("version: 1\ncompute: {threads: -1}\n", "q.yaml:2:20: compute.threads: \"-1\" is not a whole number");
	assert_refused("version: 1\ncontext: {max_tokens: 1048577}\n",
		       "q.yaml:2:23: context.max_tokens: 1048577 is not between 1 and 1048576");
	assert_refused("version: 1\nquery: {top_p: 1.5}\n", "q.yaml:2:16: query.top_p: 1.5 is not between 0 and 1");
	assert_refused("version: 1\nquery: {top_p: .nan}\n", "q.yaml:2:16: query.top_p: \".nan\" is not a number");
	assert_refused("version: 1\ningest: {max_file: 1048576}\n", "q.yaml:2:20: ingest.max_file: \"1048576\" has no unit");
	assert_refused("version: 1\nstore: {keep_snapshots: -1}\n", "q.yaml:2:25: store.keep_snapshots: \"-1\" is not a whole number");
	assert_refused("version: 1\nstore: {max_bytes: 1000}\n", "q.yaml:2:20: store.max_bytes: \"1000\" has no unit");
	assert_refused("version: 1\nstore: {max_bytes: 1KiB}\n", "q.yaml:2:20: store.max_bytes: 1KiB is not between 1MiB and");
	assert_refused("version: 1\ningest: {max_file: 0B}\n", "q.yaml:2:20: ingest.max_file: 0B is not between 1B and 1GiB");
	assert_refused("version: 1\ningest: {scratch: 1KiB}\n", "q.yaml:2:19: ingest.scratch: 1KiB is not between 64KiB and 16TiB");
	assert_refused("version: 1\ningest: {max_file: 2GiB}\n", "q.yaml:2:20: ingest.max_file: 2GiB is not between 1B and 1GiB");
	assert_refused("version: 1\nmodel: {latents: f32}\n",
		       "q.yaml:2:18: model.latents: \"f32\" is not a value it may have (known: bf16, fp8)");
	assert_refused("version: 1\ncompute: {isa: sse9}\n", "q.yaml:2:16: compute.isa: \"sse9\" is not a value it may have "
		       "(known: auto, scalar, avx2, avx512, avx512bf16)");
	assert_refused("version: 1\ntiers: {device: gpu}\n", "q.yaml:2:17: tiers.device: \"gpu\" is neither auto nor none nor a kind");
	assert_refused("version: 1\ntiers: {device: \"cuda:x\"}\n", "q.yaml:2:17: tiers.device: \"cuda:x\" is neither auto nor none nor a kind");
	assert_refused("version: 1\ncompute: {isa: AVX512}\n", "q.yaml:2:16: compute.isa: \"AVX512\" is not a value it may have");
	assert_refused("version: 1\ncompute: {isa: 512}\n", "q.yaml:2:16: compute.isa: 512 is a number in YAML");
	assert_refused("version: 1\nmodel: {isa: auto}\n", "q.yaml:2:9: unknown key \"model.isa\"; did you mean \"compute.isa\"?");
	assert_refused("version: 1\nlog: {level: debgu}\n", "q.yaml:2:14: log.level: \"debgu\" is not a value it may have "
		       "(known: error, warn, info, debug); did you mean \"debug\"?");
}

static void the_version_is_required(void **state)
{
	(void)state;
	assert_refused("", "q.yaml: \"version\" is missing; begin the file with \"version: 1\"");
	assert_refused("# nothing\n", "q.yaml: \"version\" is missing");
	assert_refused("log: {level: info}\n", "q.yaml: \"version\" is missing");
}

static void what_makes_yaml_mean_something_else_is_refused(void **state)
{
	(void)state;
	assert_refused("version: &v 1\n", "q.yaml:1:10: anchors (&v) are not accepted");
	assert_refused("version: 1\nlog: &l {level: info}\n", "q.yaml:2:6: anchors (&l)");
	assert_refused("version: 1\ningest: {exclude: &e []}\n", "q.yaml:2:19: anchors (&e)");
	assert_refused("version: *v\n", "q.yaml:1:10: aliases (*v) are not accepted");
	assert_refused("version: 1\nlog: {<<: {level: info}}\n", "q.yaml:2:7: merge keys (<<) are not accepted");
	assert_refused("version: !!int 1\n", "q.yaml:1:10: tags (tag:yaml.org,2002:int) are not accepted");
	assert_refused("version: ! 1\n", "q.yaml:1:10: tags (!) are not accepted");
	assert_refused("version: 1\nlog: !!map {}\n", "q.yaml:2:6: tags");
	assert_refused("%YAML 1.1\n---\nversion: 1\n", "q.yaml:1:1: YAML directives");
	assert_refused("version: 1\n---\nversion: 1\n", "q.yaml:2:1: a second document begins here");
	assert_refused("version: 1\n? [a]\n: b\n", "q.yaml:2:3: a key is a word, not a list or mapping");
	assert_refused("version: 1\nmodel:\n  path: |\n    /x\n", "q.yaml:3:9: block text");
	assert_refused("version: 1\nmodel: {path: \"/a\\0b\"}\n", "q.yaml:2:15: text with a NUL in it");
	assert_refused("version: 1\nlog: {level: info\n", "q.yaml:3:1: not YAML: while parsing a flow mapping");
	assert_refused("version: 1\nlog:\n\tlevel: info\n", "q.yaml:3:1: not YAML: ");
	assert_refused("version: 1\n# \xff\n", "q.yaml:2:3: not YAML: ");
	assert_refused("version: 1\n# \x1b[2J\n", "q.yaml:2:3: not YAML: ");
	assert_refused_bytes("version: 1\n\0", 12, "q.yaml:2:1: not YAML: ");
}

/* Nobody waits for a file that is made to take long. */
static void deep_and_long_files_are_refused_at_once(void **state)
{
	char *text = xmalloc(YAML_MAX_BYTES + 1, 1);

	(void)state;
	memset(text, '[', YAML_MAX_BYTES + 1);
	assert_refused_bytes(text, YAML_MAX_BYTES, "q.yaml:1:1: keys are expected");
	assert_refused_bytes(text, YAML_MAX_BYTES + 1, "q.yaml has 1048577 bytes; a configuration has at most 1048576");
	memset(text, 'x', YAML_MAX_BYTES);
	assert_refused_bytes(text, YAML_MAX_BYTES, "q.yaml:1:1: keys are expected");
	memcpy(text, "version: ", 9);
	assert_refused_bytes(text, YAML_MAX_BYTES, "q.yaml:1:10: version: this quire reads configurations of version 1");
	free(text);
}

static void the_reader_goes_eight_levels_deep_and_no_further(void **state)
{
	struct yaml *y;
	struct yaml_piece piece;
	struct err err;

	(void)state;
	assert_int_equal(yaml_open(&y, "q.yaml", "[[[[[[[[[]]]]]]]]]", 18, &err), 0);
	for (int i = 0; i < 8; i++) {
		assert_int_equal(yaml_next(y, &piece, &err), 0);
		assert_int_equal(piece.kind, YAML_LIST);
	}
	assert_int_equal(yaml_next(y, &piece, &err), -1);
	assert_string_equal(err.text, "q.yaml:1:9: nested deeper than 8 levels");
	yaml_close(y);
	yaml_close(NULL);
}

static void what_is_printed_is_read_as_the_same(void **state)
{
	struct config c = parsed("version: 1\n"
				 "model: {path: \"/a\\\"b\\\\c\\n\\e \\u202e\xc3\xa9\", latents: fp8, mla_norm_eps: 1e-7}\n"
				 "compute: {isa: scalar, threads: 2}\n"
				 "ingest: {exclude: [\"no\", \"1\", \"a: b\", \"#x\"], max_file: 1500000B}\n"
				 "query: {temperature: 0.1, seed: 9007199254740992}\n");
	char *once = printed(&c), *twice;

	(void)state;
	config_free(&c);
	c = parsed(once);
	twice = printed(&c);
	assert_string_equal(once, twice);
	assert_string_equal(c.model.path, "/a\"b\\c\n\x1b \xe2\x80\xae\xc3\xa9");
	assert_string_equal(c.ingest.exclude[3], "#x");
	assert_int_equal(c.ingest.max_file_bytes, 1500000);
	assert_non_null(strstr(once, "  path: \"/a\\\"b\\\\c\\n\\x1b \\u202e\xc3\xa9\"\n"));
	assert_non_null(strstr(once, "  max_file: 1500KB\n"));
	assert_non_null(strstr(once, "compute:\n  threads: 2\n  isa: scalar\n"));
	assert_non_null(strstr(once, "context:\n  max_tokens: auto\n"));
	config_free(&c);
	free(once);
	free(twice);

	assert_int_equal(config_defaults(&c, NULL), 0);
	once = printed(&c);
	config_free(&c);
	c = parsed(once);
	config_free(&c);
	config_free(&c); /* all zeros by now */
	free(once);
}

static void home_is_known_by_its_short_name(void **state)
{
	struct config c;

	(void)state;
	setenv("HOME", "/home/ada", 1);
	c = parsed("version: 1\nmodel: {path: ~/glm}\n");
	assert_string_equal(c.model.path, "/home/ada/glm");
	config_free(&c);
	assert_refused("version: 1\nmodel: {path: ~bob/glm}\n", "q.yaml:2:15: model.path: \"~bob/glm\" is not an absolute path");
	unsetenv("HOME");
	assert_refused("version: 1\nmodel: {path: ~/glm}\n", "q.yaml:2:15: model.path: \"~/glm\" needs $HOME");
}

static void the_store_is_where_the_environment_says(void **state)
{
	struct config c;
	struct err err;

	(void)state;
	unsetenv("XDG_DATA_HOME");
	setenv("HOME", "/home/ada", 1);
	assert_int_equal(config_defaults(&c, &err), 0);
	assert_string_equal(c.store.path, "/home/ada/.local/share/quire");
	config_free(&c);
	setenv("XDG_DATA_HOME", "not/absolute", 1);
	assert_int_equal(config_defaults(&c, &err), 0);
	assert_string_equal(c.store.path, "/home/ada/.local/share/quire");
	config_free(&c);
	unsetenv("HOME");
	assert_int_equal(config_defaults(&c, &err), -1);
	assert_string_equal(err.text, "no place for the store: set store.path in the configuration, or $HOME");
	c = parsed("version: 1\nstore: {path: /s}\n");
	config_free(&c);
}

static void a_file_is_named_in_what_is_wrong_with_it(void **state)
{
	char *dir = temp_dir_new(), *path = temp_text(dir, "quire.yaml", "version: 1\nlog: {level: loud}\n");
	char *sentence = xasprintf("%s:2:14: log.level: \"loud\" is not", path), *absent = temp_path(dir, "absent.yaml");
	struct config c;
	struct err err;

	(void)state;
	assert_int_equal(config_load(&c, path, &err), -1);
	assert_memory_equal(err.text, sentence, strlen(sentence));
	assert_int_equal(config_load(&c, absent, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, absent));
	assert_int_equal(config_load(&c, dir, &err), -1);
	assert_non_null(strstr(err.text, "is not a regular file"));
	free(absent);
	free(sentence);
	free(path);
	temp_dir_free(dir);
}

static void a_file_that_everybody_may_write_is_refused(void **state)
{
	char *dir = temp_dir_new(), *path = temp_text(dir, "quire.yaml", "version: 1\n");
	struct config c;
	struct err err;

	(void)state;
	chmod(path, 0666);
	assert_int_equal(config_load(&c, path, &err), -1);
	assert_int_equal(err.code, ERR_PERMISSION);
	assert_non_null(strstr(err.text, "may be written by everybody; run chmod o-w"));
	chmod(path, 0664);
	assert_int_equal(config_load(&c, path, &err), 0);
	config_free(&c);
	free(path);
	temp_dir_free(dir);
}

static int load_refusal(void *path)
{
	struct config c;
	struct err err = {0};

	if (!config_load(&c, path, &err))
		config_free(&c);
	return (int)err.code;
}

static void a_file_that_one_may_not_read_is_refused(void **state)
{
	char *dir = temp_dir_new(), *path = temp_text(dir, "quire.yaml", "version: 1\n");

	(void)state;
	give_to_user(dir);
	give_to_user(path);
	assert_int_equal(as_user(load_refusal, path), ERR_NONE);
	chmod(path, 0);
	assert_int_equal(as_user(load_refusal, path), ERR_PERMISSION);
	free(path);
	temp_dir_free(dir);
}

static void a_fifo_is_refused_without_waiting(void **state)
{
	char *dir = temp_dir_new(), *path = temp_path(dir, "fifo");
	struct config c;
	struct err err;

	(void)state;
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(config_load(&c, path, &err), -1);
	assert_non_null(strstr(err.text, "is not a regular file"));
	free(path);
	temp_dir_free(dir);
}

static void the_usual_file_may_be_absent(void **state)
{
	char *dir = temp_dir_new(), *path;
	struct config c;
	struct err err;

	(void)state;
	setenv("XDG_CONFIG_HOME", dir, 1);
	assert_int_equal(config_load(&c, NULL, &err), 0);
	assert_int_equal(c.query.max_tokens, 4096);
	config_free(&c);
	path = temp_text(dir, "quire/quire.yaml", "version: 1\nquery: {max_tokens: 5}\n");
	assert_int_equal(config_load(&c, NULL, &err), 0);
	assert_int_equal(c.query.max_tokens, 5);
	config_free(&c);
	free(path);
	unsetenv("XDG_CONFIG_HOME");
	setenv("HOME", "/home/ada", 1);
	path = config_default_file();
	assert_string_equal(path, "/home/ada/.config/quire/quire.yaml");
	free(path);
	temp_dir_free(dir);
}

static void assert_socket(const char *given, const char *configured, const char *expected)
{
	struct err err;
	char *path;

	if (config_socket_path(&path, given, configured, &err))
		fail_msg("%s", err.text);
	assert_string_equal(path, expected);
	free(path);
}

static void the_nearest_to_the_user_names_the_socket(void **state)
{
	char dir[64], expected[64];
	struct stat st;

	(void)state;
	unsetenv("QUIRE_SOCKET");
	unsetenv("XDG_RUNTIME_DIR");
	snprintf(expected, sizeof expected, "/run/quire-%u/quire.sock", (unsigned)geteuid());
	snprintf(dir, sizeof dir, "/run/user/%u", (unsigned)geteuid());
	if (!stat(dir, &st) && st.st_uid == geteuid())
		snprintf(expected, sizeof expected, "%.40s/quire/quire.sock", dir);
	assert_socket(NULL, NULL, expected);
	setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
	assert_socket(NULL, NULL, "/run/user/7/quire/quire.sock");
	assert_socket(NULL, "/configured.sock", "/configured.sock");
	setenv("QUIRE_SOCKET", "", 1);
	assert_socket(NULL, "/configured.sock", "/configured.sock");
	setenv("QUIRE_SOCKET", "unix:///run/env.sock", 1);
	assert_socket(NULL, "/configured.sock", "/run/env.sock");
	setenv("QUIRE_SOCKET", "env.sock", 1);
	assert_socket(NULL, "/configured.sock", "env.sock");
	assert_socket("/given.sock", "/configured.sock", "/given.sock");
	assert_socket("unix://given.sock", NULL, "given.sock");
	unsetenv("QUIRE_SOCKET");
}

static void a_socket_path_that_cannot_be_one_is_refused(void **state)
{
	char fits[109], text[200], *path;
	struct err err;

	(void)state;
	memset(fits, 'a', sizeof fits);
	fits[0] = '/';
	fits[108] = '\0';
	assert_int_equal(config_socket_path(&path, fits, NULL, &err), -1);
	assert_non_null(strstr(err.text, "has 108 bytes; a Unix socket's path has at most 107"));
	snprintf(text, sizeof text, "version: 1\nserver: {socket: %s}\n", fits);
	assert_refused(text, "q.yaml:2:18: server.socket: socket path \"/aaa");
	setenv("XDG_RUNTIME_DIR", fits, 1);
	assert_int_equal(config_socket_path(&path, NULL, NULL, &err), -1);
	unsetenv("XDG_RUNTIME_DIR");
	fits[107] = '\0';
	assert_socket(fits, NULL, fits);
	setenv("QUIRE_SOCKET", "tcp://localhost:80", 1);
	assert_int_equal(config_socket_path(&path, NULL, NULL, &err), -1);
	assert_string_equal(err.text, "$QUIRE_SOCKET \"tcp://localhost:80\" is not the path of a socket, nor unix:// and a path");
	unsetenv("QUIRE_SOCKET");
	assert_int_equal(config_socket_path(&path, "", NULL, &err), -1);
	assert_int_equal(config_socket_path(&path, "unix://", NULL, &err), -1);
}

/* Each test begins with the same environment. */
static int set_environment(void **state)
{
	(void)state;
	setenv("HOME", "/home/nobody", 1);
	setenv("XDG_DATA_HOME", "/xdg/data", 1);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(every_key_reaches_its_place, set_environment),
		cmocka_unit_test_setup(what_is_not_said_has_the_default_of_the_header, set_environment),
		cmocka_unit_test_setup(an_unknown_key_is_refused_with_the_one_that_was_meant, set_environment),
		cmocka_unit_test_setup(a_key_given_twice_is_refused, set_environment),
		cmocka_unit_test_setup(a_value_of_the_wrong_type_is_refused, set_environment),
		cmocka_unit_test_setup(a_value_out_of_range_is_refused, set_environment),
		cmocka_unit_test_setup(the_version_is_required, set_environment),
		cmocka_unit_test_setup(what_makes_yaml_mean_something_else_is_refused, set_environment),
		cmocka_unit_test_setup(deep_and_long_files_are_refused_at_once, set_environment),
		cmocka_unit_test_setup(the_reader_goes_eight_levels_deep_and_no_further, set_environment),
		cmocka_unit_test_setup(what_is_printed_is_read_as_the_same, set_environment),
		cmocka_unit_test_setup(home_is_known_by_its_short_name, set_environment),
		cmocka_unit_test_setup(the_store_is_where_the_environment_says, set_environment),
		cmocka_unit_test_setup(a_file_is_named_in_what_is_wrong_with_it, set_environment),
		cmocka_unit_test_setup(a_file_that_everybody_may_write_is_refused, set_environment),
		cmocka_unit_test_setup(a_file_that_one_may_not_read_is_refused, set_environment),
		cmocka_unit_test_setup(a_fifo_is_refused_without_waiting, set_environment),
		cmocka_unit_test_setup(the_usual_file_may_be_absent, set_environment),
		cmocka_unit_test_setup(the_nearest_to_the_user_names_the_socket, set_environment),
		cmocka_unit_test_setup(a_socket_path_that_cannot_be_one_is_refused, set_environment),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
