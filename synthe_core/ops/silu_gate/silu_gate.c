/* value * silu(gate), one pass over memory each way.

   Values are REAL, gates and results KIND. A row of the gate may be a slice of a wider projection: rows are `step` apart. */

#ifndef KIND

#define SELF "silu_gate/silu_gate.c"
#include "../each_kind.h"

#else

/* value and out [N, D], gate [N, step]. */
void NAME(silu_gate)(const REAL *value, const KIND *gate, KIND *out, int64_t N, int64_t D, int64_t step) {
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
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
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
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
