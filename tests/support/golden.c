#include "tests/support/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/file.h"
#include "config/mem.h"

const char *const golden_checkpoints[] = {
	"glm52",       "glm52-fp8", "glm52-fused",  "glm52-group",   "glm52-ties", "glm5",
	"deepseek_v3", "kimi_k2",   "deepseek_v32", "glm4_moe_lite", NULL,
};

char *golden_dir(const char *checkpoint)
{
	return xasprintf("tests/golden/%s", checkpoint);
}

static void die(const char *path, const char *what)
{
	fprintf(stderr, "%s: %s\n", path, what);
	exit(1);
}

/* The file, or NULL when it may be missing and is. */
static char *read_case(const char *dir, const char *name, const char *suffix, int optional, size_t *bytes)
{
	char *path = xasprintf("%s/%s%s", dir, name, suffix), *text = NULL;
	struct err err = {0};

	if (file_read(&text, bytes, path, (size_t)64 << 20, &err) && !(optional && err.code == ERR_NOT_FOUND))
		die(path, err.text);
	free(path);
	return text;
}

static int32_t *read_numbers(const char *dir, const char *name, const char *suffix, int32_t *n)
{
	size_t bytes;
	char *text = read_case(dir, name, suffix, 1, &bytes);
	int32_t *numbers = xcalloc(bytes + 1, sizeof *numbers);

	*n = 0;
	if (text)
		for (char *p = strtok(text, " \n"); p; p = strtok(NULL, " \n"))
			numbers[(*n)++] = atoi(p);
	free(text);
	return numbers;
}

static void read_sets(struct golden_case *c, const char *dir)
{
	size_t bytes;
	char *text = read_case(dir, c->name, ".topk", 1, &bytes), *next;

	for (char *line = text; line && *line; line = next) {
		struct golden_set s = {0};
		char *p = strchr(line, '[');

		next = strchr(line, '\n');
		next = next ? next + 1 : line + strlen(line);
		if (!p || sscanf(line, "{\"layer\":%d,\"pos\":%d", &s.layer, &s.position) != 2)
			die(c->name, "a line of its .topk is not understood");
		s.set = xcalloc((size_t)(next - p), sizeof *s.set);
		while (*p != ']')
			s.set[s.n++] = (int32_t)strtol(p + 1, &p, 10);
		c->sets = xrealloc(c->sets, (size_t)c->n_sets + 1, sizeof *c->sets);
		c->sets[c->n_sets++] = s;
	}
	free(text);
}

static void read_one(struct golden_case *c, const char *dir, int32_t vocab)
{
	size_t bytes;

	c->ids = read_numbers(dir, c->name, ".ids", &c->n_ids);
	c->rows = read_numbers(dir, c->name, ".rows", &c->n_rows);
	c->greedy = read_numbers(dir, c->name, ".greedy", &c->n_greedy);
	c->logits = (float *)(void *)read_case(dir, c->name, ".logits", 0, &bytes);
	if (!c->n_rows) {
		free(c->rows);
		c->rows = xcalloc((size_t)c->n_ids, sizeof *c->rows);
		for (c->n_rows = 0; c->n_rows < c->n_ids; c->n_rows++)
			c->rows[c->n_rows] = c->n_rows;
	}
	if (bytes != (size_t)c->n_rows * (size_t)vocab * sizeof(float))
		die(c->name, "its .logits has the wrong length");
	read_sets(c, dir);
}

struct golden_case *golden_load(const char *checkpoint, int32_t vocab, int *n)
{
	struct golden_case *cases = NULL;
	char *dir = golden_dir(checkpoint), *save, *text;
	size_t bytes;

	*n = 0;
	text = read_case(dir, "cases.txt", "", 0, &bytes);
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		cases = xrealloc(cases, (size_t)*n + 1, sizeof *cases);
		cases[*n] = (struct golden_case){.checkpoint = xstrdup(checkpoint),
						 .name = xstrndup(line, strcspn(line, " \t"))};
		read_one(&cases[(*n)++], dir, vocab);
	}
	free(text);
	free(dir);
	return cases;
}

static void free_sets(struct golden_set *sets, int32_t n)
{
	for (int32_t i = 0; i < n; i++)
		free(sets[i].set);
	free(sets);
}

void golden_free(struct golden_case *cases, int n)
{
	for (int i = 0; i < n; i++) {
		free(cases[i].checkpoint);
		free(cases[i].name);
		free(cases[i].ids);
		free(cases[i].rows);
		free(cases[i].logits);
		free(cases[i].greedy);
		free_sets(cases[i].sets, cases[i].n_sets);
	}
	free(cases);
}

static int take_logits(void *ctx, int64_t position, const float *row, struct err *err)
{
	struct golden_run *run = ctx;

	(void)err;
	memcpy(run->logits + position * run->vocab, row, (size_t)run->vocab * sizeof *row);
	return 0;
}

static int take_set(void *ctx, int32_t layer, int64_t position, const int32_t *set, int32_t n, struct err *err)
{
	struct golden_run *run = ctx;
	struct golden_set *s;

	(void)err;
	if (run->n_sets == run->room_sets) {
		run->room_sets = run->room_sets ? 2 * run->room_sets : 1024;
		run->sets = xrealloc(run->sets, (size_t)run->room_sets, sizeof *run->sets);
	}
	s = &run->sets[run->n_sets++];
	*s = (struct golden_set){layer, (int32_t)position, n, xcalloc((size_t)n, sizeof *set)};
	memcpy(s->set, set, (size_t)n * sizeof *set);
	return 0;
}

static void run_ids(struct golden_run *run, struct engine *e, const struct model *m, enum latent_format latents,
		    const char *name, const int32_t *ids, int32_t n, int64_t chunk)
{
	struct session_tap tap = {run, take_logits, take_set};
	struct session_options opt = {.latents = latents};
	struct session *s = NULL;
	struct err err = {0};

	*run = (struct golden_run){.n_positions = n, .vocab = m->config.vocab};
	run->logits = xcalloc((size_t)n * (size_t)run->vocab, sizeof *run->logits);
	if (session_new(&s, e, m, &opt, &err))
		die(name, err.text);
	chunk = chunk ? chunk : n;
	for (int64_t i = 0; i < n; i += chunk)
		if (session_append(s, ids + i, (size_t)(n - i < chunk ? n - i : chunk), NULL, &tap, &err))
			die(name, err.text);
	session_free(s);
}

void golden_run(struct golden_run *run, struct engine *e, const struct model *m, enum latent_format latents,
		const struct golden_case *c, int64_t chunk)
{
	run_ids(run, e, m, latents, c->name, c->ids, c->n_ids, chunk);
}

void golden_run_forced(struct golden_run *run, struct engine *e, const struct model *m, enum latent_format latents,
		       const struct golden_case *c)
{
	int32_t n = c->n_ids + c->n_greedy;
	int32_t *ids = xcalloc((size_t)n, sizeof *ids);

	memcpy(ids, c->ids, (size_t)c->n_ids * sizeof *ids);
	memcpy(ids + c->n_ids, c->greedy, (size_t)c->n_greedy * sizeof *ids);
	run_ids(run, e, m, latents, c->name, ids, n, 0);
	free(ids);
}

void golden_run_free(struct golden_run *run)
{
	free(run->logits);
	free_sets(run->sets, run->n_sets);
}

double golden_error(const struct golden_run *run, const struct golden_case *c)
{
	double worst = 0, largest = 0;

	for (int32_t i = 0; i < c->n_rows; i++)
		for (int32_t k = 0; k < run->vocab; k++) {
			double b = c->logits[(size_t)i * (size_t)run->vocab + (size_t)k];
			double d = run->logits[(size_t)c->rows[i] * (size_t)run->vocab + (size_t)k] - b;

			d = d < 0 ? -d : d;
			b = b < 0 ? -b : b;
			worst = d > worst ? d : worst;
			largest = b > largest ? b : largest;
		}
	return worst / largest;
}

static const struct golden_set *find_set(const struct golden_run *run, int32_t layer, int32_t position)
{
	for (int32_t k = 0; k < run->n_sets; k++)
		if (run->sets[k].layer == layer && run->sets[k].position == position)
			return &run->sets[k];
	return NULL;
}

int golden_set_differences(const struct golden_run *run, const struct golden_case *c, const struct golden_set **first)
{
	int different = 0;

	for (int32_t i = 0; i < c->n_sets; i++) {
		const struct golden_set *want = &c->sets[i], *got = find_set(run, want->layer, want->position);

		if (!got || got->n != want->n || memcmp(got->set, want->set, (size_t)want->n * sizeof *want->set)) {
			*first = want;
			different++;
		}
	}
	return different;
}

/* Add sum |a - b|^2 and sum |b|^2 of stored row i. */
static void add_squares(const struct golden_run *run, const struct golden_case *c, int32_t i, double *error, double *size)
{
	for (int32_t k = 0; k < run->vocab; k++) {
		double b = c->logits[(size_t)i * (size_t)run->vocab + (size_t)k];
		double d = run->logits[(size_t)c->rows[i] * (size_t)run->vocab + (size_t)k] - b;

		*error += d * d;
		*size += b * b;
	}
}

double golden_rms_error(const struct golden_run *runs, const struct golden_case *cases, int n)
{
	double error = 0, size = 0;

	for (int j = 0; j < n; j++)
		for (int32_t i = 0; i < cases[j].n_rows; i++)
			add_squares(&runs[j], &cases[j], i, &error, &size);
	return sqrt(error / size);
}

double golden_geometric_error(const struct golden_run *runs, const struct golden_case *cases, int n)
{
	double sum = 0;
	int n_rows = 0;

	for (int j = 0; j < n; j++)
		for (int32_t i = 0; i < cases[j].n_rows; i++, n_rows++) {
			double error = 0, size = 0, relative;

			add_squares(&runs[j], &cases[j], i, &error, &size);
			relative = sqrt(error / size);
			sum += log(relative < 0x1p-24 ? 0x1p-24 : relative); /* a NaN stays one */
		}
	return exp(sum / n_rows);
}

/* How many numbers two ascending sets have in common. */
static int32_t common(const struct golden_set *a, const struct golden_set *b)
{
	int32_t n = 0;

	for (int32_t i = 0, k = 0; i < a->n && k < b->n;) {
		n += a->set[i] == b->set[k];
		if (a->set[i] <= b->set[k])
			i++;
		else
			k++;
	}
	return n;
}

double golden_set_overlap(const struct golden_run *runs, const struct golden_case *cases, int n)
{
	double sum = 0;
	int n_sets = 0;

	for (int j = 0; j < n; j++)
		for (int32_t i = 0; i < cases[j].n_sets; i++, n_sets++) {
			const struct golden_set *want = &cases[j].sets[i];
			const struct golden_set *got = find_set(&runs[j], want->layer, want->position);

			if (got)
				sum += (double)common(want, got) / want->n;
		}
	return n_sets ? sum / n_sets : NAN;
}

int32_t golden_greatest(const float *x, int32_t n)
{
	int32_t best = 0;

	for (int32_t i = 1; i < n; i++)
		if (x[i] > x[best])
			best = i;
	return best;
}

double golden_greedy_agreement(const struct golden_run *runs, const struct golden_case *cases, int n)
{
	int n_steps = 0, n_agree = 0;

	for (int j = 0; j < n; j++)
		for (int32_t g = 0; g < cases[j].n_greedy; g++, n_steps++) {
			size_t row = (size_t)(cases[j].n_ids - 1 + g);

			if (row >= (size_t)runs[j].n_positions)
				die(cases[j].name, "its greedy ids were not run");
			n_agree += golden_greatest(runs[j].logits + row * (size_t)runs[j].vocab, runs[j].vocab) ==
				   cases[j].greedy[g];
		}
	return n_steps ? (double)n_agree / n_steps : NAN;
}

struct golden_figures golden_measure(const struct golden_run *runs, const struct golden_case *cases, int n)
{
	struct golden_figures f = {
		.rms_error = golden_rms_error(runs, cases, n),
		.geometric_error = golden_geometric_error(runs, cases, n),
		.set_overlap = golden_set_overlap(runs, cases, n),
		.greedy_agreement = golden_greedy_agreement(runs, cases, n),
	};

	for (int j = 0; j < n; j++)
		f.max_error = fmax(f.max_error, golden_error(&runs[j], &cases[j]));
	return f;
}

/* A figure of bf16.txt; "-": there is nothing to measure it by. */
static double read_figure(const char *path, const char *text)
{
	char *end;
	double x = strtod(text, &end);

	if (!strcmp(text, "-"))
		return NAN;
	if (end == text || *end || !(x >= 0 && x < 100))
		die(path, "a figure is not understood");
	return x;
}

struct golden_figures golden_transformers_bf16(const char *checkpoint, const char *name)
{
	const char *path = "tests/golden/bf16.txt";
	struct golden_figures f = {0};
	char *save, *text;
	int n_found = 0;
	size_t bytes;

	text = read_case("tests/golden", "bf16", ".txt", 0, &bytes);
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char word[7][32];

		if (*line == '#')
			continue;
		if (sscanf(line, "%31s %31s %31s %31s %31s %31s %31s", word[0], word[1], word[2], word[3], word[4],
			   word[5], word[6]) != 7)
			die(path, "a line has fewer than seven words");
		if (strcmp(word[0], checkpoint) || strcmp(word[1], name))
			continue;
		f = (struct golden_figures){read_figure(path, word[2]), read_figure(path, word[3]),
					    read_figure(path, word[4]), read_figure(path, word[5]),
					    read_figure(path, word[6])};
		n_found++;
	}
	free(text);
	if (n_found != 1)
		die(name, "not exactly one line of tests/golden/bf16.txt is about it; run tests/golden/bf16.py");
	return f;
}
