/* Causal depthwise short convolution with an optional SiLU, forward and backward, in float32 and float64.
   One task is a block of channels of one row, walked through time, so that every number is read once. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 256, TAPS = 16 }; /* channels a task; the longest convolution */

static inline float exponential_float(float x) {
    /* 2^n exp(r), |r| <= ln2 / 2, by the Taylor polynomial: within 2 units in the last place, and it vectorises. */
    x = x > 88.f ? 88.f : x < -87.f ? -87.f : x;
    const float n = x * 1.44269504f + 12582912.0f - 12582912.0f;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.f / 5040;
    p = p * r + 1.f / 720;
    p = p * r + 1.f / 120;
    p = p * r + 1.f / 24;
    p = p * r + 1.f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline double exponential_double(double x) { return exp(x); }

#define REAL float
#define NAME(name) name##_float
#include "short_conv.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(name) name##_double
#include "short_conv.h"
