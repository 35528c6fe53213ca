/* Any bytes as a configuration: refused with a place, or accepted and printed as what reads back the same. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	setenv("HOME", "/home/ada", 1);
	unsetenv("XDG_DATA_HOME");
	return 0;
}

static char *printed(const struct config *c)
{
	char *text = NULL;
	size_t bytes;
	FILE *f = open_memstream(&text, &bytes);

	if (!f || config_print(c, f) || fclose(f))
		abort();
	return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct config c;
	struct err err = {0};
	char *once, *twice;

	if (config_parse(&c, "fuzz.yaml", (const char *)data, n, &err)) {
		if (strncmp(err.text, "fuzz.yaml", 9))
			abort();
		return 0;
	}
	once = printed(&c);
	config_free(&c);
	if (config_parse(&c, "printed.yaml", once, strlen(once), &err))
		abort();
	twice = printed(&c);
	config_free(&c);
	if (strcmp(once, twice))
		abort();
	free(once);
	free(twice);
	return 0;
}
