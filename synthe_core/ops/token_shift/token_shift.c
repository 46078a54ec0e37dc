/* Inputs mixed with those one token earlier for C purposes, one pass over memory each way.

   Inputs and results are KIND, mixes REAL. A task is one row of the batch and one block of channels. */

#ifndef KIND

#include <string.h>

enum { BLOCK = 64 }; /* channels a task: fixed, so that sums over tokens do not depend on the number of threads */

#define SELF "token_shift/token_shift.c"
#include "../each_kind.h"

#else

/* x [B, T, D], mix [C, D], before [B, D], mixed: C times [B, T, D]. */
void NAME(token_shift)(const KIND *x, const REAL *mix, const KIND *before, KIND *const *mixed, int64_t B, int64_t T,
                       int64_t D, int64_t C) {
#pragma omp parallel for schedule(static) if (B * T > 8) /* waking threads costs more than a few rows */
    for (int64_t row = 0; row < B * T; row++) {
        const KIND *restrict now = x + row * D, *restrict past = row % T ? now - D : before + row / T * D;
        for (int64_t c = 0; c < C; c++) {
            const REAL *restrict part = mix + c * D;
            KIND *restrict y = mixed[c] + row * D;
#pragma omp simd
            for (int64_t d = 0; d < D; d++) y[d] = STORE(LOAD(now[d]) + part[d] * (LOAD(past[d]) - LOAD(now[d])));
        }
    }
}

/* grads as `mixed`, x_grad [B, T, D], mix_grad [B, C, D], before_grad [B, D]. */
void NAME(token_shift_back)(const KIND *x, const REAL *mix, const KIND *before, const KIND *const *grads, KIND *x_grad,
                            REAL *mix_grad, KIND *before_grad, int64_t B, int64_t T, int64_t D, int64_t C) {
    const int64_t blocks = (D + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (B * blocks > 1 && T > 8)
    for (int64_t task = 0; task < B * blocks; task++) {
        const int64_t b = task / blocks, first = task % blocks * BLOCK;
        const int64_t width = D - first < BLOCK ? D - first : BLOCK;
        REAL carried[BLOCK] = {0}; /* the gradient of this input from the next token */
        for (int64_t c = 0; c < C; c++) memset(mix_grad + (b * C + c) * D + first, 0, width * sizeof(REAL));
        for (int64_t t = T - 1; t >= 0; t--) {
            const int64_t at = (b * T + t) * D + first;
            const KIND *restrict now = x + at, *restrict past = t ? now - D : before + b * D + first;
            KIND *restrict out = x_grad + at;
            REAL total[BLOCK], passed[BLOCK] = {0};
            memcpy(total, carried, sizeof total);
            for (int64_t c = 0; c < C; c++) {
                const REAL *restrict part = mix + c * D + first;
                const KIND *restrict slope = grads[c] + at;
                REAL *restrict of_mix = mix_grad + (b * C + c) * D + first;
#pragma omp simd
                for (int64_t d = 0; d < width; d++) {
                    const REAL s = LOAD(slope[d]), moved = part[d] * s;
                    passed[d] += moved;
                    total[d] += s - moved;
                    of_mix[d] += s * (LOAD(past[d]) - LOAD(now[d]));
                }
            }
            for (int64_t d = 0; d < width; d++) out[d] = STORE(total[d]);
            memcpy(carried, passed, sizeof carried);
        }
        for (int64_t d = 0; d < width; d++) before_grad[b * D + first + d] = STORE(carried[d]);
    }
}

#endif
