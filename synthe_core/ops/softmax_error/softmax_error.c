/* Cross-entropy of rows of logits and its gradient, in place: a row stays in the cache for all of it.

   KIND is how logits are stored; REAL is what they are computed in. */

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
#include "softmax_error.c"
#undef KIND
#undef LOAD
#undef STORE
#undef NAME
#define KIND bfloat16
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define NAME(function) function##_bfloat16
#include "softmax_error.c"
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
#include "softmax_error.c"

#else

/* logits [N, V] become softmax - onehot(label), or zeros in rows whose label is negative; losses [N] in nats. */
void NAME(softmax_error)(KIND *logits, const int64_t *labels, REAL *losses, int64_t N, int64_t V) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        KIND *restrict row = logits + n * V;
        const int64_t label = labels[n];
        if (label < 0) {
            for (int64_t v = 0; v < V; v++) row[v] = STORE((REAL)0);
            losses[n] = 0;
            continue;
        }
        REAL largest = LOAD(row[0]), sum = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t v = 0; v < V; v++) {
            const REAL x = LOAD(row[v]);
            largest = x > largest ? x : largest;
        }
        const REAL answer = LOAD(row[label]);
#pragma omp simd reduction(+ : sum)
        for (int64_t v = 0; v < V; v++) sum += EXP(LOAD(row[v]) - largest);
        const REAL inverse = 1 / sum;
        losses[n] = (REAL)log((double)sum) + largest - answer;
        const REAL right = EXP(answer - largest) * inverse - 1;
#pragma omp simd
        for (int64_t v = 0; v < V; v++) row[v] = STORE(EXP(LOAD(row[v]) - largest) * inverse);
        row[label] = STORE(right);
    }
}

#endif
