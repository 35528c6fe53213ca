#include "tests/support/as_user.h"

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Nobody's number, and not 65534, which a kernel shows for users that it cannot name. */
enum { USER = 54321 };

static void give_up(const char *what)
{
	fprintf(stderr, "test set-up: %s: %s\n", what, strerror(errno));
	abort();
}

int as_user(int (*fn)(void *arg), void *arg)
{
	pid_t child = fork();
	int status;

	if (child < 0)
		give_up("fork");
	if (!child) {
		if (!geteuid() && (setgroups(0, NULL) || setresgid(USER, USER, USER) || setresuid(USER, USER, USER)))
			give_up("become an ordinary user");
		_exit(fn(arg) & 0xff); /* without the leak check and buffers of the parent */
	}
	if (waitpid(child, &status, 0) != child)
		give_up("wait for a child");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256;
}

void give_to_user(const char *path)
{
	if (!geteuid() && lchown(path, USER, USER))
		give_up(path);
}
