// y = f(scale x) of the activations of a feed-forward network.
#pragma once

#include "../native_attention/attend.h"

enum { SILU, GELU, GELU_TANH, RELU, RELU2 };

static void activate(int64_t kind, const float *x, float scale, int64_t n, float *y) {
    if (kind == SILU)
        for (int64_t i = 0; i < n; i++) y[i] = scale * x[i] / (1 + exp_float(-scale * x[i]));
    else if (kind == GELU)
        for (int64_t i = 0; i < n; i++) y[i] = scale * x[i] * 0.5f * (1 + erff(scale * x[i] * 0.70710678f));
    else if (kind == GELU_TANH)
        for (int64_t i = 0; i < n; i++) {
            float a = scale * x[i];
            y[i] = 0.5f * a * (1 + bounded(0.79788456f * (a + 0.044715f * a * a * a)));
        }
    else
        for (int64_t i = 0; i < n; i++) {
            float a = scale * x[i] < 0 ? 0 : scale * x[i];
            y[i] = kind == RELU2 ? a * a : a;
        }
}
