// One token through mamba, whose maps have the convolution's output for an input: layers/mamba.py.
#pragma once

#include "linear_memory.h"
#include "maps.h"

typedef struct {
    convolution conv;
    const float *rate, *skip;             // exp(A_log) [channels, size], D [channels]
    const float *dt_norm, *b_norm, *c_norm;  // weights, or NULL
    double norm_eps;
    int64_t channels, size, rank, is_normed;
} mamba_rule;

// y_e = (h_e C + D_e u_e) silu(z_e), h_e' = exp(Δ_e A_e) h_e + Δ_e u_e B. y: u, in place. projected: Δ's numbers, B, C.
static void mamba_row(const mamba_rule *own, const float *z, const float *projected, const float *delta,
                      const float *before, float *after, float *y) {
    int64_t N = own->size;
    const float *B = projected + own->rank, *C = B + N;
    for (int64_t e = 0; e < own->channels; e++) {
        const float *rate = own->rate + e * N, *h = before + e * N;
        float *next = after + e * N, step = softplus(delta[e]), written = step * y[e];
        for (int64_t n = 0; n < N; n++) next[n] = exp_float(-rate[n] * step) * h[n] + written * B[n];
        y[e] = (dot(next, C, N) + own->skip[e] * y[e]) * (z[e] * sigmoid(z[e]));
    }
}

static void norm_projected(const mamba_rule *own, float *projected) {
    if (!own->is_normed) return;
    float *B = projected + own->rank, *C = B + own->size;
    norm_row(projected, own->dt_norm, own->norm_eps, own->rank, projected);
    norm_row(B, own->b_norm, own->norm_eps, own->size, B);
    norm_row(C, own->c_norm, own->norm_eps, own->size, C);
}

// features [rows, 2 channels]: u, z. maps: of u to B, C and the numbers of Δ; of these to Δ. room: for their outputs.
static void mamba(const mamba_rule *own, const linear *maps, const float *features, int64_t rows, const int64_t *adapters,
                  const float *const *before, float *const *after, int in_order, float *room, float *y, scratch *scratch) {
    int64_t E = own->channels, inputs = (own->conv.taps - 1) * E, width = maps[0].outputs;
    float *projected = room, *numbers = projected + rows * width, *delta = numbers + rows * own->rank;
#pragma omp parallel for schedule(static) if (rows > 1 && !in_order)
    for (int64_t r = 0; r < rows; r++) {
        memcpy(y + r * E, features + 2 * r * E, (size_t)E * sizeof(float));
        convolve_row(&own->conv, E, 1, y + r * E, before[1] + r * inputs, after[1] + r * inputs);
    }
    apply(maps, y, rows, adapters, projected, scratch);
    for (int64_t r = 0; r < rows; r++) {
        norm_projected(own, projected + r * width);
        memcpy(numbers + r * own->rank, projected + r * width, (size_t)own->rank * sizeof(float));
    }
    apply(maps + 1, numbers, rows, adapters, delta, scratch);
#pragma omp parallel for schedule(static) if (rows > 1 && !in_order)
    for (int64_t r = 0; r < rows; r++)
        mamba_row(own, features + (2 * r + 1) * E, projected + r * width, delta + r * E, before[0] + r * E * own->size,
                  after[0] + r * E * own->size, y + r * E);
}
