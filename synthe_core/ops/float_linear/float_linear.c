// y = W x of a float matrix: see float_linear.h.
#include "float_linear.h"

void float_linear(const void *w, const float *x, float *y, int64_t stored, int64_t rows, int64_t columns, int64_t outputs) {
    stored_product(w, stored, columns, x, rows, columns, outputs, y, outputs);
}
