#include "engine/cpu/cpu.h"

const struct ops CPU(ops) = {
	.isa = CPU_STRING(CPU_ISA),
	.embed = CPU(embed),
	.rmsnorm = CPU(rmsnorm),
	.layernorm = CPU(layernorm),
	.matmul = CPU(matmul),
	.rope = CPU(rope),
	.absorb_query = CPU(absorb_query),
	.expand_values = CPU(expand_values),
	.attend = CPU(attend),
	.index_scores = CPU(index_scores),
	.topk_positions = CPU(topk_positions),
	.router_topk = CPU(router_topk),
	.swiglu = CPU(swiglu),
	.gather = CPU(gather),
	.add_scaled = CPU(add_scaled),
	.exp = CPU(exp),
	.to_bf16 = CPU(to_bf16),
	.latent_pack = CPU(latent_pack),
	.latent_unpack = CPU(latent_unpack),
	.int4_pack_row = CPU(int4_pack_row),
};
