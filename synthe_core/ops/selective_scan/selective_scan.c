/* The selective scan and its gradient, one pass over memory each.

       h = exp(delta A) h + delta x B,   y = sum_n h C + D x

   x, delta and y are [B, T, E], A [N, E] (transposed), B and C [B, T, N], D [E], states [B, E, N]. A task is one row
   of the batch and one block of channels: it walks through time with the block's state in the first-level cache, laid
   out [N, BLOCK], so that the compiler vectorises over channels and sums over n need no shuffling. Every CHUNK tokens
   the state is saved for the backward pass, which recomputes each chunk forwards and then runs it backwards. Blocks are
   always BLOCK wide inside; channels that do not exist are zeros. */

#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../subnormals.h"

#define BLOCK 64 /* channels a task: fixed, so that sums over channels do not depend on the number of threads */
#define CHUNK 16 /* tokens between two saved states */

/* 2^x for x <= 0, which is cheaper than e^x, and exponentials are half of the scan's work. The bits of x + 1.5 2^23 end
   in the nearest integer n; 2^(x - n) is a polynomial (least relative error on [-1/2, 1/2], within two units in the last
   place, and 1 exactly at 0, so that where no time passes nothing fades), and n is added to its exponent. */
static inline float exp2_float(float x) {
    x = x < -125.0f ? -125.0f : x;
    union { float value; uint32_t bits; } shifted = {x + 12582912.0f}, power;
    const float r = x - (shifted.value - 12582912.0f);
    float p = 1.534580952e-4f;
    p = p * r + 1.339993090e-3f;
    p = p * r + 9.618489072e-3f;
    p = p * r + 5.550328642e-2f;
    p = p * r + 2.402264625e-1f;
    p = p * r + 6.931471825e-1f;
    p = p * r + 1.0f;
    power.value = p;
    power.bits += shifted.bits << 23;
    return power.value;
}

#define LOG2_E 1.4426950408889634 /* exp(delta A) = 2^(delta rate) with rate = A log2(e) */
#define LN_2 0.6931471805599453

#define REAL float
#define EXP2 exp2_float
#define NAME(function) function##_float
#include "selective_scan.c"
#undef REAL
#undef EXP2
#undef NAME
#define REAL double
#define EXP2 exp2
#define NAME(function) function##_double
#include "selective_scan.c"

#else

/* BLOCK numbers of which the first `width` are those of `from`. */
static inline void NAME(load)(REAL *restrict block, const REAL *restrict from, int64_t width) {
    if (width == BLOCK) {
        memcpy(block, from, BLOCK * sizeof(REAL));
        return;
    }
    memset(block, 0, BLOCK * sizeof(REAL));
    memcpy(block, from, width * sizeof(REAL));
}

/* rates [N, BLOCK]: A log2(e) of the channels from `first`. */
static inline void NAME(scale_rates)(REAL *restrict rates, const REAL *restrict A, int64_t first, int64_t width,
                                     int64_t E, int64_t N) {
    for (int64_t n = 0; n < N; n++) {
        NAME(load)(rates + n * BLOCK, A + n * E + first, width);
        for (int64_t d = 0; d < BLOCK; d++) rates[n * BLOCK + d] *= (REAL)LOG2_E;
    }
}

/* saved [B, blocks, chunks, N, BLOCK], the state before each chunk, or NULL; state may be NULL too. Returns 1 if out of
   memory. */
int NAME(selective_scan)(const REAL *x, const REAL *delta, const REAL *A, const REAL *B, const REAL *C, const REAL *D,
                         const REAL *state, REAL *y, REAL *last, REAL *saved, int64_t batch, int64_t T, int64_t E,
                         int64_t N) {
    const int64_t blocks = (E + BLOCK - 1) / BLOCK, chunks = (T + CHUNK - 1) / CHUNK;
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed) if (batch * T > 8) /* waking threads costs more */
    for (int64_t task = 0; task < batch * blocks; task++) {
        const int64_t b = task / blocks, first = task % blocks * BLOCK, size = N * BLOCK;
        const int64_t width = E - first < BLOCK ? E - first : BLOCK;
        REAL *const scratch = aligned_alloc(64, 2 * size * sizeof(REAL));
        if (!scratch) {
            failed = 1;
            continue;
        }
        REAL *const rates = scratch, *const h = rates + size;
        const unsigned mode = flush_subnormals();
        memset(h, 0, size * sizeof(REAL));
        NAME(scale_rates)(rates, A, first, width, E, N);
        if (state)
            for (int64_t n = 0; n < N; n++)
                for (int64_t d = 0; d < width; d++) h[n * BLOCK + d] = state[(b * E + first + d) * N + n];
        for (int64_t t = 0; t < T; t++) {
            if (saved && t % CHUNK == 0)
                memcpy(saved + (task * chunks + t / CHUNK) * size, h, size * sizeof(REAL));
            const int64_t at = (b * T + t) * E + first;
            const REAL *restrict took = B + (b * T + t) * N, *restrict read = C + (b * T + t) * N;
            _Alignas(64) REAL step[BLOCK], input[BLOCK], out[BLOCK] = {0};
            NAME(load)(step, delta + at, width);
            NAME(load)(input, x + at, width);
#pragma omp simd
            for (int64_t d = 0; d < BLOCK; d++) input[d] *= step[d];
            for (int64_t n = 0; n < N; n++) {
                const REAL *restrict rate = rates + n * BLOCK;
                REAL *restrict past = h + n * BLOCK;
                const REAL taken = took[n], shown = read[n];
#pragma omp simd
                for (int64_t d = 0; d < BLOCK; d++) {
                    const REAL now = EXP2(step[d] * rate[d]) * past[d] + input[d] * taken;
                    past[d] = now;
                    out[d] += now * shown;
                }
            }
            for (int64_t d = 0; d < width; d++) y[at + d] = out[d] + D[first + d] * x[at + d];
        }
        for (int64_t n = 0; n < N; n++)
            for (int64_t d = 0; d < width; d++) last[(b * E + first + d) * N + n] = h[n * BLOCK + d];
        restore_subnormals(mode);
        free(scratch);
    }
    return failed;
}

/* y_grad [B, T, E] and last_grad [B, E, N] are given. A_grad [B, N, E] and D_grad [B, E]: the caller adds the rows;
   B_grad and C_grad [blocks, B, T, N]: the caller adds the blocks. Returns 1 if out of memory. */
int NAME(selective_scan_back)(const REAL *x, const REAL *delta, const REAL *A, const REAL *B, const REAL *C,
                              const REAL *D, const REAL *saved, const REAL *y_grad, const REAL *last_grad, REAL *x_grad,
                              REAL *delta_grad, REAL *A_grad, REAL *B_grad, REAL *C_grad, REAL *D_grad,
                              REAL *state_grad, int64_t batch, int64_t T, int64_t E, int64_t N) {
    const int64_t blocks = (E + BLOCK - 1) / BLOCK, chunks = (T + CHUNK - 1) / CHUNK;
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed) if (batch * T > 8)
    for (int64_t task = 0; task < batch * blocks; task++) {
        const int64_t b = task / blocks, block = task % blocks, first = block * BLOCK, size = N * BLOCK;
        const int64_t width = E - first < BLOCK ? E - first : BLOCK;
        REAL *const scratch = aligned_alloc(64, (4 + 2 * CHUNK) * size * sizeof(REAL));
        if (!scratch) {
            failed = 1;
            continue;
        }
        /* adjoint: the gradient of this token's state from later ones. decays and faded [CHUNK, N, BLOCK]: exp(delta A),
           and that times the state before the token. */
        REAL *const rates = scratch, *const h = rates + size, *const adjoint = h + size, *const A_sum = adjoint + size;
        REAL *const decays = A_sum + size, *const faded = decays + CHUNK * size;
        _Alignas(64) REAL D_sum[BLOCK] = {0};
        const unsigned mode = flush_subnormals();
        memset(adjoint, 0, 2 * size * sizeof(REAL));
        NAME(scale_rates)(rates, A, first, width, E, N);
        for (int64_t n = 0; n < N; n++)
            for (int64_t d = 0; d < width; d++) adjoint[n * BLOCK + d] = last_grad[(b * E + first + d) * N + n];
        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
            const int64_t begin = chunk * CHUNK, end = begin + CHUNK < T ? begin + CHUNK : T;
            memcpy(h, saved + (task * chunks + chunk) * size, size * sizeof(REAL));
            for (int64_t t = begin; t < end; t++) {
                const int64_t at = (b * T + t) * E + first;
                const REAL *restrict took = B + (b * T + t) * N;
                _Alignas(64) REAL step[BLOCK], input[BLOCK];
                NAME(load)(step, delta + at, width);
                NAME(load)(input, x + at, width);
#pragma omp simd
                for (int64_t d = 0; d < BLOCK; d++) input[d] *= step[d];
                for (int64_t n = 0; n < N; n++) {
                    const REAL *restrict rate = rates + n * BLOCK;
                    REAL *restrict past = h + n * BLOCK;
                    REAL *restrict decay = decays + (t - begin) * size + n * BLOCK;
                    REAL *restrict fading = faded + (t - begin) * size + n * BLOCK;
                    const REAL taken = took[n];
#pragma omp simd
                    for (int64_t d = 0; d < BLOCK; d++) {
                        const REAL keeps = EXP2(step[d] * rate[d]);
                        decay[d] = keeps;
                        fading[d] = keeps * past[d];
                        past[d] = fading[d] + input[d] * taken;
                    }
                }
            }
            for (int64_t t = end - 1; t >= begin; t--) {
                const int64_t at = (b * T + t) * E + first, entry = ((block * batch + b) * T + t) * N;
                const REAL *restrict took = B + (b * T + t) * N, *restrict read = C + (b * T + t) * N;
                _Alignas(64) REAL step[BLOCK], input[BLOCK], slope[BLOCK], along[BLOCK] = {0}, timed[BLOCK] = {0};
                NAME(load)(step, delta + at, width);
                NAME(load)(input, x + at, width);
                NAME(load)(slope, y_grad + at, width);
#pragma omp simd
                for (int64_t d = 0; d < BLOCK; d++) {
                    D_sum[d] += slope[d] * input[d];
                    input[d] *= step[d];
                }
                for (int64_t n = 0; n < N; n++) {
                    const REAL *restrict rate = rates + n * BLOCK;
                    const REAL *restrict decay = decays + (t - begin) * size + n * BLOCK;
                    const REAL *restrict fading = faded + (t - begin) * size + n * BLOCK;
                    REAL *restrict of_next = adjoint + n * BLOCK, *restrict of_rate = A_sum + n * BLOCK;
                    const REAL taken = took[n], shown = read[n];
                    REAL of_taken = 0, of_shown = 0;
#pragma omp simd reduction(+ : of_taken, of_shown)
                    for (int64_t d = 0; d < BLOCK; d++) {
                        const REAL of_state = of_next[d] + slope[d] * shown;
                        const REAL of_exponent = of_state * fading[d];
                        of_shown += slope[d] * (fading[d] + input[d] * taken);
                        of_taken += of_state * input[d];
                        along[d] += of_state * taken;
                        timed[d] += of_exponent * rate[d];
                        of_rate[d] += of_exponent * step[d];
                        of_next[d] = of_state * decay[d];
                    }
                    B_grad[entry + n] = of_taken;
                    C_grad[entry + n] = of_shown;
                }
                for (int64_t d = 0; d < width; d++) {
                    x_grad[at + d] = step[d] * along[d] + slope[d] * D[first + d];
                    delta_grad[at + d] = timed[d] * (REAL)LN_2 + x[at + d] * along[d];
                }
            }
        }
        for (int64_t n = 0; n < N; n++) {
            memcpy(A_grad + (b * N + n) * E + first, A_sum + n * BLOCK, width * sizeof(REAL));
            for (int64_t d = 0; d < width; d++) state_grad[(b * E + first + d) * N + n] = adjoint[n * BLOCK + d];
        }
        memcpy(D_grad + b * E + first, D_sum, width * sizeof(REAL));
        restore_subnormals(mode);
        free(scratch);
    }
    return failed;
}

#endif
