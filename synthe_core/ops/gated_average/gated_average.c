/* The gated average h_t = σ(x_t) h_{t-1} + σ(-x_t) v_t and its gradient, one pass over memory each.

   Arrays are [B, T, D]. A task is one row of the batch and one block of channels; the compiler vectorises over
   channels, the exponential included, which is why it is written out here. */

#ifndef REAL

#include <stdint.h>
#include <string.h>

#include "../subnormals.h"

#define BLOCK 256 /* channels a task: fixed, so that results do not depend on the number of threads */

/* exp(-y) for y >= 0: with n = round(-y / ln 2), 2^n is put into the exponent of a polynomial in -y - n ln 2. Adding
   and subtracting 1.5 * 2^mantissa rounds to the nearest integer and leaves it in the lowest bits. */
static inline float decay_float(float y) {
    const float x = y > 87.0f ? -87.0f : -y;
    const float shifted = x * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits, power;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&power, &shifted, sizeof power);
    bits += (int32_t)((uint32_t)power << 23);
    memcpy(&p, &bits, sizeof p);
    return y > 87.0f ? 0.0f : p;
}

static inline double decay_double(double y) {
    const double x = y > 708.0 ? -708.0 : -y;
    const double shifted = x * 1.4426950408889634 + 6755399441055744.0;
    const double n = shifted - 6755399441055744.0;
    const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    int64_t bits, power;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&power, &shifted, sizeof power);
    bits += (int64_t)((uint64_t)power << 52);
    memcpy(&p, &bits, sizeof p);
    return y > 708.0 ? 0.0 : p;
}

#define REAL float
#define NAME(function) function##_float
#include "gated_average.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(function) function##_double
#include "gated_average.c"

#else

/* state [B, D] or NULL. */
void NAME(average)(const REAL *gate, const REAL *value, const REAL *state, REAL *h, int64_t B, int64_t T, int64_t D) {
    const int64_t blocks = (D + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (B * T > 8) /* waking threads costs more than a few tokens */
    for (int64_t task = 0; task < B * blocks; task++) {
        const int64_t b = task / blocks, first = task % blocks * BLOCK;
        const int64_t width = D - first < BLOCK ? D - first : BLOCK;
        const unsigned mode = flush_subnormals();
        REAL carried[BLOCK];
        for (int64_t d = 0; d < width; d++) carried[d] = state ? state[b * D + first + d] : 0;
        for (int64_t t = 0; t < T; t++) {
            const int64_t at = (b * T + t) * D + first;
            const REAL *restrict x = gate + at, *restrict v = value + at;
            REAL *restrict out = h + at;
#pragma omp simd
            for (int64_t d = 0; d < width; d++) {
                const REAL small = NAME(decay)(x[d] < 0 ? -x[d] : x[d]), larger = 1 / (1 + small);
                const REAL smaller = small * larger;
                const REAL keep = x[d] < 0 ? smaller : larger, take = x[d] < 0 ? larger : smaller;
                out[d] = carried[d] = keep * carried[d] + take * v[d];
            }
        }
        restore_subnormals(mode);
    }
}

/* grad: the gradient of h. state and state_grad [B, D] may both be NULL. */
void NAME(average_back)(const REAL *gate, const REAL *value, const REAL *h, const REAL *state, const REAL *grad,
                        REAL *gate_grad, REAL *value_grad, REAL *state_grad, int64_t B, int64_t T, int64_t D) {
    const int64_t blocks = (D + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (B * T > 8) /* waking threads costs more than a few tokens */
    for (int64_t task = 0; task < B * blocks; task++) {
        const int64_t b = task / blocks, first = task % blocks * BLOCK;
        const int64_t width = D - first < BLOCK ? D - first : BLOCK;
        const unsigned mode = flush_subnormals();
        REAL carried[BLOCK], zeros[BLOCK]; /* carried: the gradient of this h from the next token */
        for (int64_t d = 0; d < width; d++) carried[d] = zeros[d] = 0;
        for (int64_t t = T - 1; t >= 0; t--) {
            const int64_t at = (b * T + t) * D + first;
            const REAL *restrict x = gate + at, *restrict v = value + at, *restrict g = grad + at;
            const REAL *restrict past = t ? h + at - D : state ? state + b * D + first : zeros;
            REAL *restrict x_grad = gate_grad + at, *restrict v_grad = value_grad + at;
#pragma omp simd
            for (int64_t d = 0; d < width; d++) {
                const REAL small = NAME(decay)(x[d] < 0 ? -x[d] : x[d]), larger = 1 / (1 + small);
                const REAL smaller = small * larger;
                const REAL keep = x[d] < 0 ? smaller : larger, take = x[d] < 0 ? larger : smaller;
                const REAL adjoint = g[d] + carried[d];
                x_grad[d] = adjoint * (past[d] - v[d]) * (larger * smaller);
                v_grad[d] = adjoint * take;
                carried[d] = adjoint * keep;
            }
        }
        if (state_grad)
            for (int64_t d = 0; d < width; d++) state_grad[b * D + first + d] = carried[d];
        restore_subnormals(mode);
    }
}

#endif
