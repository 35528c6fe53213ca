/*
 * Does the pocket model (tests/pocket) find the line, and how does it go about it: engine only.
 *
 *   pocket [--model DIR] [--questions DIR] [--context 2K,16K,128K] [--compute f32|bf16] [--threads N] [--most N]
 *
 * DIR/CONTEXT.json has document sets that were not trained on and questions about them (tests/pocket/questions.py). Each
 * set is prefilled once; each question follows it alone, as quire would render it, and is taken away again. --most: so many
 * questions of a task and no more, for a short look.
 *
 *   pocket.accuracy         by task and context: answers that greedy decoding gives exactly, the end token included. Right
 *                           ids are fed on, so that one pass of an answer decides: as soon as one differs, it is wrong
 *   pocket.first_token      the same of the first token alone: was the line found
 *   pocket.index_recall     by full layer and context, kind "needed": rows of an answer at which the token that is to be copied
 *                           is among the positions chosen; kind "mass", "part" answers or documents: the share of what full
 *                           attention of that layer would give to all visible positions that falls on those chosen, mean of
 *                           heads and rows that see more than are chosen (of documents and long contexts, samples)
 *   pocket.mtp_acceptance   by part and context, "draft" 1: rows whose first draft is what the model says next; 2: rows of
 *                           which both drafts are, of those where the text is what the model says first (else what it would
 *                           say after that is not known; of documents, samples). Not for a model without an MTP layer
 *   pocket.experts_used     by context, least over the layers: experts chosen by at least a thousandth of the documents' tokens, and
 *                           of all tokens, questions and answers among them ("part": documents, all)
 *   pocket.lookahead_recall experts that a layer's router chooses that it would have chosen before the experts of the preceding
 *                           layer ("layers": 1), and of the one or two before that, were added: what reading ahead relies on
 *   pocket.adjacent_expert_overlap, pocket.selection_overlap   shared with the choice of the token before; the latter where
 *                           more positions are visible than chosen
 *
 * Without --model it is the committed checkpoint.
 */
#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "config/units.h"
#include "engine/internal.h"
#include "engine/mtp.h"
#include "engine/numeric.h"
#include "engine/render.h"
#include "engine/tokenizer.h"
#include "tests/support/measure.h"

enum { MAX_TASKS = 8, MAX_EXPERTS = 256, USED_OF = 1000, SAMPLES = 1024, N_DRAFTS = 2 };
enum { N_AHEAD = 3 };
enum part { ANSWERS, DOCUMENTS, N_PARTS };

static const char *const part_names[N_PARTS] = {"answers", "documents"};

static const char committed[] = "tests/pocket/model/bf16";

struct options {
	const char *model, *questions, *contexts;
	int64_t n_threads, most;
	enum compute_profile compute;
};

struct task {
	char name[32];
	int64_t asked, exact, first;
};

/* By a layer's router, some layers early: [n, experts_per_token] in the order of tokens. A chunk's tokens come through a layer in
 * several tiles before any comes to the next, where guesses are taken up from `taken` on. */
struct guesses {
	int32_t *ids;
	int64_t n, taken;
	int64_t right, of;
};

/* What is counted of a layer, over the documents of a context. */
struct layer_count {
	int64_t chosen_by[MAX_EXPERTS];  /* tokens of documents */
	int64_t asked_by[MAX_EXPERTS];   /* of questions and answers */
	struct guesses guesses[N_AHEAD]; /* one layer early, two ... */
	int32_t *last;                   /* [experts_per_token] of the token before; -1: none */
	int64_t adjacent, adjacent_of;
	int32_t *last_set;               /* [index_topk]; n_last 0: none */
	int32_t n_last;
	int64_t kept, kept_of;
	int64_t needed, needed_of;
	int64_t attended;                /* rows of this append that have been through */
	double mass[N_PARTS];
	int64_t mass_of[N_PARTS];
};

static struct bench {
	struct options o;
	struct model *m;
	struct engine *e;
	struct tokenizer *t;
	struct renderer *r;
	struct ops ops;                  /* the engine's, with attention and the router's product watched */
	const struct ops *base;
	struct layer_count *layers;
	bool in_documents;               /* what is run now */
	int64_t n_tokens, n_asked;       /* of documents; of questions and answers */
	struct task tasks[MAX_TASKS];
	int n_tasks;
	/* The answer that is being read. */
	const int32_t *answer;
	int64_t answer_at, n_answer;     /* position of its first token; with the end token */
	int64_t line_at;                 /* position of the line; -1: none */
	int64_t right;
	bool first_right;
	/* What is read now, from position `first` on: outputs [n, hidden], and the likeliest next ids. */
	struct session *s;
	int64_t first, n_documents;
	float *outputs;
	int32_t *said;
	struct drafter *drafter;         /* NULL: the model has none */
	int64_t accepted[N_PARTS][N_DRAFTS], drafted[N_PARTS][N_DRAFTS];
} b;

static void fail(const char *what, const char *detail)
{
	fprintf(stderr, "pocket: %s%s\n", what, detail);
	exit(1);
}

/* ---- what the engine does ---------------------------------------------------------------------------------------- */

/* x is the residual, normed and times the layer's norm weights; those of the one that is guessed at take their place. */
static void guess(struct device *dev, int32_t layer, int32_t ahead, const float *x, int64_t x_stride, int64_t n)
{
	const struct model_config *c = &b.m->config;
	const struct layer *l = &b.m->layers[layer + ahead];
	struct guesses *g = &b.layers[layer + ahead].guesses[ahead - 1];
	float *u = xmalloc((size_t)n * (size_t)c->hidden, sizeof *u);
	float *logits = xmalloc((size_t)n * (size_t)c->n_experts, sizeof *logits);

	for (int64_t i = 0; i < n; i++)
		for (int32_t k = 0; k < c->hidden; k++)
			u[i * c->hidden + k] = x[i * x_stride + k] / b.m->layers[layer].post_attention_norm[k] * l->post_attention_norm[k];
	b.base->matmul(dev, logits, c->n_experts, u, c->hidden, &l->router, n, COMPUTE_F32);
	if (g->taken == g->n)
		g->taken = g->n = 0;
	g->ids = xrealloc(g->ids, (size_t)(g->n + n) * (size_t)c->experts_per_token, sizeof *g->ids);
	b.base->router_topk(dev, g->ids + g->n * c->experts_per_token, NULL, logits, l->router_bias, n, c->n_experts,
			    c->experts_per_token, c->n_groups, c->topk_groups, c->normalize_topk, c->routed_scale);
	g->n += n;
	free(u);
	free(logits);
}

/* The product of a router comes by here: what the routers of the next layers make of the same residual is kept. */
static void watched_matmul(struct device *dev, float *y, int64_t y_stride, const float *x, int64_t x_stride,
			   const struct weight *w, int64_t n, enum compute_profile profile)
{
	const struct model_config *c = &b.m->config;
	int32_t layer = 0;

	b.base->matmul(dev, y, y_stride, x, x_stride, w, n, profile);
	while (layer < c->n_layers && (w != &b.m->layers[layer].router || c->layer_is_dense[layer]))
		layer++;
	for (int32_t ahead = 1; ahead <= N_AHEAD && layer + ahead < c->n_layers && b.in_documents; ahead++)
		if (!c->layer_is_dense[layer + ahead])
			guess(dev, layer, ahead, x, x_stride, n);
}

/* Of so many positions one is looked at. */
static int64_t every(enum part part)
{
	int64_t n = b.n_documents / (part == DOCUMENTS ? SAMPLES : 16 * SAMPLES), least = part == DOCUMENTS ? 16 : 1;

	return n < least ? least : n;
}

/* The share of full attention, of a row's n_heads queries, that is on what was chosen. */
static double mass_of(struct device *dev, const float *q, const struct latent_rows *rows, const struct selection *chosen,
		      int64_t n_visible, int32_t n_heads, float scale)
{
	const struct weight keys = {.data = rows->rows, .dtype = b.o.compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32,
				    .rows = (int32_t)n_visible, .cols = rows->kv_lora + rows->rope_dim};
	float *scores = xmalloc((size_t)(n_heads * n_visible), sizeof *scores);
	double sum = 0;

	b.base->matmul(dev, scores, n_visible, q, keys.cols, &keys, n_heads, b.o.compute);
	for (int32_t h = 0; h < n_heads; h++) {
		float *s = scores + h * n_visible, most = s[0];
		double all = 0, on = 0;

		for (int64_t t = 1; t < n_visible; t++)
			most = s[t] > most ? s[t] : most;
		for (int64_t t = 0; t < n_visible; t++)
			s[t] = scale * (s[t] - most);
		b.base->exp(s, s, n_visible);
		for (int64_t t = 0; t < n_visible; t++)
			all += (double)s[t];
		for (int32_t i = 0; i < chosen->n; i++)
			on += (double)s[chosen->set[i]];
		sum += on / all;
	}
	free(scores);
	return sum / n_heads;
}

/* Attention of the session comes by here, a full layer's rows in ascending order. */
static void watched_attend(struct device *dev, float *out, const float *q, const struct latent_rows *latents,
			   const struct selection *selections, int32_t n_heads, float scale, int64_t n,
			   enum compute_profile profile)
{
	const struct model_config *c = &b.m->config;
	enum part part = b.in_documents ? DOCUMENTS : ANSWERS;
	int64_t width = latents->kv_lora + latents->rope_dim;

	b.base->attend(dev, out, q, latents, selections, n_heads, scale, n, profile);
	for (int32_t layer = 0; layer < c->n_layers; layer++) {
		struct layer_count *count = &b.layers[layer];

		if (b.s->rows[layer] != latents->rows || !c->layer_is_full[layer])
			continue;
		for (int64_t i = 0; i < n; i++) {
			int64_t position = b.first + count->attended++, k = position + 1 - b.answer_at;

			if (!selections[i].set || position % every(part) || (part == ANSWERS && (k < 0 || k >= b.n_answer)))
				continue;
			count->mass[part] += mass_of(dev, q + i * n_heads * width, latents, &selections[i], position + 1, n_heads,
						     scale);
			count->mass_of[part]++;
		}
	}
}

static int32_t n_shared(const int32_t *a, int32_t n_a, const int32_t *c, int32_t n_c)
{
	int32_t shared = 0;

	for (int32_t i = 0; i < n_a; i++)
		for (int32_t k = 0; k < n_c; k++)
			shared += a[i] == c[k];
	return shared;
}

/* Both ascend. */
static int32_t n_shared_of_sets(const int32_t *a, int32_t n_a, const int32_t *c, int32_t n_c)
{
	int32_t shared = 0;

	for (int32_t i = 0, k = 0; i < n_a && k < n_c;)
		if (a[i] == c[k])
			shared++, i++, k++;
		else if (a[i] < c[k])
			i++;
		else
			k++;
	return shared;
}

static int see_asked(void *ctx, int32_t layer, int64_t position, const float *scores, const int32_t *chosen, struct err *err)
{
	(void)ctx, (void)position, (void)scores, (void)err;
	for (int32_t i = 0; i < b.m->config.experts_per_token; i++)
		b.layers[layer].asked_by[chosen[i]]++;
	return 0;
}

static int see_router(void *ctx, int32_t layer, int64_t position, const float *scores, const int32_t *chosen, struct err *err)
{
	struct layer_count *count = &b.layers[layer];
	int32_t per_token = b.m->config.experts_per_token;

	(void)ctx, (void)position, (void)scores, (void)err;
	for (int32_t i = 0; i < per_token; i++)
		count->chosen_by[chosen[i]]++;
	if (count->last[0] >= 0) {
		count->adjacent += n_shared(chosen, per_token, count->last, per_token);
		count->adjacent_of += per_token;
	}
	memcpy(count->last, chosen, (size_t)per_token * sizeof *chosen);
	for (int i = 0; i < N_AHEAD; i++) {
		struct guesses *g = &count->guesses[i];

		if (g->taken == g->n)
			continue;
		g->right += n_shared(chosen, per_token, g->ids + g->taken++ * per_token, per_token);
		g->of += per_token;
	}
	return 0;
}

static int see_selected(void *ctx, int32_t layer, int64_t position, const int32_t *set, int32_t n, struct err *err)
{
	struct layer_count *count = &b.layers[layer];

	(void)ctx, (void)err;
	if (b.in_documents) {
		if (position < b.m->config.index_topk)
			return 0;
		if (count->n_last) {
			count->kept += n_shared_of_sets(set, n, count->last_set, count->n_last);
			count->kept_of += n;
		}
		memcpy(count->last_set, set, (size_t)n * sizeof *set);
		count->n_last = n;
		return 0;
	}
	/* The row before the k-th id of an answer copies the k-th token of the line. The end token is no copy. */
	int64_t k = position + 1 - b.answer_at;

	if (b.line_at < 0 || k < 0 || k >= b.n_answer - 1)
		return 0;
	for (int32_t i = 0; i < n; i++)
		count->needed += set[i] == b.line_at + k;
	count->needed_of++;
	return 0;
}

static int see_logits(void *ctx, int64_t position, const float *row, struct err *err)
{
	int64_t k = position + 1 - b.answer_at;
	int32_t best = 0;

	(void)ctx, (void)err;
	for (int32_t i = 1; i < b.m->config.vocab; i++)
		if (row[i] > row[best])
			best = i;
	b.said[position - b.first] = best;
	if (b.in_documents || k < 0)
		return 0;
	if (k >= b.n_answer)
		return 0;
	b.right += best == b.answer[k];
	if (!k)
		b.first_right = best == b.answer[k];
	return 0;
}

static int see_output(void *ctx, int64_t position, const float *row, struct err *err)
{
	(void)ctx, (void)err;
	memcpy(b.outputs + (position - b.first) * b.m->config.hidden, row, (size_t)b.m->config.hidden * sizeof *row);
	return 0;
}

/* ---- drafts ------------------------------------------------------------------------------------------------------ */

/* Rows up to `position` get theirs, ids [n] being those that are read now. `before`: the output at b.first - 1. */
static void append_rows(int64_t position, const int32_t *ids, const float *before, const struct session_tap *tap)
{
	int64_t at = drafter_n_rows(b.drafter), hidden = b.m->config.hidden;
	struct err err;

	if (at == b.first - 1 && at <= position) {
		if (drafter_append(b.drafter, before, ids, 1, tap, &err))
			measure_fail(&err);
		at++;
	}
	if (at <= position && drafter_append(b.drafter, b.outputs + (at - b.first) * hidden, ids + (at - b.first) + 1,
					     (size_t)(position + 1 - at), tap, &err))
		measure_fail(&err);
}

/* The last row's drafts, of the n ids that are read now. */
static void count_drafts(enum part part, const int32_t *ids, int64_t n)
{
	int64_t next = drafter_n_rows(b.drafter) - b.first; /* what was said there is the token that is drafted */
	int32_t drafts[N_DRAFTS];
	struct err err;

	if (drafter_draft(b.drafter, drafts, N_DRAFTS, &err))
		measure_fail(&err);
	b.drafted[part][0]++;
	b.accepted[part][0] += drafts[0] == b.said[next];
	if (next + 2 >= n || ids[next + 1] != b.said[next])
		return;
	b.drafted[part][1]++;
	b.accepted[part][1] += drafts[0] == b.said[next] && drafts[1] == b.said[next + 1];
}

static void draft_documents(const int32_t *ids, int64_t n)
{
	for (int64_t i = every(DOCUMENTS) - 1; i + 1 < n; i += every(DOCUMENTS)) {
		append_rows(i, ids, NULL, NULL);
		count_drafts(DOCUMENTS, ids, n);
	}
	append_rows(n - 2, ids, NULL, NULL);
}

/* before: the documents' last output. */
static void draft_answer(const int32_t *ids, int64_t n, const float *before)
{
	for (int64_t i = b.answer_at - 2; i + 2 < b.answer_at + b.n_answer; i++) {
		append_rows(i, ids, before, NULL);
		count_drafts(ANSWERS, ids, n);
	}
	drafter_truncate(b.drafter, b.first - 1);
}

/* Ids [n] go through the model at the end of the session. */
static void read_ids(const int32_t *ids, size_t n, struct session_tap tap)
{
	struct err err;

	b.first = session_n_tokens(b.s);
	b.outputs = xcalloc(n * (size_t)b.m->config.hidden, sizeof *b.outputs);
	b.said = xcalloc(n, sizeof *b.said);
	for (int32_t i = 0; i < b.m->config.n_layers; i++)
		b.layers[i].attended = 0;
	tap.logits = see_logits;
	tap.output = see_output;
	tap.selected = see_selected;
	if (session_append(b.s, ids, n, NULL, &tap, &err))
		measure_fail(&err);
}

static void forget_read(void)
{
	free(b.outputs);
	free(b.said);
}

/* ---- questions --------------------------------------------------------------------------------------------------- */

static struct task *task_named(const char *name)
{
	for (int i = 0; i < b.n_tasks; i++)
		if (!strcmp(b.tasks[i].name, name))
			return &b.tasks[i];
	if (b.n_tasks == MAX_TASKS || strlen(name) >= sizeof b.tasks[0].name)
		fail("too many tasks, or too long a name: ", name);
	snprintf(b.tasks[b.n_tasks].name, sizeof b.tasks[0].name, "%s", name);
	return &b.tasks[b.n_tasks++];
}

static void encode(struct ids *out, const char *text, size_t bytes)
{
	struct err err;

	if (tokenizer_encode(b.t, out, text, bytes, 0, &err))
		measure_fail(&err);
}

static void ask(const float *last_output, const char *documents, const char *question, const char *answer, int64_t at,
		struct task *task)
{
	struct session_tap tap = {.router = see_asked};
	struct ids ids = {0}, before = {0};
	struct err err;
	size_t n_answer;

	if (render_question(b.r, &ids, question, strlen(question), false, &err))
		measure_fail(&err);
	b.answer_at = b.n_documents + (int64_t)ids.n;
	n_answer = ids.n;
	encode(&ids, answer, strlen(answer));
	ids_push(&ids, tokenizer_added_id(b.t, "<|user|>"));
	b.answer = ids.id + n_answer;
	b.n_answer = (int64_t)(ids.n - n_answer);
	b.line_at = -1;
	if (at >= 0) {
		render_opening(b.t, &before);
		encode(&before, documents, (size_t)at);
		b.line_at = (int64_t)before.n;
	}
	b.right = 0;
	b.first_right = false;
	read_ids(ids.id, ids.n, tap);
	if (b.drafter)
		draft_answer(ids.id, (int64_t)ids.n, last_output);
	forget_read();
	session_truncate(b.s, b.n_documents);
	b.n_asked += (int64_t)ids.n;
	task->asked++;
	task->exact += b.right == b.n_answer;
	task->first += b.first_right;
	ids_free(&ids);
	ids_free(&before);
}

static void forget_last(void)
{
	for (int32_t i = 0; i < b.m->config.n_layers; i++) {
		b.layers[i].n_last = 0;
		b.layers[i].last[0] = -1;
		for (int k = 0; k < N_AHEAD; k++)
			b.layers[i].guesses[k].n = b.layers[i].guesses[k].taken = 0;
	}
}

/* Whether a set has a question that --most still asks for. */
static bool is_wanted(const json_t *questions)
{
	const json_t *q;
	size_t i;

	json_array_foreach(questions, i, q) {
		const char *name = json_string_value(json_object_get(q, "task"));

		if (name && task_named(name)->asked < b.o.most)
			return true;
	}
	return false;
}

static void read_set(const json_t *set, const char *path)
{
	struct session_options options = {.latents = LATENTS_BF16};
	struct session_tap tap = {.router = see_router};
	const char *documents = json_string_value(json_object_get(set, "documents"));
	json_t *questions = json_object_get(set, "questions"), *q;
	struct ids ids = {0};
	float *last_output;
	struct err err;
	size_t i;

	if (!documents || !json_is_array(questions))
		fail(path, ": a set without \"documents\" (text) or \"questions\" (array)");
	if (!is_wanted(questions))
		return;
	if (session_new(&b.s, b.e, b.m, &options, &err) ||
	    (b.m->mtp && drafter_new(&b.drafter, b.e, b.m, options.latents, &err)))
		measure_fail(&err);
	render_opening(b.t, &ids);
	encode(&ids, documents, strlen(documents));
	forget_last();
	b.in_documents = true;
	b.n_documents = (int64_t)ids.n;
	read_ids(ids.id, ids.n, tap);
	b.in_documents = false;
	if (b.drafter)
		draft_documents(ids.id, (int64_t)ids.n);
	last_output = xmalloc((size_t)b.m->config.hidden, sizeof *last_output);
	memcpy(last_output, b.outputs + (b.n_documents - 1) * b.m->config.hidden, (size_t)b.m->config.hidden * sizeof *last_output);
	forget_read();
	b.n_tokens += (int64_t)ids.n;
	json_array_foreach(questions, i, q) {
		const char *name, *question, *answer;
		json_int_t at;

		if (json_unpack(q, "{s:s, s:s, s:s, s:I}", "task", &name, "question", &question, "answer", &answer, "at", &at) ||
		    at > (json_int_t)strlen(documents))
			fail(path, ": a question without \"task\", \"question\", \"answer\" and \"at\" inside the documents");
		struct task *task = task_named(name);

		if (task->asked < b.o.most)
			ask(last_output, documents, question, answer, at, task);
	}
	free(last_output);
	drafter_free(b.drafter);
	b.drafter = NULL;
	session_free(b.s);
	ids_free(&ids);
}

/* ---- figures ----------------------------------------------------------------------------------------------------- */

static double share(int64_t n, int64_t of)
{
	return of ? (double)n / (double)of : 0;
}

static void print(const char *context)
{
	const struct model_config *c = &b.m->config;
	int64_t right[N_AHEAD] = {0}, of[N_AHEAD] = {0}, adjacent = 0, adjacent_of = 0, kept = 0, kept_of = 0;
	int32_t least = c->n_experts, least_at_all = c->n_experts;

	for (int i = 0; i < b.n_tasks; i++) {
		const struct task *t = &b.tasks[i];

		measure_print(stdout, "pocket.accuracy", share(t->exact, t->asked), "fraction", 1,
			      "\"task\":\"%s\",\"context\":\"%s\",\"questions\":%lld", t->name, context, (long long)t->asked);
		measure_print(stdout, "pocket.first_token", share(t->first, t->asked), "fraction", 1,
			      "\"task\":\"%s\",\"context\":\"%s\",\"questions\":%lld", t->name, context, (long long)t->asked);
	}
	for (int32_t i = 0; i < c->n_layers; i++) {
		const struct layer_count *l = &b.layers[i];
		int32_t used = 0, used_at_all = 0;

		if (l->needed_of)
			measure_print(stdout, "pocket.index_recall", share(l->needed, l->needed_of), "fraction", 1,
				      "\"layer\":%d,\"context\":\"%s\",\"kind\":\"needed\",\"rows\":%lld", i, context,
				      (long long)l->needed_of);
		for (int p = 0; p < N_PARTS; p++)
			if (l->mass_of[p])
				measure_print(stdout, "pocket.index_recall", l->mass[p] / (double)l->mass_of[p], "fraction", 1,
					      "\"layer\":%d,\"context\":\"%s\",\"kind\":\"mass\",\"part\":\"%s\",\"rows\":%lld", i,
					      context, part_names[p], (long long)l->mass_of[p]);
		kept += l->kept;
		kept_of += l->kept_of;
		if (c->layer_is_dense[i])
			continue;
		for (int32_t e = 0; e < c->n_experts; e++) {
			used += l->chosen_by[e] * USED_OF >= b.n_tokens;
			used_at_all += (l->chosen_by[e] + l->asked_by[e]) * USED_OF >= b.n_tokens + b.n_asked;
		}
		if (used < least)
			least = used;
		if (used_at_all < least_at_all)
			least_at_all = used_at_all;
		adjacent += l->adjacent;
		adjacent_of += l->adjacent_of;
		for (int k = 0; k < N_AHEAD; k++) {
			right[k] += l->guesses[k].right;
			of[k] += l->guesses[k].of;
		}
	}
	measure_print(stdout, "pocket.experts_used", least, "experts", c->n_experts, "\"part\":\"documents\",\"context\":\"%s\"",
		      context);
	measure_print(stdout, "pocket.experts_used", least_at_all, "experts", c->n_experts, "\"part\":\"all\",\"context\":\"%s\"",
		      context);
	for (int k = 0; k < N_AHEAD; k++)
		measure_print(stdout, "pocket.lookahead_recall", share(right[k], of[k]), "fraction", 1, "\"context\":\"%s\",\"layers\":%d",
			      context, k + 1);
	measure_print(stdout, "pocket.adjacent_expert_overlap", share(adjacent, adjacent_of), "fraction", 1,
		      "\"context\":\"%s\"", context);
	if (kept_of)
		measure_print(stdout, "pocket.selection_overlap", share(kept, kept_of), "fraction", 1, "\"context\":\"%s\"", context);
	for (int p = 0; p < N_PARTS; p++)
		for (int d = 0; d < N_DRAFTS && b.drafted[p][d]; d++)
			measure_print(stdout, "pocket.mtp_acceptance", share(b.accepted[p][d], b.drafted[p][d]), "fraction", 1,
				      "\"draft\":%d,\"part\":\"%s\",\"context\":\"%s\",\"rows\":%lld", d + 1, part_names[p],
				      context, (long long)b.drafted[p][d]);
}

static void run_context(const char *context)
{
	const struct model_config *c = &b.m->config;
	char *path = xasprintf("%s/%s.json", b.o.questions, context);
	json_error_t why;
	json_t *sets = json_load_file(path, 0, &why), *set;
	size_t i;

	if (!sets)
		fail(path, ": no question file. tests/pocket/questions.py --context makes it");
	if (!json_array_size(sets))
		fail(path, ": an array of document sets is expected");
	b.layers = xcalloc((size_t)c->n_layers, sizeof *b.layers);
	for (int32_t l = 0; l < c->n_layers; l++) {
		b.layers[l].last = xcalloc((size_t)c->experts_per_token, sizeof(int32_t));
		b.layers[l].last_set = xcalloc((size_t)c->index_topk, sizeof(int32_t));
	}
	memset(b.tasks, 0, sizeof b.tasks);
	memset(b.accepted, 0, sizeof b.accepted);
	memset(b.drafted, 0, sizeof b.drafted);
	b.n_tasks = 0;
	b.n_tokens = b.n_asked = 0;
	json_array_foreach(sets, i, set)
		read_set(set, path);
	print(context);
	for (int32_t l = 0; l < c->n_layers; l++) {
		free(b.layers[l].last);
		free(b.layers[l].last_set);
		for (int k = 0; k < N_AHEAD; k++)
			free(b.layers[l].guesses[k].ids);
	}
	free(b.layers);
	json_decref(sets);
	free(path);
}

static void parse(int argc, char **argv)
{
	static const struct option known[] = {{"model", required_argument, NULL, 'm'},   {"questions", required_argument, NULL, 'q'},
					      {"context", required_argument, NULL, 'c'}, {"compute", required_argument, NULL, 'p'},
					      {"threads", required_argument, NULL, 't'}, {"most", required_argument, NULL, 'n'},
					      {0}};
	struct err err = {0};
	int c, compute;

	b.o = (struct options){.questions = "tests/pocket/questions", .contexts = "2K,16K", .most = INT64_MAX,
			       .compute = COMPUTE_BF16};
	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (c) {
		case 'm':
			b.o.model = optarg;
			break;
		case 'q':
			b.o.questions = optarg;
			break;
		case 'c':
			b.o.contexts = optarg;
			break;
		case 'p':
			compute = compute_profile_from_name(optarg);
			if (compute < 0)
				fail("--compute: f32 or bf16 is expected, not ", optarg);
			b.o.compute = (enum compute_profile)compute;
			break;
		case 't':
			if (count_parse(&b.o.n_threads, optarg, 1, 1024, &err))
				measure_fail(&err);
			break;
		case 'n':
			if (count_parse(&b.o.most, optarg, 1, INT32_MAX, &err))
				measure_fail(&err);
			break;
		default:
			exit(2);
		}
	if (optind < argc)
		fail("an option is expected, not ", argv[optind]);
}

int main(int argc, char **argv)
{
	struct engine_options engine;
	struct model_options options = {0};
	struct model_config config;
	struct err err = {0};
	char *path, *list, *rest = NULL;

	parse(argc, argv);
	if (!b.o.model)
		b.o.model = committed;
	engine = (struct engine_options){.n_threads = (int)b.o.n_threads, .compute = b.o.compute};
	path = xasprintf("%s/tokenizer.json", b.o.model);
	if (model_config_load(&config, b.o.model, NULL, &err))
		measure_fail(&err);
	options.mtp = config.n_mtp_layers == 1;
	if (model_open(&b.m, b.o.model, &options, &err) || engine_open(&b.e, &engine, &err) || tokenizer_open(&b.t, path, &err) ||
	    renderer_open(&b.r, b.o.model, b.m->config.architecture, NULL, b.t, &err))
		measure_fail(&err);
	free(path);
	if (b.m->config.n_experts > MAX_EXPERTS || !b.m->config.has_indexer)
		fail(b.o.model, ": a model with an indexer and at most 256 experts is expected");
	b.base = b.e->ops;
	b.ops = *b.base;
	b.ops.matmul = watched_matmul;
	b.ops.attend = watched_attend;
	b.e->ops = &b.ops;
	list = xstrdup(b.o.contexts);
	for (char *word = strtok_r(list, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
		run_context(word);
	free(list);
	renderer_close(b.r);
	tokenizer_close(b.t);
	engine_close(b.e);
	model_close(b.m);
	return 0;
}
