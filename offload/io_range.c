/* Few large reads instead of many small ones: arithmetic on ranges, no I/O. */
#include <assert.h>

#include "offload/io.h"

struct io_aligned io_align(uint64_t offset, uint64_t bytes, uint32_t align)
{
	uint64_t mask = (uint64_t)align - 1, from = offset & ~mask;

	assert(align && !(align & mask));
	assert(offset <= INT64_MAX && bytes <= INT64_MAX - offset);
	return (struct io_aligned){.offset = from,
				   .bytes = ((offset + bytes + mask) & ~mask) - from,
				   .skip = (uint32_t)(offset - from)};
}

size_t io_coalesce(struct io_run *out, const struct io_range *in, size_t n, uint64_t gap_most, uint64_t bytes_most)
{
	size_t n_out = 0;

	for (size_t i = 0; i < n; i++) {
		struct io_run *run = n_out ? &out[n_out - 1] : NULL;
		uint64_t end = in[i].offset + in[i].bytes, run_end = run ? run->offset + run->bytes : 0;

		assert(in[i].bytes && in[i].offset <= INT64_MAX && in[i].bytes <= INT64_MAX - in[i].offset);
		assert(!i || in[i].offset >= in[i - 1].offset);
		if (end < run_end)
			end = run_end; /* inside what is read already */
		if (run && (in[i].offset <= run_end || in[i].offset - run_end <= gap_most) &&
		    (end == run_end || end - run->offset <= bytes_most)) {
			run->bytes = end - run->offset;
			run->n++;
		} else {
			out[n_out++] = (struct io_run){in[i].offset, in[i].bytes, i, 1};
		}
	}
	return n_out;
}
