/* The linear scan h_t = a_t h_{t-1} + b_t of every channel by itself, and its adjoint, one pass over memory each.

   Arrays are [B, T, D]. A task is one row of the batch and one block of channels: it walks through time with its
   block of the state in the first-level cache, and the compiler vectorises over channels. */

#ifndef REAL

#include <stdint.h>

#include "../subnormals.h"

#define BLOCK 256 /* channels a task: fixed, so that results do not depend on the number of threads */

#define REAL float
#define NAME(function) function##_float
#include "linear_scan.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(function) function##_double
#include "linear_scan.c"

#else

/* state [B, D] or NULL. */
void NAME(scan)(const REAL *decay, const REAL *value, const REAL *state, REAL *h, int64_t B, int64_t T, int64_t D) {
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
            const REAL *restrict a = decay + at, *restrict v = value + at;
            REAL *restrict out = h + at;
            for (int64_t d = 0; d < width; d++) out[d] = carried[d] = a[d] * carried[d] + v[d];
        }
        restore_subnormals(mode);
    }
}

/* grad: the gradient of h. state and state_grad [B, D] may both be NULL. */
void NAME(scan_back)(const REAL *decay, const REAL *h, const REAL *state, const REAL *grad, REAL *decay_grad,
                     REAL *value_grad, REAL *state_grad, int64_t B, int64_t T, int64_t D) {
    const int64_t blocks = (D + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (B * T > 8) /* waking threads costs more than a few tokens */
    for (int64_t task = 0; task < B * blocks; task++) {
        const int64_t b = task / blocks, first = task % blocks * BLOCK;
        const int64_t width = D - first < BLOCK ? D - first : BLOCK;
        const unsigned mode = flush_subnormals();
        REAL carried[BLOCK], zeros[BLOCK]; /* carried: decay_{t+1} adjoint_{t+1} */
        for (int64_t d = 0; d < width; d++) carried[d] = zeros[d] = 0;
        for (int64_t t = T - 1; t >= 0; t--) {
            const int64_t at = (b * T + t) * D + first;
            const REAL *restrict a = decay + at, *restrict g = grad + at;
            const REAL *restrict past = t ? h + at - D : state ? state + b * D + first : zeros;
            REAL *restrict a_grad = decay_grad + at, *restrict v_grad = value_grad + at;
            for (int64_t d = 0; d < width; d++) {
                const REAL adjoint = g[d] + carried[d];
                carried[d] = a[d] * adjoint;
                a_grad[d] = adjoint * past[d];
                v_grad[d] = adjoint;
            }
        }
        if (state_grad)
            for (int64_t d = 0; d < width; d++) state_grad[b * D + first + d] = carried[d];
        restore_subnormals(mode);
    }
}

#endif
