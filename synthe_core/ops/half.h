// float16 as storage: eight of them as floats.
#pragma once

#include "lanes.h"

typedef uint16_t float16;

#ifdef VECTOR
static inline lanes halves(const float16 *h) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)h)); }
#else
static inline float half(float16 h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023, bits;
    float value;
    if (!exponent) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
    bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    memcpy(&value, &bits, 4);
    return value;
}
static inline lanes halves(const float16 *h) { EACH(half(h[l])); }
#endif
