// y += s B A x, the change of an adapter to what a matrix makes of a row.
#pragma once

#include "../float_linear/float_linear.h"

typedef struct {
    const void *a, *b;  // [rank, inputs], [rank, outputs]: B by its columns; NULL: no change
    int64_t rank, is_bfloat16;
    double scaling;
} change;

enum { TOGETHER_OUTPUTS = 4 };  // in WIDTHs

// y += scaling B narrow.
#define ADD_OUTPUTS(KIND, LOAD_WEIGHT)                                                                                 \
    static void add_##KIND(const KIND *b, const float *narrow, int64_t rank, int64_t outputs, float scaling, float *y) { \
        int64_t o = 0;                                                                                                 \
        for (; o + TOGETHER_OUTPUTS * WIDTH <= outputs; o += TOGETHER_OUTPUTS * WIDTH) {                               \
            wide sum[TOGETHER_OUTPUTS];                                                                                \
            for (int j = 0; j < TOGETHER_OUTPUTS; j++) sum[j] = wide_zero();                                           \
            for (int64_t i = 0; i < rank; i++)                                                                         \
                for (int j = 0; j < TOGETHER_OUTPUTS; j++)                                                             \
                    sum[j] = wide_fma(LOAD_WEIGHT(b + i * outputs + o + j * WIDTH), wide_fill(narrow[i]), sum[j]);     \
            for (int j = 0; j < TOGETHER_OUTPUTS; j++) {                                                               \
                float *at = y + o + j * WIDTH;                                                                         \
                wide_store(at, wide_fma(sum[j], wide_fill(scaling), wide_load(at)));                                   \
            }                                                                                                          \
        }                                                                                                              \
        for (; o < outputs; o += WIDTH) {                                                                              \
            int64_t left = outputs - o < WIDTH ? outputs - o : WIDTH;                                                  \
            KIND part[WIDTH] = {0};                                                                                    \
            float own[WIDTH] = {0};                                                                                    \
            wide sum = wide_zero();                                                                                    \
            for (int64_t i = 0; i < rank; i++) {                                                                       \
                memcpy(part, b + i * outputs + o, (size_t)left * sizeof(KIND));                                        \
                sum = wide_fma(LOAD_WEIGHT(part), wide_fill(narrow[i]), sum);                                          \
            }                                                                                                          \
            memcpy(own, y + o, (size_t)left * sizeof(float));                                                          \
            wide_store(own, wide_fma(sum, wide_fill(scaling), wide_load(own)));                                        \
            memcpy(y + o, own, (size_t)left * sizeof(float));                                                          \
        }                                                                                                              \
    }
ADD_OUTPUTS(float, wide_load)
ADD_OUTPUTS(bfloat16, wide_load_bfloat16)

// narrow: room for `rank` numbers.
static void adapt(const change *own, const float *x, int64_t inputs, int64_t outputs, float *y, float *narrow) {
    if (own->is_bfloat16) {
        bfloat16_product(own->a, inputs, x, 1, inputs, own->rank, narrow, own->rank);
        add_bfloat16(own->b, narrow, own->rank, outputs, (float)own->scaling, y);
    } else {
        float_product(own->a, inputs, x, 1, inputs, own->rank, narrow, own->rank);
        add_float(own->b, narrow, own->rank, outputs, (float)own->scaling, y);
    }
}
