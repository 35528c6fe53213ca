#include "offload/cost.h"

#include <assert.h>
#include <math.h>

bool cost_has_device(const struct cost *c)
{
	return c->upload_s > 0;
}

static double at(const double s[COST_POINTS], int64_t n)
{
	int64_t from = 1;
	int i = 0;

	assert(n >= 1);
	if (n >= COST_LAST)
		return s[COST_POINTS - 1] * (double)n / COST_LAST;
	while (2 * from <= n) {
		from *= 2;
		i++;
	}
	return s[i] + (s[i + 1] - s[i]) * (double)(n - from) / (double)from; /* the next point is 2 x from */
}

double cost_host(const struct cost *c, int64_t n)
{
	return at(c->host_s, n);
}

double cost_device(const struct cost *c, int64_t n)
{
	return at(c->device_s, n);
}

bool cost_moves(const struct cost *c, int64_t n_tokens, int32_t n_left, double backlog_s)
{
	assert(n_left >= 1);
	return cost_has_device(c) && backlog_s + c->upload_s + cost_device(c, n_tokens) <= n_left * cost_host(c, n_tokens);
}

int64_t cost_break_even(const struct cost *c)
{
	int64_t n = COST_MOST;

	while (n >= 1 && cost_moves(c, n, 1, 0))
		n--;
	return n == COST_MOST ? 0 : n + 1;
}

static bool all_zero(const double s[COST_POINTS])
{
	for (int i = 0; i < COST_POINTS; i++)
		if (s[i] != 0)
			return false;
	return true;
}

static int check_points(const double s[COST_POINTS], const char *whose, struct err *err)
{
	for (int i = 0; i < COST_POINTS; i++)
		if (!isfinite(s[i]) || s[i] <= 0)
			return err_set(err, ERR_FORMAT, "the %s's time for %d tokens is %g s, which no measurement gives", whose,
				       1 << i, s[i]);
	return 0;
}

int cost_check(const struct cost *c, struct err *err)
{
	if (check_points(c->host_s, "processor", err))
		return -1;
	if (c->upload_s == 0 && all_zero(c->device_s))
		return 0;
	if (check_points(c->device_s, "device", err))
		return -1;
	if (!isfinite(c->upload_s) || c->upload_s <= 0)
		return err_set(err, ERR_FORMAT, "an expert's way to the device is %g s, which no measurement gives", c->upload_s);
	return 0;
}
