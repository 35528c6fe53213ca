/* `quire files` and `diff`: what is stored, and what has changed in it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cli_inside.h"
#include "daemon/look.h"
#include "daemon/print.h"
#include "daemon/show.h"

int cli_files(struct cli *c)
{
	json_t *reply;

	if (api_check_corpus_name(c->arguments[0], &c->err) || !(reply = cli_fetch(c, API_FILES, c->arguments[0], NULL)))
		return -1;
	show_files(reply, c->given[OPTION_SKIPPED], c->given[OPTION_JSON]);
	json_decref(reply);
	return 0;
}

/* One name alone: its snapshot against the current one, or, if it names none, that against the one before. */
int cli_diff(struct cli *c)
{
	const char *from = c->arguments[0], *to = c->n_arguments > 1 ? c->arguments[1] : NULL;
	struct api_snapshot first, second;
	json_t *reply;
	char *body;

	if (api_snapshot_parse(&first, from, &c->err) || (to && api_snapshot_parse(&second, to, &c->err)))
		return -1;
	if (!to) {
		to = first.corpus;
		from = first.id ? from : NULL;
	}
	body = look_diff_format(from, to);
	reply = cli_fetch(c, API_DIFF, NULL, body);
	free(body);
	if (!reply)
		return -1;
	show_diff(reply, c->given[OPTION_JSON]);
	json_decref(reply);
	return 0;
}
