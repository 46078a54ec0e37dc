/* silu(gate) * up of rows [gate, up], one pass over memory each way. */

#ifndef KIND

#define SELF "swiglu/swiglu.c"
#include "../each_kind.h"

#else

/* in [N, 2 H], out [N, H]. */
void NAME(swiglu)(const KIND *in, KIND *out, int64_t N, int64_t H) {
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
    for (int64_t n = 0; n < N; n++) {
        const KIND *restrict gate = in + 2 * n * H, *restrict up = gate + H;
        KIND *restrict y = out + n * H;
#pragma omp simd
        for (int64_t h = 0; h < H; h++) {
            const REAL g = LOAD(gate[h]);
            y[h] = STORE(g / (1 + EXP(-g)) * LOAD(up[h]));
        }
    }
}

void NAME(swiglu_back)(const KIND *in, const KIND *grad, KIND *in_grad, int64_t N, int64_t H) {
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
    for (int64_t n = 0; n < N; n++) {
        const KIND *restrict gate = in + 2 * n * H, *restrict up = gate + H, *restrict slope = grad + n * H;
        KIND *restrict gate_grad = in_grad + 2 * n * H, *restrict up_grad = gate_grad + H;
#pragma omp simd
        for (int64_t h = 0; h < H; h++) {
            const REAL g = LOAD(gate[h]), u = LOAD(up[h]), s = LOAD(slope[h]);
            const REAL sigmoid = 1 / (1 + EXP(-g));
            gate_grad[h] = STORE(s * u * sigmoid * (1 + g * (1 - sigmoid)));
            up_grad[h] = STORE(s * g * sigmoid);
        }
    }
}

#endif
