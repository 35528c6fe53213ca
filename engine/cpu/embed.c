/* Rows of the embedding. Instruction sets with vectors use this file, too: gcc and clang make vectors of what widens a run
 * of values with one scale (int4 aside, which no embedding is stored in). */
#include "engine/cpu/cpu.h"

struct job {
	float *out;
	const struct weight *w;
	const int32_t *ids;
};

static void embed_rows(void *arg, int64_t first, int64_t end, int thread)
{
	const struct job *j = arg;
	const struct weight *w = j->w;
	int32_t run = w->group_scale ? INT4_GROUP : w->scale ? WEIGHT_BLOCK : w->cols;

	(void)thread;
	for (int64_t i = first; i < end; i++)
		for (int32_t k = 0; k < w->cols; k += run) {
			float *out = j->out + i * w->cols + k, scale;
			int32_t n = w->cols - k < run ? w->cols - k : run;

			weight_widen(out, w, j->ids[i], k, n);
			if (!w->scale && !w->group_scale)
				continue;
			scale = weight_scale(w, j->ids[i], k);
			for (int32_t c = 0; c < n; c++)
				out[c] *= scale;
		}
}

void CPU(embed)(struct device *dev, float *out, const struct weight *w, const int32_t *ids, int64_t n)
{
	struct job j = {out, w, ids};

	pool_run(dev->queue, embed_rows, &j, n, w->cols);
}
