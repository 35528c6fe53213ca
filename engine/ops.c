#include "engine/ops.h"

#include <string.h>

extern const struct ops ops_scalar;
#if defined __x86_64__
extern const struct ops ops_fma, ops_avx512;
#endif

const struct ops *cpu_ops(const char *isa)
{
#if defined __x86_64__
	bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
	bool avx512 = fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");

	if (avx512 && (!isa || !strcmp(isa, "avx512")))
		return &ops_avx512;
	if (fma && (!isa || !strcmp(isa, "fma")))
		return &ops_fma;
#endif
	return !isa || !strcmp(isa, "scalar") ? &ops_scalar : NULL;
}
