/* Root-mean-square normalisation of rows, one pass over memory forward and one back: REAL in, KIND out. */

#ifndef KIND

#define ROWS 64 /* rows a task: fixed, so that sums do not depend on the number of threads */

#define SELF "rms_norm/rms_norm.c"
#include "../each_kind.h"

#else

/* y = x scale weight with scale = 1 / sqrt(mean(x^2) + eps), saved a row for the backward pass. */
void NAME(norm)(const REAL *x, const REAL *weight, KIND *y, REAL *scale, double eps, int64_t N, int64_t D) {
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
    for (int64_t n = 0; n < N; n++) {
        const REAL *restrict in = x + n * D;
        KIND *restrict out = y + n * D;
        REAL sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < D; d++) sum += in[d] * in[d];
        const REAL s = (REAL)(1 / sqrt((double)sum / (double)D + eps));
        scale[n] = s;
#pragma omp simd
        for (int64_t d = 0; d < D; d++) out[d] = STORE(in[d] * s * weight[d]);
    }
}

/* partial [ceil(N / ROWS), D]: the weight's gradient, summed over the rows of each task. */
void NAME(norm_back)(const REAL *x, const REAL *weight, const REAL *scale, const KIND *grad, REAL *x_grad, REAL *partial,
                     int64_t N, int64_t D) {
    const int64_t tasks = (N + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
    for (int64_t task = 0; task < tasks; task++) {
        REAL *restrict total = partial + task * D;
        for (int64_t d = 0; d < D; d++) total[d] = 0;
        const int64_t last = (task + 1) * ROWS < N ? (task + 1) * ROWS : N;
        for (int64_t n = task * ROWS; n < last; n++) {
            const REAL *restrict in = x + n * D;
            const KIND *restrict g = grad + n * D;
            REAL *restrict out = x_grad + n * D;
            const REAL s = scale[n];
            REAL along = 0;
#pragma omp simd reduction(+ : along)
            for (int64_t d = 0; d < D; d++) along += LOAD(g[d]) * weight[d] * in[d];
            const REAL pull = along * s * s * s / (REAL)D;
#pragma omp simd
            for (int64_t d = 0; d < D; d++) {
                const REAL slope = LOAD(g[d]);
                total[d] += slope * in[d] * s;
                out[d] = slope * weight[d] * s - in[d] * pull;
            }
        }
    }
}

#endif
