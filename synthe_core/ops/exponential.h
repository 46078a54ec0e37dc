/* e^x in float, written so that compilers vectorise it: 2^n e^r with |r| <= ln 2 / 2 and a polynomial of degree 6.
   Within two units in the last place; below -87 it gives about 1e-38, above 88 about 1e38 (Cephes' reduction). */

#pragma once

#include <stdint.h>

static inline float exp_float(float x) {
    x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    const float n = x * 1.44269504f + 12582912.0f - 12582912.0f;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t bits; float value; } power = {.bits = ((int32_t)n + 127) << 23};
    return p * power.value;
}
