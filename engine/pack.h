/*
 * A checkpoint's routed experts to int4 (int4.h), everything else as it is: a model's directory of its own, which is read like
 * the one it was made from, in about half of its bytes where that is FP8.
 *
 * It has all tensors that are no routed experts (the MTP layer's among them) in their published form, an expert's matrices as
 * NAME.weight_packed (I32 [rows, inputs / 8], eight codes each, the first lowest) and NAME.weight_scale (BF16 [rows, inputs /
 * 64]), one expert's parts side by side in ascending order and one file a layer; the source's other files; a config.json whose
 * quantization_config says so; and EXPERT_SUMS_NAME, the checksums that each later read is compared with (expert_sums.h).
 * The same source gives the same bytes, whatever the number of threads.
 */
#ifndef QUIRE_ENGINE_PACK_H
#define QUIRE_ENGINE_PACK_H

#include <jansson.h>
#include <stdint.h>

#include "config/err.h"

struct pack_options {
	int n_threads;           /* 0: all processors */
	void (*report)(void *ctx, int64_t done, int64_t of); /* experts; may be NULL */
	void *ctx;
};

struct pack_report {
	int64_t n_experts;
	uint64_t read_bytes, packed_bytes; /* of experts: in the source, and as int4 */
	uint64_t copied_bytes;   /* of the other tensors */
	double expert_seconds;   /* that the experts took: reading, packing, writing, all at once */
	double seconds;          /* in all */
	int n_threads;
	double error;            /* sqrt(sum of (value - packed value)^2 / sum of value^2) over all experts */
	double worst_error;      /* the same of the layer where it is largest */
	int32_t worst_layer;
};

/*
 * Write the directory `out`, which must not be there, from the model in `dir`. Memory: four experts of the source, one packed
 * one, what is on its way to the disk, the headers, and one file beside the weights at a time. What is written is in
 * "OUT.packing" until all of it is on the disk; on error that is removed. Before anything is written: ERR_FAILED where `out`
 * exists, ERR_BUSY where OUT.packing does, ERR_USAGE for a model that has no routed experts, has packed ones, or has rows that
 * are no multiple of 64 inputs; ERR_TOO_LARGE, with both numbers, where the disk has too little space. report may be NULL.
 */
int model_pack(const char *dir, const char *out, const struct pack_options *opt, struct pack_report *report, struct err *err);

/* The quantization_config of such a model. rest, what it would be without packed experts, is taken over; NULL: nothing. */
json_t *pack_quantization(json_t *rest);

#endif
