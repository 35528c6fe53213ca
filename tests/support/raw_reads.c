#include "tests/support/raw_reads.h"

#include <assert.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "offload/io.h"
#include "tests/support/measure.h"

static void fail(const char *what, int number)
{
	struct err err;

	err_errno(&err, number, "%s", what);
	measure_fail(&err);
}

double raw_reads(const struct raw_read *reads, size_t n, int depth)
{
	return raw_reads_beside(reads, n, depth, NULL, NULL);
}

double raw_reads_beside(const struct raw_read *reads, size_t n, int depth, void (*meanwhile)(void *ctx), void *ctx)
{
	static uint8_t *buffers[RAW_DEPTH_MOST];
	struct iovec pinned[RAW_DEPTH_MOST];
	int free_slots[RAW_DEPTH_MOST], n_free = depth, rc;
	size_t next = 0, done = 0;
	struct io_uring ring;
	double began;
	bool fixed;
	struct err err;

	assert(depth <= RAW_DEPTH_MOST);
	rc = io_uring_queue_init((unsigned)depth, &ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
	if (rc)
		fail("io_uring", -rc);
	for (int i = 0; i < depth; i++) {
		free_slots[i] = i;
		if (!buffers[i]) {
			buffers[i] = io_buffer_new(RAW_READ_MOST, "a raw read", &err);
			if (!buffers[i])
				measure_fail(&err);
			memset(buffers[i], 1, RAW_READ_MOST);
		}
		pinned[i] = (struct iovec){buffers[i], RAW_READ_MOST};
	}
	fixed = !io_uring_register_buffers(&ring, pinned, (unsigned)depth); /* an ordinary user may pin less */
	began = measure_now();
	while (done < n) {
		struct io_uring_cqe *cqe;
		unsigned head, n_back = 0;

		while (n_free && next < n) {
			const struct raw_read *r = &reads[next];
			struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
			int slot = free_slots[--n_free];

			if (fixed)
				io_uring_prep_read_fixed(sqe, r->fd, buffers[slot], r->bytes, r->offset, slot);
			else
				io_uring_prep_read(sqe, r->fd, buffers[slot], r->bytes, r->offset);
			io_uring_sqe_set_data64(sqe, (uint64_t)slot | (uint64_t)next++ << 8);
		}
		rc = meanwhile ? io_uring_submit_and_get_events(&ring) : io_uring_submit_and_wait(&ring, 1);
		if (rc < 0)
			fail("io_uring", -rc);
		if (meanwhile && !io_uring_cq_ready(&ring))
			meanwhile(ctx);
		io_uring_for_each_cqe(&ring, head, cqe) {
			if (cqe->res != (int32_t)reads[cqe->user_data >> 8].bytes)
				fail("raw read", cqe->res < 0 ? -cqe->res : EIO);
			free_slots[n_free++] = (int)(cqe->user_data & 255);
			n_back++;
		}
		io_uring_cq_advance(&ring, n_back);
		done += n_back;
	}
	began = measure_now() - began;
	io_uring_queue_exit(&ring);
	return began;
}
