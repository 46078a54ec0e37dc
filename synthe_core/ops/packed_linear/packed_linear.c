// y = W x of a packed matrix: see packed_linear.h.
#include "packed_linear.h"

void quantize_rows(const float *x, int8_t *codes, float *scales, float *sums, int32_t *counts, int64_t rows,
                   int64_t columns, int64_t blocks) {
#pragma omp parallel for schedule(static) if (rows > 8)
    for (int64_t r = 0; r < rows; r++)
        quantize_row(x + r * columns, columns, blocks, codes + r * blocks * BLOCK, scales + r * blocks, sums + r * blocks,
                     counts + r * blocks * 2);
}

void packed_linear(const uint8_t *codes, const uint16_t *scales, const uint16_t *offsets, const int8_t *x_codes,
                   const float *x_scales, const float *x_sums, const int32_t *x_counts, float *y, double factor,
                   int64_t rows, int64_t outputs, int64_t blocks, int64_t bits, int64_t parts) {
    matrix w = {codes, scales, offsets, (float)factor, outputs, blocks, bits, parts, blocks};
    input x = {x_codes, x_scales, x_sums, x_counts};
    product(&w, &x, rows, y, outputs, NULL, 0);
}
