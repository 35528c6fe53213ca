/* `quire files`, `show` and `diff`: what is stored, and what has changed in it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cli_inside.h"
#include "daemon/look.h"
#include "daemon/print.h"
#include "daemon/show.h"

/* NAME or NAME@ID, where --snapshot ID may say the same. */
static int read_snapshot(struct cli *c, char name[API_SNAPSHOT_BYTES])
{
	struct api_snapshot s;

	if (api_snapshot_parse(&s, c->arguments[0], &c->err))
		return -1;
	if (s.id && c->given[OPTION_SNAPSHOT])
		return err_set(&c->err, ERR_USAGE, "%s names a snapshot, and --snapshot another one: one is enough", c->arguments[0]);
	if (c->given[OPTION_SNAPSHOT] &&
	    api_snapshot_id_parse(&s.id, "--snapshot", cli_value(c, OPTION_SNAPSHOT), &c->err))
		return -1;
	api_snapshot_format(name, &s);
	return 0;
}

int cli_files(struct cli *c)
{
	char name[API_SNAPSHOT_BYTES];
	json_t *reply;

	if (read_snapshot(c, name) || !(reply = cli_fetch(c, API_FILES, name, NULL)))
		return -1;
	show_files(reply, c->given[OPTION_SKIPPED], c->given[OPTION_JSON]);
	json_decref(reply);
	return 0;
}

int cli_show(struct cli *c)
{
	char name[API_SNAPSHOT_BYTES], *body;
	json_t *reply;

	if (read_snapshot(c, name))
		return -1;
	if (c->n_arguments < 2) {
		if (!(reply = cli_fetch(c, API_SNAPSHOT, name, NULL)))
			return -1;
		if (c->given[OPTION_JSON])
			print_json(stdout, "snapshot", json_incref(reply));
		else
			show_snapshot(reply);
	} else {
		body = look_text_format(c->arguments[1]);
		reply = cli_fetch(c, API_TEXT, name, body);
		free(body);
		if (!reply)
			return -1;
		show_text(reply, c->given[OPTION_JSON]);
	}
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
