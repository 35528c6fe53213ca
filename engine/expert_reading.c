#include "engine/expert_reading.h"

#include <stdlib.h>
#include <string.h>

#include "config/mem.h"
#include "engine/expert_sums.h"

enum {
	GAP = 64 << 10,      /* bytes read in vain rather than begin another read */
	SMALL = 1 << 20,     /* a read that keeps nobody waiting: of scales */
	FIX_ALIGN = 64,
	STEP_BYTES = 1 << 20, /* of a look: a tenth of a millisecond, in which others may come */
};

static size_t round_up(size_t n, size_t align)
{
	return (n + align - 1) / align * align;
}

static int by_place(const void *a, const void *b)
{
	const struct expert_part *const *x = a, *const *y = b;

	if ((*x)->shard != (*y)->shard)
		return (*x)->shard < (*y)->shard ? -1 : 1;
	return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

/* In one read with those from `from` to `end` of a file, of which `last` is used last? Neighbours are, but for what is used before
 * much that lies before it, as in files that are sorted by name: down, gate, up. */
static bool goes_with(const struct expert_part *next, const struct expert_part *first, const struct expert_part *last, uint64_t end)
{
	return next->shard == first->shard && next->offset <= end + GAP && (next > last || end - first->offset < SMALL);
}

/* What is small, then what is used first. */
static void sort_runs(struct expert_reading *r, int n_parts)
{
	struct expert_reading given = *r;
	int key[EXPERT_PARTS], place;

	for (int run = 0; run < r->n; run++)
		key[run] = r->runs[run].range.bytes < SMALL ? -1 : EXPERT_PARTS;
	for (int i = n_parts; i--; )
		if (key[r->run_of[i]] >= 0)
			key[r->run_of[i]] = i;
	for (int run = 0; run < r->n; run++) {
		place = 0;
		for (int k = 0; k < r->n; k++)
			place += key[k] < key[run] || (key[k] == key[run] && k < run);
		r->runs[place] = given.runs[run];
		for (int i = 0; i < n_parts; i++)
			if (given.run_of[i] == run)
				r->run_of[i] = place;
	}
}

void expert_reading_plan(struct expert_reading *r, const struct expert_place *place, const struct io_file *shards)
{
	const struct expert_part *sorted[EXPERT_PARTS];
	size_t at = 0;

	r->n = 0;
	for (int i = 0; i < place->n_parts; i++)
		sorted[i] = &place->parts[i];
	qsort(sorted, (size_t)place->n_parts, sizeof *sorted, by_place);
	for (int i = 0; i < place->n_parts;) {
		const struct expert_part *first = sorted[i], *used_last = first;
		uint64_t end = first->offset + first->bytes;
		uint32_t align = shards[first->shard].align;
		int last = i;

		while (last + 1 < place->n_parts && goes_with(sorted[last + 1], first, used_last, end)) {
			last++;
			used_last = sorted[last] > used_last ? sorted[last] : used_last;
			end = sorted[last]->offset + sorted[last]->bytes > end ? sorted[last]->offset + sorted[last]->bytes : end;
		}
		r->runs[r->n].shard = first->shard;
		r->runs[r->n].range = io_align(first->offset, end - first->offset, align < 512 ? 512 : align);
		r->runs[r->n].least = r->runs[r->n].range.skip + (end - first->offset);
		r->runs[r->n].at = at;
		for (; i <= last; i++) {
			r->run_of[sorted[i] - place->parts] = r->n;
			r->part_at[sorted[i] - place->parts] = at + r->runs[r->n].range.skip + (sorted[i]->offset - first->offset);
		}
		at = round_up(at + r->runs[r->n].range.bytes, 4096);
		r->n++;
	}
	for (int i = 0; i < place->n_parts; i++) {
		r->fixed_at[i] = r->part_at[i];
		if (r->part_at[i] % dtype_unit_bytes(place->parts[i].dtype)) {
			r->fixed_at[i] = at;
			at = round_up(at + place->parts[i].bytes, FIX_ALIGN);
		}
	}
	r->bytes = round_up(at, 4096);
	sort_runs(r, place->n_parts);
}

struct expert_look {
	const struct expert_place *place;
	const struct expert_reading *r;
	bool first, moves;   /* moves: something has to be put where it is aligned */
	int bad_part;
	int part;            /* under way: all before were looked at */
	size_t block;        /* of it: the same */
	size_t first_sum[EXPERT_PARTS], n_sums;
	uint64_t sums[];     /* of all parts; 0: nobody has looked, here or in a product */
};

struct expert_look *expert_look_new(const struct expert_place *place, const struct expert_reading *r, bool first)
{
	size_t n = 0;
	struct expert_look *l;

	for (int i = 0; i < place->n_parts; i++)
		n += weight_n_sums(place->parts[i].bytes);
	l = xcalloc(1, sizeof *l + n * sizeof *l->sums);
	l->place = place;
	l->r = r;
	l->first = first;
	l->bad_part = -1;
	for (int i = 0; i < place->n_parts; i++) {
		l->moves |= r->fixed_at[i] != r->part_at[i];
		l->first_sum[i] = l->n_sums;
		l->n_sums += weight_n_sums(place->parts[i].bytes);
		if (place->parts[i].sums)
			*place->parts[i].sums = l->sums + l->first_sum[i];
	}
	return l;
}

void expert_look_free(struct expert_look *l)
{
	if (!l)
		return;
	for (int i = 0; i < l->place->n_parts; i++)
		if (l->place->parts[i].sums)
			*l->place->parts[i].sums = NULL;
	free(l);
}

bool expert_look_can_wait(const struct expert_look *l)
{
	return !l->first && !l->moves;
}

/* Of a part, what has come. */
static size_t part_came(const struct expert_look *l, int part, const size_t *arrived)
{
	int run = l->r->run_of[part];
	size_t end = l->r->runs[run].at + arrived[run], from = l->r->part_at[part], bytes = l->place->parts[part].bytes;

	return end <= from ? 0 : end - from < bytes ? end - from : bytes;
}

static void look_at_block(struct expert_look *l, char *slot, size_t n)
{
	const struct expert_part *part = &l->place->parts[l->part];
	size_t at = l->block * WEIGHT_SUM_BYTES;
	char *bytes = slot + l->r->fixed_at[l->part];

	if (l->r->fixed_at[l->part] != l->r->part_at[l->part])
		memcpy(bytes + at, slot + l->r->part_at[l->part] + at, n);
	weight_sum(l->sums + l->first_sum[l->part], l->block, bytes, part->bytes);
	if (l->first && l->bad_part < 0 && weight_any_not_finite(bytes + at, n / dtype_unit_bytes(part->dtype), part->dtype))
		l->bad_part = l->part;
}

bool expert_look_on(struct expert_look *l, char *slot, const size_t *arrived)
{
	size_t looked_at = 0;

	while (l->part < l->place->n_parts && looked_at < STEP_BYTES) {
		size_t bytes = l->place->parts[l->part].bytes, at = l->block * WEIGHT_SUM_BYTES;
		size_t n = bytes - at < WEIGHT_SUM_BYTES ? bytes - at : WEIGHT_SUM_BYTES;

		if (l->block == weight_n_sums(bytes)) {
			l->part++;
			l->block = 0;
			continue;
		}
		if (part_came(l, l->part, arrived) < at + n)
			break;
		look_at_block(l, slot, n);
		looked_at += n;
		l->block++;
	}
	return looked_at > 0;
}

bool expert_look_half(const struct expert_look *l, const size_t *arrived)
{
	if (!expert_look_can_wait(l))
		return l->part >= l->place->n_half;
	for (int i = 0; i < l->place->n_half; i++)
		if (part_came(l, i, arrived) < l->place->parts[i].bytes)
			return false;
	return true;
}

uint64_t expert_look_sum(const struct expert_look *l)
{
	return expert_sum(l->sums, l->n_sums);
}

int expert_look_bad_part(const struct expert_look *l)
{
	return l->bad_part;
}
