/* Heads brought to unit root-mean-square (where eps >= 0), their first R channels turned by an angle per token and
   pair of channels.

   A token's heads lie side by side; `step` is the distance from token to token in x, so that a slice of a wider
   projection is read where it is. */

#ifndef KIND

#define SELF "rotary/rotary.c"
#include "../each_kind.h"

#else

static inline REAL NAME(scale_of)(const KIND *x, int64_t K, double eps) {
    REAL sum = 0;
    if (eps < 0) return 1;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < K; i++) sum += LOAD(x[i]) * LOAD(x[i]);
    return (REAL)(1 / sqrt((double)sum / (double)K + eps));
}

/* x [N tokens, step], y [N, H, K], cos and sin [N, R / 2]. */
void NAME(rotary)(const KIND *x, const REAL *cos, const REAL *sin, KIND *y, double eps, int64_t N, int64_t H, int64_t K,
                  int64_t R, int64_t step) {
    const int64_t half = R / 2;
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
    for (int64_t n = 0; n < N; n++) {
        const REAL *restrict c = cos + n * half, *restrict s = sin + n * half;
        for (int64_t h = 0; h < H; h++) {
            const KIND *restrict in = x + n * step + h * K;
            KIND *restrict out = y + (n * H + h) * K;
            const REAL scale = NAME(scale_of)(in, K, eps);
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                const REAL a = LOAD(in[i]) * scale, b = LOAD(in[i + half]) * scale;
                out[i] = STORE(a * c[i] - b * s[i]);
                out[i + half] = STORE(a * s[i] + b * c[i]);
            }
            for (int64_t i = R; i < K; i++) out[i] = STORE(LOAD(in[i]) * scale);
        }
    }
}

/* grad and x_grad [N, H, K]. */
void NAME(rotary_back)(const KIND *x, const REAL *cos, const REAL *sin, const KIND *grad, KIND *x_grad, double eps,
                       int64_t N, int64_t H, int64_t K, int64_t R, int64_t step) {
    const int64_t half = R / 2;
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
    for (int64_t n = 0; n < N; n++) {
        const REAL *restrict c = cos + n * half, *restrict s = sin + n * half;
        for (int64_t h = 0; h < H; h++) {
            const KIND *restrict in = x + n * step + h * K, *restrict g = grad + (n * H + h) * K;
            KIND *restrict out = x_grad + (n * H + h) * K;
            const REAL scale = NAME(scale_of)(in, K, eps);
            REAL along = 0;
            if (eps >= 0) {
#pragma omp simd reduction(+ : along)
                for (int64_t i = 0; i < half; i++) {
                    const REAL p = LOAD(g[i]), q = LOAD(g[i + half]);
                    along += (p * c[i] + q * s[i]) * LOAD(in[i]) + (q * c[i] - p * s[i]) * LOAD(in[i + half]);
                }
                for (int64_t i = R; i < K; i++) along += LOAD(g[i]) * LOAD(in[i]);
            }
            const REAL pull = along * scale * scale * scale / (REAL)K;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                const REAL p = LOAD(g[i]), q = LOAD(g[i + half]);
                out[i] = STORE((p * c[i] + q * s[i]) * scale - LOAD(in[i]) * pull);
                out[i + half] = STORE((q * c[i] - p * s[i]) * scale - LOAD(in[i + half]) * pull);
            }
            for (int64_t i = R; i < K; i++) out[i] = STORE(LOAD(g[i]) * scale - LOAD(in[i]) * pull);
        }
    }
}

#endif
