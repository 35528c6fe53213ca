#include "offload/trace.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"

enum { MOST = 1 << 16, MOST_STEPS = 1 << 28 };

const struct trace_preset trace_presets[N_TRACE_PRESETS] = {
	{"A", .7, .98, 1, .4, .2, .5},
	{"focused", .6, .99, 1, .6, .3, .4},
	{"topic", .3, .995, .6, .9, .3, .5},
	{"uniform", 0, 0, 0, 0, 0, 1},
};

struct trace *trace_new(int32_t n_layers, int32_t n_experts, int32_t n_chosen, int32_t n_listed)
{
	struct trace *t = xcalloc(1, sizeof *t);

	*t = (struct trace){.n_layers = n_layers, .n_experts = n_experts, .n_chosen = n_chosen, .n_listed = n_listed};
	return t;
}

void trace_free(struct trace *t)
{
	if (t)
		free(t->entries);
	free(t);
}

/* ---- made up ---------------------------------------------------------------------------------------------------- */

static uint64_t next_word(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* Of unit variance: eight uniform numbers of 16 bits, which is normal enough for a router. */
static double normal(uint64_t *state)
{
	int64_t sum = 0;

	for (int i = 0; i < 2; i++)
		for (uint64_t w = next_word(state), k = 0; k < 4; k++, w >>= 16)
			sum += (int64_t)(w & 0xffff);
	return ((double)sum - 8 * 32767.5) / (65536 * sqrt(8.0 / 12));
}

static int by_score(const void *a, const void *b)
{
	const struct trace_entry *x = a, *y = b;

	if (x->score != y->score)
		return x->score < y->score ? 1 : -1;
	return x->expert < y->expert ? -1 : x->expert > y->expert;
}

void trace_put(struct trace *t, int64_t token, int32_t layer, const float *scores, const int32_t *chosen)
{
	size_t per_token = (size_t)t->n_layers * (size_t)t->n_listed;
	struct trace_entry *all = xmalloc((size_t)t->n_experts, sizeof *all);
	int32_t n = 0, others;

	if (token >= t->room) {
		t->room = token < 512 ? 1024 : 2 * token;
		t->entries = xrealloc(t->entries, (size_t)t->room * per_token, sizeof *t->entries);
	}
	t->n_tokens = token >= t->n_tokens ? token + 1 : t->n_tokens;
	for (int32_t i = 0; i < t->n_chosen; i++)
		all[n++] = (struct trace_entry){chosen[i], scores[chosen[i]]};
	others = n;
	for (int32_t e = 0; e < t->n_experts; e++) {
		bool is_chosen = false;

		for (int32_t i = 0; i < t->n_chosen; i++)
			is_chosen |= chosen[i] == e;
		if (!is_chosen)
			all[n++] = (struct trace_entry){e, scores[e]};
	}
	qsort(all, (size_t)others, sizeof *all, by_score);
	qsort(all + others, (size_t)(n - others), sizeof *all, by_score);
	memcpy(t->entries + ((size_t)token * (size_t)t->n_layers + (size_t)layer) * (size_t)t->n_listed, all,
	       (size_t)t->n_listed * sizeof *all);
	free(all);
}

struct trace *trace_make(const struct trace_preset *p, int32_t n_layers, int32_t n_experts, int32_t n_chosen, int64_t n_tokens,
			 uint64_t seed)
{
	struct trace *t = trace_new(n_layers, n_experts, n_chosen, n_experts);
	size_t n = (size_t)n_layers * (size_t)n_experts;
	double *fast = xmalloc(n, sizeof *fast), *slow = xmalloc(n, sizeof *slow), *bias = xmalloc(n, sizeof *bias);
	double new_fast = sqrt(1 - p->phi_fast * p->phi_fast), new_slow = sqrt(1 - p->phi_slow * p->phi_slow);

	t->n_tokens = n_tokens;
	t->entries = xmalloc(n * (size_t)n_tokens, sizeof *t->entries);
	for (size_t i = 0; i < n; i++) {
		fast[i] = normal(&seed);
		slow[i] = normal(&seed);
		bias[i] = normal(&seed);
	}
	for (int64_t token = 0; token < n_tokens; token++)
		for (int32_t layer = 0; layer < n_layers; layer++) {
			struct trace_entry *step = t->entries + (token * n_layers + layer) * n_experts;

			for (int32_t e = 0; e < n_experts; e++) {
				size_t i = (size_t)layer * (size_t)n_experts + (size_t)e;

				fast[i] = p->phi_fast * fast[i] + new_fast * normal(&seed);
				slow[i] = p->phi_slow * slow[i] + new_slow * normal(&seed);
				step[e] = (struct trace_entry){e, (float)(p->w_fast * fast[i] + p->w_slow * slow[i] +
									  p->w_bias * bias[i] + p->w_noise * normal(&seed))};
			}
			qsort(step, (size_t)n_experts, sizeof *step, by_score);
		}
	free(fast);
	free(slow);
	free(bias);
	return t;
}

/* ---- as text ---------------------------------------------------------------------------------------------------- */

/* A step's words. -1 and the sentence. */
static int read_step(const struct trace *t, struct trace_entry *step, char *seen, char *line, const char *path, int64_t number,
		     struct err *err)
{
	char *at = line;

	memset(seen, 0, (size_t)t->n_experts);
	for (int32_t i = 0; i < t->n_listed; i++) {
		char *end;
		long expert;

		errno = 0;
		expert = strtol(at, &end, 10);
		if (end == at || *end != ':' || errno || expert < 0 || expert >= t->n_experts)
			return err_set(err, ERR_FORMAT, "%s:%lld: word %d of %d is no ID:SCORE with an expert below %d", path,
				       (long long)number, i + 1, t->n_listed, t->n_experts);
		if (seen[expert]++)
			return err_set(err, ERR_FORMAT, "%s:%lld: expert %ld is listed twice", path, (long long)number, expert);
		at = end + 1;
		step[i] = (struct trace_entry){(int32_t)expert, strtof(at, &end)};
		if (end == at || !isfinite(step[i].score))
			return err_set(err, ERR_FORMAT, "%s:%lld: expert %ld has no score", path, (long long)number, expert);
		if (i && i != t->n_chosen && step[i].score > step[i - 1].score)
			return err_set(err, ERR_FORMAT, "%s:%lld: expert %ld scores more than the one before it", path,
				       (long long)number, expert);
		at = end;
	}
	if (at[strspn(at, " \t\r\n")])
		return err_set(err, ERR_FORMAT, "%s:%lld: more than %d words", path, (long long)number, t->n_listed);
	return 0;
}

static int read_steps(struct trace *t, FILE *f, const char *path, int64_t number, struct err *err)
{
	size_t room = 0, line_room = 0, per_step = (size_t)t->n_listed;
	char *line = NULL, *seen = xmalloc((size_t)t->n_experts, 1);
	int64_t steps = 0;
	int rc = 0;

	while (!rc && getline(&line, &line_room, f) > 0) {
		number++;
		if (*line == '#' || !line[strspn(line, " \t\r\n")])
			continue;
		if (steps == MOST_STEPS / t->n_listed) {
			rc = err_set(err, ERR_TOO_LARGE, "%s: more than %lld steps", path, (long long)steps);
			break;
		}
		if ((size_t)steps == room)
			t->entries = xrealloc(t->entries, (room = room ? 2 * room : 1024) * per_step, sizeof *t->entries);
		rc = read_step(t, t->entries + (size_t)steps * per_step, seen, line, path, number, err);
		steps += !rc;
	}
	if (!rc && ferror(f))
		rc = err_errno(err, errno, "read %s", path);
	if (!rc && (!steps || steps % t->n_layers))
		rc = err_set(err, ERR_FORMAT, "%s: %lld steps are no whole tokens of %d layers", path, (long long)steps, t->n_layers);
	t->n_tokens = steps / t->n_layers;
	free(line);
	free(seen);
	return rc;
}

int trace_read(struct trace **out, const char *path, struct err *err)
{
	FILE *f = fopen(path, "re");
	int32_t layers, experts, chosen, listed;
	struct trace *t;
	char head[200];
	int rc;

	if (!f)
		return err_errno(err, errno, "open %s", path);
	if (!fgets(head, sizeof head, f) ||
	    sscanf(head, "quire-trace 1 layers %d experts %d chosen %d listed %d", &layers, &experts, &chosen, &listed) != 4) {
		fclose(f);
		return err_set(err, ERR_FORMAT, "%s:1: not \"quire-trace 1 layers L experts E chosen K listed M\"", path);
	}
	if (layers < 1 || layers > MOST || experts < 1 || experts > MOST || chosen < 1 || chosen > listed || listed > experts) {
		fclose(f);
		return err_set(err, ERR_FORMAT, "%s:1: %d layers, %d experts, %d chosen, %d listed: chosen must be at least 1, no more "
			       "than listed, and listed no more than experts", path, layers, experts, chosen, listed);
	}
	t = trace_new(layers, experts, chosen, listed);
	rc = read_steps(t, f, path, 1, err);
	fclose(f);
	if (rc)
		trace_free(t);
	else
		*out = t;
	return rc;
}

int trace_write(FILE *f, const struct trace *t)
{
	fprintf(f, "quire-trace 1 layers %d experts %d chosen %d listed %d\n", t->n_layers, t->n_experts, t->n_chosen, t->n_listed);
	for (int64_t token = 0; token < t->n_tokens; token++)
		for (int32_t layer = 0; layer < t->n_layers; layer++) {
			const struct trace_entry *step = trace_step(t, token, layer);

			for (int32_t i = 0; i < t->n_listed; i++)
				fprintf(f, "%s%d:%.6g", i ? " " : "", step[i].expert, step[i].score);
			putc('\n', f);
		}
	return ferror(f) || fflush(f) ? -1 : 0;
}

double trace_overlap(const struct trace *t)
{
	int64_t same = 0;

	for (int64_t token = 1; token < t->n_tokens; token++)
		for (int32_t layer = 0; layer < t->n_layers; layer++) {
			const struct trace_entry *now = trace_step(t, token, layer), *before = trace_step(t, token - 1, layer);

			for (int32_t i = 0; i < t->n_chosen; i++)
				for (int32_t k = 0; k < t->n_chosen; k++)
					same += now[i].expert == before[k].expert;
		}
	return t->n_tokens < 2 ? 0 : (double)same / (double)((t->n_tokens - 1) * t->n_layers * t->n_chosen);
}
