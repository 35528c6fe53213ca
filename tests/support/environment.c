#include "tests/support/environment.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

uint64_t count_from_environment(const char *name, uint64_t usual)
{
	const char *text = getenv(name);
	char *end;
	uint64_t n;

	if (!text)
		return usual;
	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno || *end || end == text) {
		fprintf(stderr, "%s is '%s': a number is wanted\n", name, text);
		exit(2);
	}
	return n;
}
