/*
 * Angles of the rotary embedding. A model is trained with float32 angles: inverse frequencies are float32 and so is
 * their product with the position, off by up to .03 rad near position 2^20. We keep to that, and take cos and sin of
 * the float32 angle in double, rounded once.
 */
#include <math.h>

#include "engine/ops.h"

static const double PI = 3.14159265358979323846;

/* The dimension whose wavelength makes `rotations` turns within the original context. */
static double turning_dim(const struct rope_config *r, int32_t dim, double rotations)
{
	return dim * log(r->original_positions / (rotations * 2 * PI)) / (2 * log(r->theta));
}

void rope_inv_freq(const struct rope_config *r, int32_t dim, float *inv_freq)
{
	double low = 0, high = 0;

	if (r->yarn) {
		low = floor(turning_dim(r, dim, r->beta_fast));
		high = ceil(turning_dim(r, dim, r->beta_slow));
		low = low < 0 ? 0 : low;
		high = high > dim - 1 ? dim - 1 : high;
		if (low == high)
			high += 0.001;
	}
	for (int32_t j = 0; j < dim / 2; j++) {
		float exponent = (float)(2 * j) / (float)dim;
		float power = (float)pow(r->theta, (double)exponent), plain = 1.0f / power;

		inv_freq[j] = plain;
		if (r->yarn) {
			/* Fast dimensions keep their frequency, slow ones are stretched by `factor`, with a ramp
			 * between. */
			float ramp = ((float)j - (float)low) / (float)(high - low), stretched;

			ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
			stretched = 1.0f / ((float)r->factor * power);
			inv_freq[j] = stretched * ramp + plain * (1.0f - ramp);
		}
	}
}

void rope_cos_sin(const float *inv_freq, int32_t dim, int64_t first, int64_t n, float *cosine, float *sine)
{
	for (int64_t i = 0; i < n; i++)
		for (int32_t j = 0; j < dim / 2; j++) {
			float angle = (float)(first + i) * inv_freq[j];

			cosine[i * (dim / 2) + j] = (float)cos((double)angle);
			sine[i * (dim / 2) + j] = (float)sin((double)angle);
		}
}
