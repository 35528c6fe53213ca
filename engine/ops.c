#include "engine/ops.h"

#include <string.h>
#if defined HAVE_avx2
#include <cpuid.h>
#endif

extern const struct ops ops_scalar, ops_avx2, ops_avx512, ops_avx512bf16;

#if defined HAVE_avx2
/* clang 14's __builtin_cpu_supports does not know it. */
static bool has_f16c(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

/* Best first. What a level needs is what the Makefile compiles it with; it says HAVE_ of those that it compiles, which are none
 * or begin with avx2. */
static int usable(const struct ops **out)
{
	int n = 0;

#if defined HAVE_avx2
	bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#if defined HAVE_avx512
	bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#if defined HAVE_avx512bf16
	if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi"))
		out[n++] = &ops_avx512bf16;
#endif
	if (avx512)
		out[n++] = &ops_avx512;
#endif
	if (avx2)
		out[n++] = &ops_avx2;
#endif
	out[n++] = &ops_scalar;
	return n;
}

int cpu_isas(const char **names, int room)
{
	const struct ops *tables[CPU_MAX_ISAS];
	int n = usable(tables);

	for (int i = 0; i < n && i < room; i++)
		names[i] = tables[i]->isa;
	return n;
}

const struct ops *cpu_ops(const char *isa)
{
	const struct ops *tables[CPU_MAX_ISAS];
	int n = usable(tables);

	for (int i = 0; i < n; i++)
		if (!isa || !strcmp(tables[i]->isa, isa))
			return tables[i];
	return NULL;
}
