/* value * silu(gate), one pass over memory each way.

   REAL is what values are stored and all is computed in, KIND how gates and results are stored. A row of the gate may
   be a slice of a wider projection: rows are `step` apart there. */

#ifndef KIND

#include <math.h>
#include <stdint.h>

#include "../bfloat16.h"
#include "../exponential.h"

#define SAME(x) (x)

#define REAL float
#define EXP exp_float
#define KIND float
#define LOAD SAME
#define STORE SAME
#define NAME(function) function##_float
#include "silu_gate.c"
#undef KIND
#undef LOAD
#undef STORE
#undef NAME
#define KIND bfloat16
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define NAME(function) function##_bfloat16
#include "silu_gate.c"
#undef REAL
#undef EXP
#undef KIND
#undef LOAD
#undef STORE
#undef NAME
#define REAL double
#define EXP exp
#define KIND double
#define LOAD SAME
#define STORE SAME
#define NAME(function) function##_double
#include "silu_gate.c"

#else

/* value and out [N, D], gate [N, step]. */
void NAME(silu_gate)(const REAL *value, const KIND *gate, KIND *out, int64_t N, int64_t D, int64_t step) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const REAL *restrict v = value + n * D;
        const KIND *restrict opened = gate + n * step;
        KIND *restrict y = out + n * D;
#pragma omp simd
        for (int64_t d = 0; d < D; d++) {
            const REAL g = LOAD(opened[d]);
            y[d] = STORE(v[d] * g / (1 + EXP(-g)));
        }
    }
}

/* grad, value_grad and gate_grad [N, D]. */
void NAME(silu_gate_back)(const REAL *value, const KIND *gate, const KIND *grad, REAL *value_grad, KIND *gate_grad,
                          int64_t N, int64_t D, int64_t step) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const REAL *restrict v = value + n * D;
        const KIND *restrict opened = gate + n * step, *restrict slope = grad + n * D;
        REAL *restrict to_value = value_grad + n * D;
        KIND *restrict to_gate = gate_grad + n * D;
#pragma omp simd
        for (int64_t d = 0; d < D; d++) {
            const REAL g = LOAD(opened[d]), s = LOAD(slope[d]);
            const REAL sigmoid = 1 / (1 + EXP(-g));
            to_value[d] = s * g * sigmoid;
            to_gate[d] = STORE(s * v[d] * sigmoid * (1 + g * (1 - sigmoid)));
        }
    }
}

#endif
