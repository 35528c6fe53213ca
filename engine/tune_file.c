#include "engine/tune_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config/file.h"
#include "config/json.h"
#include "config/log.h"
#include "config/mem.h"

enum { VERSION = 1, FILE_MOST = 1 << 20 };

static const char measured_anew[] = "what experts take on this machine is measured anew";

int tune_key_of(struct tune_key *key, const struct engine *e, const struct model *m, const struct accelerator *a, const char *processor,
		struct err *err)
{
	char name[TUNE_TEXT / 2];

	*key = (struct tune_key){.compute = engine_compute(e)};
	if (tune_shape_of(&key->shape, m, err))
		return -1;
	if (a)
		err_escape(key->device, sizeof key->device, a->info.name, strlen(a->info.name));
	processor = processor ? processor : "a processor";
	err_escape(name, sizeof name, processor, strlen(processor));
	snprintf(key->host, sizeof key->host, "%s, %d threads, %s", name, engine_n_threads(e), engine_isa(e));
	return 0;
}

static void date_now(char out[TUNE_DATE])
{
	time_t now = time(NULL);
	struct tm utc;

	gmtime_r(&now, &utc);
	strftime(out, TUNE_DATE, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

/* ---- entries ---- */

static bool is_text(const json_t *entry, const char *name, const char *text)
{
	const char *value = json_string_value(json_object_get(entry, name));

	return value && !strcmp(value, text);
}

static bool is_number(const json_t *entry, const char *name, int32_t number)
{
	const json_t *value = json_object_get(entry, name);

	return json_is_integer(value) && json_integer_value(value) == number;
}

static bool is_of(const json_t *entry, const struct tune_key *key)
{
	const json_t *device = json_object_get(entry, "device");

	return (*key->device ? is_text(entry, "device", key->device) : json_is_null(device)) && is_text(entry, "host", key->host) &&
	       is_text(entry, "format", dtype_name(key->shape.dtype)) && is_number(entry, "hidden", key->shape.hidden) &&
	       is_number(entry, "expert_dim", key->shape.dim) && is_text(entry, "profile", compute_profile_name(key->compute));
}

static json_t *points_json(const double s[COST_POINTS])
{
	json_t *list = json_array();

	for (int i = 0; i < COST_POINTS; i++)
		json_array_append_new(list, json_real(s[i]));
	return list;
}

static json_t *entry_json(const struct tuned *t, const struct tune_key *key)
{
	const struct cost *c = &t->cost;
	json_t *device = *key->device ? json_string(key->device) : json_null();
	json_t *entry = json_pack("{s:o, s:s, s:s, s:i, s:i, s:s, s:s, s:o}", "device", device, "host", key->host, "format",
				  dtype_name(key->shape.dtype), "hidden", (int)key->shape.hidden, "expert_dim", (int)key->shape.dim,
				  "profile", compute_profile_name(key->compute), "made", t->made, "host_s", points_json(c->host_s));

	if (cost_has_device(c)) {
		json_object_set_new(entry, "device_s", points_json(c->device_s));
		json_object_set_new(entry, "upload_s", json_real(c->upload_s));
	}
	return entry;
}

static int read_points(double s[COST_POINTS], const json_t *entry, const char *name, struct err *err)
{
	const json_t *list = json_object_get(entry, name), *value;
	size_t i;

	if (!json_is_array(list) || json_array_size(list) != COST_POINTS)
		return err_set(err, ERR_FORMAT, "%s is not a list of %d numbers", name, COST_POINTS);
	json_array_foreach(list, i, value) {
		if (!json_is_number(value))
			return err_set(err, ERR_FORMAT, "%s[%zu] is %s, a number is expected", name, i, json_kind(value));
		s[i] = json_number_value(value);
	}
	return 0;
}

static int read_entry(struct tuned *t, const json_t *entry, bool with_device, struct err *err)
{
	const char *made = json_string_value(json_object_get(entry, "made"));

	*t = (struct tuned){0};
	if (!made || strlen(made) >= sizeof t->made)
		return err_set(err, ERR_FORMAT, "made is no date");
	snprintf(t->made, sizeof t->made, "%s", made);
	if (read_points(t->cost.host_s, entry, "host_s", err))
		return -1;
	if (with_device) {
		t->cost.upload_s = json_number_value(json_object_get(entry, "upload_s"));
		if (read_points(t->cost.device_s, entry, "device_s", err))
			return -1;
		if (!cost_has_device(&t->cost))
			return err_set(err, ERR_FORMAT, "upload_s is no time");
	}
	return cost_check(&t->cost, err);
}

/* ---- the file ---- */

static int check_version(const json_t *root, const char *path, struct err *err)
{
	int64_t version;

	if (json_get_integer(&version, root, "version", 0, INT64_MAX, path, "", err))
		return -1;
	if (version != VERSION)
		return err_set(err, ERR_FORMAT, "%s: version %lld, this program reads %d", path, (long long)version, VERSION);
	return json_is_array(json_object_get(root, "entries")) ? 0 : err_set(err, ERR_FORMAT, "%s: entries is not a list", path);
}

/* NULL: there is none, or none that can be used, which is told, with what comes of it. */
static json_t *read_file(const char *path, const char *consequence)
{
	json_t *root = NULL;
	struct err err = {0};

	if (!json_read(&root, path, FILE_MOST, &err) && !check_version(root, path, &err))
		return root;
	if (err.code != ERR_NOT_FOUND)
		log_warn("%s: %s", consequence, err.text);
	json_decref(root);
	return NULL;
}

bool tune_load(struct tuned *t, const struct tune_key *key, const char *path)
{
	json_t *root = read_file(path, measured_anew), *entry;
	struct err err;
	bool found = false;
	size_t i;

	json_array_foreach(json_object_get(root, "entries"), i, entry) {
		if (!is_of(entry, key))
			continue;
		found = !read_entry(t, entry, *key->device, &err);
		if (!found)
			log_warn("%s: %s: entries[%zu]: %s", measured_anew, path, i, err.text);
		break;
	}
	json_decref(root);
	return found;
}

static int make_directory_of(const char *path, struct err *err)
{
	char *dir = xstrdup(path), *slash = strrchr(dir, '/');
	int rc = 0;

	if (slash && slash != dir) {
		*slash = '\0';
		rc = file_make_directories(dir, err);
	}
	free(dir);
	return rc;
}

int tune_save(const struct tuned *t, const struct tune_key *key, const char *path, struct err *err)
{
	json_t *root = read_file(path, "what was measured earlier is not kept"), *entries;
	char made[TUNE_DATE], *text;
	int rc;

	root = root ? root : json_pack("{s:i, s:s, s:[]}", "version", VERSION, "made", "", "entries");
	entries = json_object_get(root, "entries");
	for (size_t i = json_array_size(entries); i-- > 0; )
		if (is_of(json_array_get(entries, i), key))
			json_array_remove(entries, i);
	json_array_append_new(entries, entry_json(t, key));
	while (json_array_size(entries) > TUNE_ENTRIES)
		json_array_remove(entries, 0);
	date_now(made);
	json_object_set_new(root, "made", json_string(made));
	text = json_dumps(root, JSON_INDENT(1));
	rc = make_directory_of(path, err) || file_replace(path, text, strlen(text), err) ? -1 : 0;
	free(text);
	json_decref(root);
	return rc;
}

int tune_make(struct tuned *t, struct engine *e, const struct tune_key *key, struct accelerator *a, struct err *err)
{
	date_now(t->made);
	return tune_measure(&t->cost, e, &key->shape, a, err);
}

int tune_get(struct cost *c, struct engine *e, const struct model *m, struct accelerator *a, const char *processor, const char *path,
	     struct err *err)
{
	struct tune_key key;
	struct tuned t;
	struct err why;
	bool kept;

	if (tune_key_of(&key, e, m, a, processor, err))
		return -1;
	kept = path && tune_load(&t, &key, path);
	if (!kept) {
		if (tune_make(&t, e, &key, a, err))
			return -1;
		if (path && tune_save(&t, &key, path, &why))
			log_warn("what experts take on this machine is not kept, and will be measured again: %s", why.text);
	}
	log_info("what experts take on this machine is %s measured=%s break_even_tokens=%lld expert_host_ms=%.3f upload_ms=%.3f",
		 kept ? "known" : "measured", t.made, (long long)cost_break_even(&t.cost), 1e3 * cost_host(&t.cost, 1),
		 1e3 * t.cost.upload_s);
	*c = t.cost;
	return 0;
}
