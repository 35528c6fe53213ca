#include "config/units.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct unit {
	const char *name;
	int64_t factor;
};

static const struct unit byte_units[] = {
	{"B", 1},
	{"KiB", 1LL << 10}, {"MiB", 1LL << 20}, {"GiB", 1LL << 30}, {"TiB", 1LL << 40}, {"PiB", 1LL << 50},
	{"KB", 1000}, {"MB", 1000000}, {"GB", 1000000000}, {"TB", 1000000000000}, {"PB", 1000000000000000},
	{NULL, 0},
};

static const struct unit duration_units[] = {
	{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000}, {NULL, 0},
};

/* The whole number at the start of text; returns what follows it, or NULL when there is none. *overflow says that
 * it is larger than an int64_t. */
static const char *whole_number(int64_t *out, const char *text, bool *overflow)
{
	const char *p = text;
	int64_t value = 0;

	*overflow = false;
	if (!isdigit((unsigned char)*p) || (*p == '0' && isdigit((unsigned char)p[1])))
		return NULL;
	for (; isdigit((unsigned char)*p); p++)
		if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *p - '0', &value))
			*overflow = true;
	*out = value;
	return p;
}

static int with_unit(int64_t *out, const char *text, const struct unit *units, const char *example, struct err *err)
{
	char all[128] = "";
	const char *rest;
	int64_t value;
	bool overflow;

	rest = whole_number(&value, text, &overflow);
	if (!rest)
		return err_set(err, ERR_USAGE, "\"%s\" is not a whole number with a unit, such as %s", text, example);
	for (const struct unit *u = units; u->name; u++) {
		if (strcmp(rest, u->name)) {
			snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", *all ? ", " : "", u->name);
			continue;
		}
		if (overflow || __builtin_mul_overflow(value, u->factor, &value))
			return err_set(err, ERR_USAGE, "\"%s\" is too large", text);
		*out = value;
		return 0;
	}
	if (!*rest)
		return err_set(err, ERR_USAGE, "\"%s\" has no unit; write one after it, such as %s (known: %s)", text,
			       example, all);
	return err_set(err, ERR_USAGE, "\"%s\" has the unknown unit \"%s\"; write a whole number with a unit, such as "
		       "%s (known: %s)", text, rest, example, all);
}

int bytes_parse(int64_t *out, const char *text, struct err *err)
{
	return with_unit(out, text, byte_units, "64GiB", err);
}

int duration_parse(int64_t *out_ms, const char *text, struct err *err)
{
	return with_unit(out_ms, text, duration_units, "30m", err);
}

int count_parse(int64_t *out, const char *text, int64_t least, int64_t most, struct err *err)
{
	const char *rest;
	int64_t value;
	bool overflow;

	rest = whole_number(&value, text, &overflow);
	if (!rest || *rest)
		return err_set(err, ERR_USAGE, "\"%s\" is not a whole number", text);
	if (overflow || value < least || value > most)
		return err_set(err, ERR_USAGE, "%s is not between %lld and %lld", text, (long long)least,
			       (long long)most);
	*out = value;
	return 0;
}

static const char *digits(const char *p)
{
	const char *start = p;

	while (isdigit((unsigned char)*p))
		p++;
	return p > start ? p : NULL;
}

/* strtod also takes hexadecimal, "inf" and white space. */
static bool is_decimal_fraction(const char *p)
{
	p = digits(p);
	if (p && *p == '.')
		p = digits(p + 1);
	if (p && (*p == 'e' || *p == 'E'))
		p = digits(p + 1 + (p[1] == '-' || p[1] == '+'));
	return p && !*p;
}

int fraction_parse(double *out, const char *text, double least, double most, struct err *err)
{
	char low[UNITS_TEXT_BYTES], high[UNITS_TEXT_BYTES];
	double value;

	if (!is_decimal_fraction(text))
		return err_set(err, ERR_USAGE, "\"%s\" is not a number", text);
	value = strtod(text, NULL);
	if (!(value >= least && value <= most))
		return err_set(err, ERR_USAGE, "%s is not between %s and %s", text, fraction_print(low, least),
			       fraction_print(high, most));
	*out = value;
	return 0;
}

static char *print_with_unit(char out[UNITS_TEXT_BYTES], int64_t value, const struct unit *units)
{
	const struct unit *best = units;

	for (const struct unit *u = units; u->name; u++)
		if (value && value % u->factor == 0 && u->factor > best->factor)
			best = u;
	snprintf(out, UNITS_TEXT_BYTES, "%lld%s", (long long)(value / best->factor), best->name);
	return out;
}

char *bytes_print(char out[UNITS_TEXT_BYTES], int64_t bytes)
{
	return print_with_unit(out, bytes, byte_units);
}

char *duration_print(char out[UNITS_TEXT_BYTES], int64_t ms)
{
	return print_with_unit(out, ms, duration_units);
}

char *fraction_print(char out[UNITS_TEXT_BYTES], double value)
{
	/* %g would write a hundred as 1e+02. Beyond 2^53 not every integer is a double, and beyond 2^63 none is an int64_t. */
	if (value >= -0x1p53 && value <= 0x1p53 && value == (double)(int64_t)value) {
		snprintf(out, UNITS_TEXT_BYTES, "%lld", (long long)value);
		return out;
	}
	for (int n_digits = 1; n_digits <= 17; n_digits++) {
		snprintf(out, UNITS_TEXT_BYTES, "%.*g", n_digits, value);
		if (strtod(out, NULL) == value)
			break;
	}
	return out;
}

enum { MAX_NAME = 128 };

static int least_of(int a, int b)
{
	return a < b ? a : b;
}

/* Optimal string alignment distance, by three rows of its table. */
static int distance(const char *a, int n_a, const char *b, int n_b)
{
	int rows[3][MAX_NAME + 1], *before = rows[0], *last = rows[1], *row = rows[2], *free_row;

	for (int j = 0; j <= n_b; j++)
		last[j] = j;
	for (int i = 1; i <= n_a; i++) {
		row[0] = i;
		for (int j = 1; j <= n_b; j++) {
			row[j] = least_of(last[j - 1] + (a[i - 1] != b[j - 1]), least_of(last[j], row[j - 1]) + 1);
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				row[j] = least_of(row[j], before[j - 2] + 1);
		}
		free_row = before;
		before = last;
		last = row;
		row = free_row;
	}
	return last[n_b];
}

const char *nearest_name(const char *name, const char *const *names, size_t n)
{
	size_t n_name = strlen(name);
	const char *best = NULL;
	int best_distance = 0;

	if (!n_name || n_name > MAX_NAME)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		size_t n_other = strlen(names[i]), longer = n_other > n_name ? n_other : n_name;
		int d;

		if (n_other > MAX_NAME)
			continue;
		d = distance(name, (int)n_name, names[i], (int)n_other);
		if (3 * (size_t)d <= longer && (!best || d < best_distance)) {
			best = names[i];
			best_distance = d;
		}
	}
	return best;
}
