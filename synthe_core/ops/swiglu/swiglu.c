/* silu(gate) * up of rows [gate, up], one pass over memory each way.

   KIND is how values are stored; REAL is what they are computed in. */

#ifndef KIND

#include <math.h>
#include <stdint.h>

#include "../bfloat16.h"
#include "../exponential.h"

#define SAME(x) (x)

#define KIND float
#define REAL float
#define EXP exp_float
#define LOAD SAME
#define STORE SAME
#define NAME(function) function##_float
#include "swiglu.c"
#undef KIND
#undef LOAD
#undef STORE
#undef NAME
#define KIND bfloat16
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define NAME(function) function##_bfloat16
#include "swiglu.c"
#undef KIND
#undef REAL
#undef EXP
#undef LOAD
#undef STORE
#undef NAME
#define KIND double
#define REAL double
#define EXP exp
#define LOAD SAME
#define STORE SAME
#define NAME(function) function##_double
#include "swiglu.c"

#else

/* in [N, 2 H], out [N, H]. */
void NAME(swiglu)(const KIND *in, KIND *out, int64_t N, int64_t H) {
#pragma omp parallel for schedule(static)
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
#pragma omp parallel for schedule(static)
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
