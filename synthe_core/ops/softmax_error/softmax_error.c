/* Cross-entropy of rows of logits and its gradient, in place: a row stays in the cache for all of it. */

#ifndef KIND

#define SELF "softmax_error/softmax_error.c"
#include "../each_kind.h"

#else

/* logits [N, V] become softmax - onehot(label), or zeros in rows whose label is negative; losses [N] in nats. */
void NAME(softmax_error)(KIND *logits, const int64_t *labels, REAL *losses, int64_t N, int64_t V) {
#pragma omp parallel for schedule(static) if (N > 8) /* waking threads costs more than a few rows */
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
