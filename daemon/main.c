/* One program under two names: quired is the daemon, quire its command line. */
#include <string.h>

#include "daemon/cli.h"

int main(int argc, char **argv)
{
	const char *name = argc ? strrchr(argv[0], '/') : NULL;

	name = name ? name + 1 : argc ? argv[0] : "quire";
	return strcmp(name, "quired") ? cli_main(argc, argv) : cli_serve(argc, argv);
}
