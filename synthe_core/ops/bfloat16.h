/* bfloat16 as storage: the upper half of a float, rounded to nearest even; NaN stays NaN. */

#pragma once

#include <stdint.h>

typedef uint16_t bfloat16;

static inline float from_bfloat16(bfloat16 x) {
    union { uint32_t bits; float value; } wide = {.bits = (uint32_t)x << 16};
    return wide.value;
}

static inline bfloat16 to_bfloat16(float x) {
    union { float value; uint32_t bits; } wide = {.value = x};
    const uint32_t rounded = (wide.bits + 0x7fffu + ((wide.bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (wide.bits >> 16) | 0x40u;
    return (bfloat16)((wide.bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}
