// y += s B A x of many rows, each with its own adapter: see low_rank.h.
#include "low_rank.h"

// x [count, each, inputs], y [count, each, outputs]; numbers [count]: of a change, or -1. rank: the largest.
void add_low_rank(const change *changes, const int64_t *numbers, const float *x, float *y, int64_t count, int64_t each,
                  int64_t inputs, int64_t outputs, int64_t rank) {
#pragma omp parallel for schedule(static) if (count * each > 1)
    for (int64_t r = 0; r < count * each; r++) {
        int64_t number = numbers[r / each];
        float narrow[rank];
        if (number >= 0) adapt(changes + number, x + r * inputs, inputs, outputs, y + r * outputs, narrow);
    }
}
