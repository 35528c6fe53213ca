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

int cpu_isas(const char **names, int room)
{
	/* Best first, as cpu_ops chooses; what this build has no table for is not usable. */
	static const char *const all[] = {"avx512bf16", "avx512", "avx2", "fma", "scalar"};
	int n = 0;

	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		if (!cpu_ops(all[i]))
			continue;
		if (n < room)
			names[n] = all[i];
		n++;
	}
	return n;
}
